"""Files are read and run without ExecuTorch's exporter, which is all there for whoever imports it afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from snapgen_deploy.export.executorch.target import ExecuTorch
from tests.export.graph_cases import OPTIONS, mixed

pytest.importorskip("executorch")
ROOT = Path(__file__).parents[2]

READ_AND_RUN = """
import sys
from pathlib import Path
from tests.export.graph_cases import OPTIONS, mixed
from snapgen_deploy.export.registry import target_of
target, variant = target_of("executorch:xnnpack")
path = Path(sys.argv[1])
assert target.unavailable(variant) is None
target.describe(path)
target.open(path, threads=1)
print("executorch.exir" in sys.modules, "torch._dynamo" in sys.modules)
from executorch.exir.schema import DataLocation
from executorch import exir
from executorch.exir import schema
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from snapgen_deploy.export.executorch import reading
print(reading.DataLocation is DataLocation is schema.DataLocation, callable(exir.to_edge), XnnpackPartitioner.__name__)
(path.parent / "again").mkdir()
target.export(mixed(), variant, "fp32", path.parent / "again", OPTIONS)
print((path.parent / "again" / path.name).read_bytes() == path.read_bytes())
"""


def test_a_file_is_read_and_run_without_it(tmp_path: Path) -> None:
    path = ExecuTorch().export(mixed(), "xnnpack", "fp32", tmp_path, OPTIONS).path
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_RUN, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["False False", "True True XnnpackPartitioner", "True"], done.stderr
