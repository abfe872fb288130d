import os
from pathlib import Path

import pytest

from snapgen_deploy.system.host_memory import available_bytes

MIB = 2**20


def host(root: Path, cgroup: str, free: int = 8000) -> tuple[Path, Path]:
    proc, groups = root / "proc", root / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:  {free * 1024} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    groups.mkdir()
    return proc, groups


def limit(group: Path, names: tuple[str, str, str], most: str, used: int, cached: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / names[0]).write_text(f"{most}\n")
    (group / names[1]).write_text(f"{used * MIB}\n")
    (group / "memory.stat").write_text(f"anon 1\n{names[2]} {cached * MIB}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_without_limits_it_is_what_is_free(tmp_path):
    assert available_bytes(*host(tmp_path, "0::/user\n")) == 8000 * MIB


def test_a_limit_less_its_usage_and_what_can_be_reclaimed_of_it(tmp_path):
    proc, groups = host(tmp_path, "0::/user/app\n")
    limit(groups / "user" / "app", V2, "max", 0, 0)
    limit(groups / "user", V2, str(2000 * MIB), 500, 100)  # the group above counts, too
    assert available_bytes(proc, groups) == 1600 * MIB


def test_version_1(tmp_path):
    proc, groups = host(tmp_path, "5:devices:/\n4:cpu,memory:/app\n0::/\n")
    limit(groups / "memory" / "app", V1, str(900 * MIB), 100, 0)
    assert available_bytes(proc, groups) == 800 * MIB


def test_a_limit_of_the_container_that_knows_its_path_only_by_the_hosts_name(tmp_path):
    proc, groups = host(tmp_path, "0::/docker/1234\n")
    limit(groups, V2, str(700 * MIB), 100, 0)
    assert available_bytes(proc, groups) == 600 * MIB


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: x kB\n"])
def test_an_unknown_figure_is_never_a_small_one(tmp_path, text):
    proc, groups = host(tmp_path, "")
    (proc / "meminfo").write_text(text)
    found = available_bytes(proc, groups)
    assert found == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # the physical memory
