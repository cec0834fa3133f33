"""A predictor that accepts any number of rows, whatever batch size its model was exported with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.serving.serve import in_child

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Subject
    from pytest_modelserve.serving import OnnxPredictor, Predictor
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

_CALL_BYTES = 64 * 2**20
"""Input bytes per model call: a thousand images are 600 MB, and activations take several times that."""


class BatchedPredictor:
    """A predictor whose `predict` takes any number of rows (n, ...) of all inputs by name.

    Large inputs are split into several calls, and an incomplete fixed batch is padded with its first row.

    Args:
        predictor: The predictor to call. `close` does not close it.
        batch_size: The rows of one call: None if the model takes any number, 0 if its inputs have no row axis. With
            0 each row is one whole call, and the outputs are stacked.
        pass_array: Pass a single input as an array instead of a mapping, as plain functions expect it.
    """

    def __init__(self, predictor: Predictor, *, batch_size: int | None, pass_array: bool) -> None:
        self.predictor = predictor
        self.batch_size = batch_size
        self.pass_array = pass_array
        self._magnitudes: tuple[Feed, Mapping[str, float]] | None = None
        self._wrapped: dict[int, BatchedPredictor] = {}
        self._sessions: dict[int | None, BatchedPredictor] = {}

    @property
    def subject(self) -> Subject:
        """The subject of the wrapped predictor."""
        return self.predictor.subject

    @property
    def signature(self) -> Signature | None:
        """The signature of the wrapped predictor, with a leading row axis if `batch_size` is 0."""
        signature = self.predictor.signature
        if signature is None or self.batch_size != 0:
            return signature
        return Signature(*(tuple(map(_with_row_axis, specs)) for specs in (signature.inputs, signature.outputs)))

    def predict(self, inputs: Feed) -> Feed:
        """Return the outputs for rows (n, ...), each (n, ...).

        Raises:
            InputError: If the model rejects the inputs, or an output does not have one entry per row.
        """
        count = row_count(inputs)
        if self.batch_size == 0:
            calls = (self._call({name: array[row, ...] for name, array in inputs.items()}) for row in range(count))
            return _concat_outputs([{name: array[np.newaxis] for name, array in outputs.items()} for outputs in calls])
        step = self.batch_size or max(1, _CALL_BYTES // max(1, sum(array.nbytes for array in inputs.values()) // count))
        if self.batch_size is None and count <= step:
            return self._call_batch(inputs)
        return _concat_outputs([self._predict_slice(inputs, begin, step) for begin in range(0, count, step)])

    def magnitudes(self, base: Feed) -> Mapping[str, float]:
        """Return the largest finite magnitude of each output over the base rows. Cached for the same `base`."""
        if self._magnitudes is None or self._magnitudes[0] is not base:
            self._magnitudes = base, {name: magnitude(array) for name, array in self.predict(base).items()}
        return self._magnitudes[1]

    def wrap(self, predictor: Predictor) -> BatchedPredictor:
        """Return another predictor called in the same way. Cached by identity."""
        if id(predictor) not in self._wrapped:
            self._wrapped[id(predictor)] = BatchedPredictor(
                predictor, batch_size=self.batch_size, pass_array=self.pass_array
            )
        return self._wrapped[id(predictor)]

    def new_session(self, *, threads: int | None = None) -> BatchedPredictor:
        """Return the same model in a session of its own, opened once per number of threads.

        Raises:
            UsageError: If the predictor does not serve a file.
        """
        if threads not in self._sessions:
            self._sessions[threads] = BatchedPredictor(
                reopen(self.predictor, threads=threads), batch_size=self.batch_size, pass_array=self.pass_array
            )
        return self._sessions[threads]

    def close(self) -> None:
        """Close the sessions and processes opened by `new_session`."""
        for other in self._wrapped.values():
            other.close()
        for session in self._sessions.values():
            session.close()
            session.predictor.close()
        self._wrapped.clear()
        self._sessions.clear()

    def _predict_slice(self, inputs: Feed, begin: int, step: int) -> Feed:
        rows = take_rows(inputs, slice(begin, begin + step))
        count = row_count(rows)
        if self.batch_size is None or count == step:
            return self._call_batch(rows)
        padded = concat_rows([rows, *[take_rows(rows, slice(0, 1))] * (step - count)])
        return take_rows(self._call_batch(padded), slice(0, count))

    def _call_batch(self, feed: Feed) -> Feed:
        count = row_count(feed)
        outputs = self._call(feed)
        for name, array in outputs.items():
            if array.shape[:1] != (count,):
                raise InputError(
                    f"output {name!r} has shape {list(array.shape)} for {count} input rows: "
                    f"expected one entry per row, shape [{count}, ...]"
                )
        return outputs

    def _call(self, feed: Mapping[str, NDArray[Any]]) -> Feed:
        return self.predictor.predict(next(iter(feed.values())) if self.pass_array else feed)


def batched(predictor: Predictor, inputs: object) -> tuple[BatchedPredictor, Feed]:
    """Return `predictor` for any number of rows, and `inputs` as rows by name."""
    rows, batch_size = as_rows(predictor.signature, inputs)
    pass_array = not isinstance(inputs, Mapping)
    return BatchedPredictor(predictor, batch_size=batch_size, pass_array=pass_array), rows


def as_rows(signature: Signature | None, inputs: object) -> tuple[Feed, int | None]:
    """Return inputs as rows by name, and the model's batch size.

    If the inputs share no row axis, or a single input is a scalar, all of `inputs` is one row.
    """
    names = [spec.name for spec in signature.inputs] if signature else ["input"]
    if not isinstance(inputs, Mapping) and len(names) != 1:
        raise InputError(f"the model has {len(names)} inputs ({', '.join(names)}): pass a mapping from names to arrays")
    given: Feed = dict(inputs) if isinstance(inputs, Mapping) else {names[0]: inputs}  # type: ignore[dict-item]
    for name, array in given.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}: expected a numpy array")
    batch_size = batch_size_of(signature) if signature else None
    if batch_size != 0 and len({array.shape[:1] for array in given.values()} - {()}) == 1:
        return given, batch_size
    return {name: array[np.newaxis] for name, array in given.items()}, 0


def batch_size_of(signature: Signature) -> int | None:
    """Return the model's batch size: None if it is free, 0 if the inputs share no row axis.

    A leading axis whose symbol also names another axis of an input is not a row axis.
    """
    shapes = [spec.shape for spec in signature.inputs if spec.shape is not None]
    firsts = {shape[0] if shape else 0 for shape in shapes}
    if len(firsts) != 1:
        return 0 if firsts else None
    (first,) = firsts
    if isinstance(first, str) and any(first in shape[1:] for shape in shapes):
        return 0
    return first if isinstance(first, int) else None


def isolated_predictor(
    predictor: Predictor, *, isolate: bool | None, time_limit_s: float | None
) -> SubprocessPredictor | None:
    """Return `predictor`'s model in a child process, or None if it runs in this process.

    It is isolated if `isolate` is true or a time limit is given. By default it is also isolated if onnxruntime is
    known to crash on some inputs of the model.
    """
    if time_limit_s is not None:
        if isolate is False:
            raise UsageError("time_limit_s requires a child process: remove isolate=False")
        if not 0 < time_limit_s < float("inf"):
            raise UsageError(f"time_limit_s must be a finite number of seconds above 0, got {time_limit_s}")
    if isolate is False or (isolate is None and time_limit_s is None and not _may_crash(predictor)):
        return None
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot run in a child process because it does not serve a file: export the model and "
            "serve the artifact, or remove isolate= and time_limit_s="
        )
    from pytest_modelserve.serving.subprocess_predictor import TIME_LIMIT_S, SubprocessPredictor

    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    if child := in_child(predictor):
        return child.again(time_limit_s=limit_s)
    return SubprocessPredictor(_onnx_predictor(predictor), time_limit_s=limit_s)


def reopen(predictor: Predictor, *, threads: int | None) -> Predictor:
    """Return the same model in a session of its own, which the caller closes."""
    if child := in_child(predictor):
        return child.again(threads=threads)
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot be reopened because it does not serve a file: export the model and serve the "
            "artifact, or test determinism within one session"
        )
    from pytest_modelserve.serving import OnnxPredictor

    original = _onnx_predictor(predictor)
    return OnnxPredictor(
        original.artifact,
        providers=original.providers,
        threads=original.threads if threads is None else threads,
        optimize=original.optimize,
    )


def magnitude(array: NDArray[Any]) -> float:
    """Return the largest finite magnitude, 0 if there is none or for text."""
    if kind_of(array.dtype) in (None, "text") or array.size == 0:
        return 0.0
    numbers = np.abs(array.astype(np.float64))
    return float(np.where(np.isfinite(numbers), numbers, 0).max())


def _onnx_predictor(predictor: Predictor) -> OnnxPredictor:
    from pytest_modelserve.serving import OnnxPredictor

    if isinstance(predictor, OnnxPredictor):
        return predictor
    raise UsageError(
        f"{predictor.subject} is a {type(predictor).__name__}, which cannot be reopened: "
        "serve its artifact with ms.serve"
    )


def _may_crash(predictor: Predictor) -> bool:
    known_crashes = getattr(predictor, "known_crashes", None)
    return known_crashes is not None and bool(known_crashes.minimum)


def _concat_outputs(parts: list[Feed]) -> Feed:
    other = next((part for part in parts if part.keys() != parts[0].keys()), None)
    if other is not None:  # of a sequence, whose items are outputs
        names = ", ".join(sorted(other.keys() ^ parts[0].keys()))
        raise InputError(f"outputs have different items for different rows: {names}")
    try:
        return parts[0] if len(parts) == 1 else concat_rows(parts)
    except ValueError as error:
        raise InputError(f"outputs have different shapes for different rows: {error}") from error


def _with_row_axis(spec: TensorSpec) -> TensorSpec:
    return spec if spec.shape is None else replace(spec, shape=(None, *spec.shape))
