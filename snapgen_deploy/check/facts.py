"""Checks a manifest against the bundle's own configuration and test vectors, since apps rely on what the manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

import numpy as np

from snapgen_deploy.bundle.guidance import guidance_record
from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.check.conformance import CLOSE, wrong_conformance
from snapgen_deploy.check.gates import Gate
from snapgen_deploy.checkpoint import EMBEDDED, embedded_path, open_checkpoint
from snapgen_deploy.drawing.pipeline import noise_for, tokenize
from snapgen_deploy.drawing.ports import token_arrays
from snapgen_deploy.drawing.prompts import SEEDS
from snapgen_deploy.drawing.reference import ReferenceVectors, schedule_of
from snapgen_deploy.errors import GateFailed
from snapgen_deploy.export.registry import spec_of
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.plan.sizes import latent_of
from snapgen_deploy.system.documents import in_one_line, several

NEARLY = 0.25  # share of a gate's limit


def refuse_contradictions(bundle: Bundle, vectors: ReferenceVectors) -> None:
    """Check the manifest of a bundle, at one picture size (`Bundle.at`), against configuration and test vectors.

    Raises:
        GateFailed: if latent shape, schedule, prompts, seeds, tokens or ports contradict them; lists the first ones.
    """
    _refuse(bundle, list(_contradictions(bundle, vectors)))


def refuse_unsound_gates(bundle: Bundle) -> None:
    """Check that the manifest records gates of every target and that none failed: an export publishes no other bundle.

    Raises:
        GateFailed: if a target has no gate, or a gate failed.
    """
    recorded = bundle.manifest["gates"]
    wrong = [f"{key} has no gate" for key in bundle.targets if key not in {g.get("target") for g in recorded}]
    wrong += [f"{g.get('target')} {g.get('name')} failed" for g in recorded if g.get("verdict") not in ("passed", "not_run")]
    _refuse(bundle, wrong)


def refuse_other_limits(bundle: Bundle, gates: Sequence[Gate]) -> None:
    """Check that gates which ran again had the limits that the manifest records.

    Raises:
        GateFailed: if a limit differs.
    """
    then = _recorded(bundle, "limit")
    pairs = [(g, then.get(g.key, g.limit)) for g in gates]
    _refuse(
        bundle, [f"{g.what} {g.where} {g.name} was held to {was}, now to {g.limit:g}" for g, was in pairs if was != g.limit]
    )


def refuse_other_values(bundle: Bundle, gates: Sequence[Gate]) -> None:
    """Check that gates which passed again came to the values that the manifest records of the export.

    A gate that fails now says so itself. Rounding differs from processor to processor: what is within `NEARLY` of the limit,
    or of the value, is the same.

    Raises:
        GateFailed: if a value differs.
    """
    then = _recorded(bundle, "value")
    wrong = []
    for g in gates:
        was = then.get(g.key) if g.verdict == "passed" else None
        if was is not None and g.value is not None and not abs(g.value - was) <= NEARLY * max(abs(g.limit), abs(was)):
            wrong.append(f"{g.what} {g.where} {g.name} is recorded as {was:.3g} and now {g.value:.3g}")
    _refuse(bundle, wrong)


def _recorded(bundle: Bundle, field: str) -> dict[tuple[str, ...], Any]:
    """One field of every gate in the manifest, by `Gate.key`."""
    names = ("target", "component", "name", "size", "on")
    return {tuple(g.get(name, "") for name in names): g.get(field) for g in bundle.manifest["gates"]}


def refuse_other_cases(bundle: Bundle, vectors: ReferenceVectors) -> None:
    """Check that conformance.json has the cases that configuration, tokenizers, limits and test vectors give.

    Raises:
        GateFailed: if it has not.
    """
    _refuse(bundle, list(wrong_conformance(bundle, vectors)))


def _refuse(bundle: Bundle, wrong: Sequence[str]) -> None:
    if wrong:
        raise GateFailed(in_one_line(f"{bundle.name} contradicts itself", wrong))


def _contradictions(bundle: Bundle, vectors: ReferenceVectors) -> Iterator[str]:
    resolution = bundle.resolution
    if bundle.latent != latent_of(bundle.config, resolution):
        yield f"latent.shape {list(bundle.latent)} is not that of a picture of {list(resolution)}"
    yield from _of_checkpoint(bundle)
    yield from _of_schedule(bundle)
    yield from _of_samples(bundle, vectors)
    for key in bundle.targets:
        yield from _of_target(bundle, key)
        yield from _of_layout(bundle, key)


def _of_checkpoint(bundle: Bundle) -> Iterator[str]:
    """What the manifest repeats of the configuration; of embedded checkpoints all is known."""
    m, config, decoder = bundle.manifest, bundle.config, components_of(bundle.config).decoder
    for where, name, meant in (
        (m, "name", config.name),
        (m, "trained", config.trained),
        (m["latent"], "mean", list(decoder.latent_mean) if decoder else []),
        (m["latent"], "std", list(decoder.latent_std) if decoder else []),
    ):
        if where.get(name, meant) != meant:
            yield f"{name} is not that of the configuration"
    if m.get("guidance") != guidance_record(config, bundle.tokenizers()):
        yield "guidance is not that of the configuration and the tokenizers"
    about = m.get("checkpoint") or {}
    for embedded in (open_checkpoint(embedded_path(name)) for name in EMBEDDED):
        if about.get("sha256") != embedded.sha256():
            continue
        said = {about.get("license"), *m.get("licenses", {}).values()}
        if (config, said) != (embedded.config, {embedded.license}):
            yield "checkpoint.license, licenses or config is not that of the checkpoint with this hash"


def _of_schedule(bundle: Bundle) -> Iterator[str]:
    schedule, values = schedule_of(bundle.config), bundle.manifest["schedule"]["time_features"].get("values")
    if not _close(bundle.schedule.sigmas, schedule.sigmas):
        yield "schedule.sigmas are not those of the checkpoint's steps and shift"
    elif not _close(values, [schedule.features(i)[0] for i in range(len(schedule.sigmas) - 1)]):
        yield "schedule.time_features.values are not those of the levels"
    elif (bundle.schedule.sampler, bundle.schedule.timesteps) != (schedule.sampler, schedule.timesteps):
        yield "schedule.sampler or schedule.timesteps are not those of the checkpoint's scheduler"
    elif not _close(
        [*bundle.schedule.coefficients, [bundle.schedule.start] * 3], [*schedule.coefficients, [schedule.start] * 3]
    ):
        yield "schedule.coefficients or schedule.start are not those of the checkpoint's scheduler"


def _of_samples(bundle: Bundle, vectors: ReferenceVectors) -> Iterator[str]:
    arrays, components, tokenizers = vectors.arrays, components_of(bundle.config), bundle.tokenizers()
    prompts, seeds = bundle.manifest["prompts"], bundle.manifest["seeds"]
    if list(vectors.prompts) != prompts[: len(vectors.prompts)] or len(seeds) != len(prompts):
        yield "prompts or seeds are not those of the test vectors"
    elif "vectors_of" not in bundle.manifest and len(vectors.prompts) != len(prompts):
        yield f"the test vectors hold {len(vectors.prompts)} of {len(prompts)} prompts"
    of_seed = bundle.latent, bundle.noise_generator, bundle.schedule.fresh
    for seed, noise in zip(seeds, arrays["noise"], strict=False):
        if not 0 <= seed < SEEDS or not _close(noise, noise_for(seed, *of_seed)[0]):
            yield f"the noise of seed {seed} is another one"
    for spec in components.encoders:
        for i, prompt in enumerate(vectors.prompts if spec.name in tokenizers else ()):
            made = token_arrays(components, {spec.name: tokenize(tokenizers[spec.name], prompt, spec.reads)})
            if any(name not in arrays or not np.array_equal(arrays[name][i], row) for name, (row,) in made.items()):
                yield f"{spec.reads.file} makes other tokens of {prompt[:40]!r}"


def _of_target(bundle: Bundle, key: str) -> Iterator[str]:
    components, specs = bundle.manifest["targets"][key]["components"], components_of(bundle.config)
    if set(components) != set(specs.names):
        yield f"{key} has {several(sorted(components))}, expected {several(specs.names)}"
        return
    for spec in specs:
        inputs, outputs, _ = spec.called(bundle)
        for name, ports in (("inputs", inputs), ("outputs", outputs)):
            if _shapes(components[spec.name].get(name, ())) != _shapes([asdict(p) for p in ports]):
                yield f"{key} {spec.name} {name} are not those of the checkpoint's configuration"


def _of_layout(bundle: Bundle, key: str) -> Iterator[str]:
    """The configurations in a target's folders, which libraries read in place of the manifest."""
    target = bundle.manifest["targets"][key]
    module = spec_of(key).folders.get(str(target.get("options", {}).get("folders", "")))
    if module is None:
        return
    names = components_of(bundle.config).names
    layout = import_module(module)
    texts = layout.texts(bundle.config, names, bundle.tokenizers(), bundle.width, batch=bundle.batch)
    root = bundle.path / key.replace(":", "-")
    for name, text in texts.items():
        if name in layout.LATER and not (root / name).exists():
            continue
        try:
            same = (root / name).read_text(encoding="utf-8") == text
        except (OSError, ValueError):
            same = False
        if not same:
            yield f"{key} {name} is not that of the configuration and the bundle's tokenizer"


def _shapes(ports: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return [(p["name"], tuple(p["shape"]), p["dtype"]) for p in ports]


def _close(got: Any, expected: Any) -> bool:
    """Nearly equal: the last digits of logarithms and cosines may differ on another processor."""
    try:
        values = np.asarray(got, np.float64)
    except ValueError:  # rows of different lengths
        return False
    return values.shape == np.shape(expected) and np.allclose(values, expected, atol=CLOSE)
