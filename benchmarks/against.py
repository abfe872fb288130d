"""This checkout beside another one with an environment of its own, commands in turn on the same machine.

    python -m benchmarks.against BASE [--runs 3] [--only NAME ...]    BASE: a checkout with .venv, such as of an earlier commit

Each command runs in both checkouts in turn, this one first in the first round and the base first in the next, so that what else
the machine does falls on both. Seconds are wall time from the
command to its end; memory is the largest sum over all processes that live at the same time, shared pages counted once (PSS,
sampled five times a second). Medians, and the ratio of medians. Writes benchmarks/results/against.json and .md after each run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapgen_deploy.cli.console import megabytes
from snapgen_deploy.latency.environment import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
EVERY = 0.2  # seconds between samples of memory
PROMPT = "a red ring left of a blue square on a gray background"
_EXPORT = ("export", "--no-cache", "--overwrite", "-o", "{out}", "--device")
_FULL = ("--checkpoint", "{out}/snapgenpp", "--width", "small", "--resolution", "1024")


@dataclass(frozen=True)
class Task:
    """A command to compare. Commands that `prepare` names run before it in its checkout, and are not measured."""

    words: tuple[str, ...]
    prepare: tuple[str, ...] = ()  # names of tasks
    always: bool = True  # False: only where `--only` names it


TASKS: Mapping[str, Task] = {
    "export for iphone16pm": Task((*_EXPORT, "iphone16pm")),
    "export for server": Task((*_EXPORT, "server")),
    "generate from Core ML files": Task(
        ("generate", "{out}/shapes-iphone16pm", "--target", "coreml", "--prompt", PROMPT, "-o", "{out}/a.png"),
        ("export for iphone16pm",),
    ),
    "generate": Task(
        ("generate", "{out}/shapes-iphone16pm", "--prompt", PROMPT, "-o", "{out}/a.png"), ("export for iphone16pm",)
    ),
    "verify": Task(("verify", "{out}/shapes-iphone16pm"), ("export for iphone16pm",)),
    "init snapgenpp": Task(("init", "--preset", "snapgenpp", "-o", "{out}/snapgenpp", "--dtype", "fp16"), (), False),
    "export snapgenpp small for iphone16pm": Task((*_EXPORT, "iphone16pm", *_FULL), ("init snapgenpp",), False),
    "export snapgenpp small for server": Task((*_EXPORT, "server", *_FULL), ("init snapgenpp",), False),
}  # fmt: skip


def members(session: int) -> list[int]:
    """Processes of a session, which a command and all that it starts share."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                if os.getsid(int(entry)) == session:
                    found.append(int(entry))
    return found


def proportional_bytes(process: int) -> int:
    """Memory of a process, each shared page divided among those that share it; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def run(checkout: Path, words: tuple[str, ...], out: Path) -> dict[str, float]:
    """Run a command of a checkout's environment: seconds, and the peak of all its processes together.

    Raises:
        SystemExit: if the command fails; its output is shown.
    """
    command = [str(checkout / ".venv/bin/snapgen-deploy"), *(word.format(out=out) for word in words)]
    own = {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(out / "cache")}
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=out, env={**os.environ, **own}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_bytes, members(process.pid))))
            time.sleep(EVERY)
        seconds = time.monotonic() - start
        if process.returncode:
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
            raise SystemExit(f"{checkout}: {' '.join(words)} exited with {process.returncode}")
    return {"seconds": round(seconds, 2), "bytes": peak}


def prepare(task: Task, checkout: Path, out: Path, done: set[tuple[Path, str]]) -> None:
    """Run what a task needs, once in each checkout."""
    for name in task.prepare:
        if (checkout, name) not in done:
            prepare(TASKS[name], checkout, out, done)
            run(checkout, TASKS[name].words, out)
            done.add((checkout, name))


def commit(checkout: Path) -> str:
    """The commit of a checkout, with a plus if its files differ from it."""
    said = subprocess.run(["git", "-C", str(checkout), "describe", "--always", "--dirty=+"], capture_output=True, text=True)
    return said.stdout.strip() or checkout.name


def markdown(found: Mapping[str, Any]) -> str:
    """The results as a table: medians, and this checkout's by the base's."""
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = [
        f"# {found['here']} beside {found['base']}",
        "",
        f"`python -m benchmarks.against BASE`: commands in turn, medians. {machine}.",
        "",
        "| command | runs | seconds before | now | ratio | memory before | now | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found["tasks"].items():
        columns = [name, str(len(runs["here"]))]
        for key, shown in (("seconds", lambda x: f"{x:.1f}"), ("bytes", megabytes)):
            before, now = (statistics.median(r[key] for r in runs[where]) for where in ("base", "here"))
            columns += [shown(before), shown(now), f"{now / before:.2f}"]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the other checkout")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TASKS, metavar="NAME", help=f"of {', '.join(TASKS)}")
    options = parser.parse_args()
    checkouts = {"base": options.base.resolve(), "here": ROOT}
    for checkout in checkouts.values():
        if not (checkout / ".venv/bin/snapgen-deploy").is_file():
            parser.error(f"{checkout} has no .venv with snapgen-deploy: run `make export` there")
    path, done = RESULTS / "against.json", set[tuple[Path, str]]()
    names = options.only or [name for name, task in TASKS.items() if task.always]
    found: dict[str, Any] = {
        "base": commit(checkouts["base"]), "here": commit(ROOT), "machine": environment(), "tasks": {},
    }  # fmt: skip
    if path.is_file() and (earlier := json.loads(path.read_text()))["base"] == found["base"]:
        found["tasks"] = {name: runs for name, runs in earlier["tasks"].items() if name not in names}
    with tempfile.TemporaryDirectory() as place:
        outs = {where: Path(place) / where for where in checkouts}
        for out in outs.values():
            out.mkdir()
        for name in names:
            runs: dict[str, list[dict[str, float]]] = {where: [] for where in checkouts}
            for turn in range(options.runs):
                for where, checkout in sorted(checkouts.items(), reverse=turn % 2 == 0):
                    prepare(TASKS[name], checkout, outs[where], done)
                    runs[where].append(run(checkout, TASKS[name].words, outs[where]))
                    done.add((checkout, name))
                    print(f"{name}, {where}: {runs[where][-1]}", flush=True)
            found["tasks"][name] = runs
            path.write_text(json.dumps(found, indent=1) + "\n")
            path.with_suffix(".md").write_text(markdown(found))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
