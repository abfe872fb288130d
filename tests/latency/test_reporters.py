"""Comparisons for continuous integration: escaped, bounded, well formed, and red only where something failed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from snapgen_deploy.latency.formats.reporters import REPORTERS, annotations, as_json, junit_xml, step_summary
from tests.report.report_cases import guard, make_comparison, metric

EVIL = "a|b\n## x\r\n<script>&\"'`*_[l](u)% :,\x00\x1b\ud800"
FAILED_CHECK = {"rounds": 5, "low": -0.1, "high": 0.1, "detectable": 0.2, "passed": False, "reason": "resolves 20 % at best"}


def cells(line: str) -> list[str]:
    return [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]


def hostile() -> dict[str, Any]:
    return make_comparison(
        base={"bundle": EVIL, "sha256": EVIL}, target=EVIL, notes=[EVIL], metrics=[metric(EVIL, verdict="regressed")],
        guards=[guard(EVIL, "failed", EVIL), guard(EVIL, "changed", "")], verdict="failed", created=EVIL, commit=EVIL,
        self_check=FAILED_CHECK | {"reason": EVIL},
    )  # fmt: skip


def test_every_reporter_is_a_pure_function_of_a_record_that_json_can_carry() -> None:
    record = make_comparison()
    for report in REPORTERS.values():
        assert report(record) == report(json.loads(json.dumps(record)))
    assert json.loads(as_json(record)) == record


def test_summary_has_a_row_per_metric() -> None:
    text = step_summary(make_comparison(metrics=[metric(change=0.071, verdict="regressed"), metric("student_p50", warn=True)]))
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert rows[0][:6] == ["metric", "base", "candidate", "change (98.3 % CI)", "verdict", "detectable"]
    assert rows[2] == ["e2e\\_p50", "40 ms", "42.84 ms", "+7.1 % [+6.5, +7.7]", "❌ regressed", "0.9 %", "3.0 %"]
    assert rows[3][-1] == "3.0 % (warns)"
    assert "2 deterministic guards unchanged" in text
    assert "self-check over 5 rounds passed" in text


def test_summary_keeps_hostile_text_in_its_cell() -> None:
    text = step_summary(hostile())
    text.encode("utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert [len(r) for r in rows] == [7, 7, 7, 4, 4, 4, 4]
    assert "<script" not in text
    assert not [line for line in text.splitlines() if line.startswith("## ")]
    assert "\\`\\*\\_\\[l\\](u)" in text


def test_summary_without_clock_or_with_a_check_that_failed() -> None:
    text = step_summary(make_comparison(metrics=[], self_check=FAILED_CHECK, verdict="inconclusive"))
    assert "No times were compared." in text
    assert "failed: resolves 20 % at best" in text
    none = metric(change=0.0, base_ms=None, candidate_ms=None, low=None, high=None, detectable=None, limit=None) | {
        "change": None
    }
    row = next(line for line in step_summary(make_comparison(metrics=[none])).splitlines() if "e2e" in line)
    assert cells(row)[1:4] == ["—", "—", "—"]


def test_summary_stays_below_what_github_takes() -> None:
    guards = [guard(f"guard {i}", "changed", "é" * 2000) for i in range(400)]
    text = step_summary(make_comparison(guards=[*guards, guard("the one", "failed", "outside")]))
    assert (1 << 19) < len(text.encode()) < (1 << 20)
    assert re.search(r"\*\d+ lines are left out: a step summary holds \d+ bytes.\*\n$", text)
    assert "the one" in text  # failures come before changes


def test_annotations_of_failures_warnings_and_changes() -> None:
    record = make_comparison(
        metrics=[
            metric(change=0.07, verdict="regressed"),
            metric("student_p50", 0.07, "regressed", warn=True),
            metric("decoder_p50", verdict="inconclusive"),
            metric("load_p50", -0.1, "improved"),
            metric("e2e_p90"),
        ],
        guards=[guard(), guard("ops", "changed", "MatMul 3 -> 4"), guard("placement", "failed", "1 -> 2")],
        self_check=FAILED_CHECK,
    )
    lines = annotations(record).splitlines()
    kinds = [line.split(" ")[0] for line in lines]
    assert kinds == ["::error"] * 2 + ["::warning"] * 3 + ["::notice"] * 2
    assert lines[0].startswith("::error title=e2e_p50 regressed::+7.0 %25 [+6.4, +7.6], limit 3.0 %25")
    assert lines[1] == "::error title=onnx%3Acpu student placement failed::1 -> 2"
    assert annotations(make_comparison()) == ""


def test_annotations_escape_what_the_runner_reads() -> None:
    text = annotations(hostile())
    text.encode("utf-8")
    for line in text.split("\n")[:-1]:
        match = re.fullmatch(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)", line)
        assert match, line
        assert not re.search(r"%(?!25|0D|0A|3A|2C)", match[2] + match[3])
    assert "%0D%0A" in text


@pytest.mark.parametrize(("count", "shown"), [(10, 10), (11, 10), (500, 10)])
def test_at_most_ten_annotations_of_a_type(count: int, shown: int) -> None:
    lines = annotations(make_comparison(guards=[guard(f"g{i}", "failed", "x" * 9000) for i in range(count)])).splitlines()
    assert len(lines) == shown
    assert all(len(line) < 5000 for line in lines)
    assert (f"title={count - 9} more" in lines[-1]) == (count > 10)


def test_junit_counts_failures_and_skips() -> None:
    record = make_comparison(
        metrics=[
            metric(change=0.071, verdict="regressed"),
            metric("student_p50", 0.07, "regressed", warn=True),
            metric("decoder_p50", verdict="inconclusive"),
            metric("load_p50"),
        ],
        guards=[guard(), guard("ops", "changed", "3 -> 4"), guard("placement", "failed", "1 -> 2")],
    )
    root = ET.fromstring(junit_xml(record))
    suite = root.find("testsuite")
    assert suite is not None
    cases = {c.attrib["name"]: c for c in suite.findall("testcase")}
    assert suite.attrib["tests"] == root.attrib["tests"] == "8"
    assert (suite.attrib["failures"], suite.attrib["skipped"], suite.attrib["errors"]) == ("2", "1", "0")
    assert len(cases) == 8
    case = cases["e2e_p50"]
    assert case.attrib["classname"] == "latency.Example CPU 8-core"
    assert float(case.attrib["time"]) == pytest.approx(0.04284)
    failure = case.find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("+7.1 % [+6.5, +7.7], limit 3.0 %")
    assert cases["student_p50"].find("failure") is None
    assert cases["decoder_p50"].find("skipped") is not None
    assert [child.tag for child in cases["load_p50"]] == ["system-out"]
    assert cases["placement onnx:cpu student"].find("failure") is not None
    properties = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert properties["key.runtime_version"] == "1.31.1"
    assert properties["base.bundle"] == "shapes-old"


def test_junit_of_hostile_text_is_well_formed() -> None:
    text = junit_xml(hostile())
    root = ET.fromstring(text.encode("utf-8"))
    assert [c.find("skipped") is not None for c in root.iter("testcase")] == [True, False, False, False]
    assert "\x00" not in text
    assert "<script" not in text


def test_records_without_optional_fields() -> None:
    record = {k: v for k, v in make_comparison().items() if k not in ("commit", "created", "self_check")}
    assert json.loads(as_json(record)) == record
    assert annotations(record) == ""
    summary = step_summary(record)
    assert summary.count("\n| e2e") == 1
    assert "self-check" not in summary
    suite = ET.fromstring(junit_xml(record)).find("testsuite")
    assert suite is not None
    assert "timestamp" not in suite.attrib
    assert not {"created", "commit"} & {p.attrib["name"] for p in suite.iter("property")}
    assert [c.attrib["name"] for c in suite.iter("testcase")] == [m["name"] for m in record["metrics"]] + [
        f"{g['name']} {g['component']}" for g in record["guards"]
    ]
