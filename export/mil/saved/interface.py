"""Reads the model description: named inputs, outputs and states with their types, shapes and flexibility."""

from __future__ import annotations

from typing import Any

from snapgen_deploy.export.mil.saved.errors import PackageError
from snapgen_deploy.export.mil.saved.program import Interface, PackagePort

_LABELS = {"stringType": "string", "int64Type": "int64"}
_ARRAY = {"FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "FLOAT16": "float16", "INT8": "int8"}


def read_interface(description: Any, proto: Any) -> Interface:
    """Interface of a model or function description."""
    inputs, outputs, states = (
        tuple(_port(feature, proto) for feature in features)
        for features in (description.input, description.output, description.state)
    )
    return Interface(inputs, outputs, states)


def _port(feature: Any, proto: Any) -> PackagePort:
    kind = feature.type.WhichOneof("Type")
    optional, doc = bool(feature.type.isOptional), feature.shortDescription
    if kind == "multiArrayType":
        return _array(feature.name, feature.type.multiArrayType, proto, optional, doc)
    if kind == "stateType":
        port = _array(feature.name, feature.type.stateType.arrayType, proto, optional, doc)
        return PackagePort(port.name, "state", port.dtype, port.shape, doc=doc)
    if kind == "imageType":
        return _image(feature.name, feature.type.imageType, proto, optional, doc)
    if kind in _LABELS:
        return PackagePort(feature.name, "label", _LABELS[kind], (), doc=doc)
    if kind == "dictionaryType":
        key = feature.type.dictionaryType.WhichOneof("KeyType")
        return PackagePort(feature.name, "classes", "int64" if key == "int64KeyType" else "string", (), doc=doc)
    raise PackageError(
        f"{feature.name!r} is a {kind}; expected arrays, images, states or a classifier's answer; single numbers, sequences "
        "and the like are for models that are no ML Program"
    )


def _bounds(size: Any) -> tuple[int, int | None]:
    """Inclusive bounds; the specification writes no limit as a negative upper bound."""
    upper = int(size.upperBound)
    return int(size.lowerBound), None if upper < 0 else upper


def _array(name: str, array: Any, proto: Any, optional: bool, doc: str) -> PackagePort:
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    flexibility = array.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        shapes = tuple(tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes)
    elif flexibility == "shapeRange":
        ranges = tuple(_bounds(s) for s in array.shapeRange.sizeRanges)
    code = proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType)
    default = array.WhichOneof("defaultOptionalValue")
    return PackagePort(
        name,
        "tensor",
        _ARRAY.get(code, code),
        tuple(int(n) for n in array.shape),
        shapes,
        ranges,
        optional,
        None if default is None else float(getattr(array, default)),
        doc,
    )


def _image(name: str, image: Any, proto: Any, optional: bool, doc: str) -> PackagePort:
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    flexibility = image.WhichOneof("SizeFlexibility")
    if flexibility == "enumeratedSizes":
        shapes = tuple((int(s.height), int(s.width)) for s in image.enumeratedSizes.sizes)
    elif flexibility == "imageSizeRange":
        ranges = (_bounds(image.imageSizeRange.heightRange), _bounds(image.imageSizeRange.widthRange))
    colours = proto.FeatureTypes_pb2.ImageFeatureType.ColorSpace.Name(image.colorSpace)
    return PackagePort(name, "image", colours, (int(image.height), int(image.width)), shapes, ranges, optional, None, doc)
