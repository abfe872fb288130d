"""Which picture of the test vectors an app's own code is held to."""

import math

from snapgen_deploy.check.conformance import steadiest


def test_a_picture_between_two_outcomes_is_no_case() -> None:
    assert steadiest([(39.0, 48.7, 75.3, 60.0), (98.9, 116.0, 40.0, 117.0)]) == 3


def test_the_first_of_equals_and_of_targets_that_did_not_run() -> None:
    assert steadiest([(120.0, 120.0)]) == 0
    assert steadiest([]) == 0


def test_a_picture_that_is_not_finite_is_never_chosen() -> None:
    assert steadiest([(-math.inf, 12.0), (150.0, 12.0)]) == 1
