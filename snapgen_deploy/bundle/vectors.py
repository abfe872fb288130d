"""Reads the test vectors of a bundle."""

from __future__ import annotations

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.drawing.pipeline import in_calls
from snapgen_deploy.drawing.reference import LATENTS, VELOCITIES, ReferenceVectors
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.base import Arrays, Role
from snapgen_deploy.families.component import LATENT
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.system.documents import parse_json
from snapgen_deploy.system.typed import read_as

NEEDED = {"noise", LATENT, LATENTS, VELOCITIES}  # arrays that all test vectors hold, whatever the checkpoint


def read_vectors(bundle: Bundle) -> ReferenceVectors:
    """Read the bundle's test vectors.

    Raises:
        BadInput: if the file cannot be read, lacks an array, or has an array without a row for each prompt.
    """
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
    """The inputs of each component in the first step of the first test vectors, by port name."""
    vectors, config = read_vectors(bundle), bundle.config
    count = len(vectors.prompts)
    return {
        spec.name: next(vectors.cases(spec, config, in_calls(count, spec.pictures_in(bundle.batch))[0]))[0]
        for spec in components_of(config)
    }
