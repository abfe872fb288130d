"""A phone behind adb: it keeps files, heats up with work, logs as ExecuTorch does, and fails in the ways that phones do.

Lines are in the formats of the real tools (adb 35, toybox, Android 14's dumpsys and logcat -v threadtime).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapgen_deploy.latency.links.shell import Completed

SERIAL = "R58M123ABC"
MS = {"text_encoder": 5.0, "student": 20.0, "decoder": 10.0}
PROPERTIES = {
    "ro.soc.model": "SM7550",
    "ro.build.fingerprint": "maker/phone/phone:14/UQ1A.240105.004/11206848:user/release-keys",
    "ro.product.model": "Phone 7",
    "ro.product.manufacturer": "Maker",
    "ro.build.version.release": "14",
}
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=33.1, mType=3, mName=SKIN, mStatus={status}}}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: {level}
  scale: 100
  voltage: 4214
  temperature: {tenths}
  technology: Li-ion
"""
DF = """Filesystem       1K-blocks     Used Available Use% Mounted on
/dev/block/dm-44 112345678 51234567 {free:>9}  46% /data
"""


@dataclass
class FakePhone:
    listing: str | None = None  # of `adb devices -l`, when it is not this one phone
    celsius: float = 30.0
    level: int = 85
    low_power: str = "0"
    free_kib: int = 50_000_000
    has_fixed_mode: bool = True
    runner: str = "1.4"  # "mean" prints no iterations, "1.2" knows no --print_output
    drop: int = 0  # log lines that the ring buffer loses
    heat: float = 0.0  # degrees per call of a component
    throttles_at: float = 40.0
    unplug_at: str = ""  # a regular expression: the command at which the cable is pulled
    unplug_after: int = 1  # at its so many-th occurrence
    garbage: str = ""  # a regular expression: commands that answer with nonsense
    plugged: bool = True
    fixed: bool = False
    now: float = 0.0  # seconds
    files: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    results: str = ""
    pid: int = 4000

    def __call__(self, argv: Sequence[str], timeout: float) -> Completed:
        assert argv[0] == "adb"
        assert timeout > 0
        self.commands.append(" ".join(argv))
        if list(argv[1:]) == ["devices", "-l"]:
            phone = f"{SERIAL}             device usb:1-1 product:phone model:Phone_7 device:phone transport_id:3"
            listing = self.listing if self.listing is not None else (phone if self.plugged else "")
            return Completed(0, f"List of devices attached\n{listing}\n\n")
        if argv[1] == "version":
            return Completed(0, "Android Debug Bridge version 1.0.41\nVersion 35.0.2-12147458\n")
        assert list(argv[1:3]) == ["-s", SERIAL]
        if self.unplug_at and re.search(self.unplug_at, self.commands[-1]):
            self.unplug_after -= 1
            if self.unplug_after == 0:
                self.plugged = False
                return Completed(255, "")  # what is left of a shell whose cable is pulled
        if not self.plugged:
            return Completed(1, "", f"adb: device '{SERIAL}' not found\n")
        if argv[3] == "get-state":
            return Completed(0, "device\n")
        if argv[3] == "push":
            return self._push(argv[4], argv[5])
        if self.garbage and re.search(self.garbage, argv[4]):
            return Completed(0, "\x00\x1b[31m???\n")
        return self._shell(argv[4])

    def wait(self, seconds: float) -> None:
        """Time passes and the phone cools by a degree a minute, to 30 at least."""
        self.now += seconds
        self.celsius = max(30.0, self.celsius - seconds / 60)

    def clock(self) -> float:
        return self.now

    @property
    def throttled(self) -> bool:
        return self.celsius > self.throttles_at

    def _push(self, local: str, remote: str) -> Completed:
        size = Path(local).stat().st_size
        if size > self.free_kib * 1024:
            failed = f"adb: error: failed to copy '{local}' to '{remote}': remote write failed: No space left on device\n"
            return Completed(1, "", failed)
        self.free_kib -= size // 1024
        self.files[remote] = size
        return Completed(0, f"{local}: 1 file pushed, 0 skipped. 38.0 MB/s ({size} bytes in 0.010s)\n")

    def _shell(self, line: str) -> Completed:
        if line.startswith("getprop "):
            return Completed(0, PROPERTIES.get(line.split()[1], "") + "\n")
        if line.startswith("cmd power set-fixed-performance-mode-enabled "):
            return self._fixed_mode(line.split()[-1] == "true")
        if line.startswith("rm -rf "):
            folder = line.split()[2].rstrip(";")
            self.files = {name: size for name, size in self.files.items() if not name.startswith(folder)}
            return Completed(0, "")
        if "VmHWM" in line:
            return Completed(0, "VmHWM:\t    1024 kB\nVmHWM:\t   20480 kB\n")
        if line.startswith("cd "):
            return self._run(line)
        if line.startswith("cat "):
            return Completed(0, self.results)
        answers = {
            "dumpsys thermalservice": THERMAL.format(status=2 if self.throttled else 0),
            "dumpsys battery": BATTERY.format(level=self.level, tenths=round(10 * self.celsius)),
            "settings get global low_power": f"{self.low_power}\n",
            "grep . /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq": (
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq:1804800\n"
                "/sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq:2630400\n"
            ),
            "df -k /data/local/tmp": DF.format(free=self.free_kib),
            "uname -r": "5.15.123-android13\n",
        }
        if line in answers:
            return Completed(0, answers[line])
        if line == "logcat -c":
            self.log = []
        elif "logcat -d" in line:
            return Completed(0, "--------- beginning of main\n" + "".join(self.log[self.drop :]))
        else:
            assert line.startswith(("mkdir ", "chmod 755 ")), line
        return Completed(0, "")

    def _fixed_mode(self, on: bool) -> Completed:
        if not self.has_fixed_mode:
            why = "This is likely because Power HAL AIDL is not implemented on this device"
            return Completed(255, "", f"Failed to set FIXED_PERFORMANCE mode\n{why}\n")
        self.fixed = on
        return Completed(0, "")

    def _run(self, line: str) -> Completed:
        folder = line.split()[1]
        role = folder.rpartition("/")[2]
        self.pid += 1
        if "onnxruntime_perf_test" in line:
            return self._run_onnx(line, role)
        assert "--method_name=forward" in line
        for name in re.findall(r"input_\d+\.bin", line):
            assert f"{folder}/{name}" in self.files
        if self.runner == "1.2":
            return Completed(1, f"pid={self.pid}\n", "ERROR: unknown command line flag 'print_output'\n")
        times = int(re.search(r"--num_executions=(\d+)", line)[1])  # type: ignore[index]
        self._say("Model loaded in 150.250000 ms.", pid=999)  # another app's
        self._say(f"Model file {role}.pte is loaded.")
        if self.runner != "mean":
            self._say(f"Model loaded in {40 + len(role)}.500000 ms.")
        spent = 0.0
        for i in range(times):
            ms = self._call(role, i)
            spent += ms
            if self.runner != "mean":
                self._say(f"Iteration {i + 1} of {times}: {ms:f} ms")
        self._say(f"Model executed successfully {times} time(s) in {spent:f} ms.")
        return Completed(0, f"pid={self.pid}\n")

    def _run_onnx(self, line: str, role: str) -> Completed:
        times = int(re.search(r"-r (\d+)", line)[1])  # type: ignore[index]
        costs = [self._call(role, i) / 1000 for i in range(times)]
        self.results = "".join(f"{role},{cost:.6g},52428800,12,{i}\n" for i, cost in enumerate(costs))
        return Completed(0, f"pid={self.pid}\nSession creation time cost: 0.0{len(role)} s\nFirst inference time cost: 7 ms\n")

    def _call(self, role: str, index: int) -> float:
        """One call: warm-ups are slower, and so is a hot phone."""
        ms = MS[role] * (3 if index == 0 else 1) * (2 if self.throttled else 1)
        self.celsius += self.heat
        self.now += ms / 1000
        return ms

    def _say(self, message: str, pid: int | None = None) -> None:
        self.log.append(f"11-21 10:15:30.123  {pid or self.pid}  {pid or self.pid} I ExecuTorch: {message}\n")
