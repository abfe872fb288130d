"""A package of a user's own, installed as pip does it: a record on the path, which names the project of an editable one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.docs.pages import ROOT

EXAMPLE = ROOT / "examples/postcard"
POSTCARD = "postcard_student.network:Postcard"


def install_record(site: Path, name: str, project: Path | None, top: str = "") -> None:
    """The record of a distribution in `site`: an editable install of `project`, else one that lists the package `top`."""
    folder = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (folder / "RECORD").write_text(f"{top}/__init__.py,,\n" if top else "")
    if project is not None:
        told = {"url": project.as_uri(), "dir_info": {"editable": True}}
        (folder / "direct_url.json").write_text(json.dumps(told))


def example_paths(site: Path) -> tuple[str, str]:
    """What `pip install -e examples/postcard` puts on the path."""
    install_record(site, "postcard-student", EXAMPLE)
    return str(site), str(EXAMPLE / "src")
