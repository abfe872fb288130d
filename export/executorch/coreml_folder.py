"""A folder serialised into one byte string, as ExecuTorch's Core ML delegate stores its model in a `.pte`.

The bytes of all files, then a JSON object with their offsets, written backwards so that a reader finds it from the end (format:
executorch 1.4.1, `backends/apple/coreml/runtime/inmemoryfs`). ExecuTorch's own writer takes files in the order of the file
system and a hash table; here they are sorted, so that the same folder gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput

FILE, _FOLDER = 0, 1  # kinds of nodes
_ROOT = "lowered_module"  # ExecuTorch's name of the folder itself
FIRST_LOOK = 1 << 16  # bytes from the end in which the JSON is looked for first


def pack(folder: Path) -> bytes:
    """The folder as bytes."""
    nodes: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    _add(folder, _ROOT, nodes, pieces)
    return b"".join((*pieces, json.dumps({"nodes": nodes}, separators=(",", ":")).encode()[::-1]))


def _add(path: Path, name: str, nodes: list[dict[str, Any]], pieces: list[bytes]) -> int:
    """Append the node of a file or folder, after those of its content; returns its index."""
    children, region = {}, {"offset": 0, "size": 0}
    if path.is_dir():
        children = {child.name: _add(child, child.name, nodes, pieces) for child in sorted(path.iterdir())}
    else:
        region = {"offset": sum(map(len, pieces)), "size": path.stat().st_size}
        pieces.append(path.read_bytes())
    kind = _FOLDER if path.is_dir() else FILE
    nodes.append({"name": name, "kind": kind, "dataRegion": region, "children": children})
    return len(nodes) - 1


def unpack(data: bytes, folder: Path) -> None:
    """Write the files into the empty folder `folder`.

    Raises:
        BadInput: if the bytes are not such a folder.
    """
    nodes = _table(data)
    try:
        _write(nodes, nodes[-1], data, folder)
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"the Core ML delegate's folder has a node without {error}; expected name, kind and data") from error


def _table(data: bytes) -> Any:
    """The nodes, the root last."""
    look = FIRST_LOOK
    while True:
        text = bytes(data[-look:])[::-1].decode("latin-1")  # the JSON's own bytes are ASCII, what lies before them is not
        try:
            return json.JSONDecoder().raw_decode(text)[0]["nodes"]
        except (ValueError, KeyError, TypeError) as error:
            if look >= len(data):
                raise BadInput("the Core ML delegate's data end with no table of files") from error
            look *= 4


def _write(nodes: Any, node: Any, data: bytes, path: Path) -> None:
    if node["kind"] == FILE:
        region = node["dataRegion"]
        content = data[region["offset"] : region["offset"] + region["size"]]
        if len(content) != region["size"]:
            raise BadInput(f"{path.name}: {region['size']} bytes at {region['offset']} of {len(data)}: the file is cut short")
        path.write_bytes(content)
        return
    path.mkdir(exist_ok=True)
    for name, index in sorted(node["children"].items()):
        if "/" in name or name in ("", ".", ".."):
            raise BadInput(f"the Core ML delegate's folder names a file {name!r}; expected a name without a path")
        _write(nodes, nodes[index], data, path / name)
