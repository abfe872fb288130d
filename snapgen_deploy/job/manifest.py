"""Makes manifest.json: what a bundle holds, read back from its files, without anything that changes from run to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from snapgen_deploy import __version__
from snapgen_deploy.bundle.guidance import GUIDED, UNGUIDED, guidance_record
from snapgen_deploy.bundle.reader import GOLDEN, MANIFEST, SCHEMA_VERSION, SUMS
from snapgen_deploy.checkpoint import Checkpoint
from snapgen_deploy.checkpoint.licences import spdx
from snapgen_deploy.device_profiles.rollout import rollout
from snapgen_deploy.device_profiles.stores import delivery
from snapgen_deploy.drawing.ports import ports_of
from snapgen_deploy.drawing.reference import schedule_of
from snapgen_deploy.export.base import Role
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import compared_with
from snapgen_deploy.job.manifest_sizes import add_sizes
from snapgen_deploy.job.records import Exported
from snapgen_deploy.job.sizes import whole
from snapgen_deploy.job.state import ExportJob, Made
from snapgen_deploy.machines.registry import machine_of
from snapgen_deploy.models.noise import NOISE_DOC
from snapgen_deploy.models.schedule import LINEAR, Schedule
from snapgen_deploy.models.serialise import config_to_dict
from snapgen_deploy.plan.plan import TargetPlan
from snapgen_deploy.quantise.report import add_to_manifest
from snapgen_deploy.system.files import files_under, sha256_of

TIME_FEATURES_FORMULA = "concat(cos(a), sin(a)), a[i] = 1000 * sigma * exp(-ln(10000) * i / (count/2)), i = 0 ... count/2 - 1"


def manifest_of(job: ExportJob, made: Made) -> dict[str, Any]:
    """The manifest of the job's bundle as plain JSON data. The bundle's files must exist."""
    manifest = _of_default_size(job, made)
    if job.plan.other_sizes:
        add_sizes(manifest, job, made)
    if made.recipe.folder is not None:
        student = components_of(job.checkpoint.config).denoiser.name
        students = {key: parts[student].artifact for key, parts in made.parts.items()}
        add_to_manifest(manifest, job.plan, students, made.recipe.folder)
    return manifest


def _of_default_size(job: ExportJob, made: Made) -> dict[str, Any]:
    """The manifest of the default picture size; all that a bundle with one size has."""
    root, checkpoint, plan = job.stage.root, job.checkpoint, job.plan
    config, schedule = checkpoint.config, schedule_of(checkpoint.config)
    vectors, estimate = made.reference.vectors[plan.sizes[0]], job.speed_estimates[plan.sizes[0]]
    components, guidance = components_of(config), guidance_record(config, checkpoint.tokenizers)
    decoder, encoders, golden = components.decoder, components.encoders, job.golden
    targets = {t.key: _target(job, t, made.parts[t.key]) for t in plan.targets}
    fidelity = {key: target.judgement.record for key, target in made.targets.items()}
    owned = {name for t in targets.values() for c in t["components"].values() for name in c["files"]}
    common = {p.relative_to(root).as_posix(): p for p in files_under(root)}
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"snapgen-deploy {__version__}",
        "name": config.name,
        "trained": config.trained,
        "device": {
            "id": plan.device,
            "name": plan.device_name,
            "os": plan.os,
            "memory_budget": plan.memory_budget,
            "guards": list(plan.guards),
        },
        "width": plan.width,
        "reasons": list(plan.reasons),
        **({"warnings": list(plan.warnings)} if plan.warnings else {}),
        "resolution": list(plan.resolution),
        "latent": {
            "shape": list(plan.latent),
            "mean": list(decoder.latent_mean) if decoder else [],
            "std": list(decoder.latent_std) if decoder else [],
            "note": "the decoder takes the normalised latent and undoes mean and std itself",
        },
        "schedule": {
            "sampler": schedule.sampler,
            "sigmas": list(schedule.sigmas),
            "shift": schedule.shift,
            "note": f"sigmas include the shift; {UNGUIDED if guidance is None else GUIDED}",
            **_of_scheduler(schedule),
            "time_features": {
                "count": schedule.time_features,
                "formula": TIME_FEATURES_FORMULA.replace("1000 * sigma", "timestep" if schedule.timesteps else "1000 * sigma"),
                "values": [schedule.features(i)[0].astype(float).tolist() for i in range(len(schedule.sigmas) - 1)],
            },
        },
        **({} if guidance is None else {"guidance": guidance}),
        **({} if plan.batch == 1 else {"batch": plan.batch}),
        "licenses": {part: None if said is None else spdx(said) for part, said in checkpoint.licences.items()},
        "checkpoint": {"sha256": checkpoint.sha256(), "license": checkpoint.license, **_loras(checkpoint)},
        "config": config_to_dict(config),
        "prompts": list(vectors.prompts),
        "seeds": list(vectors.seeds),
        "noise": {"generator": plan.noise, "doc": NOISE_DOC},
        "target_order": [t.key for t in plan.targets],
        "targets": targets,
        "delivery": {key: told for key, target in targets.items() if (told := _delivery(plan.os, target)) is not None},
        "rollout": rollout(plan.os, plan.memory_budget, estimate.estimates),
        "estimates": list(estimate.estimates),
        "fidelity": {key: record for key, record in fidelity.items() if record is not None},
        "gates": [g.as_dict() for g in made.gates],
        **({"checked_on": {name: machine_of(name).versions() for name in on}} if (on := job.request.check_on) else {}),
        "compared_with": compared_with(golden, config),
        **({"golden": {"file": GOLDEN, "computed_in": golden.computed_in, "rows": golden.counts}} if golden else {}),
        # with several text encoders, the tokenizer file of each; a single one has tokenizer.json
        **({"tokenizers": {spec.name: spec.reads.file for spec in encoders}} if len(encoders) > 1 else {}),
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in common.items()
            if name not in owned and name not in (MANIFEST, SUMS)
        },
    }


def _of_scheduler(schedule: Schedule) -> dict[str, Any]:
    """What only a scheduler of a library says: timesteps that the features are of, and coefficients of each step."""
    found: dict[str, Any] = {"timesteps": list(schedule.timesteps)} if schedule.timesteps else {}
    if schedule.sampler == LINEAR:
        rule = "latent = keep * latent + scale * velocity + noise * (the next noise of the seed); it begins as start * noise"
        rows = [list(step) for step in schedule.coefficients]
        found |= {"rule": rule, "start": schedule.start, "coefficients": rows}
    return found


def _delivery(os: str, target: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a target's files fit the store's limits."""
    found = delivery(os, {role: component["bytes"] for role, component in target["components"].items()})
    if found is None:
        return None
    limits = {"most_bytes": found.way.most, "most_bytes_each": found.way.most_each, "source": found.way.source}
    return {"bytes": found.bytes, "fits": found.fits, "way": found.way.name, **limits}


def _loras(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was added to the checkpoint's tensors, if anything was."""
    found = [{"name": lora.name, "sha256": lora.sha256, "scale": lora.scale} for lora in checkpoint.loras]
    return {"loras": found} if found else {}


def _target(job: ExportJob, target: TargetPlan, parts: Mapping[Role, Exported]) -> dict[str, Any]:
    root, components = job.stage.root, {}
    macs = job.speed_estimates[job.plan.sizes[0]].macs.get(target.key, {})
    for role, part in parts.items():
        artifact, description = whole(part), part.description
        inputs, outputs, doc = ports_of(job.checkpoint.config, job.plan, role)
        files = {p.relative_to(root).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in artifact.files}
        components[role] = {
            "path": artifact.path.relative_to(root).as_posix(),
            "files": files,
            "bytes": sum(path.stat().st_size for path in artifact.files),
            "doc": doc,
            "inputs": [asdict(p) for p in inputs],
            "outputs": [asdict(p) for p in outputs],
            "ops": description.ops,
            "macs": macs.get(role),
            "placement": description.placement,
            "portable_ops": description.portable_ops,
            "lint": description.lint,
            "weights": description.weights,
            "weight_dtypes": dict(Counter(description.weights.values())),
            "average_bits": description.average_bits,  # of a weight, scales and palettes included
            "skipped": description.skipped,
            "notes": list(description.notes),
        }
    return {
        "precision": target.precision,
        "limits": asdict(target.limits),
        "layout": target.layout,
        "attention_form": target.form,
        "attention_form_ms": dict(target.form_ms),  # of a layer per form, where it was tuned
        "options": dict(target.options),
        "components": components,
        "versions": {name: version for part in parts.values() for name, version in part.versions.items()},
    }
