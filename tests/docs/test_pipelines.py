"""The pipelines of docs/ci.md: their steps run in a shell, with a made-up tool; behind `-m slow` with the real one."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import typer

from snapgen_deploy.checkpoint import embedded_path
from snapgen_deploy.cli import app
from tests.docs.pages import ROOT
from tests.docs.pipelines import GitHub, action, documents, run_gitlab

# Answers `export`, `compare` and `bench` as the tool does, with the verdict and exit code in a file beside it.
TOOL = """#!{python} -I
import json, pathlib, sys
command, words = sys.argv[1], sys.argv[2:]
after = lambda option: pathlib.Path(words[words.index(option) + 1])
if command == "export":
    bundle = after("-o") / "shapes-server"
    bundle.mkdir(parents=True)
    (bundle / "made-of").write_text(after("--checkpoint").read_text())
elif command == "compare":
    base, candidate = (pathlib.Path(p) for p in (words[-2:] if "--" in words else words[:2]))
    verdict, code = pathlib.Path(__file__).with_name("answer").read_text().split()
    if verdict != "none":
        read = lambda place: (place / "made-of").read_text()
        after("--output").write_text(json.dumps(dict(verdict=verdict, base=read(base), candidate=read(candidate), words=words)))
        with after("--summary").open("a") as file:
            file.write("### Latency: " + verdict)
        after("--junit").touch()
    sys.exit(int(code))
else:
    after("--output").write_text("metrics")
"""
# gh, curl and pip: what is commented goes to a file.
COMMENTS = {
    "gh": 'for word in "$@"; do file=$word; done; cat "$file" > "$DESK/comment"',
    "curl": 'for word in "$@"; do case "$word" in body=*) cat "${word#body=<}" > "$DESK/comment";; esac; done',
    "python": 'if [ "$2" = pip ]; then echo installed; else exec python3 "$@"; fi',
}


IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b")


@pytest.fixture
def desk(tmp_path):
    """A folder with stand-ins for the programs of a runner."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, code in {**{n: f"#!/bin/bash\n{c}\n" for n, c in COMMENTS.items()}, "snapgen-deploy": TOOL}.items():
        (tools / name).write_text(code.replace("{python}", sys.executable))
        (tools / name).chmod(0o755)
    return tmp_path


@pytest.fixture
def desk_with_repository(desk):
    """The same with a repository of a base and a candidate commit."""
    repository = desk / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    for name in ("base", "candidate"):
        (repository / "model.safetensors").write_text(name)
        git(repository, "add", "-A")
        git(repository, *IDENTITY, "commit", "-qm", name)
    return desk


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def environment_of(desk):
    repository = desk / "repository"
    return {
        "PATH": f"{desk / 'tools'}:{os.environ['PATH']}",
        "DESK": str(desk),
        "HOME": str(desk),
        "SNAPGEN_DEPLOY": "snapgen-deploy",
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": git(repository, "rev-parse", "HEAD~1") if repository.exists() else "",
    }


def checkout_of(desk):
    def checkout(place, given):
        if "repository" in given:  # of the tool, whose action the runner takes from here
            place.mkdir()
            return
        git(desk, "clone", "-q", str(desk / "repository"), str(place))
        if "ref" in given:
            git(place, "checkout", "-q", "HEAD~1")

    return checkout


def on_github(desk):
    (job,) = documents()[0]["jobs"].values()
    (desk / "github").mkdir()
    runner = GitHub(desk / "github", environment_of(desk), checkout_of(desk))
    runner.run(job["steps"])
    return runner


ANSWERS = [
    ("ok 0", "ok", True),
    ("improved 0", "improved", True),
    ("regressed 1", "regressed", False),
    ("failed 1", "failed", False),
    ("inconclusive 0", "inconclusive", True),
    ("none 3", "mismatch", False),
    ("none 1", "error", False),
    ("none 2", "error", False),
]


def run_action(desk, answer, **given):
    (desk / "tools" / "answer").write_text(answer)
    (desk / "b").mkdir()
    (desk / "b" / "made-of").write_text("b")
    runner = GitHub(desk, environment_of(desk), checkout_of(desk))
    runner.run([{"uses": "./snapgen-deploy", "id": "compare", "with": {"base": "b", "candidate": "b", **given}}])
    return runner


@pytest.mark.parametrize(("answer", "verdict", "passes"), ANSWERS)
def test_the_action_says_its_verdict_also_where_nothing_was_compared(desk, answer, verdict, passes):
    runner = run_action(desk, answer)
    assert (runner.known["steps.compare.outputs.verdict"], not runner.failed) == (verdict, passes)
    comment = (desk / "snapgen-compare.md").read_text()
    assert verdict in comment
    assert (desk / ".github_step_summary").read_text() == comment


@pytest.mark.parametrize(("answer", "verdict"), [("ok 0", "ok"), ("none 3", "mismatch")])
def test_the_workflow(desk_with_repository, answer, verdict):
    desk = desk_with_repository
    (desk / "tools" / "answer").write_text(answer)
    runner = on_github(desk)
    assert (runner.known["steps.compare.outputs.verdict"], not runner.failed) == (verdict, verdict == "ok")
    assert verdict in (desk / "comment").read_text()
    if verdict == "ok":
        record = json.loads((runner.folder / "snapgen-compare.json").read_text())
        assert (record["base"], record["candidate"]) == ("base", "candidate")


@pytest.mark.parametrize(("answer", "said"), [("regressed 1", "regressed"), ("none 3", "not compared, exit code 3")])
def test_the_pipeline(desk_with_repository, answer, said):
    desk = desk_with_repository
    (desk / "tools" / "answer").write_text(answer)
    (desk / "gitlab").mkdir()
    assert not run_gitlab(documents()[1], desk / "gitlab", environment_of(desk), checkout_of(desk))
    assert said in (desk / "comment").read_text()
    assert (desk / "gitlab" / "latency" / "metrics.txt").read_text() == "metrics"
    if said == "regressed":
        record = json.loads((desk / "gitlab" / "latency" / "compare.json").read_text())
        assert (record["base"], record["candidate"]) == ("base", "candidate")


def test_across_leaves_the_limits_out(desk):
    assert run_action(desk, "faster 0", across="true").known["steps.compare.outputs.verdict"] == "faster"
    words = json.loads((desk / "snapgen-compare.json").read_text())["words"]
    assert "--across" in words
    assert "--fail-on" not in words


def test_every_command_and_input_is_known():
    workflow, pipeline = documents()
    (job,) = workflow["jobs"].values()
    scripts = [s["run"] for s in job["steps"] if "run" in s]
    scripts += [line for j in pipeline.values() if "script" in j for line in j["script"]]
    ours = [line.partition(" || ")[0].split()[1:] for line in scripts if line.startswith("snapgen-deploy ")]
    assert len(ours) == 6
    for words in ours:
        typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])
    (step,) = [s for s in job["steps"] if s.get("uses", "").startswith("./")]
    assert set(step["with"]) <= set(action()["inputs"])


@pytest.mark.slow
@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_with_the_tool_itself(desk_with_repository, service):
    """Two exports of the embedded checkpoint and a comparison with a clock; minutes."""
    desk = desk_with_repository
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from snapgen_deploy.cli import main; main()"
    (desk / "tools" / "snapgen-deploy").write_text(f'#!/bin/bash\nexec {sys.executable} -c "{code}" "$@"\n')
    shutil.copy(embedded_path(), desk / "repository" / "model.safetensors")
    git(desk / "repository", "add", "-A")
    git(desk / "repository", *IDENTITY, "commit", "-qm", "the embedded checkpoint")
    git(desk / "repository", *IDENTITY, "commit", "-qm", "the same", "--allow-empty")
    if service == "github":
        runner = on_github(desk)
        passed, verdict = not runner.failed, runner.known["steps.compare.outputs.verdict"]
    else:
        (desk / "gitlab").mkdir()
        passed = run_gitlab(documents()[1], desk / "gitlab", environment_of(desk), checkout_of(desk))
        verdict = json.loads((desk / "gitlab" / "latency" / "compare.json").read_text())["verdict"]
    assert passed
    assert verdict in ("ok", "improved", "inconclusive")
    assert "Latency: " in (desk / "comment").read_text()
