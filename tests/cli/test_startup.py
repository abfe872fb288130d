"""What starts quickly stays quick: these commands import no backend. Modules are counted, not seconds."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "coremltools",
    "onnx",
    "onnxruntime",
    "executorch",
    "numpy",
    "matplotlib",
    "scipy",
    "transformers",
    "diffusers",
    "jinja2",
)
RUN = """
import sys
from snapgen_deploy.command import start_command
sys.argv = ["snapgen-deploy", *{arguments}]
try:
    start_command()
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def loaded(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(arguments=list(arguments))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["devices"], ["devices", "iphone16pm"], ["export", "--help"]])
def test_no_backend_is_imported(arguments):
    found = loaded(*arguments)
    assert "typer" in found
    assert not found.intersection(HEAVY)


def test_a_command_that_needs_torch_is_seen_to_import_it():
    found = loaded("inspect")
    assert "torch" in found
    assert "diffusers" not in found  # its decoders alone need it
