"""Android phones over adb, without root. `android_runners` has the programs that run there.

A process of the adb shell has another scheduling group than an app, so that an app's times differ.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snapgen_deploy.errors import BadInput, MeasurementFailed
from snapgen_deploy.export.base import Role
from snapgen_deploy.latency.links.android_runners import RESULT, Engine, ExecuTorchEngine, OnnxEngine, Ran
from snapgen_deploy.latency.links.base import DeviceState, LinkJob, SampleBlock
from snapgen_deploy.latency.links.shell import QUICK, SLOW, Adb, Shell, restoring, run_command
from snapgen_deploy.latency.results import DeviceKey, Loads

BATTERY_STATUS = {"1": "unknown", "2": "charging", "3": "discharging", "4": "not charging", "5": "full"}  # BatteryManager
ROOT = "/data/local/tmp/snapgen-deploy"
SPARE = 64 << 20  # bytes of storage to leave free on the phone
COLD_LOADS = 3
MEMORY_RUNS = 20  # calls in the pass that samples memory, so that the process lives long enough for several samples
FIXED = "cmd power set-fixed-performance-mode-enabled"  # Android 11 and later


@dataclass(frozen=True)
class AndroidOptions:
    """Options of the link, as text."""

    runner: str = ""  # executor_runner on this host
    perf_test: str = ""  # onnxruntime_perf_test on this host
    libraries: str = ""  # shared libraries to push beside the binary, separated by commas
    runner_version: str = ""  # version of the binary; default: its hash
    fixed_performance: str = "on"  # "off" if the phone has no such mode


class AndroidLink:
    """A phone over adb. Components are timed separately, each in one process; a picture's time is composed of theirs."""

    name = "adb"
    e2e_is = "composed"
    never_run_on_hardware = True

    def __init__(self, serial: str | None, options: AndroidOptions, shell: Shell = run_command) -> None:
        if options.fixed_performance not in ("on", "off"):
            raise BadInput(f"fixed_performance is '{options.fixed_performance}', expected 'on' or 'off'")
        self.options = options
        self.adb = Adb.connect(shell, serial)
        self._folder = ""  # folder on the phone, once files were pushed
        self._fixed = False  # whether fixed performance mode may be on
        self._fresh = False  # whether nothing ran since the push

    def key(self, job: LinkJob) -> DeviceKey:
        """Chip and build as the phone reports them; the runner by its version or hash."""
        soc = self._property("ro.soc.model") or self._property("ro.board.platform")
        engine = self._engine(job)
        version = self.options.runner_version or f"sha256:{_hash([engine.binary])}"
        mode = "fixed-performance" if self.options.fixed_performance == "on" else "default"
        build = self._property("ro.build.fingerprint")
        runtime = f"{engine.binary.name} {version}"
        return DeviceKey(soc, build, job.target, runtime, job.precision, job.threads, mode)

    def environment(self) -> Mapping[str, str]:
        """Model, Android's version, adb's version and the kernel."""
        names = {"model": "ro.product.model", "manufacturer": "ro.product.manufacturer", "android": "ro.build.version.release"}
        properties = {name: self._property(prop) for name, prop in names.items()}
        adb = self.adb.run(["adb", "version"], QUICK).out.partition("\n")[0].strip()
        return properties | {"serial": self.adb.serial, "adb": adb, "kernel": self.adb.shell("uname -r").out.strip()}

    def state(self) -> DeviceState:
        """Thermal status, battery and clocks.

        Raises:
            MeasurementFailed: if the phone's output cannot be parsed.
        """
        thermal = self.adb.shell("dumpsys thermalservice", check=False).text
        battery = self.adb.shell("dumpsys battery").out
        saver = self.adb.shell("settings get global low_power").out.strip()
        clocks = self.adb.shell("grep . /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq", check=False).out
        return android_state(thermal, battery, saver, clocks)

    def prepare(self, job: LinkJob) -> None:
        """Check storage, push files, turn on fixed performance mode. If one fails, all is undone."""
        engine = self._engine(job)
        with restoring(self.restore, only_on_failure=True), tempfile.TemporaryDirectory() as scratch:
            files = self._files(job, engine, Path(scratch))
            self._check_storage(sum(local.stat().st_size for local, _ in files))
            self._folder = f"{ROOT}/{_hash([local for local, _ in files])}"
            folders = sorted({str(Path(self._folder, remote).parent) for _, remote in files})
            self.adb.shell(f"rm -rf {self._folder}; mkdir -p {' '.join(map(shlex.quote, folders))}")
            for local, remote in files:
                self.adb.push(local, f"{self._folder}/{remote}")
            self.adb.shell(f"chmod 755 {self._folder}/{engine.binary.name}")
            self._fresh = True
            if self.options.fixed_performance == "on":
                self._fixed = True  # before the command: its answer may be lost
                if (done := self.adb.shell(f"{FIXED} true", check=False)).code != 0 or "Failed" in done.text:
                    self._fixed = False
                    raise MeasurementFailed(
                        f"the phone has no fixed performance mode (it printed: {done.last_line}); measure without it with the "
                        "link option fixed_performance=off"
                    )

    def load(self, job: LinkJob) -> Loads:
        """First-ever: the first after the push. Cold: the best of three processes. Warm: not possible with these runners."""
        first = sum(self._execute(job, role, 1).load for role in job.components) if self._fresh else None
        cold = sum(min(self._execute(job, role, 1).load for _ in range(COLD_LOADS)) for role in job.components)
        return Loads(first, cold, None)

    def run(self, job: LinkJob, warmups: int, queries: int) -> SampleBlock:
        """Run one process per component; its first calls are the warm-ups."""
        before = self.state()
        samples = {}
        for role in job.components:
            calls = job.calls[role]
            ran = self._execute(job, role, calls * (warmups + queries))
            samples[role] = ran.samples[calls * warmups :]
        return SampleBlock({str(role): values for role, values in samples.items()}, before, self.state())

    def memory(self, job: LinkJob) -> int | None:
        """Sum of the components' peaks (VmHWM of each process, sampled every 50 ms), in bytes.

        An app that keeps all components loaded needs at most this.
        """
        peaks = []
        for role in job.components:
            line = self._engine(job).command(job, role, MEMORY_RUNS)
            script = (
                f"cd {self._folder}/{role}; export LD_LIBRARY_PATH=..; {line} >/dev/null 2>&1 & p=$!; "
                'while h=$(grep VmHWM /proc/$p/status 2>/dev/null); do echo "$h"; sleep 0.05; done; wait $p'
            )
            found = [int(kib) << 10 for kib in re.findall(r"VmHWM:\s+(\d+) kB", self.adb.shell(script, SLOW).out)]
            if not found:
                raise MeasurementFailed(
                    f"{role}: /proc reports nothing about its memory; the phone must allow the shell user to read it"
                )
            peaks.append(max(found))
        return sum(peaks)

    def restore(self) -> None:
        """Turn off fixed performance mode and remove the files. If the phone is gone, the error says what to do by hand."""
        try:
            if self._fixed:
                self.adb.shell(f"{FIXED} false")
                self._fixed = False
            if self._folder:
                self.adb.shell(f"rm -rf {self._folder}")
                self._folder, self._fresh = "", False
        except MeasurementFailed as error:
            left = "fixed performance mode could not be turned off again" if self._fixed else "files stay on the phone"
            by_hand = f"{FIXED} false; " if self._fixed else ""
            raise MeasurementFailed(
                f"{left} ({error}); when the phone is back run: "
                f"adb -s {self.adb.serial} shell '{by_hand}rm -rf {self._folder or ROOT}'"
            ) from None

    def _property(self, name: str) -> str:
        return self.adb.shell(f"getprop {name}").out.strip()

    def _engine(self, job: LinkJob) -> Engine:
        target = job.target.partition(":")[0]
        known = {"executorch": ("runner", self.options.runner), "onnx": ("perf_test", self.options.perf_test)}
        if target not in known:
            raise BadInput(f"adb cannot run the target '{job.target}', expected executorch or onnx; choose one with --target")
        option, path = known[target]
        if not path or not Path(path).is_file():
            raise BadInput(
                f"{job.target} over adb needs a binary built for Android, got '{path}'; give --link-option {option}=FILE"
            )
        return ExecuTorchEngine(Path(path)) if target == "executorch" else OnnxEngine(Path(path))

    def _files(self, job: LinkJob, engine: Engine, scratch: Path) -> list[tuple[Path, str]]:
        """Files to push: a folder per component, the binary and its libraries in the folder above."""
        beside = [engine.binary, *(Path(name) for name in self.options.libraries.split(",") if name)]
        files = [(path, path.name) for path in beside]
        for role, component in job.components.items():
            files += [(path, f"{role}/{path.relative_to(component.parent)}") for path in job.files[role]]
            files += [(local, f"{role}/{name}") for local, name in engine.inputs(job, role, scratch)]
        if missing := [str(path) for path, _ in files if not path.is_file()]:
            raise BadInput(f"{missing[0]} does not exist; expected a file to push to the phone")
        return files

    def _check_storage(self, needed: int) -> None:
        output = self.adb.shell("df -k /data/local/tmp").out
        row = re.search(r"\s(\d+)\s+(\d+)\s+(\d+)\s+\d+%\s+/\S*\s*$", output)
        if row is None:
            raise MeasurementFailed(
                f"`df` on the phone printed '{output.strip()[-80:]}', expected a line with the free storage"
            )
        if (free := int(row[3]) << 10) < needed + SPARE:
            raise MeasurementFailed(
                f"the phone has {free / 1e6:.0f} MB of storage free, the bundle needs {needed / 1e6:.0f} MB and "
                f"{SPARE / 1e6:.0f} MB to spare; free storage on it"
            )

    def _execute(self, job: LinkJob, role: Role, times: int) -> Ran:
        """Run one process of one component."""
        engine, folder = self._engine(job), f"{self._folder}/{role}"
        self.adb.shell("logcat -c")
        self._fresh = False
        enter = f"cd {folder} && rm -f {RESULT} && echo pid=$$ && export LD_LIBRARY_PATH=.. && exec"
        done = self.adb.shell(f"{enter} {engine.command(job, role, times)}", SLOW, check=False)
        return engine.read(self.adb, folder, done, times)


def android_state(thermal: str, battery: str, saver: str, clocks: str) -> DeviceState:
    """Parse `dumpsys thermalservice`, `dumpsys battery`, the setting low_power and the files scaling_cur_freq (kHz).

    Raises:
        MeasurementFailed: if one of them lacks the expected lines.
    """
    status = re.search(r"Thermal Status: (\d+)", thermal)
    level = re.search(r"^\s*level: (\d+)", battery, re.M)
    tenths = re.search(r"^\s*temperature: (-?\d+)", battery, re.M)
    if status is None and "Can't find service" not in thermal:  # the service exists since Android 10
        raise MeasurementFailed(f"`dumpsys thermalservice` printed '{_short(thermal)}', expected a line 'Thermal Status: N'")
    if level is None or tenths is None:
        raise MeasurementFailed(
            f"`dumpsys battery` printed '{_short(battery)}', expected lines 'level: N' and 'temperature: N'"
        )
    if saver not in ("0", "1", "null"):  # null: never set
        raise MeasurementFailed(f"the setting low_power is '{_short(saver)}', expected 0 or 1")
    charging = re.search(r"^\s*status: (\d+)", battery, re.M)
    notes = {f"{cpu}_khz": khz for cpu, khz in re.findall(r"/(cpu\d+)/cpufreq/scaling_cur_freq:(\d+)", clocks)}
    if charging is not None:
        notes["battery_status"] = BATTERY_STATUS.get(charging[1], charging[1])
    return DeviceState(int(status[1]) if status else None, float(level[1]), int(tenths[1]) / 10, saver == "1", notes)


def _short(text: str) -> str:
    return " ".join(text.split())[:80]


def _hash(files: list[Path]) -> str:
    """A short name for the contents of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
