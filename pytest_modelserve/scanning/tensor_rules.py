"""Rules about tensors: element types, shapes, and contents that do not fit them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import element_bits
from pytest_modelserve.scanning.file_rules import ExternalTensor

if TYPE_CHECKING:
    import onnx

_MAX_RANK = 32
_MAX_AXIS = 1 << 31
_MAX_ELEMENTS = 1 << 48
_STRING, BOOL = 8, 9
"""TensorProto.STRING and BOOL."""
# Element types by the field that holds them, other than raw data; the rest is in int32_data.
_FIELD_TYPES = {"float_data": (1, 14), "double_data": (11, 15), "int64_data": (7,), "uint64_data": (12, 13)}
_FIELD_TYPES["int32_data"] = tuple({*range(1, 32)} - {1, 7, 8, 11, 12, 13, 14, 15})
# What numbers of these types can be; others are the bits of one element, or of several.
_LIMITS = {3: (-(1 << 7), (1 << 7) - 1), 5: (-(1 << 15), (1 << 15) - 1), 6: (-(1 << 31), (1 << 31) - 1), BOOL: (0, 1)}
# Elements of complex types are two numbers in float_data and double_data.
_COMPLEX = {14: 2, 15: 2}


def is_dtype(elem_type: int) -> bool:
    """Return whether ONNX has this element type."""
    return elem_type == _STRING or element_bits(elem_type) > 0


def value_limits(elem_type: int) -> tuple[int, int] | None:
    """Return the least and the largest number that int32_data may hold for an element type; None for other fields."""
    if elem_type not in _FIELD_TYPES["int32_data"]:
        return None
    bits = element_bits(elem_type)
    return _LIMITS.get(elem_type, (0 if bits >= 8 else -(1 << 7), (1 << max(bits, 8)) - 1))


def content_findings(tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield rule and text of what is wrong with a tensor; `sizes` counts bytes of raw data and elements of others."""
    dims = list(tensor.dims)
    if (any(not 0 <= axis <= _MAX_AXIS for axis in dims) and 0 in dims) or any(axis < 0 for axis in dims):
        yield "tensor.shape", f"shape {_short(dims)}"
        return
    if len(dims) > _MAX_RANK:
        yield "tensor.shape", f"{len(dims)} axes"
        return
    if not is_dtype(tensor.data_type):
        yield "tensor.dtype", f"element type {tensor.data_type}"
        return
    given = {name: count for name, count in sizes.items() if count}
    is_external = tensor.data_location == 1
    if tensor.external_data and not is_external:
        yield "external.entries", "it has entries of external data, and says that its content is in the model"
        return
    if tensor.HasField("segment"):
        yield "tensor.size", "it says that it is a segment of another tensor, which no runtime puts together"
        return
    if is_external or len(given) > 1:
        if given:
            also = ["external data"] * is_external
            yield "tensor.size", f"it has content in {', '.join([*sorted(given), *also])}: one of them is ignored"
        return
    needed = math.prod(dims)
    if needed > _MAX_ELEMENTS:
        yield "tensor.size", f"shape {_short(dims)} has {needed:,} elements"
        return
    ((name, count),) = given.items() or (("", 0),)
    expected = _expected(tensor.data_type, name, needed)
    if expected is None:
        yield "tensor.size", f"content in {name}, which is not the field of its element type"
    elif count != expected:
        unit = "bytes" if name == "raw_data" else "elements"
        yield (
            "tensor.size",
            f"shape {_short(dims)} needs {expected:,} {unit}, and {name or 'its content'} has {count:,}",
        )


def _expected(elem_type: int, name: str, elements: int) -> int | None:
    """Return the count that a field needs; None if it is not the field of the type."""
    if elem_type == _STRING:
        return elements if name in ("string_data", "") else None
    if name == "string_data":
        return None
    if name in ("raw_data", ""):
        return (elements * element_bits(elem_type) + 7) // 8
    if elem_type not in _FIELD_TYPES.get(name, ()):
        return None
    if name == "int32_data":
        per_number = max(1, 8 // element_bits(elem_type)) if element_bits(elem_type) < 8 else 1
        return -(-elements // per_number)
    return elements * _COMPLEX.get(elem_type, 1)


def external_tensor(tensor: onnx.TensorProto) -> ExternalTensor | None:
    """Return what the tensor says about its external data; None if it has none."""
    if tensor.data_location != 1:
        return None
    bits = 0 if tensor.data_type == _STRING else element_bits(tensor.data_type)
    dims = list(tensor.dims)
    fits = bits > 0 and all(axis >= 0 for axis in dims)
    needed = (math.prod(dims) * bits + 7) // 8 if fits else None
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    return ExternalTensor(tensor.name, entries, needed, tensor.data_type == BOOL)


def sparse_findings(sparse: onnx.SparseTensorProto, limit_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a sparse tensor, which onnxruntime stores densely."""
    import numpy as np
    import onnx

    dims = list(sparse.dims)
    if any(axis < 0 for axis in dims) or len(dims) > _MAX_RANK:
        yield "tensor.sparse", f"shape {_short(dims)}"
        return
    needed = math.prod(dims) * max(element_bits(sparse.values.data_type), 8) // 8
    if needed > limit_bytes:
        yield (
            "tensor.sparse",
            f"shape {_short(dims)} takes {needed:,} bytes for {math.prod(sparse.values.dims):,} values",
        )
        return
    if sparse.indices.data_location == onnx.TensorProto.EXTERNAL:
        return
    try:
        indices = onnx.numpy_helper.to_array(sparse.indices)
    except (ValueError, TypeError, KeyError):
        return  # too large to be read here
    count = math.prod(sparse.values.dims)
    flat = indices.ndim == 1
    limits = np.array([math.prod(dims)] if flat else dims)
    if indices.shape not in ((count,), (count, len(dims))):
        yield "tensor.sparse", f"{count} values have indices of shape {list(indices.shape)}"
    elif indices.size and ((indices < 0) | (indices >= (limits[0] if flat else limits))).any():
        yield "tensor.sparse", f"an index lies outside the shape {_short(dims)}"
    elif len(np.unique(indices, axis=0)) < len(indices):
        yield "tensor.sparse", "an index is given twice"


def _short(dims: list[int]) -> str:
    return f"[{', '.join(map(str, dims[:8]))}{', …' if len(dims) > 8 else ''}]"
