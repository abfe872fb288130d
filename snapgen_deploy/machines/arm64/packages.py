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
# More for `.pte` files; executorch and torch are those of this package (pyproject.toml). typing_extensions is all of torch's
# dependencies that it imports at once.
PROGRAM_WHEELS: Mapping[str, str] = MappingProxyType({"executorch": "1.4.1", "torch": "2.13.0", "typing_extensions": "4.15.0"})
BINUTILS = ("binutils",)  # which make stand-ins for libraries that torch's wheel asks for; not kept
# SHA-256 of each wheel, by Python's release.
WHEEL_SHA256: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "3.11": {
            "numpy": "0ab0a9c4ffb1a6d95ef519fe4247dba8eb6b18ad93999f76b7f657039acabd47",
            "onnxruntime": "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
            "executorch": "700cb8b959109e72b5ce3f2edf6643a7db9df4a82b5778cd84861c1acbe32a9c",
            "torch": "092790c696a760c729fd5722835f50b9d81fd7c8f141571f3f3cf4081a8f664c",
            "typing_extensions": "f0fa19c6845758ab08074a0cfa8b7aecb71c999ca73d62883bc25cc018c4e548",
        },
        "3.13": {
            "numpy": "72fbe16c6fac95aedf5937fa873445cec2110be35d8a4e9433d7501fd98dae6b",
            "onnxruntime": "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
            "executorch": "1e75cd3efb0ee7e804e29e50a0139a1f985ea7ff55e173f2cd332f3e1fbfdeb2",
            "torch": "1e09d6a722504957c694faceca843acde562786df1144ebcc5a74075ec7f6005",
            "typing_extensions": "f0fa19c6845758ab08074a0cfa8b7aecb71c999ca73d62883bc25cc018c4e548",
        },
    }
)
