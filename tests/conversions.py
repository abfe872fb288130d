"""Conversions that tests share: the same component of the same checkpoint is converted once in a run, by the real converter.

What is under test in a command is what it does with converted files. Tests of the conversion itself use the fixture
`converted_anew`, or convert below the command line.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.job import convert
from snapgen_deploy.job.cache import ExportCache
from snapgen_deploy.job.convert import ComponentTask, export_in_child
from snapgen_deploy.job.ingredients import Ingredients
from snapgen_deploy.job.records import Exported

PLACE = "SNAPGEN_TESTS_CONVERSIONS"  # a variable, since conversions run in child processes


def export_once(task: ComponentTask) -> Exported:
    """As `export_in_child`, or the files that it wrote for the same task before."""
    if PLACE not in os.environ:
        return export_in_child(task)
    store = ExportCache(Path(os.environ[PLACE]))
    key = Ingredients(task.checkpoint.open(), task.calibration, task.recipe).key(task.plan, task.target, task.role)
    known = store.take(key, task.target.key, task.role, task.directory) if store.has(key) else None
    if known is not None:
        return replace(known, cached=False)
    made = export_in_child(task)
    aside = store.prepare(task.directory, made)
    assert aside is not None, store.notes
    store.commit(key, aside)
    return made


def share(patch: pytest.MonkeyPatch, place: Path) -> None:
    """Have all exports take part."""
    patch.setenv(PLACE, str(place))
    patch.setattr(convert, "export_in_child", export_once)


@pytest.fixture
def converted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's exports convert everything themselves."""
    monkeypatch.delenv(PLACE, raising=False)
