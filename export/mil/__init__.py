"""A Core ML runtime for verification: executes saved ML Programs (iOS 15 to 18) with torch on the CPU.

    runner = open_package(Path("student.mlpackage"), mode="device")
    outputs = runner({"latent": latent, ...})
    runner.report().tightest(5)

`saved` turns a package into plain data, `ops` implements the operations, `interpreter` runs them, `precision` decides what
is rounded and recorded, `trace` finds where NaN and infinity begin, `ports` converts arrays and pictures, `runner` is the
public face.
"""

from snapgen_deploy.export.mil.precision import OpStat, RunReport
from snapgen_deploy.export.mil.runner import PackageRunner, State, functions, open_package
from snapgen_deploy.export.mil.saved.errors import OpError, PackageError
from snapgen_deploy.export.mil.saved.program import PackagePort
from snapgen_deploy.export.mil.trace import Beginning, Trace

__all__ = [
    "Beginning",
    "OpError",
    "OpStat",
    "PackageError",
    "PackagePort",
    "PackageRunner",
    "RunReport",
    "State",
    "Trace",
    "functions",
    "open_package",
]  # fmt: skip
