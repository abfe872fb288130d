"""The bundle on disk: its manifest, its files and their hashes. `staging` builds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.schema import refuse_misshapen
from snapgen_deploy.bundle.sizes import at_size, vectors_name
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.export.base import Artifact, Role
from snapgen_deploy.export.precisions import PRECISIONS, Limits
from snapgen_deploy.families.registry import components_of, student_types
from snapgen_deploy.models import ModelConfig
from snapgen_deploy.models.schedule import Schedule
from snapgen_deploy.models.serialise import config_from_dict
from snapgen_deploy.plan.sizes import size_name
from snapgen_deploy.system.files import files_under, is_file, read_json, sha256_of

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
RUN = "export_run.json"  # how this export went; not hashed, since it changes from run to run


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is, and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its folder's name, also where the path is `.`."""
        return self.path.resolve().name

    @property
    def config(self) -> ModelConfig:
        """The configuration of the checkpoint that the bundle was made from."""
        return config_from_dict(self.manifest["config"], student_types())

    @property
    def schedule(self) -> Schedule:
        """The sampler's schedule."""
        s = self.manifest["schedule"]
        return Schedule(tuple(s["sigmas"]), s["shift"], s["time_features"]["count"], s["sampler"])

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height, width of the latent."""
        channels, height, width = self.manifest["latent"]["shape"]
        return channels, height, width

    @property
    def width(self) -> str:
        """Name of the sub-network."""
        return str(self.manifest["width"])

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the picture (of the default one where there are several)."""
        return self.manifest["resolution"][0], self.manifest["resolution"][1]

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the picture sizes, `<height>x<width>`, the default one first."""
        return tuple(s["name"] for s in self.manifest.get("sizes", ())) or (size_name(self.manifest["resolution"]),)

    def at(self, size: str | None) -> Bundle:
        """The bundle as if it held one of its sizes alone (None: the default one); BadInput that lists them for another."""
        if size is not None and size not in self.sizes:
            raise BadInput(f"{self.name} does not draw {size}: its sizes are {', '.join(self.sizes)}")
        if "sizes" not in self.manifest:
            return self
        return Bundle(self.path, at_size(self.manifest, size or self.sizes[0]))

    @property
    def test_vectors(self) -> Path:
        """The file of fixed inputs and expected outputs."""
        return self.path / vectors_name(self.manifest.get("vectors_of"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Target keys in the device profile's order."""
        return tuple(self.manifest["target_order"])

    def precision(self, key: str) -> str:
        """Precision of one target."""
        return str(self.manifest["targets"][key]["precision"])

    def limits(self, key: str) -> Limits:
        """What the files of one target are held to; of a bundle that does not say, what its precision is."""
        target = self.manifest["targets"][key]
        return replace(PRECISIONS[target["precision"]].limits, **target.get("limits", {}))

    def artifacts(self, key: str) -> dict[Role, Artifact]:
        """The exported components of one target."""
        if key not in self.targets:
            raise BadInput(f"{self.name} holds no target '{key}': it holds {', '.join(self.targets)}")
        components = self.manifest["targets"][key]["components"]
        return {
            role: Artifact(key, role, self.path / c["path"], tuple(self.path / f for f in c["files"]), c.get("entry", ""))
            for role in components_of(self.config).names
            if (c := components.get(role)) is not None
        }

    def run(self) -> dict[str, Any] | None:
        """What the export took (see `run_record`); None where a bundle has no such record."""
        path = self.path / RUN
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def tokenizers(self) -> dict[Role, str]:
        """Texts of the bundle's tokenizer files by text encoder; of those that it has."""
        paths = {spec.name: self.path / spec.reads.file for spec in components_of(self.config).encoders}
        return {role: path.read_text(encoding="utf-8") for role, path in paths.items() if path.exists()}


def bundle_name(checkpoint: str, device: str) -> str:
    """What a bundle is called, by the checkpoint's name and the device's id: its folder's name, and in measurements."""
    return f"{checkpoint}-{device}"


def open_bundle(path: Path) -> Bundle:
    """Read the manifest of a bundle, given by its folder or by the manifest itself; hashes are not checked here.

    Raises:
        BadInput: for anything else, with the bundles inside a folder of bundles.
    """
    if path.name == MANIFEST and is_file(path):
        path = path.parent
    manifest = path / MANIFEST
    if not is_file(manifest):
        raise BadInput(f"{path} is no bundle: {_instead(path)}")
    data = read_json(manifest, "export the bundle again")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{manifest}: got schema_version {version}, expected {SCHEMA_VERSION}; use the tool that wrote the bundle"
        )
    refuse_misshapen(manifest, data)
    return Bundle(path, data)


def _instead(path: Path) -> str:
    """Why a path is no bundle, and what to give or do instead."""
    try:
        if not path.exists():
            return "there is no such folder"
        if not path.is_dir():
            return f"it is a file; give the folder that holds {MANIFEST}"
        inside = sorted(str(place.parent) for place in path.glob(f"*/{MANIFEST}"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})") from None
    if len(inside) == 1:
        return f"the bundle inside it is {inside[0]}; give that"
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        return f"the bundles inside it are {', '.join(inside[:3])}{more}; give one of them"
    return f"it has no {MANIFEST}; make one with `snapgen-deploy export`"


def check_hashes(bundle: Bundle) -> None:
    """Every file is listed, there, and unchanged, and the manifest says the same; GateFailed with all that is not."""
    listed: dict[str, str] = {}
    sums = bundle.path / SUMS
    if not is_file(sums):
        raise GateFailed(f"{bundle.path} has no {SUMS}; export the bundle again")
    wrong = []
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        if name in listed:
            wrong.append(f"listed twice {name}")
        listed[name] = digest
    # a link to a folder is not followed, and what it shows would be checked by nobody
    strange = (p for p in bundle.path.rglob("*") if not p.is_file() and (p.is_symlink() or not p.is_dir()))
    wrong += [f"no plain file {p.relative_to(bundle.path).as_posix()}" for p in sorted(strange)]
    unlisted = (bundle.path / SUMS, bundle.path / RUN)
    there = {p.relative_to(bundle.path).as_posix(): p for p in files_under(bundle.path) if p not in unlisted}
    wrong += [f"missing {n}" for n in sorted(set(listed) - set(there))]
    wrong += [f"not listed {n}" for n in sorted(set(there) - set(listed))]
    wrong += [f"changed {n}" for n in sorted(set(there) & set(listed)) if sha256_of(there[n]) != listed[n]]
    said = _digests(bundle.manifest)
    wrong += [f"in {MANIFEST} otherwise {n}" for n in sorted({*said, *listed} - {MANIFEST}) if said.get(n) != listed.get(n)]
    if wrong:
        shown = "; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        raise GateFailed(f"{bundle.name} is not what was exported: {shown}")


def _digests(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest itself says of its files."""
    components = [c for t in manifest["targets"].values() for c in t["components"].values()]
    tables = [manifest["files"], *(c["files"] for c in components)]
    return {name: data.get("sha256") if isinstance(data, dict) else None for table in tables for name, data in table.items()}


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json and then SHA256SUMS over all files of the bundle but the record of the run."""
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
    lines = [
        f"{sha256_of(p)}  {p.relative_to(root).as_posix()}\n" for p in files_under(root) if p not in (root / RUN, root / SUMS)
    ]
    (root / SUMS).write_text("".join(lines), encoding="utf-8")
