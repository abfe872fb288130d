"""Between an app's arrays or pictures and the tensors of a program: checks, conversions, flexible shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.mil.saved.program import PackagePort, Value
from snapgen_deploy.export.mil.saved.types import DTYPES, dtype_named, from_held, to_held

Feature = np.ndarray | Image.Image
_MODES = {"RGB": "RGB", "BGR": "RGB", "GRAYSCALE": "L", "GRAYSCALE_FLOAT16": "F"}


def admissible(port: PackagePort, shape: tuple[int, ...]) -> bool:
    """Whether `shape` (an image: height, width) is one that the port declares."""
    if port.shapes:
        return shape in port.shapes
    if port.ranges:
        return len(shape) == len(port.ranges) and all(
            low <= n and (high is None or n <= high) for n, (low, high) in zip(shape, port.ranges, strict=True)
        )
    return not port.shape or shape == port.shape


def _expected(port: PackagePort) -> str:
    if port.shapes:
        return "one of " + ", ".join(str(list(s)) for s in port.shapes)
    if port.ranges:
        return "[" + ", ".join(f"{low}..{'' if high is None else high}" for low, high in port.ranges) + "]"
    return str(list(port.shape))


def _refuse(port: PackagePort, got: object) -> PackageError:
    size = "height x width " if port.kind == "image" else "shape "
    what = "state" if port.kind == "state" else "input"
    return PackageError(f"{what} {port.name!r}: got {got}, expected {port.kind} {port.dtype}, {size}{_expected(port)}")


def take(port: PackagePort, value: Value, given: Feature) -> Tensor:
    """One input as the program's tensor.

    Arrays may be of any numeric type whose values the declared type holds exactly enough: integers for integers, real
    numbers or integers for real numbers. An image input takes a PIL picture or a uint8 array (height, width[, 3]) in RGB
    order; its values reach the program as 0 ... 255 in the declared channel order, shaped (1, channels, height, width).
    """
    if port.kind == "image":
        return _take_image(port, given)
    array = np.asarray(given)
    dtype = value.type.dtype
    if array.dtype.kind not in ("iub" if not dtype.floating else "fiub"):
        raise _refuse(port, f"{array.dtype} {list(array.shape)}")
    shape = tuple(array.shape)
    if not admissible(port, shape) or not value.type.admits(shape):
        raise _refuse(port, f"{array.dtype} {list(shape)}")
    if not dtype.floating and array.size and dtype.name != "bool":
        limits = np.iinfo(np.dtype(dtype.stored))
        if array.min() < limits.min or array.max() > limits.max:
            raise _refuse(port, f"values {array.min()} ... {array.max()}")
    if array.dtype != dtype.stored:
        array = array.astype(np.float32 if dtype.floating else dtype.stored)
    # A copy: the caller may change the array while results that alias it are still in use.
    return to_held(np.array(array), dtype)


def _take_image(port: PackagePort, given: Feature) -> Tensor:
    mode = _MODES.get(port.dtype)
    if mode is None:
        raise PackageError(f"input {port.name!r}: colour layout {port.dtype} is not supported")
    if isinstance(given, Image.Image):
        pixels = np.asarray(given if given.mode == mode else given.convert(mode))
    else:
        pixels = np.asarray(given)
        if pixels.dtype != np.uint8 and mode != "F":
            raise _refuse(port, f"{pixels.dtype} array")
    wanted = 3 if mode == "RGB" else 2
    if pixels.ndim != wanted or (wanted == 3 and pixels.shape[2] != 3) or not admissible(port, tuple(pixels.shape[:2])):
        raise _refuse(port, list(pixels.shape))
    if wanted == 2:
        pixels = pixels[:, :, None]
    planes = torch.from_numpy(np.array(pixels, np.float32)).permute(2, 0, 1)[None]  # (1, channels, height, width)
    return planes.flip(1) if port.dtype == "BGR" else planes.contiguous()


def give(port: PackagePort, value: Any, *, exact: bool) -> np.ndarray:
    """One result as the array that an app receives.

    A classifier's label is an array without axes; its classes are records ("class", "probability") in the order of the file.

    An image is rounded and clamped to uint8 (height, width, 3) in RGB order, or (height, width) in gray. Real numbers come
    as the declared type, with `exact` always as float32.
    """
    if port.kind == "image":
        return _give_image(port, value)
    if port.kind == "label":
        return np.array(value)
    if port.kind == "classes":
        names = np.array(list(value))
        records = np.zeros(len(value), [("class", names.dtype), ("probability", np.float32)])
        records["class"], records["probability"] = names, list(value.values())
        return records
    declared = dtype_named(port.dtype)
    if declared is None or (exact and declared.floating):
        declared = DTYPES["fp32"]
    return from_held(value, declared).copy()  # a result may share memory with a constant or a state


def _give_image(port: PackagePort, value: Tensor) -> np.ndarray:
    channels = 3 if port.dtype in ("RGB", "BGR") else 1
    if value.dim() != 4 or value.shape[0] != 1 or value.shape[1] != channels:
        raise PackageError(f"output {port.name!r}: a {port.dtype} image cannot be made of {list(value.shape)}")
    planes = value[0].flip(0) if port.dtype == "BGR" else value[0]
    if port.dtype == "GRAYSCALE_FLOAT16":
        return planes[0].half().numpy()
    pixels = planes.nan_to_num(0.0).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels if channels == 3 else pixels[:, :, 0]
