"""Classes of a user's own packages: only what an installed distribution has is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.distributions import installed_class
from tests.own_module import install_record

CODE = "class Net: ...\n"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("own_"):
            del sys.modules[name]


def package(root: Path, name: str, code: str = CODE) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(code)
    (folder / "parts.py").write_text("class Part: ...\n")
    sys.path.insert(0, str(root))
    return folder


def refused(name: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        installed_class(name)
    assert said in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_a_class_of_an_installed_package(tmp_path: Path) -> None:
    folder = package(tmp_path / "site", "own_a", "from own_a.parts import Part as Part\n")
    install_record(tmp_path / "site", "own-a", None, "own_a")
    found = installed_class("own_a:Part")
    assert (found.kind.__name__, found.distribution, found.version) == ("Part", "own-a", "0.1.0")
    assert found.file == folder / "parts.py"
    assert found.sources == (folder / "__init__.py", folder / "parts.py")


def test_a_class_of_an_editable_install(tmp_path: Path) -> None:
    package(tmp_path / "project/src", "own_b")
    install_record(tmp_path / "site", "own-b", tmp_path / "project")
    refused("own_b:Net", "own_b is of no installed distribution")
    sys.path.insert(0, str(tmp_path / "site"))
    assert installed_class("own_b:Net").distribution == "own-b"


def test_what_is_of_no_distribution_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "loose", "own_c", "raise SystemExit('it ran')\n")
    refused(
        "own_c:Net", "own_c is of no installed distribution; install your package, for example with `pip install -e FOLDER`"
    )
    install_record(tmp_path / "loose", "own-c", None, "own_c")
    monkeypatch.chdir(tmp_path / "loose")  # a record in the working directory is no installation
    refused("own_c:Net", "is of no installed distribution")
    monkeypatch.chdir(tmp_path)
    refused("own_c:Net", "own_c cannot be imported (it ran)")


def test_bad_names(tmp_path: Path) -> None:
    for name in ("torch", "torch.nn:", "../net.py:Net", "a b:Net", ":Net"):
        refused(name, "expected package.module:Class")
    refused("own_nowhere.net:Net", "there is no package own_nowhere; install yours")
    for name in ("os:PathLike", "sys:intern", "json:JSONDecoder"):  # Python's own: frozen, built in, of files
        refused(name, "is of no installed distribution")
    package(tmp_path / "site", "own_d", "import os\nNet = 3\nPath = os.PathLike\n")
    install_record(tmp_path / "site", "own-d", None, "own_d")
    refused("own_d:Net", "own_d has no class Net")
    refused("own_d.other:Net", "own_d.other cannot be imported (No module named 'own_d.other')")
    refused("own_d:Path", "is of no installed distribution")  # it comes from elsewhere
