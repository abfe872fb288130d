"""Tables in the documentation that say what the code says: made from it, and compared by a test.

`python -m tests.docs.tables` writes them into the pages, between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from snapgen_deploy.device_profiles import load_profile, profile_ids
from snapgen_deploy.device_profiles.schema import FIGURE_USES, FIGURES, GUARDS
from snapgen_deploy.errors import EXIT_CODES
from snapgen_deploy.export.lint import RULES
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import specs
from snapgen_deploy.latency.results import RUN_PROFILES
from snapgen_deploy.system.source import package_root
from tests.docs.pages import PAGES, text_of
from tests.test_architecture import ROWS

_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def devices() -> str:
    """Every profile, with its budgets and default targets."""
    profiles = [load_profile(name) for name in profile_ids()]
    rows = [
        (
            f"`{p.id}`",
            p.name,
            p.soc,
            ", ".join(str(b) for b in (p.memory_budget, p.latency_budget) if b),
            ", ".join(f"`{t.key}` {t.precision}" for t in p.targets),
        )
        for p in profiles
    ]
    return table(("id", "device", "chip", "budgets", "default targets"), rows)


def targets() -> str:
    """Every target with what it offers."""
    rows = []
    for spec in specs().values():
        extra = f"`{spec.extra.name}`" if spec.extra else ""
        sizes, links = "one" if spec.one_size else "several", _code(spec.links)
        pictures = "one" if spec.one_picture else "`--batch N`"
        rows.append(
            (f"`{spec.key}`", f"`{spec.suffix}`", f"`{spec.precisions[0]}`", spec.layout, extra, sizes, pictures, links)
        )
    head = (
        "target", "files", "default precision", "layout", "extra", "picture sizes per bundle", "pictures per call",
        "`bench --link`",
    )  # fmt: skip
    return table(head, rows)


def precisions_by_target() -> str:
    """What each target offers, the default first."""
    return table(("target", "precisions"), [(f"`{spec.key}`", _code(spec.precisions)) for spec in specs().values()])


def precisions() -> str:
    """Every precision with its bits and limits."""
    rows = []
    for name, p in PRECISIONS.items():
        bits = f"{'up to ' if name == 'mixed' else ''}{8 * p.weight_bytes:.1f}"
        rows.append((f"`{name}`", p.doc, bits, f"{p.limits.mean_psnr:g} dB", f"{p.limits.ssim:g}"))
    return table(("precision", "what it is", "bits", "mean PSNR ≥", "SSIM ≥"), rows)


def exit_codes() -> str:
    """What the process returns."""
    return table(("exit code", "meaning"), EXIT_CODES.items())


def rooms() -> str:
    """The rows of rooms from the ground up, each room with the first line of its docstring."""
    rows = []
    for number, row in enumerate(ROWS):
        rows += [(number, f"`{room or 'snapgen_deploy'}`", _about(room)) for room in row]
    return table(("row", "room", "what is in it"), rows)


def _about(room: str) -> str:
    folder, module = package_root() / room / "__init__.py", package_root() / f"{room}.py"
    code = (folder if folder.is_file() else module).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(code)) or "").splitlines()[0]


def guards() -> str:
    """The deterministic guards of `compare`."""
    return table(("guard", "compares"), [(f"`{name}`", about) for name, about in GUARDS.items()])


def figures() -> str:
    """Every figure that a profile may give."""
    rows = [(f"`{name}`", _code(units), FIGURE_USES.get(name, "shown by `devices`")) for name, units in FIGURES.items()]
    return table(("figure", "unit", "used by"), rows)


def run_profiles() -> str:
    """How long `bench` runs."""
    rows = [(f"`{p.name}`", p.queries, f"{p.seconds:g} s") for p in RUN_PROFILES.values()]
    return table(("`--profile`", "pictures at least", "time at least"), rows)


def lint() -> str:
    """The rules of `doctor`."""
    return table(("rule", "severity", "why"), [(f"`{r.id}`", r.severity, r.reason) for r in RULES.values()])


TABLES: Mapping[str, Callable[[], str]] = {
    "devices": devices,
    "targets": targets,
    "precisions": precisions,
    "precisions-by-target": precisions_by_target,
    "exit-codes": exit_codes,
    "rooms": rooms,
    "guards": guards,
    "figures": figures,
    "run-profiles": run_profiles,
    "lint": lint,
}


def filled(text: str) -> str:
    """A page's text with every marked table as the code has it now. KeyError for a name that is not in TABLES."""
    return _MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[4]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(text_of(page)), encoding="utf-8")
