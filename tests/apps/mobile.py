"""A bundle as a phone would have it, from that for browsers: the same ONNX files, under the key `onnx:cpu`."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from snapgen_deploy.bundle.reader import CONFORMANCE, MANIFEST


def as_mobile(bundle: Path, folder: Path) -> None:
    """Copy a bundle of `onnx:web` into an empty folder."""
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    cases = (folder / CONFORMANCE).read_text(encoding="utf-8").replace('"onnx:web"', '"onnx:cpu"')
    (folder / CONFORMANCE).write_text(cases, encoding="utf-8")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8").replace('"onnx:web"', '"onnx:cpu"'))
    manifest["files"][CONFORMANCE] = {"bytes": len(cases.encode()), "sha256": hashlib.sha256(cases.encode()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
