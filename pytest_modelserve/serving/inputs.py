"""Whether arrays fit a model's signature, decided before the model is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError, unknown_choice

Feed = dict[str, NDArray[Any]]


def checked_feed(inputs: object, signature: Signature) -> Feed:
    """`inputs` by name, as arrays that onnxruntime reads as they are meant; nothing is cast.

    Byte-swapped arrays are put into native order, because onnxruntime would read their bytes as they lie; numpy's text
    of variable width becomes an array of strings. Raises InputError for anything that the signature does not take: it
    names the input, what was expected and what came.
    """
    arrays = _by_name(inputs, signature)
    feed = {spec.name: _checked_array(arrays[spec.name], spec) for spec in signature.inputs}
    _check_shared_dims(feed, signature)
    return feed


def check_array(what: str, value: object) -> NDArray[Any]:
    """`value` if it is a plain numpy array; InputError beginning with `what` that says how to make it one."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array, whose mask a model cannot see: fill it with .filled(...)")
    if isinstance(value, np.ndarray):
        return value
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch":
        raise InputError(f"{what} is a torch.{kind.__name__}, not a numpy array: give .detach().cpu().numpy()")
    if hasattr(value, "to_numpy"):
        raise InputError(f"{what} is a {kind.__name__}, not a numpy array: give .to_numpy() of the model's dtype")
    raise InputError(f"{what} is a {kind.__name__}, not a numpy array: give np.asarray(...) of the model's dtype")


def _by_name(inputs: object, signature: Signature) -> Mapping[str, object]:
    names = [spec.name for spec in signature.inputs]
    told = ", ".join(map(repr, names))
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InputError(f"the model has {len(names)} inputs ({told}): give a mapping from their names to arrays")
        return {names[0]: inputs}
    for name in inputs:
        if name not in names:
            raise InputError(unknown_choice("input", name, names))
    missing = [name for name in names if name not in inputs]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing: the model takes {told}")
    return inputs


def _checked_array(value: object, spec: TensorSpec) -> NDArray[Any]:
    array = check_array(f"input {spec.name!r}", value)
    array = _text(array, spec) if spec.dtype == "str" else _numbers(array, spec)
    if spec.shape is not None:
        _check_shape(array, spec)
    return array


def _numbers(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.name != spec.dtype:
        how = f"cast it, if that is what is meant, with .astype({spec.dtype!r})"
        raise InputError(f"input {spec.name!r} has dtype {array.dtype.name} where the model takes {spec.dtype}: {how}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _text(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind not in "OT":
        raise InputError(f"input {spec.name!r} has dtype {array.dtype.name} where the model takes text: give strings")
    array = array.astype(object, copy=False)
    for item in array.flat:
        if not isinstance(item, str):  # onnxruntime would take str(item): None becomes "None"
            raise InputError(
                f"input {spec.name!r} holds {item!r} ({type(item).__name__}) where the model takes text: give strings"
            )
    return array


def _check_shape(array: NDArray[Any], spec: TensorSpec) -> None:
    assert spec.shape is not None
    expected = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    came = f"input {spec.name!r} has shape {list(array.shape)} where the model takes [{expected}]"
    if array.ndim != len(spec.shape):
        hint = "; a single row needs a batch axis, x[np.newaxis]" if array.ndim == len(spec.shape) - 1 else ""
        raise InputError(f"{came}: rank {array.ndim} instead of {len(spec.shape)}{hint}")
    for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise InputError(f"{came}: axis {axis} is {size} instead of {dim}")


def _check_shared_dims(feed: Feed, signature: Signature) -> None:
    """onnxruntime runs on inputs whose common dim differs and answers something, or fails deep inside the graph."""
    seen: dict[str, tuple[str, int, int]] = {}
    for spec in signature.inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, str):
                continue
            size = feed[spec.name].shape[axis]
            name, first_axis, first_size = seen.setdefault(dim, (spec.name, axis, size))
            if size != first_size:
                raise InputError(
                    f"inputs disagree on {dim!r}: axis {first_axis} of {name!r} is {first_size} and axis {axis} of "
                    f"{spec.name!r} is {size}"
                )
