"""Measurements in other tools' formats: well formed, nothing lost, the same bytes every time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from snapgen_deploy.latency.formats.exporters import FORMATS, github_action_benchmark, native, openmetrics, pytorch_v3
from snapgen_deploy.latency.results import Loads, Round, read_measurement
from tests.report.report_cases import make_measurement

LINE = re.compile(r'([a-z0-9_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """A small strict reader of OpenMetrics: metadata before samples, families not interleaved, the end marked."""
    lines = text.split("\n")
    assert lines[-2:] == ["# EOF", ""]
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    family, seen = "", set()
    for line in lines[:-2]:
        if line.startswith("# TYPE "):
            family = line.split()[2]
            assert family not in seen
            seen.add(family)
        elif line.startswith("# UNIT "):
            assert line.split()[2] == family
            assert family.endswith("_" + line.split()[3])
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            assert match[1].startswith(family)
            labels = dict(re.findall(r'([a-z]+)="((?:[^"\\]|\\.)*)"', match[2]))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def test_every_format_is_deterministic_and_ends_with_a_line() -> None:
    assert list(FORMATS) == ["native", "pytorch-v3", "openmetrics", "github-action-benchmark"]
    for export in FORMATS.values():
        text = export(make_measurement())
        assert text == export(make_measurement())
        assert text.endswith("\n")


def test_native_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(native(make_measurement()), encoding="utf-8")
    assert read_measurement(tmp_path / "m.json") == make_measurement()


def test_pytorch_records_keep_every_raw_sample() -> None:
    measured = make_measurement(environment={"created": "2026-03-02T10:00:00+00:00", "commit": "abc"})
    records = {r["metric"]["name"]: r for r in json.loads(pytorch_v3(measured))}
    assert set(records) == {
        "e2e_latency(ms)", "text_encoder_latency(ms)", "student_latency(ms)", "decoder_latency(ms)",
        "model_load_time_cold(ms)", "model_load_time_warm(ms)", "peak_memory(mb)",
    }  # fmt: skip
    for name in measured.names:
        assert records[f"{name}_latency(ms)"]["metric"]["benchmark_values"] == measured.samples(name)
    record = records["e2e_latency(ms)"]
    assert record["schema_version"] == "v3"
    assert record["timestamp"] == 1772445600
    assert record["head_sha"] == "abc"
    assert record["dependencies"]["onnxruntime"]["version"] == "1.31.1"
    assert record["runners"][0]["cpu_count"] == 8
    assert record["benchmark"]["extra_info"]["rounds_discarded"] == "1"
    extras = [record["benchmark"], record["model"], record["metric"], record["runners"][0]]
    assert all(isinstance(v, str) for e in extras for v in e["extra_info"].values())


@pytest.mark.parametrize(("created", "expected"), [("", 0), ("soon", 0), ("2026-03-02T10:00:00", 1772445600)])
def test_a_time_that_is_not_known_is_zero(created: str, expected: int) -> None:
    records = json.loads(pytorch_v3(make_measurement(environment={"created": created})))
    assert {r["timestamp"] for r in records} == {expected}


def test_openmetrics_in_seconds_with_quantiles() -> None:
    measured = make_measurement()
    found = samples(openmetrics(measured))
    e2e = {labels["quantile"]: v for labels, v in found["snapgen_latency_seconds"] if labels["component"] == "e2e"}
    values = sorted(measured.samples())
    assert e2e["0.5"] == pytest.approx(measured.summary()["p50"] / 1000)
    assert e2e["0.9"] == pytest.approx((0.1 * values[117] + 0.9 * values[118]) / 1000)  # place 0.9 * 131 of 0 to 131
    assert e2e["0.99"] == pytest.approx((0.31 * values[129] + 0.69 * values[130]) / 1000)  # place 129.69
    counts = {labels["component"]: v for labels, v in found["snapgen_latency_seconds_count"]}
    assert counts == {"e2e": 132, "text_encoder": 132, "student": 528, "decoder": 132}
    labels = found["snapgen_peak_memory_bytes"][0][0]
    assert labels == {
        "model": "shapes-iphone16pm", "width": "full", "resolution": "64x64", "component": "all", "backend": "onnx:cpu",
        "precision": "fp32", "threads": "1", "mode": "burst", "device": "Example CPU 8-core",
    }  # fmt: skip
    assert [labels["kind"] for labels, _ in found["snapgen_load_seconds"]] == ["cold", "warm"]


def test_openmetrics_escapes_labels() -> None:
    text = openmetrics(make_measurement('a"b\\c\nd\ud800'))
    text.encode("utf-8")
    assert 'model="a\\"b\\\\c\\nd?"' in text
    samples(text)


def test_github_action_benchmark_has_medians_and_ranges() -> None:
    measured = make_measurement()
    entries = json.loads(github_action_benchmark(measured))
    assert all(set(e) >= {"name", "unit", "value"} for e in entries)
    first = entries[0]
    assert first["value"] == measured.summary()["p50"]
    assert first["unit"] == "ms"
    assert re.fullmatch(r"± [\d.]+", first["range"])
    assert len({e["name"] for e in entries}) == len(entries) == 7


def test_what_was_not_measured_is_not_exported() -> None:
    bare = replace(make_measurement(), loads=Loads(), peak_bytes=None)
    few = replace(bare, rounds=(Round({"e2e": (4.0, 5.0)}), Round({"e2e": (9.0,), "student": (1.0,)}, False, "drifted")))
    assert [r["metric"]["name"] for r in json.loads(pytorch_v3(few))] == ["e2e_latency(ms)"]
    assert set(samples(openmetrics(few))) == {
        "snapgen_latency_seconds", "snapgen_latency_seconds_count", "snapgen_latency_seconds_sum",
    }  # fmt: skip
    assert [e["value"] for e in json.loads(github_action_benchmark(few))] == [4.5]
    none = replace(bare, rounds=(Round({"e2e": (9.0,)}, False, "drifted"),))
    assert json.loads(pytorch_v3(none)) == []
    assert samples(openmetrics(none)) == {}
