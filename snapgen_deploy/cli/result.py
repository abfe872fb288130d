"""Prints the result of `export`: components, gates, memory and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from snapgen_deploy.cli.console import UNTRAINED, cell, megabytes, new_table, out, plain, say, tell

if TYPE_CHECKING:
    from snapgen_deploy.job.run import Result


def print_gates(gates: Sequence[dict[str, Any]]) -> None:
    """Print a table of gates with their values, limits and verdicts."""
    from snapgen_deploy.check.gates import limit_text

    table = new_table(title="gates")
    for column in ("target", "component", "gate", "value", "limit", "verdict"):
        justify: Literal["left", "right"] = "right" if column in ("value", "limit") else "left"
        table.add_column(column, justify=justify, no_wrap=column != "gate")
    colours = {"passed": "green", "failed": "red", "not_run": "yellow"}
    shown = None
    for g in gates:
        value = "—" if g["value"] is None else f"{g['value']:.3g}"
        verdict = f"[{colours[g['verdict']]}]{g['verdict']}[/]"
        target, limit = "" if _where(g) == shown else cell(_where(g)), limit_text(g["name"], g["limit"])
        table.add_row(target, escape(_component(g)), cell(g["name"].replace("_", " ")), value, limit, verdict)
        shown = _where(g)
    out().print(table)
    for g in gates:
        if g["name"] == "largest_value":
            line = f"{_where(g)} {_component(g)}, closest to the largest fp16 number: {g['detail'].partition('; ')[0]}"
            out().print(plain(line), style="dim", markup=False)
        elif g["verdict"] != "passed":
            line = f"{_where(g)} {_component(g)} {g['name']}: {g['verdict']}: {g['detail']}"
            say(plain(line))  # a reason may contain brackets, such as pip extras


def count_verdicts(gates: Sequence[Mapping[str, Any]]) -> str:
    """`4 gates passed, 0 failed, 1 not run`."""
    passed, failed, idle = (sum(g["verdict"] == verdict for g in gates) for verdict in ("passed", "failed", "not_run"))
    return f"{passed} gates passed, {failed} failed, {idle} not run"


def _where(gate: dict[str, Any]) -> str:
    """The target of a gate, with the machine if it is another one."""
    return f"{gate['target']} on {gate['on']}" if gate.get("on") else str(gate["target"])


def _component(gate: dict[str, Any]) -> str:
    """The component of a gate, with the picture size if there are several."""
    return plain(" ".join((gate["component"].replace("_", " "), gate.get("size", ""))))


def _print_components(targets: Mapping[str, Any]) -> None:
    """Print what every file of every target holds, and where its operators run."""
    from snapgen_deploy.families.names import in_order

    table = new_table("components")
    numbers = ("size", "bits", "left", "operators")
    for column in ("target", "component", "precision", *numbers):
        table.add_column(column, justify="right" if column in numbers else "left")
    placed = []
    for key, target in targets.items():
        components = {role: target["components"][role] for role in in_order(target["components"])}
        for i, (role, c) in enumerate(components.items()):
            name = role.replace("_", " ")
            bits = "—" if c["average_bits"] is None else f"{c['average_bits']:.2f}"
            left, operators = str(len(c["skipped"])), str(sum(c["ops"].values()))
            named = (key, name, target["precision"]) if i == 0 else ("", name, "")
            table.add_row(*named, megabytes(c["bytes"]), bits, left, operators)
        runs = {r: ", ".join(f"{w} {n}" for w, n in c["placement"].items()) for r, c in components.items()}
        if any(runs.values()):
            placed.append(f"{key} runs on: {'; '.join(f'{r} {w}' for r, w in runs.items() if w)}")
    out().print(table)
    out().print("bits: average per stored weight; left: layers that a quantiser left unchanged", style="dim")
    for line in placed:
        out().print(line.replace("_", " "), style="dim")


def quantisers_warnings(targets: Mapping[str, Any]) -> list[str]:
    """A line for every component of which a quantiser took no layer at all."""
    from snapgen_deploy.export.base import left_whole

    found = []
    for key, target in targets.items():
        for role, c in target["components"].items():
            if left_whole(c["skipped"], c["weights"].values()):
                name, why = next(iter(c["skipped"].items()))
                layers = "its only layer" if len(c["skipped"]) == 1 else f"all {len(c['skipped'])} layers"
                what = f"{key} {role.replace('_', ' ')}: {target['precision']} quantises nothing, {layers} left"
                found.append(f"{what}: {name}: {why}")
    return found


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """All that went well and still needs a decision."""
    return [*quantisers_warnings(manifest["targets"]), *delivery_warnings(manifest)]


def delivery_warnings(manifest: Mapping[str, Any]) -> list[str]:
    """A line for every target that is too large for the store."""
    found = []
    for key, told in manifest.get("delivery", {}).items():
        if not told["fits"]:
            most = f"{megabytes(told['most_bytes'])}, {megabytes(told['most_bytes_each'])} each"
            found.append(
                f"{key}: {megabytes(told['bytes'])} do not fit {told['way']} ({most}: {told['source']}); choose fewer bits or "
                "a narrower width, or download them from a server of yours"
            )
    return found


def _print_sizes(manifest: Mapping[str, Any]) -> None:
    """Print how many bytes the picture sizes share, and what that saves compared with one bundle per size."""
    names = [s["name"] for s in manifest["sizes"]]
    table = new_table(title=f"{len(names)} picture sizes: {', '.join(names)}")
    for column in ("target", "component", "one bundle a size", "here", "saved", "weights used by several"):
        table.add_column(column, justify="left" if column in ("target", "component") else "right")
    for key in manifest["target_order"]:
        target = manifest["targets"][key]
        rows = {r: c["sharing"] for r, c in target["components"].items() if "sharing" in c} | {"all": target["sharing"]}
        for role, s in rows.items():
            shared = megabytes(s["shared_bytes"]) if "shared_bytes" in s else ""
            table.add_row(key, role, *(megabytes(s[k]) for k in ("separate_bytes", "bytes", "bytes_saved")), shared)
    out().print(table)


def _print_run(result: Result) -> None:
    """Print where components came from, and peak memory and time of every process (for cached ones, of the conversion)."""
    targets = result.run["targets"]
    taken = sum(hit for t in targets.values() for hit in t["cached"].values())
    if taken:
        every = sum(len(t["cached"]) for t in targets.values())
        out().print(f"{taken} of {every} components came from the cache; their gates ran again", style="cyan")
    shared = {name: result.run[f"{name}_peak_bytes"] for name in ("reference", "recipe")}
    peaks = ", ".join(f"{name} {megabytes(peak)}" for name, peak in shared.items() if peak)
    out().print(f"peak memory: {peaks}; largest of all {megabytes(result.peak_bytes)}")
    for key, t in targets.items():
        parts = [
            f"{role.replace('_', ' ')} {megabytes(peak)} in {t['export_seconds'][role]:.0f} s"
            + (" (cached)" if t["cached"][role] else "")
            for role, peak in t["export_peak_bytes"].items()
        ]
        say(f"  {key}: {', '.join(parts)}; check {megabytes(t['check_peak_bytes'])}")


def result_as_dict(result: Result) -> dict[str, Any]:
    """The result for `--json`."""
    manifest = result.bundle.manifest
    data = {
        "bundle": str(result.bundle.path),
        "peak_bytes": result.peak_bytes,
        "run": result.run,
        "gates": manifest["gates"],
        "compared_with": manifest["compared_with"],
        "targets": manifest["targets"],
    }
    return data | ({"sizes": manifest["sizes"]} if "sizes" in manifest else {})


def print_result(result: Result) -> None:
    """Print components, gates, processes, and where the bundle is."""
    manifest = result.bundle.manifest
    targets = {key: manifest["targets"][key] for key in result.bundle.targets}
    _print_components(targets)
    for line in warnings_of(result.bundle.manifest):
        tell(f"warning: {line}", "yellow")
    if "sizes" in manifest:
        _print_sizes(manifest)
    print_gates(manifest["gates"])
    _print_run(result)
    out().print(count_verdicts(manifest["gates"]))
    if manifest["trained"] is not True:
        out().print(UNTRAINED, style="yellow")
    preview = result.bundle.path / "preview.png"  # absent without a decoder
    say(f"bundle: {result.bundle.path}" + (f"   preview: {preview}" if preview.is_file() else ""))
