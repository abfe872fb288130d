"""Runs the steps of the pipelines in docs/ci.md as their services would: the same shell, variables, outputs and artifacts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT, blocks

SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")
PAGE = ROOT / "docs" / "ci.md"
Checkout = Callable[[Path, Mapping[str, str]], None]  # fills a folder, by the `with` of the step


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """The workflow and the pipeline of the page."""
    workflow, pipeline = blocks(PAGE, "yaml")
    return yaml.safe_load(workflow), yaml.safe_load(pipeline)


def action() -> dict[str, Any]:
    """Our action."""
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def expanded(value: Any, known: Mapping[str, str]) -> str:
    """A value with its `${{ ... }}` replaced; what is not known is empty, as on GitHub."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: known.get(found[1], ""), str(value))


class GitHub:
    """One job: `outputs` of the steps, and whether one has failed."""

    def __init__(self, folder: Path, environment: Mapping[str, str], checkout: Checkout) -> None:
        self.folder, self.environment, self.checkout = folder, dict(environment), checkout
        self.known = {"github.token": "token", "github.event.pull_request.number": "7", "github.action_path": str(ROOT)}
        self.failed = False

    def run(self, steps: list[dict[str, Any]]) -> None:
        """All steps that are due."""
        for step in steps:
            always = "always()" in step.get("if", "")
            wanted = all(self.known.get(name) for name in re.findall(r"(steps[\w.]+) != ''", step.get("if", "")))
            if (not self.failed or always) and wanted:
                self._step(step)

    def _step(self, step: dict[str, Any]) -> None:
        given = {name: expanded(value, self.known) for name, value in step.get("with", {}).items()}
        uses = step.get("uses", "")
        if uses.startswith("actions/checkout@"):
            self.checkout(self.folder / given["path"], given)
        elif uses.startswith("./"):
            self._action(step["id"], given)
        elif not uses:
            self._shell(step, step.get("id", "step"), self.known)

    def _action(self, name: str, given: Mapping[str, str]) -> None:
        inputs = {n: str(i.get("default", "")) for n, i in action()["inputs"].items()} | dict(given)
        known = self.known | {f"inputs.{n}": value for n, value in inputs.items()}
        for step in action()["runs"]["steps"]:
            self._shell(step, name if step.get("id") == "compare" else "step", known)

    def _shell(self, step: dict[str, Any], name: str, known: Mapping[str, str]) -> None:
        files = {n: self.folder / f".{n.lower()}" for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        files["GITHUB_OUTPUT"].write_text("")
        own = {n: expanded(value, known) for n, value in step.get("env", {}).items()}
        environment = self.environment | {n: str(path) for n, path in files.items()} | own | {"GITHUB_REPOSITORY": "me/model"}
        place = self.folder / step.get("working-directory", ".")
        done = subprocess.run([*SHELL, expanded(step["run"], known)], cwd=place, env=environment, check=False)
        self.failed |= done.returncode != 0
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            key, _, value = line.partition("=")
            self.known[f"steps.{name}.outputs.{key}"] = value


def run_gitlab(pipeline: Mapping[str, Any], folder: Path, environment: Mapping[str, str], checkout: Checkout) -> bool:
    """All jobs, stage by stage, each in a checkout of its own with the artifacts of those that it needs; whether all passed."""
    jobs = {n: pipeline[j["extends"]] | j for n, j in pipeline.items() if isinstance(j, dict) and not n.startswith(".")}
    passed = True
    for name in sorted(jobs, key=lambda n: pipeline["stages"].index(jobs[n]["stage"])):
        job, place = jobs[name], folder / name
        checkout(place, {})
        for needed in job.get("needs", ()):
            for path in jobs[needed]["artifacts"]["paths"]:
                shutil.copytree(folder / needed / path, place / path)
        script = "\n".join([*job["before_script"], *job["script"]])
        passed &= subprocess.run([*SHELL, script], cwd=place, env=dict(environment), check=False).returncode == 0
    return passed
