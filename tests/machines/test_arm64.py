"""The emulated Arm processor: what is refused, how its process is talked to, and one fp16 file on it where it is set up."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

from snapgen_deploy.check.gates import relative_error
from snapgen_deploy.errors import BadInput
from snapgen_deploy.export.executorch.program import method_of, parse_ports, ports_method_of
from snapgen_deploy.export.precisions import PRECISIONS
from snapgen_deploy.export.registry import spec_of, target_of
from snapgen_deploy.machines.arm64 import fetch, worker
from snapgen_deploy.machines.arm64.cpus import CPUS
from snapgen_deploy.machines.arm64.installed import Installed, installed, refuse_old
from snapgen_deploy.machines.arm64.machine import Arm64, EmulatedProcess, arm64
from snapgen_deploy.machines.arm64.packages import PROGRAM_WHEELS, PYTHONS, WHEEL_SHA256, WHEELS
from snapgen_deploy.machines.arm64.stand_ins import write_stand_ins
from snapgen_deploy.machines.registry import machine_of, obstacle
from snapgen_deploy.system.child import ChildDied
from snapgen_deploy.system.files import cache_root, sha256_of
from snapgen_deploy.system.progress import no_progress
from tests.export.graph_cases import arrays, reference
from tests.export.quantise_cases import odd

OWN = cache_root() / "arm64"  # this user's, before the tests have a cache of their own


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two fp16 layers, (4, 256) -> (4, 64), in float32 at its ports."""
    numbers = np.random.default_rng(0)
    layers = [numbers.standard_normal(shape).astype(np.float16) / 16 for shape in ((256, 512), (512, 64))]
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x16", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [4, 256]), ("y", [4, 64]))]
    weights = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(layers)]
    graph = helper.make_graph(nodes, "half", ports[:1], ports[1:], weights)
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Elsewhere(Installed):
    """A setup whose emulator is a command of the test."""

    def command(self, cpu: str, script: Path) -> list[str]:
        return ["/bin/sh", "-c", self.record["command"]]


def test_machines_by_their_names():
    assert machine_of("arm64").key == machine_of("arm64:cortex-a76").key == "arm64:cortex-a76"
    with pytest.raises(BadInput, match="unknown machine 'arm32': expected arm64, cpu; did you mean arm64"):
        machine_of("arm32")
    with pytest.raises(BadInput, match="no processor 'cortex-a54': expected cortex-a53, .*; did you mean cortex-a5"):
        machine_of("arm64:cortex-a54")


def test_targets_that_it_does_not_run_say_so():
    machine = machine_of("arm64")
    assert obstacle(machine, spec_of("coreml")) == "arm64 here runs no files of coreml"
    assert obstacle(machine, spec_of("onnx:web")) == "arm64 here runs no files of onnx:web"
    for key in ("onnx", "executorch"):
        assert obstacle(machine, spec_of(key)) == "arm64: it is not set up; run `snapgen-deploy setup arm64`"
    assert machine.versions() == {}


def test_a_setup_without_executorch_says_how_to_get_it(tmp_path):
    emulator = script(tmp_path / "qemu-aarch64", "echo qemu-aarch64 version 10.0.2")
    wheels = {name: {"version": version} for name, version in WHEELS.items()}
    record = {"format": 1, "qemu": {"version": "10.0.2", "sha256": sha256_of(emulator)}, "python": "3.11", "wheels": wheels}
    (tmp_path / "setup.json").write_text(json.dumps(record))
    machine = arm64("max", tmp_path)
    assert machine.unavailable(spec_of("onnx")) is None
    said = "arm64: its setup has no executorch; run `snapgen-deploy setup arm64 --executorch`"
    assert machine.unavailable(spec_of("executorch")) == said
    record["wheels"] |= {name: {"version": version} for name, version in PROGRAM_WHEELS.items()}
    (tmp_path / "setup.json").write_text(json.dumps(record))
    assert machine.unavailable(spec_of("executorch")) is None


def test_programs_have_the_versions_of_this_package():
    pinned = {r.name: str(r.specifier) for line in metadata.requires("snapgen-deploy") or () if (r := Requirement(line))}
    assert {name: pinned[name] for name in ("torch", "executorch")} == {
        name: f"=={PROGRAM_WHEELS[name]}" for name in ("torch", "executorch")
    }


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("qemu-aarch64 version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", "qemu 7.2.22 is refused: .*wrong numbers"),
        ("qemu-aarch64 version 9.2.1", "qemu 9.2.1 is refused"),
        ("hello", "does not say its version"),
    ],
)
def test_old_emulators_are_refused(tmp_path, says, message):
    with pytest.raises(BadInput, match=message):
        refuse_old(script(tmp_path / "qemu", f"echo '{says}'"))


def test_a_setup_is_used_only_if_it_is_whole(tmp_path):
    emulator = script(tmp_path / "qemu-aarch64", "echo qemu-aarch64 version 10.0.2")
    record = {"format": 1, "qemu": {"version": "10.0.2", "sha256": sha256_of(emulator)}, "python": "3.11", "wheels": {}}
    (tmp_path / "setup.json").write_text(json.dumps(record))
    assert isinstance(installed(tmp_path), Installed)
    script(emulator, "echo qemu-aarch64 version 10.0.3")
    assert "is not the one that was set up" in str(installed(tmp_path))
    record["qemu"] = {"version": "7.2", "sha256": sha256_of(script(emulator, "echo qemu-aarch64 version 7.2.9"))}
    (tmp_path / "setup.json").write_text(json.dumps(record))
    assert "qemu 7.2.9 is refused" in str(installed(tmp_path))
    (tmp_path / "setup.json").write_text('{"format": 0}')
    assert "of another release" in str(installed(tmp_path))


@pytest.mark.parametrize("value", [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 4), np.float16), np.float32(2)])
def test_messages_keep_arrays(value):
    pipe = io.BytesIO()
    worker.send(pipe, {"run": 1}, {"x": np.asarray(value)})
    worker.send(pipe, {})
    pipe.seek(0)
    said, arrays = worker.receive(pipe)
    assert said == {"run": 1}
    assert arrays["x"].dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(arrays["x"], value)
    assert worker.receive(pipe) == ({}, {})
    with pytest.raises(EOFError):
        worker.receive(pipe)


@pytest.fixture
def serving() -> Iterator[Callable[..., worker.Message]]:
    """The script's loop in a thread of this process, and a function that asks it."""
    (read, ask), (answer, write) = os.pipe(), os.pipe()
    ends = [open(end, mode) for end, mode in ((read, "rb"), (write, "wb"), (ask, "wb"), (answer, "rb"))]  # noqa: SIM115
    thread = threading.Thread(target=worker._serve, args=ends[:2])
    thread.start()
    assert worker.receive(ends[3])[0].keys() == {"onnxruntime", "numpy"}

    def asked(request, arrays=None):
        worker.send(ends[2], request, arrays)
        return worker.receive(ends[3])

    yield asked
    ends[2].close()
    thread.join()
    for end in (ends[0], ends[1], ends[3]):
        end.close()


def test_the_script_opens_and_runs_files(half, serving):
    opening = {"open": str(half), "threads": 1, "config": {"session.force_spinning_stop": "1"}}
    said, _ = serving(opening)
    assert said == {"session": 0, "ports": {"x": ["tensor(float)", [4, 256]]}}
    _, made = serving({"run": 0}, {"x": np.ones((4, 256), np.float32)})
    assert made["y"].shape == (4, 64)
    assert np.isfinite(made["y"]).all()
    assert "error" in serving({"run": 0}, {"z": np.ones(1, np.float32)})[0]
    assert "error" in serving(opening | {"open": "absent.onnx"})[0]


def test_an_emulator_that_ends_is_one_line(tmp_path):
    setup = Elsewhere(tmp_path, {"command": "echo 'Illegal instruction' >&2; exit 3"})
    with pytest.raises(ChildDied, match="arm64:max: the process ended with status 3 and no result; Illegal instruction"):
        EmulatedProcess("arm64:max", setup, "max")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ('ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04"\nVERSION_CODENAME=noble\n', "this machine is Ubuntu 24.04"),
        (
            "ID=debian\nVERSION_CODENAME=buster\nPRETTY_NAME=Buster\n",
            "tried on Debian bookworm or trixie; this machine is Buster",
        ),
    ],
)
def test_other_systems_are_told_what_is_needed(tmp_path, monkeypatch, about, message):
    (tmp_path / "os-release").write_text(about)
    monkeypatch.setattr(fetch, "_OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(BadInput, match=message):
        fetch.fetch(no_progress)


def test_every_command_of_apt_has_lists_and_settings_of_its_own(tmp_path, monkeypatch):
    told: list[list[str]] = []

    def run(words, cwd=None):
        told.append(list(words))
        if cwd is not None:
            (cwd / "qemu-user.deb").touch()
        return "bookworm-updates http://mirror/debian\nbookworm http://mirror/debian\nbookworm-backports http://other/debian\n"

    monkeypatch.setattr(fetch, "_run", run)
    apt = fetch._Apt(tmp_path, "bookworm")
    apt.update()
    assert apt.newest("qemu-user").name == "qemu-user.deb"
    assert apt.with_dependencies(["libstdc++6"]) == []
    settings = (tmp_path / "apt" / "apt.conf").read_text()
    assert all(["--config-file", str(tmp_path / "apt" / "apt.conf")] == words[2:4] for words in told[1:])
    assert len(told) == 4
    places = ("Dir::State", "Dir::State::status", "Dir::State::lists", "Dir::Cache", "Dir::Etc::sourcelist")
    assert all(f'{name} "{tmp_path}/apt' in settings for name in places)
    sources = (tmp_path / "apt" / "sources.list").read_text().splitlines()
    assert [line.partition("] ")[2] or line.partition("deb ")[2] for line in sources] == [
        f"http://mirror/debian {name} main" for name in ("bookworm", "bookworm-updates", "bookworm-backports")
    ]


def test_every_python_has_the_hash_of_every_wheel():
    assert set(WHEEL_SHA256) == set(PYTHONS.values())
    assert all(set(hashes) == set(WHEELS) | set(PROGRAM_WHEELS) for hashes in WHEEL_SHA256.values())


def test_what_torch_asks_for_gets_a_stand_in(tmp_path):
    """With binutils as it is told to run them: one library for each missing one, its functions in the version asked for."""
    (tmp_path / "libnvpl_blas.so.0").touch()
    told: list[tuple[str, ...]] = []
    sources: dict[str, str] = {}

    def tool(name, *words):
        told.append((name, *words))
        if name == "readelf":
            needed = ("libcudart.so.13", "libnccl.so.2", "libcurand.so.10", "libnvpl_blas.so.0", "libc.so.6", "libtorch_cpu.so")
            return "".join(f" 0x01 (NEEDED)  Shared library: [{name}]\n" for name in needed)
        if name == "nm":
            undefined = ("cudaFree@libcudart.so.13", "cudaMalloc@libcudart.so.13", "ncclSend", "puts@GLIBC_2.17")
            return "".join(f"      U {symbol}\n" for symbol in undefined)
        if name == "as":
            sources[Path(words[2]).name] = Path(words[2]).read_text()
        Path(words[words.index("-o") + 1]).touch()
        return ""

    assert write_stand_ins(tmp_path, tool) == ["libcudart.so.13", "libcurand.so.10", "libnccl.so.2"]
    assert ".globl cudaFree" in sources["libcudart.so.13.s"]
    assert ".globl cudaMalloc" in sources["libcudart.so.13.s"]
    assert "mov x0, #100" in sources["libnccl.so.2.s"]
    assert ".globl" not in sources["libcurand.so.10.s"]
    versioned = [words for words in told if words[0] == "ld" and any("--version-script" in word for word in words)]
    assert [words[3] for words in versioned] == ["libcudart.so.13"]
    assert {p.name for p in tmp_path.iterdir()} == {"libnvpl_blas.so.0", "libcudart.so.13", "libcurand.so.10", "libnccl.so.2"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A `.pte` of two layers at a precision, (1, 4, 60) -> (1, 4, 60)."""

    def export(precision: str) -> Path:
        made = target_of("executorch:xnnpack")[0].export(odd(), "xnnpack", precision, tmp_path_factory.mktemp(precision), {})
        return made.path

    return export


def test_the_script_loads_and_runs_programs(program, serving):
    path = program("fp32")
    said, _ = serving({"load": str(path), "threads": 1, "method": method_of(""), "ports": ports_method_of("")})
    inputs, outputs = parse_ports(said["ports"])
    assert [(p.name, p.shape) for p in (*inputs, *outputs)] == [("tokens", (1, 4, 60)), ("states", (1, 4, 60))]
    _, made = serving({"run": said["session"]}, arrays(odd()))
    here = target_of("executorch:xnnpack")[0].open(path, threads=1)(arrays(odd()))
    np.testing.assert_allclose(made["0"], here["states"], rtol=1e-5, atol=1e-6)
    assert serving({"programs": True})[0] == {name: PROGRAM_WHEELS[name] for name in ("executorch", "torch")}
    assert "error" in serving({"load": "absent.pte", "threads": 1, "method": "forward", "ports": "x"})[0]


def emulated(cpu: str, key: str = "onnx") -> Arm64:
    """A processor of this user's own setup; the test is skipped without one."""
    machine = arm64(cpu, OWN)
    if (reason := machine.unavailable(spec_of(key))) is not None:
        pytest.skip(reason)
    return machine


def test_an_fp16_file_is_within_its_limit_where_arm_computes_in_fp16(half):
    """On x86 such a file computes in fp32; on this processor in fp16."""
    x = {"x": np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)}
    model = onnx.load(half)
    w = [numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer]
    exact = np.maximum(x["x"].astype(np.float64) @ w[0], 0) @ w[1]
    got = emulated("cortex-a55").open(half, threads=1)(x)["y"]
    assert 3e-4 < relative_error(got, exact) < PRECISIONS["fp16"].limits.error


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_every_processor_runs_it(half, cpu):
    x = {"x": np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)}
    got = emulated(cpu).open(half, threads=2)(x)["y"]
    assert got.shape == (4, 64)
    assert np.isfinite(got).all()


@pytest.mark.slow
@pytest.mark.parametrize("cpu", CPUS)
def test_every_processor_runs_programs(program, cpu):
    got = emulated(cpu, "executorch").open(program("fp32"), threads=2)(arrays(odd()))["states"]
    assert relative_error(got, reference(odd())) < 1e-5


@pytest.mark.slow
def test_half_precision_needs_its_arithmetic(program):
    """XNNPACK makes no fp16 operators on cores without it; where they are, Arm's rounding is within the limit."""
    path = program("fp16")
    with pytest.raises(BadInput, match="student.pte on arm64:cortex-a53: ExecuTorch cannot load it"):
        emulated("cortex-a53", "executorch").open(path, threads=1)
    got = emulated("cortex-a76", "executorch").open(path, threads=1)(arrays(odd()))["states"]
    assert 1e-5 < relative_error(got, reference(odd())) < PRECISIONS["fp16"].limits.error
