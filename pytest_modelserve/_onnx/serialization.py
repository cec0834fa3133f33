"""Models in protobuf's wire form, read and written without the detour of their weights through protobuf.

python-protobuf serializes a model of 324 MiB in 0.5 s, where writing the bytes takes 0.2 s, and reads all of it to tell
the names of its inputs. Weights are the raw data of initializers: runs of bytes of a known length, at a known place.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pytest_modelserve._onnx.graph import _KEPT_TYPES, tensor_bytes

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message


# Field numbers of onnx.proto, and protobuf's type of a field that is a length and so many bytes.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_DELIMITED = 2
# What takes less is not worth the trouble: a page.
_HEAVY_BYTES = 4096


class MalformedError(Exception):
    """The bytes are not a model as protobuf writes it; what is wrong with it, protobuf itself can say."""


def copy_without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose heavy initializers have no raw data; everything else is there."""
    light = type(model)()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    for tensor in model.graph.initializer:
        _copy_fields(tensor, light.graph.initializer.add(), "raw_data" if _is_heavy(tensor) else "")
    return light


def large_weights(model: onnx.ModelProto) -> Iterator[tuple[int, bytes]]:
    """Place and raw data of the initializers that `light_copy` gives none."""
    for place, tensor in enumerate(model.graph.initializer):
        if _is_heavy(tensor):
            yield place, tensor.raw_data


def restore_weights(light: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give a light copy of `model`, whose initializers are still in its order, their raw data back."""
    for place, content in large_weights(model):
        light.graph.initializer[place].raw_data = content


def serialize(light: onnx.ModelProto, model: onnx.ModelProto | None) -> Iterator[bytes]:
    """The bytes of `light` with the weights of `model`, of which it is a copy, in chunks; as it stands for None.

    Equal models give equal bytes. The graph comes last and its weights at its end, so that a file that was cut short is
    never a smaller model.
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
    """The bytes of the model in `file`, less the raw data of its heavy initializers, which are not read.

    Raises MalformedError where that cannot be told.
    """
    file.seek(0, os.SEEK_END)
    return _lighter(file, 0, file.tell(), _GRAPH, _light_graph)


def _is_heavy(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type in _KEPT_TYPES or not tensor.HasField("raw_data"):
        return False
    # Asking for the raw data copies it. An element takes two bits or more.
    return math.prod(tensor.dims) >= 4 * _HEAVY_BYTES or len(tensor.raw_data) >= _HEAVY_BYTES


def _copy_fields(source: Message, target: Message, but: str) -> None:
    """Copy the fields of `source` into `target`, which is empty, except the one called `but`."""
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
    """The message from `start` to `end`, with what `inner` makes of each heavy field `number` in its place."""
    kept = io.BytesIO()
    for field, begin, content, after in _fields(file, start, end):
        if field == number and after - content >= _HEAVY_BYTES:
            light = inner(file, content, after)
            kept.write(_head(number, len(light)) + light)
        else:
            kept.write(_span(file, begin, after))
    return kept.getvalue()


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
    if tensor.data_type in _KEPT_TYPES:
        return _span(file, start, end)
    tensor.ClearField("raw_data")
    content: bytes = tensor.SerializeToString(deterministic=True)
    return content


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, begin, begin of the content and end of each field of a message; those of a fixed width have no content.

    Fields that are no run of bytes come with the number 0.
    """
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
    """The tag and the length before a run of bytes."""
    return bytes([number << 3 | _DELIMITED]) + _encoded(length)


def _encoded(value: int) -> bytes:
    """`value` as a varint: seven bits a byte, the lowest first, each but the last with the top bit set."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


# Whole models between memory and files: read with all their weights, and written for a tool to read.


# Larger weights go to a file of their own: tools that infer shapes read and write the whole model file for it, which
# takes longer than to quantize. (A protobuf message ends at 2 GiB in any case.)
_INLINE_LIMIT_BYTES = 32 << 20


def needs_external_data(model: onnx.ModelProto) -> bool:
    """Whether the weights of `model` go to a file of their own."""
    inline = (tensor for tensor in model.graph.initializer if tensor.HasField("raw_data"))
    return sum(map(tensor_bytes, inline)) > _INLINE_LIMIT_BYTES


def write_model(model: onnx.ModelProto, path: Path) -> bool:
    """Write `model` to `path`; whether its weights went to a file of their own."""
    with_data = needs_external_data(model)
    light = copy_without_weights(model)
    if with_data:
        _write_beside(light, model, path.with_name(f"{path.name}.data"))
    with open(path, "wb") as file:
        file.writelines(serialize(light, None if with_data else model))
    return with_data


def _write_beside(light: onnx.ModelProto, model: onnx.ModelProto, path: Path) -> None:
    """Write the heavy weights of `model` to `path` and references to them into its `light` copy."""
    import onnx

    with open(path, "wb") as file:
        for place, content in large_weights(model):
            tensor = light.graph.initializer[place]
            tensor.raw_data = b""  # onnx refers to nothing but raw data
            onnx.external_data_helper.set_external_data(tensor, path.name, file.tell(), len(content))
            tensor.ClearField("raw_data")
            file.write(content)
