"""Run the fuzzing targets with Atheris: `python -m fuzz.run [TARGET ...] --seconds 60`.

Each target runs in a process of its own, from the seeds in fuzz/seeds and what earlier runs found in `--corpus`. A case that
ends a target is kept in `--findings` (never in the repository: what breaks other people's software stays out of it).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from fuzz.targets import SEEDS, TARGETS, runner
from snapgen_deploy.errors import one_line

MOST_MEMORY = 4096  # MB, imports included
MOST_SECONDS = 60  # for one case, by the clock of a machine that may be busy
LONGEST_CASE = 65_536  # bytes
LOG = "log.txt"  # of one target, among its findings
READERS = (
    "snapgen_deploy.bundle.reader",
    "snapgen_deploy.checkpoint",
    "snapgen_deploy.device_profiles",
    "snapgen_deploy.latency.compare.baseline",
    "snapgen_deploy.quantise.recipe",
)


def main() -> int:
    """Run the targets one after the other and say how many cases each has run; 1 where one found something."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"), help="folder for cases that reach new code")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz/findings"), help="folder for cases that end a target")
    asked = parser.parse_args()
    if unknown := [name for name in asked.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}; expected some of {', '.join(TARGETS)}")
    import atheris

    with (
        contextlib.redirect_stderr(io.StringIO()),  # a line for every module
        atheris.instrument_imports(include=["snapgen_deploy"], enable_loader_override=False),
    ):
        for module in READERS:  # once for all targets: each runs in a fork of this process
            importlib.import_module(module)
    total, found = 0, []
    for name in asked.targets or TARGETS:
        count, ended = _forked(name, asked)
        total += count
        found += [name] if ended else []
        print(f"{name}: {count} cases" + (f", then a finding: {asked.findings / name}" if ended else ""), flush=True)
        if ended:
            print(_why(asked.findings / name / LOG), flush=True)
    print(f"{total} cases over {len(asked.targets or TARGETS)} targets, {len(found)} with findings")
    return 1 if found else 0


def _forked(name: str, asked: argparse.Namespace) -> tuple[int, bool]:
    """Run one target in a process of its own: how many cases it has run, and whether one ended it."""
    for folder in (asked.corpus / name, asked.findings / name):
        folder.mkdir(parents=True, exist_ok=True)
    log = asked.findings / name / LOG
    if (child := os.fork()) == 0:
        _fuzz(name, asked, log)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    said = log.read_text(encoding="utf-8", errors="replace")
    runs = [int(n) for pair in re.findall(r"^(?:Done (\d+) runs|#(\d+)\t)", said, re.MULTILINE) for n in pair if n]
    return max(runs, default=0), ended


def _why(log: Path) -> str:
    """What ended a target, as its log says: the exception and where it was raised, or what libFuzzer missed."""
    said = log.read_text(encoding="utf-8", errors="replace")
    raised = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n(?:\n|==|$)", said, re.DOTALL)
    told = raised[1] if raised else "\n".join(re.findall(r"^==\d+== ?ERROR: .*", said, re.MULTILINE))
    return "\n".join("  " + one_line(line) for line in told.splitlines()[:30]) or f"  no reason in {log}"


def _fuzz(name: str, asked: argparse.Namespace, log: Path) -> NoReturn:
    """The target itself; Atheris ends the process."""
    import atheris

    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    settings = [
        f"-max_total_time={asked.seconds}", f"-rss_limit_mb={MOST_MEMORY}", f"-timeout={MOST_SECONDS}",
        f"-max_len={LONGEST_CASE}", f"-artifact_prefix={asked.findings / name}{os.sep}",
    ]  # fmt: skip
    try:
        with runner(TARGETS[name]) as run:
            atheris.Setup([sys.argv[0], *settings, str(asked.corpus / name), str(SEEDS / name)], run)
            atheris.Fuzz()
    finally:
        os._exit(1)  # Atheris ended it before, where all went well


if __name__ == "__main__":
    sys.exit(main())
