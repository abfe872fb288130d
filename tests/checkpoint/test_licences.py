"""Licence fields and model cards that forbid to pass a model on."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.checkpoint.licences import (
    licences_line,
    licences_of,
    refuse_forbidden,
    refuse_unknown,
    spdx,
    spdx_expression,
)
from tests.checkpoint.cases import refused

MIT = "Permission is hereby granted ... without limitation the rights to use, copy, modify, merge, publish, distribute"


@pytest.mark.parametrize(
    ("license", "said"),
    [
        ("Research only, no redistribution", "no redistribution"),
        ("Weights may not be distributed", "may not be distributed"),
        ("ACME proprietary", "proprietary"),
        ("Redistribution of the weights is prohibited.", "prohibited"),
        ("Apache-2.0", ""),
        ("cc-by-nc-4.0", ""),
        (MIT, ""),
        (None, ""),
    ],
)
def test_licences(license: str | None, said: str) -> None:
    if not said:
        refuse_forbidden(license, ())
        return
    refused(lambda: refuse_forbidden(license, ()), said, "forbids to pass it on", "--license")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: other\nextra_gated_prompt: Accept!\n---\n# Model", "a gated model (extra_gated_prompt)"),
        ("---\ngated: manual\n---\n", "a gated model (gated)"),
        ("---\nlicense: other\nlicense_name: acme-no-redistribution\n---\n", "forbids to pass it on"),
        ("---\ngated: false\nlicense: mit\n---\nThis is not for distribution.", ""),
        ("# Model\nextra_gated_prompt: x", ""),
    ],
)
def test_model_cards(card: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    if not said:
        refuse_forbidden("MIT", (tmp_path,))
        return
    refused(lambda: refuse_forbidden("MIT", (tmp_path,)), str(tmp_path / "README.md"), said, "--license")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: 'mit'  # as the code\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: acme-1\nlicense_link: x\n---\n", "acme-1"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense:\n- mit\n---\n", None),
        ("license: mit", None),
        ("", None),
    ],
)
def test_a_component_has_the_licence_of_its_own_folder(card: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    folders = {"text_encoder": [tmp_path]}
    found = licences_of(("text_encoder", "student"), "MIT", [tmp_path / "none"], folders)
    assert found == {"text_encoder": said, "student": "MIT"}
    for stated in (None, "", "other", "Unknown"):
        assert licences_of(("student",), stated, [tmp_path / "none", tmp_path], {}) == {"student": said}
    if said is None:
        refused(lambda: refuse_unknown(found), "text_encoder: no licence is stated", "--license Apache-2.0")
    else:
        refuse_unknown(found)


def test_spdx() -> None:
    assert spdx("apache-2.0") == "Apache-2.0"
    assert spdx("mit or (apache-2.0 and bsd-3-clause)") == "MIT OR (Apache-2.0 AND BSD-3-Clause)"
    for text in ("openrail", "ask us first", "", "(" * 200, "MIT AND " * 100_000):
        assert (spdx(text), spdx_expression(text)) == (text, None)


def test_the_line_for_people() -> None:
    assert licences_line({"student": "MIT", "decoder": "MIT"}) == "MIT"
    assert licences_line({"student": "MIT", "decoder": None}) == "student: MIT, decoder: not stated"
