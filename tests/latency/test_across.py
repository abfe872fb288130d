"""Two bundles that differ on purpose: which is faster, and by how much?"""

import math
from pathlib import Path

import pytest

from snapgen_deploy.bundle.reader import Bundle
from snapgen_deploy.errors import Refused
from snapgen_deploy.latency.compare.compare import compare_bundles, refuse_unlike
from snapgen_deploy.latency.compare.duel import DuelRound
from snapgen_deploy.latency.compare.verdict import parse_threshold
from snapgen_deploy.latency.formats.reporters import annotations, junit_xml, step_summary
from snapgen_deploy.report.collect import _metric
from snapgen_deploy.system.progress import no_progress
from tests.manifests import component, least_manifest

KEY = "onnx:cpu"


def bundle_of(width):
    parts = {role: component(f"{role}.onnx") for role in ("student", "decoder")}
    return Bundle(Path(width), least_manifest({KEY: parts}, width=width))


def compared(monkeypatch, ratio, noise, thresholds=()):
    def one(sides, number):
        found = noise * (-1) ** number
        return DuelRound({"e2e_p50": 10.0}, {"e2e_p50": math.log(ratio) + found}, {"e2e_p50": found}, (1.0, 1.0))

    monkeypatch.setattr("snapgen_deploy.latency.compare.compare.interleaved", one)
    return compare_bundles(bundle_of("full"), bundle_of("tiny"), KEY, thresholds, (), no_progress, across=True)


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict", "said"),
    [
        (0.5, 0.01, "faster", "e2e_p50: the candidate is 2 times as fast as the base (1.9"),
        (2.0, 0.01, "slower", "e2e_p50: the base is 2 times as fast as the candidate (1.9"),
        (1.0, 0.002, "alike", "no side is clearly faster: the candidate is 1 times as fast"),
        (1.01, 0.3, "inconclusive", "no side is clearly faster"),
    ],
)
def test_which_is_faster_and_by_how_much(monkeypatch, ratio, noise, verdict, said):
    found = compared(monkeypatch, ratio, noise)
    assert found.verdict == verdict
    assert found.notes[-2] == "base: width full, 64x96, 1 steps; candidate: width tiny, 64x96, 1 steps"
    assert said in found.notes[-1]
    record = found.as_dict()
    assert record["across"]
    assert (record["metrics"][0]["limit"], _metric(record["metrics"][0]).limit) == (None, None)
    assert verdict in step_summary(record)
    assert "::error" not in annotations(record)
    assert 'failures="0"' in junit_xml(record)


def test_a_limit_is_kept_where_one_is_given(monkeypatch):
    assert compared(monkeypatch, 2.0, 0.01, [parse_threshold("e2e_p50:5%")]).verdict == "regressed"
    assert compared(monkeypatch, 0.5, 0.01, [parse_threshold("e2e_p50:5%")]).verdict == "improved"


def test_without_across_two_widths_are_refused_with_the_way_to_ask():
    with pytest.raises(Refused, match="base has width full, candidate tiny; export both alike, or ask .* --across"):
        refuse_unlike(bundle_of("full"), bundle_of("tiny"), KEY)
