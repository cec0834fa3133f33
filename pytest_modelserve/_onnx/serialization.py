"""Reading and writing of ONNX models without parsing or copying their weights.

Weights are the raw data of initializers: byte runs of known length at a known offset. For a model of 297 MiB,
`onnx.load(path, load_external_data=False)` takes 0.7 s and `read_without_weights` less than a millisecond; a recipe
reads four times. Writing takes 1.1 s by `serialize` and 1.9 s by `SerializeToString`, which also doubles the memory.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import KEPT_TYPES, tensor_bytes

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message


# Field numbers of onnx.proto, and protobuf's type of a field that is a length and so many bytes.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_DELIMITED = 2
# Smaller weights are copied: a page.
_LARGE_BYTES = 4096


class MalformedError(Exception):
    """The bytes are not a model in protobuf's wire format; protobuf itself reports what is wrong."""


def copy_without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` whose large initializers have no raw data."""
    light = type(model)()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    for tensor in model.graph.initializer:
        _copy_fields(tensor, light.graph.initializer.add(), "raw_data" if _is_large(tensor) else "")
    return light


def large_weights(model: onnx.ModelProto) -> Iterator[tuple[int, bytes]]:
    """Yield index and raw data of the initializers that are empty in `copy_without_weights`."""
    for place, tensor in enumerate(model.graph.initializer):
        if _is_large(tensor):
            yield place, tensor.raw_data


def restore_weights(light: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Fill the large initializers of `light`, a copy of `model` with the same order of initializers."""
    for place, content in large_weights(model):
        light.graph.initializer[place].raw_data = content


def large_arrays(light: onnx.ModelProto, model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the large weights of `model` by name as views, and mark them as external in its copy `light`.

    Weights of dtypes that numpy lacks (bfloat16) are copied into `light` instead.
    """
    import onnx

    arrays = {}
    for place, content in large_weights(model):
        tensor = light.graph.initializer[place]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        tensor.raw_data = b"" if dtype.isbuiltin else content
        if dtype.isbuiltin:
            onnx.external_data_helper.set_external_data(tensor, "in memory")
            tensor.ClearField("raw_data")
            arrays[tensor.name] = np.frombuffer(content, dtype).reshape(tuple(tensor.dims))
    return arrays


def serialize(light: onnx.ModelProto, model: onnx.ModelProto | None) -> Iterator[bytes]:
    """Yield the bytes of `light` with the weights of `model`, of which it is a copy; without weights for None.

    Equal models give equal bytes. The graph and its weights come last, so that a truncated file never parses as a
    smaller model.
    """
    tensors = [tensor.SerializeToString(deterministic=True) for tensor in light.graph.initializer]
    lengths = {} if model is None else {place: len(content) for place, content in large_weights(model)}
    heads = {place: _head(_RAW_DATA, length) for place, length in lengths.items()}
    around, graph = type(light)(), type(light.graph)()
    _copy_fields(light, around, "graph")
    _copy_fields(light.graph, graph, "initializer")
    rest = graph.SerializeToString(deterministic=True)
    sizes = [len(each) + len(heads.get(place, b"")) + lengths.get(place, 0) for place, each in enumerate(tensors)]
    starts = [_head(_INITIALIZER, size) for size in sizes]
    yield around.SerializeToString(deterministic=True)
    yield _head(_GRAPH, len(rest) + sum(sizes) + sum(map(len, starts)))
    yield rest
    for place, tensor in enumerate(tensors):
        yield starts[place] + tensor
        if model is not None and place in heads:
            yield heads[place]
            yield model.graph.initializer[place].raw_data


def read_without_weights(file: BinaryIO) -> bytes:
    """Return the bytes of the model in `file` without the raw data of its large initializers, which are not read.

    Raises:
        MalformedError: The file is not in protobuf's wire format.
    """
    file.seek(0, os.SEEK_END)
    return _lighter(file, 0, file.tell(), _GRAPH, _light_graph)


def _is_large(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type in KEPT_TYPES or not tensor.HasField("raw_data"):
        return False
    # Reading raw_data copies it. An element has two bits or more.
    return math.prod(tensor.dims) >= 4 * _LARGE_BYTES or len(tensor.raw_data) >= _LARGE_BYTES


def _copy_fields(source: Message, target: Message, but: str) -> None:
    """Copy the fields of `source` except `but` into the empty `target`."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _lighter(file: BinaryIO, start: int, end: int, number: int, inner: Callable[[BinaryIO, int, int], bytes]) -> bytes:
    """Return the message from `start` to `end` with each large field `number` replaced by the result of `inner`."""
    result = io.BytesIO()
    for field, begin, content, after in _fields(file, start, end):
        if field == number and after - content >= _LARGE_BYTES:
            light = inner(file, content, after)
            result.write(_head(number, len(light)) + light)
        else:
            result.write(_span(file, begin, after))
    return result.getvalue()


def _light_graph(file: BinaryIO, start: int, end: int) -> bytes:
    return _lighter(file, start, end, _INITIALIZER, _light_tensor)


def _light_tensor(file: BinaryIO, start: int, end: int) -> bytes:
    import onnx
    from google.protobuf.message import DecodeError

    light = _lighter(file, start, end, _RAW_DATA, lambda *_: b"")
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(light)
    except DecodeError as error:
        raise MalformedError from error
    if tensor.data_type in KEPT_TYPES:
        return _span(file, start, end)
    tensor.ClearField("raw_data")
    content: bytes = tensor.SerializeToString(deterministic=True)
    return content


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, content start and end of each field; the number is 0 unless it is length-delimited."""
    while start < end:
        file.seek(start)
        tag = _varint(file)
        kind = tag & 7
        if kind == _DELIMITED:
            length = _varint(file)
            content = file.tell()
            after = content + length
        elif kind == 0:
            _varint(file)
            content = after = file.tell()
        elif kind in (1, 5):
            content = after = file.tell() + (8 if kind == 1 else 4)
        else:
            raise MalformedError
        if after > end:
            raise MalformedError
        yield (tag >> 3 if kind == _DELIMITED else 0), start, content, after
        start = after


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 64:
        byte = file.read(1)
        if not byte:
            raise MalformedError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise MalformedError


def _span(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _head(number: int, length: int) -> bytes:
    """Return the tag and length of a length-delimited field."""
    return bytes([number << 3 | _DELIMITED]) + _encoded(length)


def _encoded(value: int) -> bytes:
    """Encode a varint: seven bits a byte, lowest first, all but the last with the top bit set."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


# Whole models in files for other tools.


# Larger weights go to an external file: tools that infer shapes read and write the whole model file for it, which takes
# longer than to quantize. (A protobuf message is limited to 2 GiB in any case.)
_INLINE_LIMIT_BYTES = 32 << 20


def write_model(model: onnx.ModelProto, path: Path) -> bool:
    """Write `model` to `path`; return True if its weights went to an external file."""
    inline = (tensor for tensor in model.graph.initializer if tensor.HasField("raw_data"))
    with_data = sum(map(tensor_bytes, inline)) > _INLINE_LIMIT_BYTES
    light = copy_without_weights(model)
    if with_data:
        _write_external(light, model, path.with_name(f"{path.name}.data"))
    with open(path, "wb") as file:
        file.writelines(serialize(light, None if with_data else model))
    return with_data


def _write_external(light: onnx.ModelProto, model: onnx.ModelProto, path: Path) -> None:
    """Write the large weights of `model` to `path` and references to them into its `light` copy."""
    import onnx

    with open(path, "wb") as file:
        for place, content in large_weights(model):
            tensor = light.graph.initializer[place]
            tensor.raw_data = b""  # onnx refers to nothing but raw data
            onnx.external_data_helper.set_external_data(tensor, path.name, file.tell(), len(content))
            tensor.ClearField("raw_data")
            file.write(content)
