"""`snapgen-deploy devices`, and printing a plan as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from snapgen_deploy.cli.console import new_table, out, print_json, say
from snapgen_deploy.cli.options import AsJson, Verbose
from snapgen_deploy.errors import BadInput

if TYPE_CHECKING:
    from snapgen_deploy.device_profiles import Figure, Profile
    from snapgen_deploy.plan.plan import ExportPlan


def devices(
    device: Annotated[str | None, typer.Argument(help="Device id or path of a profile .toml. Default: list all.")] = None,
    precisions: Annotated[
        bool, typer.Option("--precisions", help="List the precisions of `export --precision` instead.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List the known devices, or show one with the source of every figure."""
    from snapgen_deploy.device_profiles import load_profile, profile_ids

    if precisions:
        if device is not None:
            raise BadInput(f"--precisions lists those of all targets; leave out {device} or --precisions")
        _precisions(as_json)
        return
    profiles = [load_profile(device)] if device else [load_profile(i) for i in profile_ids()]
    if as_json:
        print_json({"devices": [p.as_dict() for p in profiles]})
    elif device:
        _show(profiles[0])
    else:
        _list(profiles)


def _precisions(as_json: bool) -> None:
    """Print every precision, the targets that offer it, and its limits."""
    from snapgen_deploy.export.precisions import PRECISIONS
    from snapgen_deploy.export.registry import specs

    offered = {name: [t for t, spec in specs().items() if name in spec.precisions] for name in PRECISIONS}
    if as_json:
        print_json({"precisions": {name: asdict(p) | {"targets": offered[name]} for name, p in PRECISIONS.items()}})
        return
    table = new_table()
    for column in ("precision", "bits a weight", "mean PSNR", "SSIM", "what it is, and which targets offer it"):
        table.add_column(column, justify="right" if column in ("bits a weight", "mean PSNR", "SSIM") else "left")
    table.columns[0].no_wrap = True
    for name, p in PRECISIONS.items():
        bits = f"{'up to ' if name == 'mixed' else ''}{8 * p.weight_bytes:.1f}"
        about = f"{p.doc}\n[dim]{', '.join(offered[name])}[/dim]"
        table.add_row(name, bits, f"{p.limits.mean_psnr:g} dB", f"{p.limits.ssim:g}", about)
    out().print(table)


def _list(profiles: list[Profile]) -> None:
    table = new_table()
    for column in ("id", "device and chip", "budgets", "targets"):
        table.add_column(column, no_wrap=column != "device and chip")
    for p in profiles:
        targets = "\n".join(f"{t.key} {t.precision}" for t in p.targets)
        device = f"{escape(p.name)}\n[dim]{escape(p.soc)}[/dim]"
        table.add_row(p.id, device, "\n".join(str(b) for b in (p.memory_budget, p.latency_budget) if b), targets)
    out().print(table)


def _from(system: str) -> str:
    return f"{system} or later" if system else "—"


def _options(options: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in options) or "—"


def _short(figure: Figure | None) -> str:
    return str(figure) if figure else "—"


def _show(p: Profile) -> None:
    from snapgen_deploy.device_profiles.cores import CORES

    console = out()
    about = f"({p.id})   {p.kind}, {p.soc}, {p.os} {p.os_minimum} or newer"
    console.print(f"[bold]{escape(p.name)}[/bold] {escape(about)}")
    say(f"source: {p.source}", "dim")
    for note in p.notes:
        say(note)
    if p.isa is not None:
        say(f"cores: {', '.join(CORES[name].title for name in p.isa.cores)} ({p.isa.source})")
    targets = new_table(title="targets, in order")
    for column in ("target", "precision", "layout", "runs on", "options", "exported"):
        targets.add_column(column, no_wrap=column in ("target", "exported"))
    rows = [(t, "by default") for t in p.targets] + [(o.target, "with --target") for o in p.offers]
    for t, when in rows:
        targets.add_row(t.key, t.precision, t.layout, _from(t.system), _options(t.options), when)
    console.print(targets)
    for offer in p.offers:
        say(f"{offer.target.key}: {offer.source}", "dim")
    figures = new_table(title="figures")
    for column in ("figure", "value", "status", "source"):
        figures.add_column(column)
    budgets = {"memory budget": p.memory_budget, "latency budget": p.latency_budget}
    for name, figure in {**budgets, **p.figures}.items():
        if figure is not None:
            figures.add_row(name.replace("_", " "), _short(figure), figure.status, escape(figure.source))
    from snapgen_deploy.families.names import DECODER, title_of

    if p.latency is not None:
        model = f"{p.latency.preset} {p.latency.resolution[0]}x{p.latency.resolution[1]}, {p.latency.target}"
        steps = {f"step, {width}": figure for width, figure in p.latency.step.items()}
        for name, figure in {**steps, title_of(DECODER): p.latency.decoder}.items():
            figures.add_row(f"{name} ({model})", _short(figure), figure.status, escape(figure.source))
    console.print(figures)


def plan_as_dict(plan: ExportPlan) -> dict[str, Any]:
    """The plan as plain data."""
    return asdict(plan) | {
        "targets": [asdict(t) | {"key": t.key, "options": dict(t.options), "system": t.system} for t in plan.targets]
    }


def render_plan(plan: ExportPlan, console: Console) -> None:
    """Print the plan as a table, with the reasons below."""
    size = f"{plan.resolution[0]}x{plan.resolution[1]} pixels, latent {'x'.join(map(str, plan.latent))}"
    console.print(f"[bold]{escape(plan.device_name)}[/bold]: width [bold]{plan.width}[/bold], {size}")
    table = new_table()
    for column in ("target", "precision", "layout", "local attention", "runs on", "options"):
        table.add_column(column, no_wrap=column == "target")
    for t in plan.targets:
        table.add_row(t.key, t.precision, t.layout, t.form, _from(t.system), _options(t.options))
    console.print(table)
    for other in plan.other_sizes:
        forms = ", ".join(f"{key} {form}" for key, form in other.forms)
        console.print(
            f"also {other.name} pixels, latent {'x'.join(map(str, other.latent))}; local attention: {forms}", soft_wrap=True
        )
    if plan.offers:
        console.print(f"also runs there, with --target: {', '.join(plan.offers)}", soft_wrap=True)
    if plan.mixed is not None:
        m = plan.mixed
        words = f"{len(m.prompts)} prompts" if m.prompts else "random text"
        tuned = f"tuned for {m.iterations} iterations on {m.pictures} pictures of {words}"
        console.print(f"mixed precision: {m.bits:g} bits a weight, {tuned}", soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)
    for reason in plan.reasons:
        console.print(f"  {reason}", style="dim", soft_wrap=True, markup=False)
