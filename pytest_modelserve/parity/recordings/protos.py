"""Values in the protobuf messages of ONNX test data: tensors, sequences, maps and optional values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.artifacts.signature import elem_type
from pytest_modelserve.errors import ArtifactError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def proto_of(spec: TensorSpec, value: Any) -> Message:
    """The message for `value` of type `spec.dtype`, "" for a tensor of any; it carries the name."""
    import onnx

    kind, _, rest = spec.dtype.rpartition(")")[0].partition("(")
    if kind == "sequence":
        return _sequence(spec.name, rest, value)
    if kind == "map":
        return _map(spec.name, rest, value)
    if kind == "optional":
        return _optional(spec.name, rest, value)
    array = np.asarray(value)
    return onnx.numpy_helper.from_array(array.astype(object) if array.dtype.kind in "UT" else array, spec.name)


def value_of(path: Path, spec: TensorSpec | None) -> tuple[str, Any]:
    """The name and value in the file at `path`, of the type that `spec` says; without one it has to be a tensor.

    ArtifactError for a file that is damaged or holds something else.
    """
    import onnx
    from google.protobuf.message import DecodeError

    kind = spec.dtype.partition("(")[0] if spec is not None and not spec.is_tensor else ""
    try:
        content = path.read_bytes()
        if kind == "sequence":
            sequence = onnx.SequenceProto.FromString(content)
            return sequence.name, _plain(onnx.numpy_helper.to_list(sequence))
        if kind == "optional":
            optional = onnx.OptionalProto.FromString(content)
            return optional.name, _plain(onnx.numpy_helper.to_optional(optional))
        if kind == "map":
            pairs = onnx.MapProto.FromString(content)
            return pairs.name, _plain(onnx.numpy_helper.to_dict(pairs))
        tensor = onnx.TensorProto.FromString(content)
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise ValueError("it has no element type")
        return tensor.name, _plain(onnx.numpy_helper.to_array(tensor))
    except (DecodeError, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        hint = "" if spec is not None else "; what is no tensor needs the model beside it as model.onnx, or signature="
        raise ArtifactError(
            f"cannot read {path} as {spec.dtype if spec is not None else 'a tensor'}: it is cut short, damaged or "
            f"something else ({error}){hint}"
        ) from error


def _plain(value: Any) -> Any:
    """`value` with all text as str objects: onnx gives some of it as bytes."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return np.array([_text(item) for item in value.ravel()], dtype=object).reshape(value.shape)
    return value


def _text(item: Any) -> Any:
    return item.decode() if isinstance(item, bytes) else item


def _sequence(name: str, inner: str, items: Sequence[Any]) -> Message:
    import onnx

    proto = onnx.SequenceProto(name=name)
    if inner.startswith("map("):
        proto.elem_type = onnx.SequenceProto.MAP
        proto.map_values.extend(_map("", inner[len("map(") : -1], item) for item in items)
    else:
        proto.elem_type = onnx.SequenceProto.TENSOR
        proto.tensor_values.extend(proto_of(TensorSpec("", inner, None), item) for item in items)
    return proto


def _map(name: str, pair: str, values: Mapping[Any, Any]) -> Message:
    import onnx

    key_dtype, value_dtype = pair.split(", ", 1)
    kind = np.dtype(object if value_dtype == "str" else value_dtype)
    proto = onnx.MapProto(name=name, key_type=elem_type(key_dtype))
    if key_dtype == "str":
        proto.string_keys.extend(key.encode() for key in values)
    else:
        proto.keys.extend(values)
    proto.values.CopyFrom(_sequence("", "", [np.array(value, dtype=kind) for value in values.values()]))
    return proto


def _optional(name: str, inner: str, value: Any) -> Message:
    import onnx

    proto = onnx.OptionalProto(name=name, elem_type=onnx.OptionalProto.UNDEFINED)
    if value is None:
        return proto
    held = proto_of(TensorSpec(name, inner, None), value)
    if isinstance(held, onnx.SequenceProto):
        proto.elem_type = onnx.OptionalProto.SEQUENCE
        proto.sequence_value.CopyFrom(held)
    else:
        proto.elem_type = onnx.OptionalProto.TENSOR
        proto.tensor_value.CopyFrom(held)
    return proto
