"""What a `.pt` file would have torch build, looked through before torch builds it.

torch's reader without code calls a short list of functions only, but as often and with whatever the file says: a few hundred
bytes name buffers of any size, or a dictionary's key whose hash takes hours (tuples of the same tuple twice, thirty times).
Here the opcodes are followed without building anything, and what no state dict needs is refused.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from snapgen_deploy.errors import BadInput
from snapgen_deploy.system.documents import LONGEST_NAME, cut

# What torch.save writes for tensors, parameters, quantised and sparse tensors, and the dictionaries around them.
_CALLS = frozenset(
    [f"torch._utils._rebuild_{name}" for name in (
        "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
        "meta_tensor_no_storage",
    )]
    + ["torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout", "torch.Size", "torch.device"]
    + ["collections.OrderedDict", "_codecs.encode", "builtins.complex", "__builtin__.complex"]
)  # fmt: skip
_DICTIONARY, _CODEC = "collections.OrderedDict", "_codecs.encode"
_END = b"PK\x05\x06"  # of a zip without a comment, 22 bytes before its last


@dataclass(frozen=True)
class _Name:
    """A class or a function that the file names."""

    text: str


@dataclass(frozen=True)
class _Made:
    """What an opcode makes: `by` is the function, or `list` or `dict`."""

    by: str


def check_archive(path: Path) -> None:
    """BadInput where reading the archive would cost more than its size, or build something else than a state dict."""
    _check_zip(path)
    import torch

    pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    try:
        _follow(path, pickled)
    except (IndexError, KeyError, ValueError) as error:
        raise BadInput(
            f"{path}: damaged or not a PyTorch checkpoint ({cut(str(error), LONGEST_NAME)}); fetch or write it again"
        ) from None


def _check_zip(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 22, 0))
        tail = file.read()
    if not tail.startswith(_END) or not tail.endswith(b"\0\0"):  # readers differ on where such an archive ends
        raise BadInput(f"{path}: damaged or not a PyTorch checkpoint (no archive's end); fetch or write the file again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise BadInput(f"{path}: its archive is compressed, which torch.save never does; write it with torch.save")
    if sum(m.file_size for m in members) > size:
        raise BadInput(f"{path}: the members of its archive overlap; write it again with torch.save")


def _follow(path: Path, pickled: bytes) -> None:
    machine = _Machine(path)
    for opcode, argument, _ in pickletools.genops(pickled):
        machine.step(opcode.name, argument)


class _Machine:
    """The stack of an unpickler with atoms as they are, tuples of what is known of their items, and `_Made` for the rest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark, "TUPLE": self._tuple, "REDUCE": self._call, "BUILD": self._state, "BINPERSID": self._storage,
            "APPEND": self._drop, "APPENDS": self._drop_marked, "SETITEM": self._item, "SETITEMS": self._items,
            "GLOBAL": lambda name: self._stack.append(_Name(name.replace(" ", "."))),
        }  # fmt: skip
        self._steps |= dict.fromkeys(("PROTO", "STOP"), lambda _: None)
        self._steps |= dict.fromkeys(("BINGET", "LONG_BINGET"), lambda at: self._stack.append(self._memo[at]))
        self._steps |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda at: self._memo.update({at: self._stack[-1]}))
        for count, name in enumerate(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")):
            self._steps[name] = partial(self._tuple_of, count)
        for name, value in (("NONE", None), ("NEWTRUE", True), ("NEWFALSE", False)):
            self._steps[name] = partial(lambda held, _: self._stack.append(held), value)
        for name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            self._steps[name] = partial(lambda held, _: self._stack.append(held), _Made(name))
        for name in ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"):
            self._steps[name] = self._atom

    def step(self, name: str, argument: Any) -> None:
        """One opcode; BadInput for one that no state dict needs."""
        if name not in self._steps:
            raise BadInput(refused_code(self._path, name))
        self._steps[name](argument)

    def _atom(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _drop_marked(self, _: Any) -> None:
        self._unmark()

    def _unmark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = self._unmark()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int, _: Any) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _item(self, _: Any) -> None:
        self._stack.pop()
        self._key(self._stack.pop())

    def _items(self, _: Any) -> None:
        for key in self._unmark()[::2]:
            self._key(key)

    def _key(self, key: Any) -> None:
        if isinstance(key, (tuple, _Made, _Name)):
            raise BadInput(f"{self._path}: a dictionary in it has a key that is no name; save the state dict alone")

    def _storage(self, _: Any) -> None:
        described = self._stack.pop()
        if not isinstance(described, tuple) or any(isinstance(item, (tuple, _Made)) for item in described):
            raise ValueError("a storage without a name")
        self._stack.append(_Made("storage"))

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.text if isinstance(function, _Name) else "an object"
        known = name in _CALLS and isinstance(arguments, tuple)
        if not known or (name == _DICTIONARY and arguments) or (name == _CODEC and arguments[1:] != ("latin1",)):
            raise BadInput(refused_code(self._path, name))
        self._stack.append(_Made(name))

    def _state(self, _: Any) -> None:
        self._stack.pop()
        if self._stack[-1] != _Made(_DICTIONARY):
            raise BadInput(refused_code(self._path, "an object's state"))


def refused_code(path: Path, what: str = "") -> str:
    """The message for a file that would have something else called than what makes tensors."""
    named = f" ({cut(what, LONGEST_NAME)})" if what else ""
    return f"{path}: holds code{named} beside its tensors and was not executed; save the state dict alone, or as safetensors"
