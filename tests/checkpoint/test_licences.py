"""Licence fields and model cards that forbid to pass a model on."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapgen_deploy.checkpoint.licences import refuse_forbidden
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
