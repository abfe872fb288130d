"""A measurement in the formats of other tools: the PyTorch benchmark database, OpenMetrics, github-action-benchmark.

Each exporter is a pure function from a measurement to text, and the same measurement always gives the same bytes. Repository,
commit and time are read from the measurement's `environment`, if they are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from snapgen_deploy.export.registry import find_spec
from snapgen_deploy.latency.results import QUERY, RUN_PROFILES, Measurement
from snapgen_deploy.system.quantiles import quantile

Exporter = Callable[[Measurement], str]

PYTORCH_SCHEMA = "v3"
MEASURED_AT, REPOSITORY, BRANCH, COMMIT = "created", "repository", "branch", "commit"  # keys of `environment`


def native(measurement: Measurement) -> str:
    """The measurement as JSON, with its summary; `read_measurement` reads it back."""
    return _json(as_record(measurement))


def as_record(measurement: Measurement) -> dict[str, Any]:
    """Plain data: the measurement, the summary of everything that was timed, and MLPerf's flags for its run profile."""
    summary = {name: measurement.summary(name) for name in measurement.names}
    validity = measurement.validity(RUN_PROFILES[measurement.profile])
    per_picture = {} if measurement.batch == 1 else {"picture_p50": measurement.picture_p50}
    return measurement.as_dict() | {"summary": summary, "validity": validity, **per_picture}


def _batch(measurement: Measurement) -> dict[str, str]:
    """Pictures of a query, where it draws several."""
    return {} if measurement.batch == 1 else {"batch": str(measurement.batch)}


def pytorch_v3(measurement: Measurement) -> str:
    """Records of the PyTorch benchmark database, one per metric, with every raw sample in `benchmark_values`.

    Schema: pytorch/test-infra, clickhouse_db_schema/benchmark.oss_ci_benchmark_v3; extra_info maps text to text.
    """
    return _json([_record(measurement, *metric) for metric in _metrics(measurement)])


def openmetrics(measurement: Measurement) -> str:
    """OpenMetrics 1.0 text, as Prometheus and GitLab's metrics reports read it; in seconds and bytes."""
    lines = _family("snapgen_latency_seconds", "summary", "seconds", "Time of a picture (e2e) or of one call of a component.")
    for name in _timed(measurement):
        seconds = [s / 1000 for s in measurement.samples(name)]
        labels = _labels(measurement, name)
        for q in (0.5, 0.9, 0.99):
            lines.append(_sample("snapgen_latency_seconds", {**labels, "quantile": f"{q:g}"}, quantile(seconds, q)))
        lines.append(_sample("snapgen_latency_seconds_count", labels, len(seconds)))
        lines.append(_sample("snapgen_latency_seconds_sum", labels, sum(seconds)))
    bounds = {n: b for n in _timed(measurement) if (b := measurement.summary(n)["p90_bound"]) is not None}
    if bounds:
        lines += _family(
            "snapgen_latency_p90_bound_seconds", "gauge", "seconds", "Early-stopping upper bound of p90, 99 % sure."
        )
        lines += [
            _sample("snapgen_latency_p90_bound_seconds", _labels(measurement, n), bound / 1000) for n, bound in bounds.items()
        ]
    loads = _loads(measurement)
    if loads:
        lines += _family("snapgen_load_seconds", "gauge", "seconds", "Time to load all components.")
        whole = _labels(measurement, "all")
        lines += [_sample("snapgen_load_seconds", {**whole, "kind": kind}, ms / 1000) for kind, ms in loads.items()]
    if measurement.peak_bytes is not None:
        lines += _family("snapgen_peak_memory_bytes", "gauge", "bytes", "Peak memory, measured in a pass of its own.")
        lines.append(_sample("snapgen_peak_memory_bytes", _labels(measurement, "all"), measurement.peak_bytes))
    return "\n".join([*lines, "# EOF"]) + "\n"


def github_action_benchmark(measurement: Measurement) -> str:
    """`customSmallerIsBetter` of github-action-benchmark: medians, with the spread over rounds as the range."""
    where = ", ".join(f"threads {value}" if name == "threads" else value for name, value in _series(measurement).items())
    entries: list[dict[str, Any]] = []
    for name in _timed(measurement):
        s = measurement.summary(name)
        half = (max(s["round_p50"]) - min(s["round_p50"])) / 2
        bound = "none, too few samples" if s["p90_bound"] is None else f"{s['p90_bound']:.4g} ms"
        extra = f"samples {s['n']}\np90 bound {bound}\nrounds {len(s['round_p50'])}\nmode {measurement.mode}"
        entries.append(
            {"name": f"{name} p50 ({where})", "unit": "ms", "value": s["p50"], "range": f"± {half:.4g}", "extra": extra}
        )
    entries += [{"name": f"load {kind} ({where})", "unit": "ms", "value": ms} for kind, ms in _loads(measurement).items()]
    if measurement.peak_bytes is not None:
        entries.append({"name": f"peak memory ({where})", "unit": "bytes", "value": measurement.peak_bytes})
    return _json(entries)


FORMATS: dict[str, Exporter] = {
    "native": native,
    "pytorch-v3": pytorch_v3,
    "openmetrics": openmetrics,
    "github-action-benchmark": github_action_benchmark,
}


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _timed(measurement: Measurement) -> list[str]:
    """Names of the timings with at least one valid sample."""
    return [n for n in measurement.names if measurement.samples(n)]


def _loads(measurement: Measurement) -> dict[str, float]:
    loads = measurement.loads
    found = {"first_ever": loads.first_ever, "cold": loads.cold, "warm": loads.warm}
    return {kind: ms for kind, ms in found.items() if ms is not None}


def _series(measurement: Measurement) -> dict[str, str]:
    """The labels of a series of times. Times with different labels must not be compared."""
    m, key = measurement, measurement.key
    return {
        "model": m.bundle,
        "width": m.width,
        "resolution": f"{m.resolution[0]}x{m.resolution[1]}",
        "backend": key.backend,
        "precision": key.precision,
        "threads": str(key.threads),
        "mode": m.mode,
        "device": key.soc,
    }


# --- OpenMetrics


def _family(name: str, kind: str, unit: str, text: str) -> list[str]:
    return [f"# TYPE {name} {kind}", f"# UNIT {name} {unit}", f"# HELP {name} {text}"]


def _labels(measurement: Measurement, component: str) -> dict[str, str]:
    return {"component": component, **_series(measurement)}


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    listed = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{listed}}} {value!r}"


def _escape(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written
    return whole.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- PyTorch benchmark database


def _metrics(measurement: Measurement) -> list[tuple[str, list[float], dict[str, str]]]:
    """Name, values and extra_info of every metric."""
    found: list[tuple[str, list[float], dict[str, str]]] = []
    for name in _timed(measurement):
        s = measurement.summary(name)
        extra = {k: f"{s[k]:.6g}" for k in ("mean", "p50", "p90_bound", "p99_bound") if s[k] is not None}
        found.append((f"{name}_latency(ms)", measurement.samples(name), {"component": name, "n": str(s["n"]), **extra}))
    found += [(f"model_load_time_{kind}(ms)", [ms], {}) for kind, ms in _loads(measurement).items()]
    if measurement.peak_bytes is not None:
        found.append(("peak_memory(mb)", [measurement.peak_bytes / 1e6], {}))
    return found


def _record(measurement: Measurement, metric: str, values: list[float], extra: dict[str, str]) -> dict[str, Any]:
    m, env, key = measurement, measurement.environment, measurement.key
    runtime = spec.runtime.package if (spec := find_spec(key.backend)) is not None else key.backend
    invalid = sum(not r.valid for r in m.rounds)
    return {
        "timestamp": _timestamp(env),
        "schema_version": PYTORCH_SCHEMA,
        "name": f"{m.bundle} {metric}",
        "repo": env.get(REPOSITORY, ""),
        "head_branch": env.get(BRANCH, ""),
        "head_sha": env.get(COMMIT, ""),
        "workflow_id": 0,
        "run_attempt": 0,
        "job_id": 0,
        "benchmark": {
            "name": "snapgen-deploy",
            "mode": "inference",
            "dtype": key.precision,
            "extra_info": {
                "mode": m.mode,
                "profile": m.profile,
                f"{QUERY}_is": m.e2e_is,
                "rounds": str(len(m.rounds)),
                "rounds_discarded": str(invalid),
                "threads": str(key.threads),
                "power_mode": key.power_mode,
            },
        },
        "model": {
            "name": m.bundle,
            "type": "text-to-image",
            "backend": key.backend,
            "origins": [],
            "extra_info": {"width": m.width, "sha256": m.bundle_sha256, "steps": str(m.steps), **_batch(m)},
        },
        "inputs": {"picture": {"dtype": key.precision, "extra_info": {"resolution": f"{m.resolution[0]}x{m.resolution[1]}"}}},
        "dependencies": {
            runtime: {"repo": "", "branch": "", "sha": "", "version": key.runtime_version, "extra_info": {}},
        },
        "metric": {"name": metric, "benchmark_values": values, "target_value": 0, "extra_info": extra},
        "runners": [
            {
                "name": key.soc,
                "type": key.os_build,
                "cpu_info": env.get("processor", key.soc),
                "cpu_count": int(env["cores"]) if env.get("cores", "").isdecimal() else 0,
                "avail_mem_in_gb": 0,
                "gpu_info": "",
                "extra_info": dict(sorted(env.items())),
            }
        ],
    }


def _timestamp(environment: Mapping[str, str]) -> int:
    """Time of the measurement in seconds since 1970; 0 if it was not recorded."""
    try:
        moment = datetime.fromisoformat(environment.get(MEASURED_AT, ""))
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
