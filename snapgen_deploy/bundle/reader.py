"""A bundle on disk: its manifest, its files and their hashes. `snapgen_deploy.job.staging` builds one."""

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
from snapgen_deploy.models.noise import GENERATORS, TORCH
from snapgen_deploy.models.schedule import Schedule, StepCoefficients
from snapgen_deploy.models.serialise import config_from_dict
from snapgen_deploy.plan.sizes import size_name
from snapgen_deploy.system.documents import in_one_line, several, shown
from snapgen_deploy.system.files import files_under, is_file, read_json, sha256_of, stays_inside

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # of OpenSSF model signing, over all other files
CONFORMANCE = "conformance.json"  # cases that an app's code is held to
GOLDEN = "golden.safetensors"  # golden vectors that the export was held to
RUN = "export_run.json"  # how this export went; not hashed, since it changes from run to run


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its path and its manifest. For example, to find a file:

    bundle = open_bundle(Path("bundles/shapes-iphone16pm"))
    decoder = bundle.artifacts("coreml")["decoder"].path  # bundles/shapes-iphone16pm/coreml/decoder.mlpackage
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the bundle's folder, even if the path is `.`."""
        return self.path.resolve().name

    @property
    def config(self) -> ModelConfig:
        """The configuration of the checkpoint that the bundle was made from."""
        return config_from_dict(self.manifest["config"], student_types())

    @property
    def schedule(self) -> Schedule:
        """The sampler's schedule."""
        s = self.manifest["schedule"]
        return Schedule(
            sigmas=tuple(s["sigmas"]),
            shift=s["shift"],
            time_features=s["time_features"]["count"],
            sampler=s["sampler"],
            timesteps=tuple(s.get("timesteps", ())),
            coefficients=tuple(StepCoefficients(*row) for row in s.get("coefficients", ())),
            start=s.get("start", 1.0),
        )

    @property
    def noise_generator(self) -> str:
        """What makes its noise from a seed; bundles of earlier releases describe torch's in words.

        Raises:
            BadInput: if the manifest names a generator that this release does not know.
        """
        said = self.manifest.get("noise")
        name = said.get("generator") if isinstance(said, dict) else TORCH
        if not isinstance(name, str) or name not in GENERATORS:
            raise BadInput(f"{self.name}: noise.generator: got {shown(name)}, expected one of {', '.join(GENERATORS)}")
        return name

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent."""
        channels, height, width = self.manifest["latent"]["shape"]
        return channels, height, width

    @property
    def width(self) -> str:
        """Name of the sub-network."""
        return str(self.manifest["width"])

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the picture, in pixels; the default size if there are several."""
        return self.manifest["resolution"][0], self.manifest["resolution"][1]

    @property
    def batch(self) -> int:
        """Pictures that a call of its files draws."""
        return int(self.manifest.get("batch", 1))

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the picture sizes, `<height>x<width>`, the default size first."""
        return tuple(s["name"] for s in self.manifest.get("sizes", ())) or (size_name(self.manifest["resolution"]),)

    def at(self, size: str | None) -> Bundle:
        """The bundle as if it held only one of its picture sizes; None means the default size.

        Raises:
            BadInput: if the bundle does not have this size.
        """
        if size is not None and size not in self.sizes:
            raise BadInput(f"{self.name} does not draw {size}: its sizes are {several(self.sizes)}")
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
        """The gate limits of one target; those of its precision if the manifest records none.

        Bundles of earlier releases have no `median_psnr`: the least picture was held to `psnr`, and so is the median.
        """
        target = self.manifest["targets"][key]
        recorded = dict(target.get("limits", {}))
        if "psnr" in recorded:
            recorded.setdefault("median_psnr", recorded["psnr"])
        return replace(PRECISIONS[target["precision"]].limits, **recorded)

    def artifacts(self, key: str) -> dict[Role, Artifact]:
        """The exported components of one target.

        Raises:
            BadInput: if the bundle does not hold this target.
        """
        if key not in self.targets:
            raise BadInput(f"{self.name} holds no target '{key}': it holds {several(self.targets)}")
        components = self.manifest["targets"][key]["components"]
        return {
            role: Artifact(key, role, self.path / c["path"], tuple(self.path / f for f in c["files"]), c.get("entry", ""))
            for role in components_of(self.config).names
            if (c := components.get(role)) is not None
        }

    def run(self) -> dict[str, Any] | None:
        """The record of the export's run (see `run_record`), or None if the bundle has none."""
        path = self.path / RUN
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def tokenizers(self) -> dict[Role, str]:
        """Contents of the bundle's tokenizer files, by text encoder. Encoders without a file are left out."""
        paths = {spec.name: self.path / spec.reads.file for spec in components_of(self.config).encoders}
        return {role: path.read_text(encoding="utf-8") for role, path in paths.items() if path.exists()}


def bundle_name(checkpoint: str, device: str) -> str:
    """Name of a bundle, for its folder and in measurements.

    >>> bundle_name("shapes", "iphone16pm")
    'shapes-iphone16pm'
    """
    return f"{checkpoint}-{device}"


def open_bundle(path: Path) -> Bundle:
    """Open a bundle, given by its folder or by its manifest.json, and check the manifest. `check_hashes` checks the hashes.

    Raises:
        BadInput: if the path is neither (with the bundles in a folder of bundles), or the manifest cannot be read, has another
            version or does not fit the schema.
    """
    if path.name == MANIFEST and is_file(path):
        path = path.parent
    manifest = path / MANIFEST
    if not is_file(manifest):
        raise BadInput(f"{path} is not a bundle: {_instead(path)}")
    data = read_json(manifest, "export the bundle again")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{manifest}: got schema_version {version}, expected {SCHEMA_VERSION}; use the tool that wrote the bundle"
        )
    refuse_misshapen(manifest, data)
    return Bundle(path, data)


def _instead(path: Path) -> str:
    """Why a path is not a bundle, and what to give or do instead."""
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
    """Check that the bundle holds exactly the exported files, unchanged, and that SHA256SUMS and manifest agree.

    Raises:
        GateFailed: if a file is missing, changed, not listed, listed twice or not a plain file; lists the first ones.
    """
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
    # links to folders are not followed, so that files behind one would go unchecked
    strange = (p for p in bundle.path.rglob("*") if not p.is_file() and (p.is_symlink() or not p.is_dir()))
    wrong += [f"no plain file {p.relative_to(bundle.path).as_posix()}" for p in sorted(strange)]
    outside = (p for p in bundle.path.rglob("*") if p.is_symlink() and p.is_file() and not stays_inside(p, bundle.path))
    wrong += [f"a link that leaves the bundle {p.relative_to(bundle.path).as_posix()}" for p in sorted(outside)]
    unlisted = (bundle.path / SUMS, bundle.path / RUN, bundle.path / SIGNATURE)
    there = {p.relative_to(bundle.path).as_posix(): p for p in files_under(bundle.path) if p not in unlisted}
    wrong += [f"missing {n}" for n in sorted(set(listed) - set(there))]
    wrong += [f"not listed {n}" for n in sorted(set(there) - set(listed))]
    wrong += [f"changed {n}" for n in sorted(set(there) & set(listed)) if sha256_of(there[n]) != listed[n]]
    recorded = digests(bundle.manifest)
    differ = (n for n in sorted({*recorded, *listed} - {MANIFEST}) if recorded.get(n) != listed.get(n))
    wrong += [f"differs from {MANIFEST} {n}" for n in differ]
    if wrong:
        raise GateFailed(in_one_line(f"{bundle.name} is not what was exported", wrong))


def digests(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes that the manifest itself records, by file."""
    components = [c for t in manifest["targets"].values() for c in t["components"].values()]
    tables = [manifest["files"], *(c["files"] for c in components)]
    return {name: data.get("sha256") if isinstance(data, dict) else None for table in tables for name, data in table.items()}


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, then SHA256SUMS over all files of the bundle except the record of the run."""
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
    lines = [
        f"{sha256_of(p)}  {p.relative_to(root).as_posix()}\n" for p in files_under(root) if p not in (root / RUN, root / SUMS)
    ]
    (root / SUMS).write_text("".join(lines), encoding="utf-8")
