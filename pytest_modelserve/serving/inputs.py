"""Inputs of models: checked against a signature, counted in rows, sliced and batched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Signature, TensorSpec
    from pytest_modelserve.serving.predictor import Predictor

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
Feed = dict[str, NDArray[Any]]


def checked_feed(inputs: object, signature: Signature) -> Feed:
    """Return `inputs` by name if they match `signature`; nothing is cast.

    Byte-swapped arrays are converted to native order, because onnxruntime ignores the byte order. numpy's text of
    variable width becomes an array of strings. InputError names the input, what was expected and what it got.
    """
    arrays = _by_name(inputs, signature)
    feed = {spec.name: _checked_array(arrays[spec.name], spec) for spec in signature.inputs}
    _check_shared_dims(feed, signature)
    return feed


def check_array(what: str, value: object) -> NDArray[Any]:
    """Return `value` if it is a plain numpy array; otherwise raise InputError, which says how to convert it."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array, and a model ignores the mask: fill it with .filled(...)")
    if isinstance(value, np.ndarray):
        return value
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch":
        raise InputError(f"{what} is a torch.{kind.__name__}, not a numpy array: pass .detach().cpu().numpy()")
    if hasattr(value, "to_numpy"):
        raise InputError(f"{what} is a {kind.__name__}, not a numpy array: pass .to_numpy() of the model's dtype")
    raise InputError(f"{what} is a {kind.__name__}, not a numpy array: pass np.asarray(...) of the model's dtype")


def _by_name(inputs: object, signature: Signature) -> Mapping[str, object]:
    names = [spec.name for spec in signature.inputs]
    quoted = ", ".join(map(repr, names))
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InputError(
                f"inputs must be a mapping from names to arrays: the model has {len(names)} inputs ({quoted})"
            )
        return {names[0]: inputs}
    for name in inputs:
        if name not in names:
            raise InputError(unknown_choice("input", name, names))
    missing = [name for name in names if name not in inputs]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing: the model takes {quoted}")
    return inputs


def _checked_array(value: object, spec: TensorSpec) -> NDArray[Any]:
    array = check_array(f"input {spec.name!r}", value)
    array = _text(array, spec) if spec.dtype == "str" else _numbers(array, spec)
    if spec.shape is not None:
        _check_shape(array, spec)
    return array


def _numbers(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.name != spec.dtype:
        how = f"cast it with .astype({spec.dtype!r}) if that is intended"
        raise InputError(f"input {spec.name!r} has dtype {array.dtype.name} where the model takes {spec.dtype}: {how}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _text(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind not in "OT":
        raise InputError(f"input {spec.name!r} has dtype {array.dtype.name} where the model takes text: pass strings")
    array = array.astype(object, copy=False)
    for item in array.flat:
        if not isinstance(item, str):  # onnxruntime would take str(item): None becomes "None"
            raise InputError(
                f"input {spec.name!r} holds {item!r} ({type(item).__name__}) where the model takes text: pass strings"
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
    # onnxruntime returns arbitrary outputs for inputs whose common dimension differs, or fails inside the graph.
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


def count_rows(inputs: Inputs) -> int:
    """Return the number of rows, the common length of the first axes.

    InputError for no rows, for a scalar and for inputs of different lengths.
    """
    arrays = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    lengths = {}
    for name, array in arrays.items():
        if np.ndim(array) == 0:
            raise InputError(f"{name!r} is a scalar: it has no rows")
        lengths[name] = len(array)
    if len(set(lengths.values())) > 1:
        raise InputError(f"inputs have different numbers of rows: {lengths}")
    rows = next(iter(lengths.values()), 0)
    if rows == 0:
        raise InputError("inputs are empty: at least one row is needed")
    return rows


def select_output(predictor: Predictor, inputs: Inputs, output: str | None) -> tuple[str, NDArray[Any]]:
    """Return the name and value of the output `output`, which is required if the model has several.

    UsageError if it is missing, or not a name of an output.
    """
    outputs = predictor.predict(inputs)
    if output is None:
        if len(outputs) > 1:
            names = ", ".join(map(repr, outputs))
            raise UsageError(f"output= is required: {predictor.subject} has several outputs ({names})")
        return next(iter(outputs.items()))
    if output not in outputs:
        raise UsageError(f"{predictor.subject}: {unknown_choice('output', output, outputs)}")
    return output, outputs[output]


def describe_invalid_rows(
    predictor: Predictor, name: str, scores: NDArray[Any], bad: NDArray[np.intp], inputs: Inputs, *, what: str = "NaN"
) -> str:
    """Return the sentence on the rows `bad` of `scores`, the output `name`, that hold `what`."""
    return (
        f"output {name!r} of {predictor.subject} holds {what} in {bad.size} of {len(scores)} rows, first in row "
        f"{bad[0]} ({_rows_with_nan(inputs)} rows of the inputs hold NaN)"
    )


def invalid_reference(message: str, *, does: str = "that answers NaN") -> InputError:
    """Return the error for a reference with invalid rows, which `message` describes."""
    return InputError(f"{message}: a reference {does} cannot judge; clean the inputs or mend the reference")


def _rows_with_nan(inputs: Inputs) -> int:
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    found = np.zeros(len(arrays[0]), dtype=np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            found |= np.isnan(array.reshape(len(array), -1)).any(axis=1)
    return int(found.sum())


def iterate_batches(inputs: Inputs | Iterable[Inputs]) -> Iterator[Inputs]:
    """Yield the batches of `inputs`: an array or a mapping is one batch, any other iterable is consumed once.

    InputError for inputs that are not iterable, and for a batch that is neither an array nor a mapping.
    """
    if isinstance(inputs, (np.ndarray, Mapping)):
        yield inputs
        return
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise InputError(
            f"inputs must be an array, a mapping from names to arrays, or an iterable of such batches; got "
            f"{type(inputs).__name__}"
        )
    for index, batch in enumerate(inputs):
        if not isinstance(batch, (np.ndarray, Mapping)):
            raise InputError(
                f"batch {index} of the inputs must be an array or a mapping from names to arrays; got "
                f"{type(batch).__name__}"
            )
        yield batch


def batch_size(batch: Inputs) -> int | None:
    """Return the number of rows of a batch, or None if its arrays have no common first axis: then it is one call.

    InputError for a batch of zero rows.
    """
    arrays = batch.values() if isinstance(batch, Mapping) else [batch]
    if len({np.shape(array)[:1] for array in arrays}) != 1 or any(np.ndim(array) == 0 for array in arrays):
        return None
    return count_rows(batch)


def slice_rows(batch: Inputs, limit: int, *, first: int = 0) -> Inputs:
    """Return at most `limit` rows of a batch, from row `first` on; the whole of a batch without rows."""
    if batch_size(batch) is None:
        return batch
    if isinstance(batch, Mapping):
        return {name: array[first : first + limit] for name, array in batch.items()}
    return batch[first : first + limit]


def check_positive(name: str, value: float, what: str) -> None:
    """Raise UsageError unless `value` is a finite number above 0; `what` is its unit ("milliseconds")."""
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} must be a positive number of {what}; got {value}")


def check_quantile(quantile: float) -> None:
    """Raise UsageError unless `quantile` is between 0 and 1."""
    if not 0 < quantile < 1:
        raise UsageError(f"quantile must be between 0 and 1, such as 0.95; got {quantile}")


def check_not_empty(inputs: object) -> None:
    """Raise InputError for an input without rows, as the cost of such a call says nothing about the model."""
    for name, array in inputs.items() if isinstance(inputs, Mapping) else (("", inputs),):
        if isinstance(array, np.ndarray) and array.size == 0:
            which = f"input {name!r}" if name else "the input"
            raise InputError(f"{which} is empty (shape {array.shape}): pass a batch as it is served")


def check_threads(threads: int) -> int:
    """Return `threads` if it is an integer of at least 1; otherwise raise UsageError."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads must be an integer of at least 1; got {threads!r}")
    return threads
