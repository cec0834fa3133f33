"""ONNX models served by onnxruntime in this process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from pytest_modelserve._onnx.sessions import CPU, open_session, reason
from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, is_unchanged, open_artifact, read_graph
from pytest_modelserve.artifacts.metadata import elem_type
from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import dtype_name
from pytest_modelserve.serving.conversion import as_array
from pytest_modelserve.serving.crash_guards import KnownCrashes, crashes_when_optimized, find_known_crashes
from pytest_modelserve.serving.inputs import Feed, check_threads, checked_feed
from pytest_modelserve.serving.predictor import Inputs, Predictor, Transport

Value = Any
"""A value that onnxruntime takes or returns: an array, a list, a dict or None."""

Run = Callable[[list[str], dict[str, Any]], list[Any]]

# dtypes that numpy has only through ml_dtypes. Those of less than a byte are packed, the first in the low bits.
ML_DTYPES = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
    | {"float4_e2m1fn", "int4", "uint4", "int2", "uint2"}
)
_PACKED_BITS = {"float4_e2m1fn": 4, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
# dtypes that onnxruntime exchanges with numpy directly.
_NUMPY_DTYPES = frozenset(
    {"float16", "float32", "float64", "bool", "str"} | {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
)
# onnxruntime's names of dtypes that differ from numpy's and ml_dtypes'.
_ORT_DTYPES = {"float": "float32", "double": "float64", "string": "str"} | {
    f"float8{kind}": f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz")
}


class SessionPredictor(Predictor):
    """An `onnxruntime.InferenceSession` that the caller opened, with its own providers and threads.

    There is no file, so gates on size, cold start or the first diverging node need the file itself. `guarded=False`
    runs inputs on which onnxruntime is known to crash, for a process that may end.
    """

    transport: Transport = "in-process"
    signature: Signature

    def __init__(self, session: onnxruntime.InferenceSession, *, name: str | None = None, variant: str = "") -> None:
        metadata = session.get_modelmeta()
        subject = Subject(name or metadata.graph_name or "InferenceSession", variant)
        super().__init__(subject, signature_of_session(session))
        check_loadable(str(subject), self.signature)
        self._where = f"{', '.join(session.get_providers())}, the caller's session"
        self._attach(session_runner(session, self.signature), KnownCrashes())

    def _attach(self, run: Run, known_crashes: KnownCrashes) -> None:
        self._run = run
        self.known_crashes = known_crashes
        self._tensors = Signature(tuple(spec for spec in self.signature.inputs if spec.is_tensor), ())
        self._nested = tuple(spec for spec in self.signature.inputs if not spec.is_tensor)
        self._returns_tensors = all(spec.is_tensor for spec in self.signature.outputs)
        self._outputs = [spec.name for spec in self.signature.outputs]
        # Name, dtype and shape of each input of the last valid call. Comparing with these takes 0.2 µs, checking the
        # signature 6 µs, and nearly every call of a loop is like the one before.
        self._last_valid: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] = ()

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the model's outputs by name, in the model's order.

        Text is returned as arrays of str objects; a value that is not a tensor as the arrays that represent it. Nothing
        is cast. InputError names an input whose name, dtype, rank or size is not the model's, or on which onnxruntime
        is known to crash; the model is not run. Values that onnxruntime rejects (an index out of range) are an
        InputError too, any other failure of the run is an ArtifactError.
        """
        feed = self._like_last(inputs) or self._checked(inputs)
        try:
            outputs = self._run(self._outputs, feed)
        except ModelServeError:
            raise
        except Exception as error:  # the runtime's exceptions share no base class
            raise self._failure(error) from error
        if not self._returns_tensors:
            return outputs_as_arrays(self.signature, outputs)
        if len(outputs) == 1:  # a third of the time of zip
            return {self._outputs[0]: outputs[0]}
        return dict(zip(self._outputs, outputs, strict=True))

    def describe(self) -> str:
        """Return one line: the subject, onnxruntime's version, the providers and the number of threads."""
        return f"{self.subject} on onnxruntime {onnxruntime.__version__}, {self._where}"

    def close(self) -> None:
        """Release the session; a call in another thread still completes."""
        super().close()
        self._run = self._refuse_to_run
        self._last_valid = ()

    def _refuse_to_run(self, _names: list[str], _feed: Feed) -> NoReturn:
        raise self._closed_error()

    def _checked(self, inputs: Inputs) -> Feed:
        if self.closed:
            raise self._closed_error()
        nested, rest = split_inputs(inputs, self._nested) if self._nested else ({}, inputs)
        feed = checked_feed(rest, self._tensors)
        self.known_crashes.check(feed)
        depends_on_values = self.known_crashes.minimum or any(array.dtype.kind == "O" for array in feed.values())
        if not depends_on_values and not nested:
            self._last_valid = tuple((name, array.dtype, array.shape) for name, array in feed.items())
        return {**feed, **nested}

    def _like_last(self, inputs: object) -> Feed | None:
        """Return the inputs by name if dtypes and shapes are those of the last valid call, else None."""
        last = self._last_valid
        if type(inputs) is np.ndarray:
            if len(last) == 1:
                ((name, dtype, shape),) = last
                if inputs.dtype is dtype and inputs.shape == shape:
                    return {name: inputs}
        elif type(inputs) is dict and len(inputs) == len(last):
            for name, dtype, shape in last:
                array = inputs.get(name)
                if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
                    return None
            return inputs
        return None

    def _failure(self, error: Exception) -> ModelServeError:
        return failed_run(self.subject, reason(error), is_of_inputs=isinstance(error, InvalidArgument))


def failed_run(subject: Subject, why: str, *, is_of_inputs: bool) -> ModelServeError:
    """Return the error for a run that onnxruntime rejected."""
    message = f"onnxruntime could not run {subject} on these inputs: {why}"
    return InputError(message) if is_of_inputs else ArtifactError(message)


class OnnxPredictor(SessionPredictor):
    """onnxruntime on `providers`; by default on one CPU thread, sequential, without spinning.

    Sequences, maps and optional values are arrays under derived names (see `as_arrays`): the scores of a converted
    scikit-learn classifier are `probabilities` (rows, keys), and the classes are `probabilities.keys`. Tensors of
    bfloat16, float8 and int4 are arrays of the dtypes of ml_dtypes. `optimize=False` runs the graph as stored.
    `guarded=False` runs inputs on which onnxruntime is known to crash, for a process that may end. `providers`,
    `threads` and `optimize` stay readable, so that the same model can be served again.

    Raises ArtifactError for a file that cannot be opened, that changed since the artifact was made or that onnxruntime
    rejects, and for inputs or outputs that no array can represent.
    """

    artifact: Artifact

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
        artifact = opened(model, name, variant)
        check_loadable(str(artifact.path), artifact.signature)
        Predictor.__init__(self, artifact.subject, artifact.signature)
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
        self._where = f"{', '.join(providers)}, {threads} thread{'s' if threads > 1 else ''}"
        known_crashes = find_known_crashes(graph) if guarded else KnownCrashes()
        self._attach(session_runner(session, self.signature), known_crashes)

    def unoptimized(self) -> OnnxPredictor:
        """Return a predictor of the same file, providers and threads, without graph optimization."""
        return OnnxPredictor(self.artifact, providers=self.providers, threads=self.threads, optimize=False)


def opened(model: Artifact | str | os.PathLike[str], name: str | None, variant: str | None) -> Artifact:
    """Return the artifact of a file, with another name and variant where they are given."""
    if not isinstance(model, Artifact):
        return open_artifact(model, name=name, variant=variant)
    if not is_unchanged(model):
        raise ArtifactError(f"the model {model.path} changed after it was opened: open it again")
    return replace(
        model, name=model.name if name is None else name, variant=model.variant if variant is None else variant
    )


def check_loadable(model: str, signature: Signature) -> None:
    """Raise ArtifactError for an input or output that no array can represent.

    Supported are tensors of every dtype except complex and undefined ones, and sequences, maps and optional values of
    numpy's own dtypes. Outputs of ml_dtypes cannot be combined with text or nested values: onnxruntime returns their
    bytes on a path that has neither.
    """
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not _is_supported(spec):
                raise ArtifactError(
                    f"the model {model} has {kind} {spec.name!r} of type {spec.dtype}, which cannot be served "
                    "as a numpy array: use tensors of float16 to float64, integers, bool or text instead"
                )
    narrow = next((spec for spec in signature.outputs if _is_ml_dtype(spec)), None)
    specs_of_all = (*signature.inputs, *signature.outputs)
    other = next((spec for spec in specs_of_all if spec.dtype == "str" or not spec.is_tensor), None)
    if narrow is not None and other is not None:
        raise ArtifactError(
            f"the model {model} has output {narrow.name!r} of type {narrow.dtype} and {other.name!r} of type "
            f"{other.dtype}: onnxruntime cannot return both in one run; cast {narrow.name!r} in the model"
        )


def signature_of_session(session: onnxruntime.InferenceSession) -> Signature:
    """Return the inputs and outputs of a session."""

    def spec(value: Any) -> TensorSpec:
        dtype = _spec_dtype(value.type)
        shape = tuple(dim if isinstance(dim, (int, str)) else None for dim in value.shape) if "(" not in dtype else ()
        return TensorSpec(value.name, dtype, shape)

    return Signature(tuple(map(spec, session.get_inputs())), tuple(map(spec, session.get_outputs())))


def _spec_dtype(kind: str) -> str:
    """Return the dtype of a TensorSpec for onnxruntime's name of a type: "seq(map(int64,tensor(float)))"."""
    for ours, theirs in (("sequence", "seq"), ("optional", "optional")):
        if kind.startswith(f"{theirs}("):
            return f"{ours}({_spec_dtype(kind[len(theirs) + 1 : -1])})"
    if kind.startswith("map("):
        key, value = kind[4:-1].split(",", 1)
        return f"map({_spec_dtype(key)}, {_spec_dtype(value)})"
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return _ORT_DTYPES.get(inner, inner)


def _is_ml_dtype(spec: TensorSpec) -> bool:
    return spec.dtype in ML_DTYPES


def _is_supported(spec: TensorSpec) -> bool:
    return _is_ml_dtype(spec) or all(leaf in _NUMPY_DTYPES for leaf in leaf_dtypes(spec.dtype))


def session_runner(session: onnxruntime.InferenceSession, signature: Signature) -> Run:
    """Return `session.run`, or its equivalent if inputs or outputs have dtypes of ml_dtypes.

    `InferenceSession.run` of onnxruntime 1.32 raises on most of these dtypes and returns float8e4m3fn as uint8, so they
    go through OrtValues.
    """
    if any(map(_is_ml_dtype, signature.outputs)):
        dtypes = [spec.dtype for spec in signature.outputs]

        def run(names: list[str], feed: dict[str, Any]) -> list[NDArray[Any]]:
            outputs = session.run_with_ort_values(names, {name: _ort_value(value) for name, value in feed.items()})
            return [
                _array(output, dtype) if dtype in ML_DTYPES else output.numpy()
                for output, dtype in zip(outputs, dtypes, strict=True)
            ]

        return run
    if not any(map(_is_ml_dtype, signature.inputs)):
        return session.run  # type: ignore[no-any-return]
    special = [spec.name for spec in signature.inputs if _is_ml_dtype(spec)]
    return lambda names, feed: session.run(names, {**feed, **{name: _ort_value(feed[name]) for name in special}})


def _ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    if array.dtype.name not in ML_DTYPES:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(codes_of(array), elem_type(array.dtype.name))


def codes_of(array: NDArray[Any]) -> NDArray[Any]:
    """Return the bytes of an array of ML_DTYPES, in the shape that onnxruntime takes them in."""
    name = array.dtype.name
    array = np.ascontiguousarray(array).reshape(array.shape)
    codes = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
    if name in _PACKED_BITS:
        # The OrtValue takes its shape from the array, so the packed bytes are the first ones of an array of that shape.
        packed = _pack(array.view(np.uint8).reshape(-1), _PACKED_BITS[name])
        codes = np.zeros(array.shape, np.uint8)
        codes.reshape(-1)[: packed.size] = packed
    return codes


def _array(value: onnxruntime.OrtValue, dtype: str) -> NDArray[Any]:
    """Return a copy of the numbers in `value`, for which OrtValue.numpy() has no dtype."""
    shape = value.shape()
    size = value.tensor_size_in_bytes() if np.prod(shape, dtype=np.int64) else 0
    stored = ctypes.string_at(value.data_ptr(), size) if size else b""
    return numbers_of(np.frombuffer(bytearray(stored), np.uint8), shape, dtype)


def numbers_of(stored: NDArray[np.uint8], shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Return the numbers of ML_DTYPES that onnxruntime stores in these bytes."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype))
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, kind)
    codes = _unpack(stored, _PACKED_BITS[dtype], count) if dtype in _PACKED_BITS else stored
    numbers: NDArray[Any] = codes.view(kind).reshape(shape)
    return numbers


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes & ((1 << bits) - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def _unpack(stored: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = (stored[:, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)[:count].astype(np.uint8)


def as_arrays(spec: TensorSpec, value: Value) -> dict[str, NDArray[Any]]:
    """Return the arrays that represent `value`, a value of type `spec.dtype`.

    | type of the value `y` | arrays                                                              |
    |-----------------------|---------------------------------------------------------------------|
    | tensor                | `y`                                                                 |
    | sequence(T)           | `y.length`, a number; then each item as its own value `y[0]`, `y[1]`|
    | map(K, V)             | `y.keys` (keys,) ascending; `y` (keys,), the value of each          |
    | sequence(map(K, V))   | `y.keys` (keys,) ascending; `y` (rows, keys)                        |
    | optional(T)           | `y.present`, a boolean; then the value `y`, if there is one         |

    ArtifactError if the rows of a sequence of maps have different keys: their values have no common columns.
    """
    return dict(_arrays(spec.name, spec.dtype, value))


def as_value(spec: TensorSpec, arrays: Mapping[str, NDArray[Any]]) -> Value:
    """Return the value of type `spec.dtype` that `arrays` represent: the inverse of `as_arrays`.

    InputError names an array that is missing or has the wrong dtype or shape.
    """
    return _value(spec.name, spec.dtype, arrays)


def outputs_as_arrays(signature: Signature, values: Sequence[Value]) -> dict[str, NDArray[Any]]:
    """Return the arrays that represent a model's outputs, in their order; see `as_arrays`."""
    return {
        name: array
        for spec, value in zip(signature.outputs, values, strict=True)
        for name, array in as_arrays(spec, value).items()
    }


def split_inputs(inputs: object, nested: Sequence[TensorSpec]) -> tuple[dict[str, Value], dict[str, NDArray[Any]]]:
    """Return the values of `nested`, the inputs that are not tensors, and the rest of `inputs`.

    InputError for inputs that are not a mapping, and where `as_value` raises it.
    """
    if not isinstance(inputs, Mapping):
        names = ", ".join(map(repr, (spec.name for spec in nested)))
        raise InputError(f"inputs must be a mapping from names to arrays: {names} cannot be a single array")
    parts = {name for spec in nested for name in part_names(spec, inputs)}
    values = {spec.name: as_value(spec, inputs) for spec in nested}
    return values, {name: array for name, array in inputs.items() if name not in parts}


def part_names(spec: TensorSpec, names: Iterable[str]) -> list[str]:
    """Return those of `names` that are parts of the value that `spec` describes."""
    return [name for name in names if name == spec.name or name.startswith((f"{spec.name}.", f"{spec.name}["))]


def leaf_dtypes(dtype: str) -> tuple[str, ...]:
    """Return the tensor dtypes in a type: ("int64", "float32") for "sequence(map(int64, float32))"."""
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
    key_dtype, value_dtype = (_numpy_dtype(part) for part in pair.split(", ", 1))
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


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
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
        raise InputError(f"input {part!r} is missing: it is part of a value that is not a tensor")
    array = as_array(f"input {part!r}", arrays[part])
    if dtype_name(array.dtype) != dtype:
        raise InputError(f"input {part!r} has dtype {array.dtype.name} where the model takes {dtype}")
    return array
