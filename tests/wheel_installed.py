"""`ENV/bin/python tests/wheel_installed.py EXTRA [BUNDLE PROMPT SEED PICTURE]`: what an installed wheel brings, and does.

EXTRA is `nothing`, where the command and `open_bundle` say in one line what to install; `runtime`, where torch is not there and
`open_bundle` draws the picture that `generate` drew of the bundle; or `export`, where it does so, too.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import snapgen_deploy

_SHOWN = 6  # packages
_CLOSE = 1  # values of 0 ... 255: another processor may round otherwise


def check_command() -> None:
    """The command names the extra that it needs in one line, and ends with 2."""
    command = Path(sys.executable).with_name("snapgen-deploy")
    done = subprocess.run([command, "export", "--device", "iphone16pm"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), (done.returncode, done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: snapgen-deploy needs packages that are not installed ("), line
    assert line.endswith('): python -m pip install "snapgen-deploy[export]"'), line
    print(line)


def check_refusal() -> None:
    """Without its packages `open_bundle` says what to install."""
    said = ""
    try:
        _ = snapgen_deploy.open_bundle
    except ImportError as error:
        said = str(error)
    assert said.endswith('): python -m pip install "snapgen-deploy[runtime]"'), said
    print(said)


def check_picture(bundle: Path, prompt: str, seed: int, drawn: Path) -> None:
    """It draws what `generate` drew."""
    import numpy as np
    from PIL import Image

    opened, told = snapgen_deploy.open_bundle(bundle), list[tuple[int, int]]()
    picture = opened.draw(prompt, seed, progress=lambda done, count: told.append((done, count)))
    expected = np.asarray(Image.open(drawn).convert("RGB")).astype(int)
    apart = np.abs(picture.pixels - expected)
    assert told[-1][0] == told[-1][1], told
    assert apart.max() <= _CLOSE, apart.max()
    print(
        f"{opened.target}: {np.count_nonzero(apart)} of {apart.size} values differ from what `generate` drew, by {apart.max()}"
    )


def sizes() -> dict[str, int]:
    """Bytes of the files of every installed package, without compiled ones."""
    places = {d.name: [Path(str(d.locate_file(f))) for f in d.files or ()] for d in metadata.distributions()}
    return {name: sum(p.stat().st_size for p in paths if p.is_file() and p.suffix != ".pyc") for name, paths in places.items()}


def main(extra: str, *words: str) -> int:
    if extra != "export":
        check_command()
        assert util.find_spec("torch") is None, "torch is installed"
    if extra == "nothing":
        check_refusal()
    else:
        bundle, prompt, seed, picture = words
        check_picture(Path(bundle), prompt, int(seed), Path(picture))
    found = {name: size for name, size in sizes().items() if name not in ("pip", "setuptools")}
    largest = sorted(found.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in largest[:_SHOWN])
    print(f"{extra}: {len(found)} packages, {sum(found.values()) / 1e6:.0f} MB; the largest: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
