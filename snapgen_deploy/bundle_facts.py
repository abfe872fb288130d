"""What a bundle says of itself, held against its own test vectors: apps feed and show what stands in the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from snapgen_deploy.bundle import Bundle
from snapgen_deploy.components import ports_of, roles_of
from snapgen_deploy.errors import GateFailed
from snapgen_deploy.gates import Gate
from snapgen_deploy.pipeline import noise_for, tokenize
from snapgen_deploy.reference import ReferenceVectors, schedule_of
from snapgen_deploy.sizes import latent_of

CLOSE = 1e-5  # of time features and levels, which manifests hold as decimals


def refuse_contradictions(bundle: Bundle, vectors: ReferenceVectors) -> None:
    """GateFailed that lists what the manifest of a bundle (as `Bundle.at` shows one picture size) has wrong of itself."""
    _refuse(bundle, list(_contradictions(bundle, vectors)))


def refuse_unsound_gates(bundle: Bundle) -> None:
    """GateFailed where the manifest has no gate of a target, or one that failed: an export publishes neither."""
    recorded = bundle.manifest["gates"]
    wrong = [f"{key} has no gate" for key in bundle.targets if key not in {g.get("target") for g in recorded}]
    wrong += [f"{g.get('target')} {g.get('name')} failed" for g in recorded if g.get("verdict") not in ("passed", "not_run")]
    _refuse(bundle, wrong)


def refuse_other_limits(bundle: Bundle, gates: Sequence[Gate]) -> None:
    """GateFailed where gates that ran again were held to other limits than the manifest has of the export's."""
    recorded = bundle.manifest["gates"]
    then = {(g.get("target"), g.get("component"), g.get("name"), g.get("size", "")): g.get("limit") for g in recorded}
    pairs = [(g, then.get((g.target, g.component, g.name, g.size), g.limit)) for g in gates]
    _refuse(
        bundle, [f"{g.target} {g.where} {g.name} was held to {was}, now to {g.limit:g}" for g, was in pairs if was != g.limit]
    )


def _refuse(bundle: Bundle, wrong: Sequence[str]) -> None:
    if wrong:
        raise GateFailed(f"{bundle.name} contradicts itself: {'; '.join(wrong[:10])}")


def _contradictions(bundle: Bundle, vectors: ReferenceVectors) -> Iterator[str]:
    m, config, arrays = bundle.manifest, bundle.config, vectors.arrays
    if bundle.latent != latent_of(config, (m["resolution"][0], m["resolution"][1])):
        yield f"latent.shape {list(bundle.latent)} is not that of a picture of {m['resolution']}"
    schedule, values = schedule_of(config), m["schedule"]["time_features"].get("values")
    if len(schedule.sigmas) != len(bundle.schedule.sigmas) or not np.allclose(
        schedule.sigmas, bundle.schedule.sigmas, atol=CLOSE
    ):
        yield "schedule.sigmas are not those of the checkpoint's steps and shift"
    elif not _close(values, [schedule.features(i)[0] for i in range(len(schedule.sigmas) - 1)]):
        yield "schedule.time_features.values are not those of the levels"
    prompts, seeds = m["prompts"], m["seeds"]
    if not vectors.prompts or list(vectors.prompts) != prompts[: len(vectors.prompts)] or len(seeds) != len(prompts):
        yield "prompts or seeds are not those of the test vectors"
    elif "vectors_of" not in m and len(vectors.prompts) != len(prompts):
        yield f"the test vectors hold {len(vectors.prompts)} of {len(prompts)} prompts"
    for seed, noise in zip(seeds, arrays["noise"], strict=False):
        if not 0 <= seed < 2**63 or not np.array_equal(noise_for(seed, bundle.latent)[0], noise):
            yield f"the noise of seed {seed} is another one"
    text = bundle.tokenizer()
    if text is not None and config.text_encoder is not None:
        for i, prompt in enumerate(vectors.prompts):
            tokens, mask = tokenize(text, prompt, config.text_encoder.length)
            if not np.array_equal(tokens[0], arrays["tokens"][i]) or not np.array_equal(mask[0], arrays["mask"][i]):
                yield f"tokenizer.json makes other tokens of {prompt[:40]!r}"
    for key in bundle.targets:
        components = m["targets"][key]["components"]
        if set(components) != set(roles_of(config)):
            yield f"{key} has {', '.join(sorted(components)) or 'nothing'}, expected {', '.join(roles_of(config))}"
            continue
        for role in roles_of(config):
            inputs, outputs, _ = ports_of(config, bundle, role)
            for name, ports in (("inputs", inputs), ("outputs", outputs)):
                if _shapes(components[role].get(name)) != _shapes([asdict(p) for p in ports]):
                    yield f"{key} {role} {name} are not those of the checkpoint's configuration"


def _shapes(ports: Any) -> list[tuple[Any, ...]] | None:
    if not isinstance(ports, list) or not all(isinstance(p, dict) and isinstance(p.get("shape"), list | tuple) for p in ports):
        return None
    return [(p.get("name"), tuple(p["shape"]), p.get("dtype")) for p in ports]


def _close(got: Any, expected: Sequence[np.ndarray]) -> bool:
    try:
        values = np.asarray(got, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == np.shape(expected) and np.allclose(values, expected, atol=CLOSE)
