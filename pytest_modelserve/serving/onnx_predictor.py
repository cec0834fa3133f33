"""An ONNX model answered by onnxruntime in this process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from pytest_modelserve._onnx.sessions import CPU, open_session, reason
from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, is_unchanged, open_artifact, read_graph
from pytest_modelserve.artifacts.metadata import elem_type
from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError
from pytest_modelserve.metrics import dtype_name
from pytest_modelserve.serving.crash_guards import KnownCrashes, crashes_when_optimized, find_known_crashes
from pytest_modelserve.serving.inputs import Feed, check_array, check_threads, checked_feed
from pytest_modelserve.serving.predictor import Inputs, Predictor

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec

# Values that are no tensors, as arrays under derived names: one rule in both directions.
#
# | the model's value `y`        | arrays                                                              |
# |------------------------------|---------------------------------------------------------------------|
# | sequence(T)                  | `y.length`, a number; then each item as its own value `y[0]`, `y[1]`|
# | map(K, V)                    | `y.keys` (keys,) ascending; `y` (keys,), the value of each          |
# | sequence(map(K, V))          | `y.keys` (keys,) ascending; `y` (rows, keys)                        |
# | optional(T)                  | `y.present`, a boolean; then the value `y`, if there is one         |
#
# So the scores of a scikit-learn classifier that was converted with ZipMap are a matrix with its class labels beside
# it,
# nothing is lost, and a comparison finds another length, key or absent value like any other difference.


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
    parts = {name for spec in others for name in part_names(spec, inputs)}
    values = {spec.name: as_value(spec, inputs) for spec in others}
    return values, {name: array for name, array in inputs.items() if name not in parts}


def part_names(spec: TensorSpec, names: Iterable[str]) -> list[str]:
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


_Run = Callable[[list[str], dict[str, Any]], list[Any]]


class OnnxPredictor(Predictor):
    """onnxruntime on `providers`: by default one thread of the CPU, sequential, without spinning.

    Sequences, maps and optional values go in and come out as arrays under derived names, by the rule of this
    module: the scores of a converted scikit-learn classifier as `probabilities` (rows, keys) beside
    `probabilities.keys`. bfloat16, float8 and int4 are arrays of the dtypes of ml_dtypes.

    Raises ArtifactError for a file that cannot be opened, one that changed since the artifact was made, one that
    onnxruntime refuses, and for inputs or outputs that no array can hold. `optimize=False` runs the graph as it stands
    in the file. `providers`, `threads` and `optimize` stay readable, so that the same can be served again.
    `guarded=False`, for a process that may end, runs the inputs on which onnxruntime may end it; `known_crashes` says which.
    """

    transport = "in-process"
    artifact: Artifact
    signature: Signature

    def __init__(
        self,
        model: Artifact | str | os.PathLike[str],
        *,
        providers: Sequence[str] = (CPU,),
        threads: int = 1,
        name: str | None = None,
        variant: str | None = None,
        optimize: bool = True,
        guarded: bool = True,
    ) -> None:
        artifact = _opened(model, name, variant)
        check_loadable(artifact)
        super().__init__(artifact.subject, artifact.signature)
        self.artifact = artifact
        self.providers, self.threads, self.optimize = tuple(providers), threads, optimize
        graph = read_graph(artifact.path)
        session = open_session(
            artifact.path,
            providers=providers,
            threads=check_threads(threads),
            optimize=optimize,
            known_crash=crashes_when_optimized(graph),
        )
        self._run: _Run = session_runner(session, artifact.signature)
        self._tensors = Signature(tuple(spec for spec in artifact.signature.inputs if spec.is_tensor), ())
        self._others = tuple(spec for spec in artifact.signature.inputs if not spec.is_tensor)
        self._gives_tensors = all(spec.is_tensor for spec in artifact.signature.outputs)
        self.known_crashes = find_known_crashes(graph) if guarded else KnownCrashes()
        self._where = f"{', '.join(providers)}, {threads} thread{'s' if threads > 1 else ''}"
        self._outputs = [spec.name for spec in artifact.signature.outputs]
        # Name, dtype and shape of each input that fitted last. A call like the one before, as nearly every call of a
        # loop is, is compared with these (0.2 µs) instead of with the signature (6 µs).
        self._fitted: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] = ()

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The model's outputs by name, in the model's order; text comes as arrays of str objects, and a value that is
        no tensor as the arrays that stand for it.

        Nothing is cast. InputError names an input whose name, dtype, rank or dim is not the model's, or on which
        onnxruntime would end the process; the model is not run. Values that onnxruntime itself refuses (an index out
        of range) are an InputError too, any other failure of the run is an ArtifactError.
        """
        feed = self._fitting(inputs) or self._checked(inputs)
        try:
            answers = self._run(self._outputs, feed)
        except ModelServeError:
            raise
        except Exception as error:  # the runtime's exceptions share no base class
            raise self._failure(error) from error
        if not self._gives_tensors:
            return outputs_as_arrays(self.signature, answers)
        if len(answers) == 1:  # a third of the time of zip
            return {self._outputs[0]: answers[0]}
        return dict(zip(self._outputs, answers, strict=True))

    def unoptimized(self) -> OnnxPredictor:
        """Another predictor of the same file on the same providers and threads, without graph optimisations."""
        return OnnxPredictor(self.artifact, providers=self.providers, threads=self.threads, optimize=False)

    def describe(self) -> str:
        """One line: the subject, onnxruntime's version, the providers and the number of threads."""
        return f"{self.subject} on onnxruntime {onnxruntime.__version__}, {self._where}"

    def close(self) -> None:
        """Let go of the session; a call that is running elsewhere ends undisturbed."""
        super().close()
        self._run = self._refuse_to_run
        self._fitted = ()

    def _refuse_to_run(self, _names: list[str], _feed: Feed) -> NoReturn:
        raise self._closed_error()

    def _checked(self, inputs: Inputs) -> Feed:
        if self.closed:
            raise self._closed_error()
        others, rest = split_inputs(inputs, self._others) if self._others else ({}, inputs)
        feed = checked_feed(rest, self._tensors)
        self.known_crashes.refuse(feed)
        decided_by_values = self.known_crashes.minimum or any(array.dtype.kind == "O" for array in feed.values())
        if not decided_by_values and not others:
            self._fitted = tuple((name, array.dtype, array.shape) for name, array in feed.items())
        return {**feed, **others}

    def _fitting(self, inputs: object) -> Feed | None:
        """The inputs by name if each has the dtype and shape of the last one that fitted, else None."""
        fitted = self._fitted
        if type(inputs) is np.ndarray:
            if len(fitted) == 1:
                ((name, dtype, shape),) = fitted
                if inputs.dtype is dtype and inputs.shape == shape:
                    return {name: inputs}
        elif type(inputs) is dict and len(inputs) == len(fitted):
            for name, dtype, shape in fitted:
                array = inputs.get(name)
                if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
                    return None
            return inputs
        return None

    def _failure(self, error: Exception) -> ModelServeError:
        told = f"onnxruntime could not run {self.subject} on these inputs: {reason(error)}"
        return InputError(told) if isinstance(error, InvalidArgument) else ArtifactError(told)


def _opened(model: Artifact | str | os.PathLike[str], name: str | None, variant: str | None) -> Artifact:
    if not isinstance(model, Artifact):
        return open_artifact(model, name=name, variant=variant)
    if not is_unchanged(model):
        raise ArtifactError(f"the model {model.path} changed after it was opened: open it again")
    return replace(
        model, name=model.name if name is None else name, variant=model.variant if variant is None else variant
    )


# Numbers that numpy knows through ml_dtypes alone: bfloat16, float8, float4, int4, int2.
#
# `InferenceSession.run` of onnxruntime 1.32 raises on most of them and gives float8e4m3fn as raw uint8, so both
# directions go through the memory of an OrtValue. Types of less than a byte lie packed there, the first in the low
# bits.


NARROW = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
    | {"float4_e2m1fn", "int4", "uint4", "int2", "uint2"}
)
_PACKED_BITS = {"float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}

Run = Callable[[list[str], dict[str, Any]], list[Any]]


def narrow_feed(feed: Mapping[str, Any]) -> dict[str, Any]:
    """`feed` with every array of such numbers as an OrtValue of its own."""
    return {
        name: _ort_value(value) if isinstance(value, np.ndarray) and value.dtype.name in NARROW else value
        for name, value in feed.items()
    }


def narrow_run(session: onnxruntime.InferenceSession, output_dtypes: Sequence[str]) -> Run:
    """A `run` of `session` that answers arrays of those dtypes, whichever they are; all values have to be tensors."""

    def run(names: list[str], feed: dict[str, Any]) -> list[NDArray[Any]]:
        values = {
            name: value
            if isinstance(value, onnxruntime.OrtValue)
            else onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
            for name, value in feed.items()
        }
        answers = session.run_with_ort_values(names, values)
        return [
            _array(answer, dtype) if dtype in NARROW else answer.numpy()
            for answer, dtype in zip(answers, output_dtypes, strict=True)
        ]

    return run


def _ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    name = array.dtype.name
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), elem_type(name), "cpu")
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    stored = _pack(codes, _PACKED_BITS[name]) if name in _PACKED_BITS else codes
    if stored.size:
        ctypes.memmove(value.data_ptr(), stored.ctypes.data, stored.size)
    return value


def _array(value: onnxruntime.OrtValue, dtype: str) -> NDArray[Any]:
    """A copy of the numbers in `value`, which live no longer than it does."""
    import ml_dtypes

    shape, kind = value.shape(), np.dtype(getattr(ml_dtypes, dtype))
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, kind)
    stored = np.ctypeslib.as_array((ctypes.c_uint8 * value.tensor_size_in_bytes()).from_address(value.data_ptr()))
    codes = _unpack(stored, _PACKED_BITS[dtype], count) if dtype in _PACKED_BITS else stored.copy()
    numbers: NDArray[Any] = codes.view(kind).reshape(shape)
    return numbers


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    a_byte = 8 // bits
    padded = np.zeros(-(-codes.size // a_byte) * a_byte, np.uint8)
    padded[: codes.size] = codes & ((1 << bits) - 1)
    shifts = np.arange(a_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, a_byte) << shifts, axis=1)
    return packed


def _unpack(stored: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = (stored[:, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)[:count].astype(np.uint8)


# What onnxruntime hands to and takes from numpy as what it is.
_PLAIN = frozenset(
    {"float16", "float32", "float64", "bool", "str"} | {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
)


def check_loadable(artifact: Artifact) -> None:
    """ArtifactError for an input or output that no array can stand for.

    Tensors of every dtype but complex numbers and undefined ones are served; sequences, maps and optional values of the
    dtypes that numpy has itself. bfloat16, float8, int4 and such outputs can stand beside tensors of numbers alone,
    because onnxruntime gives their bytes on a path that has neither text nor sequences.
    """
    for kind, specs in (("input", artifact.signature.inputs), ("output", artifact.signature.outputs)):
        for spec in specs:
            if not _is_served(spec):
                raise ArtifactError(
                    f"the model {artifact.path} has {kind} {spec.name!r} of type {spec.dtype}, which cannot be served "
                    "as a numpy array: end the model in tensors of float16 to float64, integers, bool or text"
                )
    narrow = next((spec for spec in artifact.signature.outputs if _is_narrow(spec)), None)
    beside = (*artifact.signature.inputs, *artifact.signature.outputs)
    other = next((spec for spec in beside if spec.dtype == "str" or not spec.is_tensor), None)
    if narrow is not None and other is not None:
        raise ArtifactError(
            f"the model {artifact.path} has output {narrow.name!r} of type {narrow.dtype} beside {other.name!r} of "
            f"type {other.dtype}: onnxruntime cannot give both in one run; cast {narrow.name!r} in the model"
        )


def session_runner(session: onnxruntime.InferenceSession, signature: Signature) -> Run:
    """`session.run`, or what does its work where numbers that numpy does not have itself go in or out."""
    if any(map(_is_narrow, signature.outputs)):
        run = narrow_run(session, [spec.dtype for spec in signature.outputs])
    elif any(map(_is_narrow, signature.inputs)):
        run = session.run
    else:
        return session.run  # type: ignore[no-any-return]
    return lambda names, feed: run(names, narrow_feed(feed))


def _is_narrow(spec: TensorSpec) -> bool:
    return spec.dtype in NARROW


def _is_served(spec: TensorSpec) -> bool:
    return _is_narrow(spec) or all(leaf in _PLAIN for leaf in leaf_dtypes(spec.dtype))
