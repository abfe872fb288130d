"""This computer's memory: how much a new process can use, and returning freed memory to the system at once."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Names of limit, usage and reclaimable file cache in control groups of version 2 and 1.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
M_MMAP_THRESHOLD = -3  # malloc.h of glibc
LARGE_BLOCK = 256 * 1024  # bytes; blocks from here on, tensors for the most part, get a mapping of their own


# What libraries say who raise no MemoryError: torch, the dynamic loader, C++, Python's threads.
_SAID = ("can't allocate memory", "failed to map segment", "bad_alloc", "bad allocation", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes of too little memory or address space."""
    said = str(error)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or any(s in said for s in _SAID)


def return_freed_memory() -> None:
    """From now on, return freed blocks of `LARGE_BLOCK` bytes or more to the system at once (glibc; elsewhere a no-op).

    By default glibc raises that threshold to the largest block freed so far, up to 32 MiB. Tensors then share the heap with
    small objects, and one small object that lives on keeps all that was freed below it resident.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries lack it
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a new process can use without swapping: Linux's MemAvailable, or less where a control group limits it.

    Elsewhere the physical memory; None where that is not known either.
    """
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return _physical()
    return max(0, min([free, *_rooms(proc, groups)]))


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _rooms(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group of this process, and each above it, still allows."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names, mount = (V2, groups) if controllers == "" else (V1, groups / "memory")
        if controllers and "memory" not in controllers.split(","):
            continue
        group = mount / path.lstrip("/")  # in a container the path may be the host's: then only the mount's root is there
        while True:
            room = _room(group, names)
            if room is not None:
                yield room
            if group == mount:
                break
            group = group.parent


def _room(group: Path, names: tuple[str, str, str]) -> int | None:
    limit, usage, reclaimable = names
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / usage).read_text()) + int(stat.get(reclaimable, 0))
    except (OSError, ValueError):
        return None
