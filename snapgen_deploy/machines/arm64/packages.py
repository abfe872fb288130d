"""What is fetched: releases of Python packages with their hashes, and names of Debian's packages.

Debian's packages have the hashes of Debian's own index, whose signature apt checks; their versions move with security updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

QEMU = "qemu-user"
OLDEST_QEMU = 10  # 7.2 computes wrong numbers with SVE and SME (int8 errors of 1.1, NaN in fp16), and shows the host's cpuinfo
ROOT_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")  # with all that they depend on

# Debian's release -> the Python in it. Of this Python are the wheels.
PYTHONS: Mapping[str, str] = MappingProxyType({"bookworm": "3.11", "trixie": "3.13"})
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64")
WHEELS: Mapping[str, str] = MappingProxyType({"numpy": "2.4.6", "onnxruntime": "1.32.0"})
# SHA-256 of each wheel, by Python's release.
WHEEL_SHA256: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "3.11": {
            "numpy": "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
            "onnxruntime": "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        },
        "3.13": {
            "numpy": "72fbe16c6fac95aedf5937fa873445cec2110be35d8a4e9433d7501fd98dae6b",
            "onnxruntime": "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
        },
    }
)
