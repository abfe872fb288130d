"""The web app: one static site that draws with a bundle's files for browsers in a browser. `docs/web.md` describes it."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from snapgen_deploy import __version__
from snapgen_deploy.apps.npm import HF_TOKENIZERS, ONNXRUNTIME_WEB, NpmPackage, package_files
from snapgen_deploy.apps.parts import AppFiles, refuse_undrawable, runners_of, used_files, write_files
from snapgen_deploy.apps.registry import App
from snapgen_deploy.bundle.reader import MANIFEST, Bundle
from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.files import sha256_of

_NAME = "web"
(TARGET,) = runners_of(_NAME)
FIRST_PAGE = "index.html"
# `wasm-unsafe-eval` compiles WebAssembly, and nothing else. Scripts and styles are files of the site; none is inline.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
_LIBRARY = "lib"  # folder of foreign packages' files in the site
_PAGE = ("style.css", "main.mjs", "worker.mjs", "core.mjs", "icon.svg")  # copied as they are
_RUNTIMES: Mapping[str, Mapping[str, str]] = {  # builds of onnxruntime-web; that for WebGPU is slower on the processor
    "wasm": {"script": "ort.wasm.min.mjs", "glue": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm"},
    "webgpu": {
        "script": "ort.webgpu.min.mjs",
        "glue": "ort-wasm-simd-threaded.asyncify.mjs",
        "wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    },
}
_PACKAGES: tuple[NpmPackage, ...] = (ONNXRUNTIME_WEB, HF_TOKENIZERS)


@dataclass(frozen=True)
class Site:
    """All files of a site by their path in it: a file elsewhere, or the content."""

    files: AppFiles

    def write(self, folder: Path) -> None:
        """Copy everything into a folder."""
        write_files(self.files, folder)


def get_packages(archives: Path | None) -> dict[str, Path]:
    """The foreign files of a site, by their path in it.

    Raises:
        BadInput: if a package cannot be had.
    """
    found = [package_files(package, archives) for package in _PACKAGES]
    return {f"{_LIBRARY}/{Path(name).name}": path for files in found for name, path in files.items()}


def site_of(bundle: Bundle, archives: Path | None = None) -> Site:
    """The site for a bundle.

    Args:
        bundle: With the target `onnx:web`.
        archives: A folder with the archives of foreign packages; None: they come from the cache or the network.

    Raises:
        BadInput: if a page cannot draw with the bundle, or a package cannot be had.
    """
    _refuse_undrawable(bundle)
    files: dict[str, Path | bytes] = dict(sorted(get_packages(archives).items()))
    foreign = {name: _entry(content) for name, content in files.items()}
    files |= {name: _page(name).encode() for name in _PAGE}
    files[FIRST_PAGE] = _page(FIRST_PAGE, TITLE=html.escape(str(bundle.manifest["name"])), POLICY=html.escape(POLICY)).encode()
    inside = [MANIFEST, *sorted(used_files(bundle, TARGET))]
    files |= {f"bundle/{name}": bundle.path / name for name in inside}
    hashes = {name: _entry(content)["sha256"] for name, content in files.items() if not name.startswith("bundle/")}
    manifest = _entry(bundle.path / MANIFEST)
    digest = hashlib.sha256("".join(f"{h}  {n}\n" for n, h in (*hashes.items(), (MANIFEST, manifest["sha256"]))).encode())
    version = digest.hexdigest()[:16]
    about = {
        "target": TARGET,
        "cache": version,
        "onnxruntime": ONNXRUNTIME_WEB.version,
        "runtimes": {k: {part: f"{_LIBRARY}/{name}" for part, name in names.items()} for k, names in _RUNTIMES.items()},
        "bundle": manifest,
        "files": foreign,
    }
    files["site.json"] = (json.dumps(about, indent=1) + "\n").encode()
    shell = {n: h for n, h in hashes.items() if not n.endswith(".wasm")} | {"site.json": _entry(files["site.json"])["sha256"]}
    listed = json.dumps(dict(sorted(shell.items())), indent=1)
    files["sw.js"] = _page("sw.js", SITE=version).replace("/*@SHELL@*/ {}", listed).encode()
    files["README.md"] = _page("README.md", **_told(bundle)).encode()
    return Site(files)


def _page(name: str, **words: str) -> str:
    """A file of the page, with words put into their places."""
    text = (resources.files("snapgen_deploy.apps") / "page" / name).read_text(encoding="utf-8")
    for place, word in words.items():
        text = text.replace(f"@{place}@", word)
    return text


def _told(bundle: Bundle) -> dict[str, str]:
    packages = ", ".join(f"{p.name} {p.version} ({p.license})" for p in _PACKAGES)
    return {
        "TITLE": str(bundle.manifest["name"]),
        "PRECISION": bundle.precision(TARGET),
        "VERSION": __version__,
        "POLICY": POLICY,
        "PACKAGES": packages,
    }


def _entry(content: Path | bytes) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {"bytes": content.stat().st_size, "sha256": sha256_of(content)}


def _refuse_undrawable(bundle: Bundle) -> None:
    """BadInput for a bundle that a page cannot draw with."""
    if TARGET not in bundle.targets:
        raise BadInput(f"{bundle.name} holds no {TARGET}, which a page draws with: export with --device web")
    refuse_undrawable(bundle, "a page")


def _write(bundle: Bundle, target: str, folder: Path, archives: Path | None) -> None:
    site_of(bundle, archives).write(folder)


WEB_APP = App(_NAME, (TARGET,), "site.json", get_packages, _write)
