"""Formats of a comparison for continuous integration: GitHub step summary and annotations, JUnit XML, JSON.

Every reporter is a pure function of the comparison record (plain data, kind "comparison"). It escapes all texts, since names
and details come from bundles that others may have made.
"""

import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snapgen_deploy.latency.compare.verdict import CONFIDENCE

Record = Mapping[str, Any]
Reporter = Callable[[Record], str]

SUMMARY_LIMIT = (1 << 20) - 1024  # bytes; GitHub rejects a step summary above 1 MiB
ANNOTATIONS = 10  # number of annotations of one type that GitHub shows per step
_SIGNS = {"regressed": "❌", "failed": "❌", "inconclusive": "❔", "changed": "⚠️", "ok": "✅", "same": "✅", "improved": "✅"}


def as_json(record: Record) -> str:
    """The record as JSON."""
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"


# --- GitHub step summary


def step_summary(record: Record, limit: int = SUMMARY_LIMIT) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY: verdict, metrics, guards, notes. Lines beyond `limit` bytes are only counted."""
    verdict = record["verdict"]
    lines = [
        f"### {_SIGNS.get(verdict, '')} Latency: {_markdown(verdict)}",
        "",
        f"{_markdown(record['base']['bundle'])} → {_markdown(record['candidate']['bundle'])}, "
        f"{_markdown(record['target'])} on {_markdown(record['key'].get('soc', 'unknown'))}, "
        f"{record['rounds']} rounds, {_markdown(record['mode'])}",
        "",
    ]
    lines += _metric_rows(record["metrics"]) + _guard_rows(record["guards"])
    if record.get("self_check") is not None:
        lines.append(f"- {_markdown(self_check_sentence(record['self_check']))}")
    lines += [f"- {_markdown(note)}" for note in record["notes"]]
    return _within(lines, limit)


def _metric_rows(metrics: Sequence[Record]) -> list[str]:
    if not metrics:
        return ["No times were compared.", ""]
    rows = [
        f"| metric | base | candidate | change ({100 * CONFIDENCE:.1f} % CI) | verdict | detectable | limit |",
        "| :--- | ---: | ---: | ---: | :--- | ---: | ---: |",
    ]
    for m in metrics:
        limit = "—" if m["limit"] is None else f"{percent(m['limit'])}{' (warns)' if m['warn'] else ''}"
        rows.append(
            f"| {_markdown(m['name'])} | {milliseconds(m['base_ms'])} | {milliseconds(m['candidate_ms'])} | {change_text(m)} "
            f"| {_SIGNS.get(m['verdict'], '')} {_markdown(m['verdict'])} | {percent(m['detectable'])} | {limit} |"
        )
    return [*rows, ""]


def _guard_rows(guards: Sequence[Record]) -> list[str]:
    """A table of the guards that changed, failed ones first, and the number of unchanged guards."""
    moved = sorted((g for g in guards if g["verdict"] != "same"), key=lambda g: g["verdict"] != "failed")
    rows = []
    if moved:
        rows = ["| guard | component | verdict | difference |", "| :--- | :--- | :--- | :--- |"]
    for g in moved:
        cells = (g["name"], g["component"], f"{_SIGNS.get(g['verdict'], '')} {g['verdict']}", guard_sentence(g))
        rows.append("| " + " | ".join(_markdown(c) for c in cells) + " |")
    same = len(guards) - len(moved)
    return [*rows, *([""] if moved else []), *([f"- {same} deterministic guards unchanged"] if same else [])]


def _within(lines: Sequence[str], limit: int) -> str:
    """As many whole lines as fit in `limit` bytes, and a last line with the number of the others."""
    text = "\n".join(lines) + "\n"
    if len(text.encode()) <= limit:
        return text
    kept: list[str] = []
    room = limit - 200  # reserve some for the last line
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([*kept, "", f"*{len(lines) - len(kept)} lines are left out: a step summary holds {limit} bytes.*"]) + "\n"


def _markdown(value: Any) -> str:
    """Text on one line, escaped for Markdown and HTML."""
    text = _writable(" ".join(str(value).split()))
    return re.sub(r"([\\`*_\[\]|#~!@])", r"\\\1", html.escape(text, quote=False))


# --- GitHub annotations


def annotations(record: Record) -> str:
    """Workflow commands: errors for what fails, warnings for what warns or is inconclusive, notices for what changed.

    At most ten of a type, since GitHub shows no more; the tenth counts the rest.
    """
    found: dict[str, list[tuple[str, str]]] = {"error": [], "warning": [], "notice": []}
    for m in record["metrics"]:
        kind = {"regressed": "warning" if m["warn"] else "error", "inconclusive": "warning", "improved": "notice"}
        if m["verdict"] in kind:
            found[kind[m["verdict"]]].append((f"{m['name']} {m['verdict']}", metric_sentence(m)))
    for g in record["guards"]:
        if g["verdict"] != "same":
            kind_of = "error" if g["verdict"] == "failed" else "notice"
            found[kind_of].append((f"{g['component']} {g['name']} {g['verdict']}", guard_sentence(g)))
    check = record.get("self_check")
    if check is not None and not check["passed"]:
        found["warning"].append(("A/A self-check failed", self_check_sentence(check)))
    return "".join(_command(kind, *entry) for kind, entries in found.items() for entry in _capped(entries))


def _capped(entries: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(entries) <= ANNOTATIONS:
        return list(entries)
    rest = entries[ANNOTATIONS - 1 :]
    return [*entries[: ANNOTATIONS - 1], (f"{len(rest)} more", "; ".join(title for title, _ in rest)[:1000])]


def _command(kind: str, title: str, message: str) -> str:
    """One workflow command. The runner requires % and line ends to be escaped, and in properties : and , too."""
    message, title = _writable(message), _writable(title)
    data = clipped(message, 4000).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    name = title.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={name}::{data}\n"


# --- JUnit XML


def junit_xml(record: Record) -> str:
    """One test case per metric and per guard: a failure if it fails the build, skipped if inconclusive."""
    device = str(record["key"].get("soc", "unknown"))
    cases = [_metric_case(m, device) for m in record["metrics"]] + [_guard_case(g) for g in record["guards"]]
    if record.get("self_check") is not None:
        cases.insert(0, _self_check_case(record["self_check"]))
    count = {kind: sum(c.find(kind) is not None for c in cases) for kind in ("failure", "skipped")}
    totals = {
        "tests": str(len(cases)),
        "failures": str(count["failure"]),
        "skipped": str(count["skipped"]),
        "errors": "0",
        "time": f"{sum(float(c.attrib['time']) for c in cases):.6f}",
    }
    suites = ET.Element("testsuites", {"name": "snapgen-deploy compare", **totals})
    suite = ET.SubElement(suites, "testsuite", {"name": _xml(f"latency {record['target']}"), **totals})
    if record.get("created"):
        suite.set("timestamp", _xml(record["created"]))
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(record).items():
        ET.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    suite.extend(cases)
    ET.indent(suites, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _metric_case(metric: Record, device: str) -> ET.Element:
    seconds = (metric["candidate_ms"] or 0) / 1000
    case = ET.Element(
        "testcase", {"classname": _xml(f"latency.{device}"), "name": _xml(metric["name"]), "time": f"{seconds:.6f}"}
    )
    message, verdict = _xml(metric_sentence(metric)), metric["verdict"]
    if verdict == "inconclusive":
        ET.SubElement(case, "skipped", {"message": message})
    elif verdict in ("regressed", "failed") and not metric["warn"]:
        ET.SubElement(case, "failure", {"message": message, "type": verdict})
    else:
        ET.SubElement(case, "system-out").text = message
    return case


def _self_check_case(check: Record) -> ET.Element:
    case = ET.Element("testcase", {"classname": "latency", "name": "A/A self-check", "time": "0.000000"})
    if not check["passed"]:
        ET.SubElement(case, "skipped", {"message": _xml(self_check_sentence(check))})
    return case


def _guard_case(guard: Record) -> ET.Element:
    name = f"{guard['name']} {guard['component']}".strip()
    case = ET.Element("testcase", {"classname": "guards", "name": _xml(name), "time": "0.000000"})
    message = _xml(guard_sentence(guard))
    if guard["verdict"] == "failed":
        ET.SubElement(case, "failure", {"message": message, "type": "failed"})
    elif guard["verdict"] == "changed":
        ET.SubElement(case, "system-out").text = message
    return case


def _properties(record: Record) -> dict[str, Any]:
    named = {f"{side}.{part}": record[side][part] for side in ("base", "candidate") for part in ("bundle", "sha256")}
    named |= {"mode": record["mode"], "rounds": record["rounds"], "verdict": record["verdict"], "commit": record.get("commit")}
    return {k: v for k, v in {**named, **{f"key.{k}": v for k, v in record["key"].items()}}.items() if v is not None}


def _xml(value: Any) -> str:
    """Text without the characters that XML 1.0 cannot represent."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(value))


# --- shared wording


def _writable(text: str) -> str:
    """Text without lone surrogates, which JSON can contain but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def percent(value: float | None, signed: bool = False) -> str:
    """A share in percent; a dash for None.

    >>> percent(0.05), percent(0.05, signed=True), percent(None)
    ('5.0 %', '+5.0 %', '—')
    """
    if value is None:
        return "—"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def milliseconds(value: float | None) -> str:
    """A time with four significant digits; a dash for None."""
    return "—" if value is None else f"{value:.4g} ms"


def change_text(metric: Record) -> str:
    """A metric's change with its interval, such as `+7.1 % [+5.2, +9.0]`; a dash if there is none."""
    if metric["change"] is None:
        return "—"
    if metric["low"] is None or metric["high"] is None:
        return percent(metric["change"], signed=True)
    return f"{percent(metric['change'], signed=True)} [{100 * metric['low']:+.1f}, {100 * metric['high']:+.1f}]"


def metric_sentence(metric: Record) -> str:
    """One line: change, interval, limit, detectable change, times."""
    limit = "" if metric["limit"] is None else f", limit {percent(metric['limit'])}"
    times = f"{milliseconds(metric['base_ms'])} -> {milliseconds(metric['candidate_ms'])}"
    return f"{change_text(metric)}{limit}, detectable {percent(metric['detectable'])}, {times}"


def guard_sentence(guard: Record) -> str:
    """What changed: the detail, or both values if there is none."""
    return str(guard["detail"]) or clipped(f"{guard['base']} -> {guard['candidate']}", 400)


def self_check_sentence(check: Record) -> str:
    """Whether the self-check passed, and the change that this machine can detect."""
    outcome = "passed" if check["passed"] else f"failed: {check.get('reason') or 'this machine is too noisy for the limits'}"
    return f"A/A self-check over {check['rounds']} rounds {outcome}; detectable {percent(check['detectable'])}"


def clipped(text: str, length: int) -> str:
    """The text, cut to `length` characters.

    >>> clipped("a long text", 7)
    'a long…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


REPORTERS: dict[str, Reporter] = {
    "json": as_json,
    "github-summary": step_summary,
    "github-annotations": annotations,
    "junit": junit_xml,
}
