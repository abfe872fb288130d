"""Reads bundles and records from disk into views for the page. Anything malformed raises BadInput with one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snapgen_deploy.bundle.reader import SUMS, Bundle, check_hashes, open_bundle
from snapgen_deploy.bundle.sizes import preview_name
from snapgen_deploy.checkpoint.licences import licences_line
from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.errors import BadInput, GateFailed
from snapgen_deploy.families.names import in_order
from snapgen_deploy.families.registry import components_of
from snapgen_deploy.golden.vectors import OWN_REFERENCE
from snapgen_deploy.latency.formats.reporters import guard_sentence, self_check_sentence
from snapgen_deploy.latency.results import Measurement, read_measurement
from snapgen_deploy.report.estimates import estimates_of
from snapgen_deploy.report.pictures import preview_rows
from snapgen_deploy.report.views import (
    BundleView,
    ComparisonView,
    ComponentView,
    GateView,
    MeasuredView,
    MetricView,
    ReportView,
    TargetView,
)
from snapgen_deploy.system.files import read_json, sha256_of

_VERDICTS = ("passed", "failed", "not_run")


def collect(bundles: Sequence[Path], latency: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> ReportView:
    """Read everything that the report shows.

    Args:
        bundles: Folders of bundles.
        latency: Files that `bench --output` wrote.
        comparisons: Files that `compare --output` wrote.

    Raises:
        BadInput: for the first bundle or file that cannot be read or is malformed. A bundle with changed files is no error:
            the page shows what changed.
    """
    opened = [open_bundle(path) for path in bundles]
    labels = _unique([b.path.resolve().name for b in opened])
    views = tuple(_bundle(b, label, f"bundle-{i}") for i, (b, label) in enumerate(zip(opened, labels, strict=True), 1))
    measured = _measured(latency, views)
    estimates = []
    for bundle, view in zip(opened, views, strict=True):
        with _well_formed(bundle.path, "bundle"):
            estimates += estimates_of(view, bundle.manifest, measured)
    history = sorted((_comparison(p) for p in comparisons), key=lambda c: _moment(c.created))
    return ReportView(views, measured, tuple(estimates), tuple(history))


@contextmanager
def _well_formed(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise BadInput(
            f"{path} is not a valid {kind} of this version ({type(error).__name__}: {error}); write it again"
        ) from None


def _unique(names: Sequence[str]) -> list[str]:
    many = Counter(names)
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if many[name] > 1 else name)
    return found


# --- bundles


def _bundle(bundle: Bundle, label: str, anchor: str) -> BundleView:
    m, sums = bundle.manifest, bundle.path / SUMS
    try:
        check_hashes(bundle)
        damage = ""
    except GateFailed as error:
        damage = str(error)
    with _well_formed(bundle.path, "bundle"):
        gates = tuple(_gate(g) for g in m["gates"])
        counts = _parameters(bundle, str(m["width"]))
        scores = {key: (one.get("score") or {}).get("share") for key, one in (m.get("fidelity") or {}).items()}
        targets = tuple(_target(str(key), m["targets"][key], gates, counts, scores.get(key)) for key in m["target_order"])
        resolution = (int(m["resolution"][0]), int(m["resolution"][1]))
        titles = ["reference", *(t.key for t in targets if t.psnr is not None)]
        prompts = [str(p) for p in m["prompts"]]
        rows, sheet = preview_rows(bundle.path / "preview.png", prompts, titles, resolution)
        for other in m.get("sizes", ())[1:]:
            shown = [f"{prompt} ({other['name']})" for prompt in prompts[: other["prompts"]]]
            at = (int(other["resolution"][0]), int(other["resolution"][1]))
            rows += preview_rows(bundle.path / preview_name(str(other["name"])), shown, titles, at)[0]
        return BundleView(
            label=label,
            anchor=anchor,
            name=str(m["name"]),
            device=str(m["device"]["name"]),
            is_server=_is_server(m["device"]),
            device_id=str(m["device"]["id"]),
            width=str(m["width"]),
            resolution=resolution,
            steps=len(m["schedule"]["sigmas"]) - 1,
            trained=m["trained"] is True,
            sha256=sha256_of(sums) if sums.is_file() else "",
            checkpoint=str(m["checkpoint"]["sha256"]),
            license=licences_line(m.get("licenses") or {"checkpoint": m["checkpoint"]["license"]}),
            loras=tuple(f"{x['name']}, {x['scale']:g} ({str(x['sha256'])[:12]})" for x in m["checkpoint"].get("loras", ())),
            warnings=tuple(str(w) for w in m.get("warnings", ())),
            generator=str(m["generator"]),
            damage=damage,
            reasons=tuple(str(r) for r in m["reasons"]),
            targets=targets,
            gates=gates,
            rows=rows,
            sheet=sheet,
            sizes=tuple(str(s["name"]) for s in m.get("sizes", ())),
            compared_with=str(m.get("compared_with") or OWN_REFERENCE),
            calls=drawn_in_a_call(m),
        )


def drawn_in_a_call(manifest: Mapping[str, Any]) -> str:
    """Guidance and pictures of a call, as `, guidance 3, 4 pictures a call`; "" where there is neither."""
    guidance = manifest.get("guidance")
    said = f", guidance {_sure(guidance['scale']):g}" if guidance else ""
    return f"{said}, {manifest['batch']} pictures a call" if "batch" in manifest else said


def _gate(gate: Mapping[str, Any]) -> GateView:
    verdict = gate["verdict"]
    if verdict not in _VERDICTS:
        raise ValueError(f"verdict of a gate: got {verdict!r}, expected one of {', '.join(_VERDICTS)}")
    texts = [str(gate[k]) for k in ("target", "component", "name")]
    texts[1] = " ".join((texts[1], str(gate.get("size", "")))).strip()
    return GateView(texts[0], texts[1], texts[2], _number(gate["value"]), _sure(gate["limit"]), verdict, str(gate["detail"]))


def _is_server(device: Mapping[str, Any]) -> bool:
    """Whether a profile of ours says so: a manifest does not."""
    return device.get("id") in profile_ids() and load_profile(device["id"]).kind == "server"


def _target(
    key: str, data: Mapping[str, Any], gates: Sequence[GateView], counts: Mapping[str, int], score: object
) -> TargetView:
    parts = data["components"]
    roles = in_order(parts)
    psnr = [g.value for g in gates if g.target == key and g.name == "psnr" and g.verdict != "not_run"]
    return TargetView(
        key=key,
        precision=str(data["precision"]),
        form=str(data["attention_form"]),
        layout=str(data["layout"]),
        components=tuple(_component(r, parts[r], counts.get(r)) for r in roles),
        versions=tuple(sorted((str(n), str(v)) for n, v in data["versions"].items())),
        psnr=psnr[0] if psnr else None,
        score=_number(score),
        separate_bytes=int(data["sharing"]["separate_bytes"]) if "sharing" in data else None,
    )


def _component(role: str, data: Mapping[str, Any], parameters: int | None) -> ComponentView:
    ops = _counts(data["ops"])
    return ComponentView(
        role=role,
        bytes=int(data["bytes"]),
        parameters=parameters,
        dtypes=_counts(data["weight_dtypes"]),
        placement=_placement(data["placement"], data["portable_ops"], sum(n for _, n in ops)),
        ops=ops,
        lint=_counts(data["lint"]),
        notes=tuple(str(n) for n in data["notes"]),
    )


def _counts(data: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Names and counts, the most frequent first."""
    return tuple(sorted(((str(name), int(n)) for name, n in data.items()), key=lambda pair: (-pair[1], pair[0])))


def _placement(data: Mapping[str, Any], portable: Mapping[str, Any], ops: int) -> tuple[tuple[str, int], ...]:
    """Operators by place. ExecuTorch's manifest counts operators outside of delegates only; the others are computed here."""
    if "portable" not in data:
        return tuple(p for p in _counts(data) if p[1])
    outside = sum(n for _, n in _counts(portable))
    inside = " + ".join(name for name, n in _counts(data) if name != "portable" and n) or "delegate"
    return tuple(p for p in ((inside, ops - outside), ("portable kernels", outside)) if p[1])


def _parameters(bundle: Bundle, width: str) -> dict[str, int]:
    """Parameters by role, counted without allocating the networks; empty if the configuration cannot be built.

    A bundle builds no network of a user's own.
    """
    try:
        config = bundle.config
    except BadInput:
        return {}
    if width not in config.student.widths:
        return {}
    return {s.name: s.parameters(width) for s in components_of(config) if not s.needs_vectors}


# --- measurements


def _measured(paths: Sequence[Path], bundles: Sequence[BundleView]) -> tuple[MeasuredView, ...]:
    found: list[tuple[Measurement, str, bool]] = []
    for path in paths:
        m = read_measurement(path)
        with _well_formed(path, "latency measurement"):
            for value in (s for r in m.rounds for values in r.samples.values() for s in values):
                _sure(value)
            for name in m.names:
                m.summary(name)
        exact = [b.label for b in bundles if b.sha256 and b.sha256 == m.bundle_sha256]
        alike = [b.label for b in bundles if b.label == m.bundle]
        found.append((m, next(iter(exact + alike), ""), bool(alike and not exact)))
    labels = _unique([f"{m.bundle} · {m.width} · {m.key.backend} · {m.key.soc}" for m, _, _ in found])
    return tuple(MeasuredView(m, label, owner, stale) for label, (m, owner, stale) in zip(labels, found, strict=True))


# --- comparisons


def _comparison(path: Path) -> ComparisonView:
    data = read_json(path, "give a file that `compare --json` wrote")
    if not isinstance(data, dict) or data.get("kind") != "comparison" or data.get("schema_version") != 1:
        raise BadInput(f"{path} is not a comparison of this version; give a file that `compare --json` wrote")
    with _well_formed(path, "comparison"):
        guards, check = data["guards"], data.get("self_check")
        moved = [g for g in guards if g["verdict"] != "same"]
        return ComparisonView(
            base=str(data["base"]["bundle"]),
            candidate=str(data["candidate"]["bundle"]),
            target=str(data["target"]),
            soc=str(data["key"].get("soc", "unknown")),
            mode=str(data["mode"]),
            rounds=int(data["rounds"]),
            created=str(data.get("created") or ""),
            commit=str(data.get("commit") or ""),
            verdict=str(data["verdict"]),
            metrics=tuple(_metric(m) for m in data["metrics"]),
            changed=tuple((f"{g['component']} {g['name']}", str(g["verdict"]), guard_sentence(g)) for g in moved),
            unchanged=len(guards) - len(moved),
            self_check=self_check_sentence(check) if check is not None else "",
            notes=tuple(str(n) for n in data.get("notes", ())),
        )


def _metric(data: Mapping[str, Any]) -> MetricView:
    names = ("base_ms", "candidate_ms", "change", "low", "high", "detectable", "limit")
    base, candidate, change, low, high, detectable, limit = (_number(data[n]) for n in names)
    verdict = str(data["verdict"])
    return MetricView(str(data["name"]), base, candidate, change, low, high, detectable, limit, data["warn"] is True, verdict)


def _moment(created: str) -> tuple[bool, datetime]:
    """Sort key for times; comparisons without a time come first, in the given order."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return False, datetime.min.replace(tzinfo=UTC)
    return True, moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(value: Any) -> float | None:
    return None if value is None else _sure(value)


def _sure(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"got {value!r}, expected a finite number")
    return float(value)
