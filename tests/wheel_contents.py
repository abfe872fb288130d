"""`python tests/wheel_contents.py DIR`: the wheel in DIR holds one top-level package and everything it needs, and asks for no
other package unless an extra is named.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "snapgen_deploy/py.typed",
    "snapgen_deploy/command/__init__.py",
    "snapgen_deploy/export/registry.py",
    "snapgen_deploy/export/onnx/attention_times.json",
    "snapgen_deploy/device_profiles/iphone16pm.toml",
    "snapgen_deploy/latency/__init__.py",
    "snapgen_deploy/latency/links/iphone_runner/RunnerTests/RunnerTests.swift",
    "snapgen_deploy/apps/page/core.mjs",
    "snapgen_deploy/apps/android/core/src/main/kotlin/snapgen/core/Bundle.kt",
    "snapgen_deploy/apps/ios/Sources/SnapGenCore/Bundle.swift",
    "snapgen_deploy/report/page.html.j2",
    "snapgen_deploy/assets/shapes.safetensors",
    "snapgen_deploy/assets/shapes_fidelity.txt",
    "snapgen_deploy/assets/shapes_calibration.txt",
)


def main(directory: Path) -> int:
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (about,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        requirements = [line for line in files.read(about).decode().splitlines() if line.startswith("Requires-Dist: ")]
    asked = [line for line in requirements if "extra ==" not in line]
    stray = {n.split("/")[0] for n in names if not n.startswith("snapgen_deploy") and ".dist-info/" not in n}
    missing = [n for n in NEEDED if n not in names]
    if stray or missing or asked:
        print(f"{wheel.name}: stray top-level entries {sorted(stray)}, missing files {missing}, asks for {asked}")
        return 1
    print(f"{wheel.name}: {len(names)} files, one top-level package")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
