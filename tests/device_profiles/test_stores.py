"""Whether a target's files fit the stores' limits."""

import pytest

from snapgen_deploy.cli.result import delivery_warnings
from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.device_profiles.stores import STORES, delivery

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("os", "parts", "way", "fits"),
    [
        ("iOS", {"student": 300 * MB}, "the app itself", True),
        ("iPadOS", {"student": 4 * GB, "decoder": 1}, "Apple-hosted asset packs", True),
        ("Android", {"student": 200 * MB}, "Google Play's base module", True),
        ("Android", {"student": 200 * MB, "decoder": 1}, "one asset pack of Google Play", True),
        ("Android", {"student": 1_500 * MB, "decoder": 5 * MB}, "several asset packs of Google Play", True),
        ("Android", {"student": 1_500 * MB + 1}, "several asset packs of Google Play", False),  # one part is too large
        ("Android", {"a": 1_400 * MB, "b": 1_400 * MB, "c": 1_400 * MB}, "several asset packs of Google Play", False),
    ],
)
def test_the_simplest_way_that_takes_all_parts(os: str, parts: dict[str, int], way: str, fits: bool) -> None:
    found = delivery(os, parts)
    assert found is not None
    assert (found.way.name, found.fits, found.bytes) == (way, fits, sum(parts.values()))


def test_systems_without_a_store_have_no_limit() -> None:
    assert delivery("Linux", {"student": GB}) is None
    systems = {load_profile(device).os for device in profile_ids() if load_profile(device).kind in ("phone", "tablet")}
    assert systems == set(STORES)  # every phone's


def test_what_does_not_fit_is_a_warning_with_its_source() -> None:
    told = {
        "bytes": 6 * GB,
        "fits": False,
        "way": "asset packs",
        "most_bytes": 4 * GB,
        "most_bytes_each": GB,
        "source": "https://x",
    }
    (line,) = delivery_warnings({"delivery": {"onnx:cpu": told, "coreml": told | {"fits": True}}})
    assert line.startswith("onnx:cpu: 6.00 GB do not fit asset packs (4.00 GB, 1.00 GB each: https://x); choose fewer bits")
    assert delivery_warnings({}) == []  # of an older release
