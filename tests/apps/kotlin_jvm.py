"""The core of the Android app on this machine's JVM: compiled once in this user's life, and asked in JSON lines."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from snapgen_deploy.apps.npm import NpmPackage, package_files
from snapgen_deploy.system.files import cache_root

OURS = tuple(sorted(Path(__file__).with_name("kotlin").glob("*.kt")))
SECONDS = 1200  # on a busy machine
JAVA = ("java", "-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
KOTLIN = NpmPackage(
    "kotlin-compiler",
    "2.2.21",
    "nY7ifXZsAfCTJFagHmDQuJRJSr1W/WBUrJnLTfq78/g8u+LMM97pAqspg3ANDFLBH8+de1XdRtofpaLEr3kZiQ==",
    "Apache-2.0",
    {
        "lib/annotations-13.0.jar": "ace2a10dc8e2d5fd34925ecac03e4988b2c0f851650c94b8cef49ba1bd111478",
        "lib/kotlin-compiler.jar": "0885d5546e3a18d8509ae99aaf735decc7b88e0c33fc0287b5f74bc085a7cff5",
        "lib/kotlin-reflect.jar": "44380abf37d245ce5c0f294f43512d1c39a59642bfa463922c74e96877cf49f8",
        "lib/kotlin-script-runtime.jar": "2b1519b427b514d1536c1b425674b03fe914af637924028e9959c6625442df51",
        "lib/kotlin-stdlib.jar": "6558a3d233da56a20934b32159f9db5f86ed5816ef098f78a2c223dc6abb79dd",
        "lib/kotlin-test.jar": "612966ddee4d3d0486156f10c77a57c5c47dae65eb98a2bddf34cf2aeeb894c4",
        "lib/kotlinx-coroutines-core-jvm.jar": "9860906a1937490bf5f3b06d2f0e10ef451e65b95b269f22daf68a3d1f5065c5",
    },
)
Run = Callable[[str, dict[str, np.ndarray]], Mapping[str, np.ndarray]]  # role, inputs -> outputs


def core_sources() -> list[Path]:
    """The Kotlin files of the app's module `core` and of its tests, as they are in the package."""
    return sorted(Path(str(resources.files("snapgen_deploy.apps"))).joinpath("android/core/src").rglob("*.kt"))


def compiled_core() -> list[Path]:
    """Class path of the core and the probe, without a warning of the compiler. Takes 13 s of a processor, the first time.

    Raises:
        BadInput: if the compiler cannot be had.
    """
    jars, sources = package_files(KOTLIN), [*core_sources(), *OURS]
    digest = hashlib.sha256(KOTLIN.sha512.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    classes = cache_root() / "kotlin-tests" / digest
    library, asserting = jars["lib/kotlin-stdlib.jar"], jars["lib/kotlin-test.jar"]
    if not classes.is_dir():
        part = classes.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        words: list[str | Path] = [*JAVA, "-cp", jars["lib/kotlin-compiler.jar"], "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
        words += ["-kotlin-home", library.parents[1], "-Werror", "-no-reflect", "-jvm-target", "17"]
        words += ["-Xallow-kotlin-package", "-cp", asserting, "-d", part, *sources]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        part.rename(classes)
    return [classes, library, asserting]


class Probe:
    """A JVM with the core; ends with `close`."""

    def __init__(self, class_path: list[Path]) -> None:
        words = [*JAVA, "-cp", ":".join(map(str, class_path)), "ProbeKt"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def close(self) -> None:
        self._process.communicate(timeout=SECONDS)

    def resident_bytes(self) -> int:
        """The most memory that the JVM had."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def ask(self, task: str, run: Run | None = None, **given: Any) -> list[dict[str, Any]]:
        """What it says until it is done; the last line has `done`, or `refused` and `said`. `run` runs components for it."""
        self._send({"do": task, **given})
        said: list[dict[str, Any]] = []
        while not said or not said[-1].keys() & {"done", "refused"} or "stage" in said[-1]:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            assert line, "the JVM ended"
            told = json.loads(line)
            if "call" in told:
                assert run is not None
                made = run(told["call"], {name: unpacked(value) for name, value in told["inputs"].items()})
                self._send({name: _packed(value) for name, value in made.items()})
            said.append(told)
        return said

    def _send(self, document: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()


def in_onnxruntime(folder: Path, parts: Mapping[str, Any]) -> Run:
    """Runs a bundle's components (of its manifest) by onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {role: onnxruntime.InferenceSession(folder / part["path"], options) for role, part in parts.items()}

    def call(role: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [port.name for port in sessions[role].get_outputs()]
        return dict(zip(names, sessions[role].run(names, inputs), strict=True))

    return call


def colours(pixels: Sequence[int], height: int, width: int) -> np.ndarray:
    """Red, green and blue (H, W, 3) of Android's pixels."""
    rows = np.array(pixels, np.int64).reshape(height, width)
    return np.stack([(rows >> shift) & 0xFF for shift in (16, 8, 0)], axis=-1)


def unpacked(value: Mapping[str, Any]) -> np.ndarray:
    """An array that the probe wrote."""
    if "ints" in value:
        return np.array(value["ints"], np.int32).reshape(value["shape"])
    return floats(value["floats"]).reshape(value["shape"])


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def _packed(array: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "floats": base64.b64encode(content).decode()}
