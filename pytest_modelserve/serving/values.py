"""Values that are no tensors, as arrays under derived names: one rule in both directions.

| the model's value `y`        | arrays                                                              |
|------------------------------|---------------------------------------------------------------------|
| sequence(T)                  | `y.length`, a number; then each item as its own value `y[0]`, `y[1]`|
| map(K, V)                    | `y.keys` (keys,) ascending; `y` (keys,), the value of each          |
| sequence(map(K, V))          | `y.keys` (keys,) ascending; `y` (rows, keys)                        |
| optional(T)                  | `y.present`, a boolean; then the value `y`, if there is one         |

So the scores of a scikit-learn classifier that was converted with ZipMap are a matrix with its class labels beside it,
nothing is lost, and a comparison finds another length, key or absent value like any other difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.numerics import dtype_name
from pytest_modelserve.serving.inputs import check_array

Value = Any
"""What onnxruntime takes and gives: an array, a list, a dict or None."""


def as_arrays(spec: TensorSpec, value: Value) -> dict[str, NDArray[Any]]:
    """The arrays that stand for `value`, one of type `spec.dtype`; a tensor's is the tensor under its own name.

    A row of a sequence of maps that has other keys than the first is an ArtifactError: its values have no column.
    """
    return dict(_arrays(spec.name, spec.dtype, value))


def as_value(spec: TensorSpec, arrays: Mapping[str, NDArray[Any]]) -> Value:
    """The value of type `spec.dtype` that `arrays` stand for, the inverse of `as_arrays`.

    InputError names the array that is missing, or that has another dtype or shape than the rule gives it.
    """
    return _value(spec.name, spec.dtype, arrays)


def outputs_as_arrays(signature: Signature, values: Sequence[Value]) -> dict[str, NDArray[Any]]:
    """The arrays that stand for a model's answers, in the order of its outputs; see `as_arrays`."""
    return {
        name: array
        for spec, value in zip(signature.outputs, values, strict=True)
        for name, array in as_arrays(spec, value).items()
    }


def split_inputs(inputs: object, others: Sequence[TensorSpec]) -> tuple[dict[str, Value], dict[str, NDArray[Any]]]:
    """The values of `others`, the inputs that are no tensors, by name; and what is left of `inputs` for the tensors.

    InputError for inputs that are no mapping, and where `as_value` raises it.
    """
    if not isinstance(inputs, Mapping):
        told = ", ".join(map(repr, (spec.name for spec in others)))
        raise InputError(f"the model takes {told}, which no single array can be: give a mapping from names to arrays")
    parts = {name for spec in others for name in names_of(spec, inputs)}
    values = {spec.name: as_value(spec, inputs) for spec in others}
    return values, {name: array for name, array in inputs.items() if name not in parts}


def names_of(spec: TensorSpec, names: Iterable[str]) -> list[str]:
    """Those of `names` that stand for parts of a value that is described by `spec`."""
    return [name for name in names if name == spec.name or name.startswith((f"{spec.name}.", f"{spec.name}["))]


def leaf_dtypes(dtype: str) -> tuple[str, ...]:
    """The tensor dtypes within a type's words: ("int64", "float32") of "sequence(map(int64, float32))"."""
    inner = _inside(dtype, "sequence") or _inside(dtype, "optional")
    if inner is not None:
        return leaf_dtypes(inner)
    pair = _inside(dtype, "map")
    if pair is None:
        return (dtype,)
    key, value = pair.split(", ", 1)
    return key, *leaf_dtypes(value)


def _inside(dtype: str, kind: str) -> str | None:
    return dtype[len(kind) + 1 : -1] if dtype.startswith(f"{kind}(") else None


def _arrays(name: str, dtype: str, value: Value) -> Iterator[tuple[str, NDArray[Any]]]:
    if (inner := _inside(dtype, "optional")) is not None:
        yield f"{name}.present", np.array(value is not None)
        if value is not None:
            yield from _arrays(name, inner, value)
    elif (inner := _inside(dtype, "sequence")) is not None:
        if (pair := _inside(inner, "map")) is not None:
            yield from _table(name, pair, value)
            return
        yield f"{name}.length", np.array(len(value), np.int64)
        for index, item in enumerate(value):
            yield from _arrays(f"{name}[{index}]", inner, item)
    elif (pair := _inside(dtype, "map")) is not None:
        (_, keys), (_, rows) = _table(name, pair, [value])
        yield from ((f"{name}.keys", keys), (name, rows[0]))
    else:
        yield name, np.asarray(value)


def _table(name: str, pair: str, rows: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    key_dtype, value_dtype = (_numpys(part) for part in pair.split(", ", 1))
    keys = sorted(rows[0]) if rows else []
    for index, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ArtifactError(
                f"{name!r}: row {index} has the keys {sorted(row)} and row 0 {keys}: maps become columns of one array, "
                "so every row needs the same keys"
            )
    yield f"{name}.keys", np.array(keys, dtype=key_dtype)
    values = [[row[key] for key in keys] for row in rows]
    yield name, np.array(values, dtype=value_dtype).reshape(len(rows), len(keys))


def _numpys(dtype: str) -> np.dtype[Any]:
    return np.dtype(object if dtype == "str" else dtype)


def _value(name: str, dtype: str, arrays: Mapping[str, NDArray[Any]]) -> Value:
    if (inner := _inside(dtype, "optional")) is not None:
        return _value(name, inner, arrays) if _single(f"{name}.present", "bool", arrays) else None
    if (inner := _inside(dtype, "sequence")) is not None:
        if (pair := _inside(inner, "map")) is not None:
            keys, rows = _columns(name, pair, arrays, 2)
            return [dict(zip(keys, row, strict=True)) for row in rows]
        length = _single(f"{name}.length", "int64", arrays)
        return [_value(f"{name}[{index}]", inner, arrays) for index in range(length)]
    if (pair := _inside(dtype, "map")) is not None:
        return dict(zip(*_columns(name, pair, arrays, 1), strict=True))
    return _typed(name, dtype, arrays)


def _columns(name: str, pair: str, arrays: Mapping[str, NDArray[Any]], rank: int) -> tuple[list[Any], list[Any]]:
    key_dtype, value_dtype = pair.split(", ", 1)
    keys, values = _typed(f"{name}.keys", key_dtype, arrays), _typed(name, value_dtype, arrays)
    if keys.ndim != 1 or values.ndim != rank or values.shape[-1:] != keys.shape:
        raise InputError(
            f"input {name!r} has shape {list(values.shape)} where {f'{name}.keys'!r} has {list(keys.shape)}: the last "
            f"of its axes, {rank} in all, is the keys"
        )
    return keys.tolist(), values.tolist()


def _single(part: str, dtype: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    array = _typed(part, dtype, arrays)
    if array.size != 1:
        raise InputError(f"input {part!r} has shape {list(array.shape)} where one value is needed")
    return array.item()


def _typed(part: str, dtype: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if part not in arrays:
        raise InputError(f"input {part!r} is missing: it is part of a value that is no tensor")
    array = check_array(f"input {part!r}", arrays[part])
    if dtype_name(array.dtype) != dtype:
        raise InputError(f"input {part!r} has dtype {array.dtype.name} where the model takes {dtype}")
    return array
