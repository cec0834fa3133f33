"""Inputs of models: converted to arrays, checked against a signature, counted in rows, sliced and batched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import choose_outputs
from pytest_modelserve.serving.conversion import Frame, as_array, cast_checked, cast_numbers, is_frame

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Signature, TensorSpec
    from pytest_modelserve.serving.predictor import Predictor

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
Feed = dict[str, NDArray[Any]]

_MAX_NAMES = 10
_CLASSIFIER_OUTPUTS = (("label", "probabilities"), ("output_label", "output_probability"))


def checked_feed(inputs: object, signature: Signature) -> Feed:
    """Return `inputs` by name if they match `signature`.

    Arrays and tensors keep their dtype. Lists of numbers take the model's; columns of a frame take it where no value
    changes. The columns of a frame are the columns of the model's one input, or its several inputs by name.
    Byte-swapped arrays are converted to native order, because onnxruntime ignores the byte order. numpy's text of
    variable width becomes an array of strings. InputError names the input, what was expected and what it got.
    """
    if is_frame(inputs):
        inputs = Frame(inputs)
    if isinstance(inputs, Frame):
        feed = _frame_feed(inputs, signature)
    else:
        values = _by_name(inputs, signature)
        feed = {spec.name: _checked_array(values[spec.name], spec) for spec in signature.inputs}
    _check_shared_dims(feed, signature)
    return feed


def is_one_batch(value: object) -> bool:
    """Return True for an array, a tensor, a series, a frame, a mapping of these, or a list of rows."""
    if isinstance(value, (np.ndarray, Mapping)) or is_frame(value):
        return True
    if type(value).__module__.partition(".")[0] in ("torch", "pandas", "polars"):
        return hasattr(value, "numpy") or hasattr(value, "to_numpy")
    return isinstance(value, list) and bool(value) and all(map(_is_row, value))


def as_batch(value: object, signature: Signature | None = None) -> Inputs:
    """Return one batch as an array, a mapping of arrays or a Frame; `signature` gives lists their dtypes."""
    if isinstance(value, (np.ndarray, Frame)):
        return value
    if is_frame(value):
        return Frame(value)
    dtypes = {} if signature is None else {spec.name: spec.dtype for spec in signature.inputs}
    if isinstance(value, Mapping):
        return {name: _of_dtype(f"input {name!r}", item, dtypes.get(name)) for name, item in value.items()}
    return _of_dtype("the input", value, next(iter(dtypes.values())) if len(dtypes) == 1 else None)


def _is_row(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, np.generic)) or (
        isinstance(value, (list, tuple)) and all(map(_is_row, value))
    )


def _of_dtype(what: str, value: object, dtype: str | None) -> NDArray[Any]:
    """Return `value` as an array; a list of numbers as `dtype`, because Python's numbers have none of their own."""
    array = as_array(what, value)
    if dtype is None or not isinstance(value, (list, tuple)) or array.dtype.kind not in "biuf":
        return array
    if array.dtype.kind == "f" and np.dtype(dtype).kind == "f":
        return array.astype(dtype)
    return cast_checked(what, array, dtype)


def _frame_feed(frame: Frame, signature: Signature) -> Feed:
    """Return the columns of `frame` as the model's one input, or as its inputs by name."""
    first = next(iter(signature.inputs), None)
    if (
        first is not None
        and len(signature.inputs) == 1
        and (first.shape is None or len(first.shape) == 2)
        and (first.name not in frame or len(frame) > 1)
    ):
        return {first.name: _checked_array(frame.matrix(first.dtype), first)}
    feed, changed = {}, {}
    for spec in signature.inputs:
        if spec.name not in frame:
            raise InputError(
                f"the frame has no column for input {spec.name!r}: {unknown_choice('column', spec.name, frame)}"
            )
        column = cast_numbers(frame[spec.name], spec.dtype)
        if column is None:
            changed[spec.name] = spec.dtype
            continue
        feed[spec.name] = _checked_array(column[:, np.newaxis] if spec.shape and len(spec.shape) == 2 else column, spec)
    for name, dtype in changed.items():  # the first raises, with the call for all of them
        cast_checked(f"column {name!r}", frame[name], dtype, how=f"cast with {_cast_call(frame, changed)}")
    return feed


def _cast_call(frame: Frame, dtypes: Mapping[str, str]) -> str:
    """Return the call that casts these columns of the user's frame, such as frame.astype({'age': 'float32'})."""
    if hasattr(frame.native, "iloc"):
        return f"frame.astype({dict(dtypes)})"
    kinds = (f"{name!r}: pl.{dtype.title().replace('Ui', 'UI')}" for name, dtype in dtypes.items())
    return f"frame.cast({{{', '.join(kinds)}}})"


def _by_name(inputs: object, signature: Signature) -> Mapping[str, object]:
    names = [spec.name for spec in signature.inputs]
    quoted = ", ".join(map(repr, names))
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InputError(
                "inputs must be a mapping from names to arrays, or a frame with these columns: the model has "
                f"{len(names)} inputs ({quoted})"
            )
        return {names[0]: inputs}
    for name in inputs:
        if name not in names:
            labels = "; labels are no input: name them as labels=, or leave them out" * (name in ("label", "labels"))
            raise InputError(unknown_choice("input", name, names) + labels)
    missing = [name for name in names if name not in inputs]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing: the model takes {quoted}")
    return inputs


def _checked_array(value: object, spec: TensorSpec) -> NDArray[Any]:
    array = _of_dtype(f"input {spec.name!r}", value, spec.dtype)
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
        hint = _missing_axis(array.shape, spec.shape)
        raise InputError(f"{came}: rank {array.ndim} instead of {len(spec.shape)}{hint}")
    for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            hint = f"; its batch axis is fixed: pass batches of {dim}, or convert the model with a free batch axis"
            if axis:
                hint = "; if its size varies, export the model with that axis in `dynamic`"
            raise InputError(f"{came}: axis {axis} is {size} instead of {dim}{hint}")


def _missing_axis(shape: tuple[int, ...], expected: tuple[int | str | None, ...]) -> str:
    """Return how to add the axis that an array lacks: rows without their axis of size 1, or a single row."""
    if len(shape) != len(expected) - 1:
        return ""
    single = [axis for axis, dim in enumerate(expected) if axis and dim == 1]
    for axis in single:
        others = expected[:axis] + expected[axis + 1 :]
        if all(size == dim for size, dim in zip(shape, others, strict=True) if isinstance(dim, int)):
            index = ", ".join([":"] * axis + ["None"])
            return f"; an axis of size 1 is missing, x[{index}]"
    return "; a single row needs a batch axis, x[np.newaxis]"


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
    if isinstance(inputs, Frame):
        inputs = {"the frame": np.empty(inputs.rows)}
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


def select_output(
    predictor: Predictor, outputs: Mapping[str, NDArray[Any]], output: str | None, *, reads_labels: bool | None = None
) -> tuple[str, NDArray[Any]]:
    """Return the name and value of `output` among the outputs of `predictor`; required if it has several.

    A classifier of scikit-learn has two, so that `reads_labels` decides: its labels if True, its probabilities if
    False. UsageError if the output is missing, or not a name of an output.
    """
    if output is None and len(outputs) > 1:
        pair = None if predictor.transport == "recorded" else _classifier_outputs(outputs)
        if reads_labels is None or pair is None:  # in a file, a column `label` may be the true one
            raise UsageError(_several_outputs(predictor, outputs))
        output = pair[0] if reads_labels else pair[1]
    chosen = choose_outputs(outputs, output, aliases=predictor.aliases, model=predictor.subject)
    return next(iter(chosen.items()))


def labels_beside(outputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any] | None:
    """Return the labels that a classifier of scikit-learn gives beside its probabilities, the output `name`."""
    pair = _classifier_outputs(outputs)
    return None if pair is None or pair[1] != name else np.asarray(outputs[pair[0]])


def _classifier_outputs(outputs: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the names of labels and probabilities if the outputs are these, as scikit-learn's converters call them."""
    names = [name for name in outputs if name != "output_probability.keys"]  # the classes, with zipmap
    return next((pair for pair in _CLASSIFIER_OUTPUTS if set(names) == set(pair)), None)


def _several_outputs(predictor: Predictor, outputs: Mapping[str, object]) -> str:
    names = [repr(name) for name in outputs]
    listed = ", ".join(names[:_MAX_NAMES]) + ", …" * (len(names) > _MAX_NAMES)
    hint = "; for scores of several classes call their columns score_0, score_1, and so on: they are one output"
    ready = predictor.transport == "recorded"
    return (
        f"output= is required: {predictor.subject} has several outputs ({listed}): give one, output={names[-1]}"
        f"{hint if ready else ''}"
    )


def describe_invalid_rows(
    predictor: Predictor, name: str, rows: int, bad: NDArray[np.intp], inputs: Inputs, *, what: str = "NaN"
) -> str:
    """Return the sentence on the rows `bad` of all `rows` of the output `name` that hold `what`."""
    return (
        f"output {name!r} of {predictor.subject} holds {what} in {bad.size} of {rows} rows, first in row "
        f"{bad[0]} ({_rows_with_nan(inputs)} rows of the inputs hold NaN)"
    )


def invalid_reference(message: str) -> InputError:
    """Return the error for a reference with invalid rows, which `message` describes."""
    return InputError(f"{message}: a reference needs valid outputs in every row; clean the inputs or fix the reference")


def _rows_with_nan(inputs: Inputs) -> int:
    arrays = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    found = np.zeros(len(arrays[0]), dtype=np.bool_)
    for array in arrays:
        if array.dtype.kind == "f":
            found |= np.isnan(array.reshape(len(array), -1)).any(axis=1)
    return int(found.sum())


def iterate_batches(inputs: object, signature: Signature | None = None) -> Iterator[Inputs]:
    """Yield the batches of `inputs` as arrays, mappings of arrays or Frames.

    Whatever `is_one_batch` accepts is one batch; any other iterable is consumed once. Of a DataLoader's pairs the
    labels are left out. `signature` gives lists of numbers their dtypes. InputError for inputs that are not iterable,
    and for an item that is no batch.
    """
    if is_one_batch(inputs):
        yield as_batch(inputs, signature)
        return
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise InputError(
            "inputs must be an array, a tensor, a frame, a mapping from names to arrays, or an iterable of such "
            f"batches; got {type(inputs).__name__}"
        )
    for index, item in enumerate(inputs):
        batch = without_labels(item)
        if not is_one_batch(batch):
            raise InputError(f"batch {index} of the inputs {_wrong_batch(batch)}")
        yield as_batch(batch, signature)


def as_one_batch(inputs: Any) -> Any:
    """Return the batches of an iterable, such as a DataLoader, as one, and anything else as it is."""
    if is_one_batch(inputs) or isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        return inputs
    batches = list(iterate_batches(inputs))
    if not batches:
        raise InputError("inputs are empty: at least one row is needed")
    return concat_batches(batches)


def concat_batches(batches: Sequence[Inputs]) -> Inputs:
    """Return batches of arrays, or of mappings with the same names, as one; InputError for rows of different shapes."""
    first = batches[0]
    try:
        if isinstance(first, Mapping):
            return {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in first}
        return np.concatenate([np.asarray(batch) for batch in batches])
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"the batches of the inputs do not fit together: {error}") from None


def without_labels(batch: object) -> object:
    """Return the inputs of a DataLoader's pair, whose labels are one value a row, and any other batch as it is."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(map(is_one_batch, batch)):
        return batch
    inputs, labels = batch
    has_rows = isinstance(inputs, Mapping) or is_frame(inputs) or np.ndim(inputs) >= 2
    return inputs if has_rows and np.ndim(labels) == 1 else batch


def _wrong_batch(batch: object) -> str:
    if isinstance(batch, Sequence) and len(batch) == 2 and all(map(is_one_batch, batch)):
        return (
            "is a pair, as a DataLoader of inputs and labels yields it: pass (x for x, _ in loader) as inputs, and "
            "the labels where the gate takes them"
        )
    return f"must be an array or a mapping from names to arrays; got {type(batch).__name__}"


def batch_size(batch: Inputs) -> int | None:
    """Return the number of rows of a batch, or None if its arrays have no common first axis: then it is one call.

    InputError for a batch of zero rows.
    """
    if isinstance(batch, Frame):
        return count_rows(batch)
    arrays = batch.values() if isinstance(batch, Mapping) else [batch]
    if len({np.shape(array)[:1] for array in arrays}) != 1 or any(np.ndim(array) == 0 for array in arrays):
        return None
    return count_rows(batch)


def slice_rows(batch: Inputs, limit: int, *, first: int = 0) -> Inputs:
    """Return at most `limit` rows of a batch, from row `first` on; the whole of a batch without rows."""
    if batch_size(batch) is None:
        return batch
    if isinstance(batch, Frame):
        return batch.slice_rows(first, first + limit)
    if isinstance(batch, Mapping):
        return {name: array[first : first + limit] for name, array in batch.items()}
    return batch[first : first + limit]


_DAY_S = 86_400


def check_positive(name: str, value: float, what: str) -> None:
    """Raise UsageError unless `value` is a finite number above 0; `what` is its unit ("milliseconds")."""
    try:
        is_positive = value > 0 and math.isfinite(value)
    except (TypeError, ValueError):  # None, a text or several numbers
        is_positive = False
    if not is_positive:
        raise UsageError(f"{name} must be a positive number of {what}; got {value!r}")


def check_time_limit(name: str, value: float) -> None:
    """Raise UsageError unless `value` is a number of seconds above 0, and at most a day: clocks have an end, too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= _DAY_S:
        raise UsageError(f"{name} must be a number of seconds above 0 and at most {_DAY_S:,}; got {value!r}")


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
