"""The fuzzing targets run their seeds, and tell a finding from a refusal; Atheris is not needed for that."""

import pytest

from fuzz.targets import SEEDS, TARGETS, LongMessage, Target, runner
from snapgen_deploy.errors import BadInput, MeasurementFailed


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read_or_refused(name):
    seeds = sorted((SEEDS / name).iterdir())
    assert seeds
    with runner(TARGETS[name]) as run:
        for seed in seeds:
            run(seed.read_bytes())
        run(b"")


@pytest.mark.parametrize(
    ("raised", "finding"),
    [
        (BadInput("no"), None),
        (BadInput("x" * 301), LongMessage),
        (MeasurementFailed("no"), LongMessage),
        (KeyError("x"), KeyError),
    ],
    ids=range(4),
)
def test_what_a_finding_is(raised, finding):
    def read(path):
        raise raised

    with runner(Target("a", read)) as run:
        if finding is None:
            run(b"x")
            return
        with pytest.raises(finding):
            run(b"x")
