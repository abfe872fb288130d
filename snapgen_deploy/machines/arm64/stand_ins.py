"""Stand-ins for libraries of graphics processors, which torch's wheel for Arm asks for when it is loaded.

PyPI's wheel of torch for aarch64 is made for CUDA. NVIDIA's libraries are wheels of their own, some GB, which a processor under
emulation never calls. A stand-in has the names that torch looks for; each of its functions returns an error.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

TORCH_LIBRARIES = Path("torch/lib")  # in the folder of packages
Tool = Callable[..., str]  # name of one of binutils and its arguments -> what it prints

_NO_DEVICE = 100  # cudaErrorNoDevice; of the other libraries' statuses only 0 is a success
_LOADED = ("libtorch_python.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_nvshmem.so", "libc10_cuda.so")
# Libraries that are not named by their symbols' versions, by how their functions' names begin.
_BY_PREFIX: Mapping[str, str] = {
    "cuFile": "libcufile.so.0",
    "cusparseLt": "libcusparseLt.so.0",
    "nccl": "libnccl.so.2",
    "nvshmem": "libnvshmem_host.so.3",
}
_OF_GRAPHICS = re.compile(r"lib(cu|nv|nccl)\w*\.so\.\d+")  # names of NVIDIA's libraries


def write_stand_ins(libraries: Path, tool: Tool) -> list[str]:
    """Write a stand-in into torch's folder of libraries for each that is asked for and not there; returns their names."""
    loaded = [libraries / name for name in _LOADED]
    asked = set(re.findall(r"Shared library: \[([^]]+)\]", tool("readelf", "-d", "-W", *map(str, loaded))))
    missing = {name for name in asked if _OF_GRAPHICS.fullmatch(name) and not (libraries / name).exists()}
    functions = _functions(tool("nm", "-D", "--undefined-only", "--with-symbol-versions", *map(str, loaded)), missing)
    for name in sorted(missing):
        _write(libraries / name, functions[name], tool)
    return sorted(missing)


def _functions(listed: str, missing: Iterable[str]) -> Mapping[str, set[tuple[str, str]]]:
    """Symbols of each missing library, each with its version or "", in what `nm` lists as undefined.

    >>> listed = "      U cudaFree@libcudart.so.13\\n      U ncclSend\\n      U puts@GLIBC_2.17\\n      w __gmon_start__"
    >>> dict(_functions(listed, ["libcudart.so.13", "libnccl.so.2"]))
    {'libcudart.so.13': {('cudaFree', 'libcudart.so.13')}, 'libnccl.so.2': {('ncclSend', '')}}
    """
    found: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for symbol in re.findall(r"^ +U (\S+)$", listed, re.MULTILINE):
        name, _, version = symbol.partition("@")
        library = next((of for start, of in _BY_PREFIX.items() if name.startswith(start)), version)
        if library in missing:
            found[library].add((name, version))
    return found


def _write(path: Path, functions: Iterable[tuple[str, str]], tool: Tool) -> None:
    """One library, whose functions have one version at most."""
    source, made, script = (path.with_name(f"{path.name}.{suffix}") for suffix in ("s", "o", "map"))
    labels = "".join(f".globl {name}\n.type {name},%function\n{name}:\n" for name, _ in sorted(functions))
    source.write_text(f".text\n{labels}mov x0, #{_NO_DEVICE}\nret\n", encoding="utf-8")
    versions = sorted({version for _, version in functions if version})
    script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions), encoding="utf-8")
    versioned = [f"--version-script={script}"] if versions else []
    tool("as", "-o", str(made), str(source))
    tool("ld", "-shared", "-soname", path.name, *versioned, "-o", str(path), str(made))
    for scratch in (source, made, script):
        scratch.unlink()
