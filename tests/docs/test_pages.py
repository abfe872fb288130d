"""The pages: links that resolve, tables that are what the code says, options that exist, a front page that stays short."""

import dataclasses
import json
import re

import pytest
import typer

from snapgen_deploy.cli import app
from snapgen_deploy.export.registry import specs
from snapgen_deploy.families.registry import FAMILIES, student_types
from snapgen_deploy.models import DecoderConfig, DiTConfig, ModelConfig, TextEncoderConfig
from snapgen_deploy.models.serialise import config_from_dict
from tests.docs.pages import PAGES, ROOT, anchors, blocks, code_spans, links, text_of
from tests.docs.tables import filled

COMMANDS = typer.main.get_command(app).commands


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    for target in links(page):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{named(page)}: {target}"
        assert found.is_relative_to(ROOT), f"{named(page)}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(found), f"{named(page)}: {target}: no such heading, there are {sorted(anchors(found))}"


def test_every_page_is_in_the_index():
    indices = (ROOT / "docs/README.md", ROOT / "docs/targets/README.md")
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in indices for link in links(page) if ":" not in link}
    assert set(PAGES) - linked - {indices[0]} == set()


def test_the_front_page_is_short():
    assert len(text_of(ROOT / "README.md").split()) <= 900


def test_front_pages_name_every_target_and_what_every_family_takes():
    text = text_of(ROOT / "README.md")
    rows = re.findall(r"^\| \[`([^`]+)`\]", text, re.MULTILINE)
    assert set(rows) == {spec.key for spec in specs().values()}
    checked = text_of(ROOT / "docs/targets/README.md").partition("## What is checked")[2]
    assert set(re.findall(r"^\| `([^`]+)` \|", checked, re.MULTILINE)) >= {spec.key for spec in specs().values()}
    said = {
        "elastic-dit": "elastic DiT",
        "unet": "SnapGen's U-Net",
        "diffusers": "as diffusers saves it",
        "module": "your own class",
    }
    assert said.keys() == FAMILIES.keys()
    fits = text.partition("**It fits**")[2].partition("**It does not fit**")[0]
    assert [name for name, words in said.items() if words not in fits] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_generated_tables_are_what_the_code_says(page):
    assert text_of(page) == filled(text_of(page)), "run `python -m tests.docs.tables`"


def options_of(command):
    return {"--help"} | {name for parameter in COMMANDS[command].params for name in parameter.opts}


EVERY_OPTION = {name for command in COMMANDS for name in options_of(command)}


@pytest.mark.parametrize("page", [p for p in PAGES if not p.is_relative_to(ROOT / "benchmarks")], ids=named)
def test_options_in_running_text_exist(page):
    """Of our commands: `export --width small`, `--width small`; not of other programs."""
    for span in code_spans(page):
        first = span.removeprefix("snapgen-deploy ").partition(" ")[0]
        known = options_of(first) if first in COMMANDS else EVERY_OPTION
        if first in COMMANDS or span.startswith("--"):
            wrong = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", span)) - known
            assert not wrong, f"{named(page)}: `{span}`"


def test_the_example_configuration_is_one():
    (example,) = blocks(ROOT / "docs/own-checkpoint.md", "json")
    config = config_from_dict(json.loads(example)["snapgen_config"], student_types())
    assert config.student.grid_problems(config.resolution[0] // 8, config.resolution[1] // 8) == []


def test_every_field_of_the_configuration_is_explained():
    explained = set(code_spans(ROOT / "docs/own-checkpoint.md"))
    for part in (ModelConfig, DiTConfig, DecoderConfig, TextEncoderConfig):
        assert {f.name for f in dataclasses.fields(part)} - explained == set()


def code():
    """The text of all modules of the package."""
    tops = ("snapgen_deploy", "export", "device_profiles", "latency")
    return "\n".join(path.read_text(encoding="utf-8") for top in tops for path in (ROOT / top).rglob("*.py"))


def test_the_walk_through_an_export_uses_the_names_of_the_code():
    walk = text_of(ROOT / "docs/architecture.md").partition("## One export")[2].partition("\n## ")[0]
    names = {name for name in re.findall(r"`([A-Za-z_.]+)`", walk) if ("." not in name and "_" in name) or name[:1].isupper()}
    defined = set(re.findall(r"^ *(?:def|class) (\w+)", code(), re.MULTILINE))
    assert len(names) > 20
    assert {part for name in names for part in name.split(".")} - defined == set()


def test_quoted_errors_are_in_the_code():
    """Of docs/troubleshooting.md: the longest piece of each message between what changes."""
    table = text_of(ROOT / "docs/troubleshooting.md").partition("## Common errors")[2].partition("\n## ")[0]
    quoted = re.findall(r"^\| `(.*?)`", table, re.MULTILINE)
    assert len(quoted) > 5
    found = code()
    for message in quoted:
        piece = max(re.split(r"…|\b[NMX]\b|\bFILE\b", message), key=len).strip(" :")
        assert piece in found, message
