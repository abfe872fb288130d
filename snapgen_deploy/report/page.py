"""Renders the templates to one self-contained page."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from snapgen_deploy import __version__
from snapgen_deploy.check.gates import limit_text
from snapgen_deploy.latency.compare.verdict import CONFIDENCE
from snapgen_deploy.latency.estimate.plots import label, statistics_in_order
from snapgen_deploy.latency.formats.reporters import milliseconds, percent
from snapgen_deploy.report.charts import WIDTH, distributions, histories, segments_of
from snapgen_deploy.report.views import BundleView, GateView, MeasuredView, PromptRow, ReportView

# Colour and sign of a verdict. What was not run, or is inconclusive, is never green.
TONES = {"passed": "good", "ok": "good", "improved": "good", "failed": "bad", "regressed": "bad"}
_SIGNS = {"good": "✓", "bad": "✕", "open": "○"}


def render(report: ReportView) -> str:
    """Render the page as HTML; the same report always gives the same text."""
    environment = Environment(
        loader=PackageLoader("snapgen_deploy.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=bytes_text,
        in_order=statistics_in_order,
        limit=lambda gate: limit_text(gate.name, gate.limit),
        ms=milliseconds,
        percent=percent,
        role=label,
        value=value_text,
        words=words,
    )
    environment.globals.update(sign=_SIGNS.__getitem__, stack=segments_of, tone=tone)
    names = statistics_in_order({n for v in report.measured for n in v.measurement.names})
    charts = [c for n in names if (c := distributions(report.measured, n, label(n))) is not None]
    page = environment.get_template("page.html.j2").render(
        report=report,
        headline=headline(report),
        charts=charts,
        chart_width=WIDTH,
        histories=histories(report.comparisons),
        shared=shared_prompts(report.bundles),
        fastest=fastest(report),
        times=times(report),
        has_estimates=any(e.estimate is not None for e in report.estimates),
        confidence=percent(CONFIDENCE),
        version=__version__,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # JSON can contain lone surrogates, a UTF-8 file cannot


def headline(report: ReportView) -> str:
    """The whole report in one sentence."""
    passed, failed, idle = (sum(b.count(v) for b in report.bundles) for v in ("passed", "failed", "not_run"))
    clauses = [f"{b.label} is not what was exported" for b in report.bundles if b.damage]
    if passed and not failed and not idle:
        clauses.append(f"all {passed} gates passed")
    else:
        counted = {"failed": failed, "not run": idle, "passed": passed}
        parts = [f"{n} {word}" for word, n in counted.items() if n] or ["none was run"]
        clauses.append(f"of {passed + failed + idle} gates {', '.join(parts)}")
    sentence = "; ".join(clauses)
    return sentence if len(clauses) > 1 else sentence[0].upper() + sentence[1:]  # a bundle's name at the start stays as it is


def shared_prompts(bundles: tuple[BundleView, ...]) -> tuple[PromptRow, ...]:
    """For each prompt that all bundles drew, the reference's picture in every bundle."""
    if len(bundles) < 2 or not all(b.rows for b in bundles):
        return ()
    drawn = [{row.prompt: row.pictures[0] for row in b.rows} for b in bundles]
    common = [row.prompt for row in bundles[0].rows if all(row.prompt in d for d in drawn)]
    return tuple(PromptRow(prompt, tuple(d[prompt] for d in drawn)) for prompt in common)


def fastest(report: ReportView) -> dict[str, MeasuredView]:
    """Bundle label -> the measurement with the smallest median time of a picture, among those of exactly this export.

    A host's is none of a phone.
    """
    found: dict[str, MeasuredView] = {}
    servers = {b.label for b in report.bundles if b.is_server}
    for v in report.measured:
        if v.owner and not v.stale and v.measurement.samples() and (not v.on_host or v.owner in servers):
            before = found.get(v.owner)
            if before is None or v.measurement.summary()["p50"] < before.measurement.summary()["p50"]:
                found[v.owner] = v
    return found


def times(report: ReportView) -> dict[tuple[str, str], list[str]]:
    """(bundle label, target) -> median times of a picture and the chips, from measurements of exactly this export."""
    found: dict[tuple[str, str], list[str]] = {}
    for v in report.measured:
        if v.owner and not v.stale and v.measurement.samples():
            key = v.measurement.key
            median = milliseconds(v.measurement.summary()["p50"])
            found.setdefault((v.owner, key.backend), []).append(f"{median} on {key.soc}")
    return found


def tone(verdict: str) -> str:
    """The tone of a verdict: good, bad or open."""
    return TONES.get(verdict, "open")


def words(name: str) -> str:
    """A verdict or a gate's name, as words.

    >>> words("not_run")
    'not run'
    """
    return name.replace("_", " ")


def value_text(gate: GateView) -> str:
    """A gate's value with three digits; a dash if there is none."""
    if gate.value is None:
        return "—"
    if gate.name.endswith("psnr"):
        return f"{gate.value:.1f} dB"
    return f"{gate.value:.3g}" if gate.value < 1e4 else f"{gate.value:,.0f}"


def bytes_text(count: float) -> str:
    """A number of bytes in decimal units.

    >>> bytes_text(2_340_000)
    '2.34 MB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
