"""The test vectors of a bundle: read back, and as inputs of its components."""

from __future__ import annotations

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.drawing.reference import ReferenceVectors
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.system.documents import parse_json
from snapgen_deploy.system.typed import read_as

NEEDED = {"noise", "latent", "student.latents", "student.velocities"}  # arrays that test vectors of any checkpoint hold


def read_vectors(bundle: Bundle) -> ReferenceVectors:
    """The test vectors that the bundle ships."""
    from safetensors import SafetensorError, safe_open

    path = bundle.test_vectors
    try:
        with safe_open(path, framework="np") as file:
            prompts, problems = read_as(list[str], parse_json(file.metadata()["prompts"]))
            if prompts is None:
                raise ValueError(f"prompts: {problems[0]}")
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); export the bundle again") from None
    if not prompts or any(len(array) != len(prompts) for array in arrays.values()) or not set(arrays) >= NEEDED:
        raise BadInput(f"{path} has not a row in every array for each of its {len(prompts)} prompts; export the bundle again")
    return ReferenceVectors(tuple(prompts), tuple(bundle.manifest["seeds"])[: len(prompts)], arrays)


def port_values(bundle: Bundle) -> dict[Role, Arrays]:
    """What each component is fed in the first step of the first test vector, by port name."""
    vectors = read_vectors(bundle)
    student = {"latent": vectors.arrays["noise"][:1], "time_features": bundle.schedule.features(0)}
    student |= vectors.text(0, bundle.config)
    values: dict[Role, Arrays] = {"student": student, "decoder": {"latent": vectors.arrays["latent"][:1]}}
    if "tokens" in vectors.arrays:
        values["text_encoder"] = {"tokens": vectors.arrays["tokens"][:1], "mask": vectors.arrays["mask"][:1]}
    return values
