"""Description and state of this machine: processor, clocks, governor, temperature, versions, and the canary workload."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from shutil import which

import numpy as np

from snapgen_deploy.export.registry import spec_of, specs
from snapgen_deploy.latency.results import DeviceKey
from snapgen_deploy.system.source import version_of

_UNKNOWN = "unknown"  # for what the machine does not report


def canary() -> float:
    """Time in ms of a fixed piece of work, the best of three: single-threaded Fourier transforms of 2^17 points.

    It shows changes of the clock speed, and other processes on the core. The best counts, since interruptions only add time.
    """
    wave = np.exp(1j * np.arange(1 << 17))
    times = []
    for _ in range(3):
        start = time.perf_counter_ns()
        for _ in range(3):
            np.fft.fft(wave)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return min(times)


def processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def governor() -> str:
    """The frequency governor of the first processor."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def state() -> dict[str, str]:
    """What changes during a measurement: clock, temperature, load. Values that are not reported are left out."""
    found = {
        "clock_khz": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "temperature_millicelsius": _read("/sys/class/thermal/thermal_zone0/temp"),
        "load_1min": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else _UNKNOWN,
    }
    return {name: value for name, value in found.items() if value != _UNKNOWN}


def environment() -> dict[str, str]:
    """What does not change during a measurement: processor, system, governor, versions."""
    versions = {name: version_of(name) for name in ("torch", "numpy", *(s.runtime.package for s in specs().values()))}
    host = {"processor": processor(), "cores": str(os.cpu_count()), "system": platform.platform(), "governor": governor()}
    return host | {"python": platform.python_version()} | versions


def host_key(target: str, precision: str, threads: int) -> DeviceKey:
    """The device key of this machine."""
    system, runtime = f"{platform.system()} {platform.release()}", version_of(spec_of(target).runtime.package)
    return DeviceKey(processor(), system, target, runtime, precision, threads, governor())


def stamp_of_now() -> dict[str, str]:
    """The current time (`created`, ISO 8601, UTC) and, in a git checkout, the `commit`; a history is ordered by them."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False) if which("git") else None
    commit = {"commit": git.stdout.strip()} if git is not None and git.returncode == 0 else {}
    return {"created": datetime.now(UTC).isoformat(timespec="seconds")} | commit


def _read(path: str) -> str:
    file = Path(path)
    try:
        return file.read_text().strip() or _UNKNOWN
    except OSError:  # containers and virtual machines often hide these
        return _UNKNOWN
