"""A predictor that takes any number of rows, whatever batch its model was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count, taken
from pytest_modelserve.serving.subprocess_predictor import TIME_LIMIT_S, SubprocessPredictor

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Subject
    from pytest_modelserve.serving import OnnxPredictor, Predictor


# The model of a predictor once more: in another session, or in another process.


def isolated(predictor: Predictor, *, isolate: bool | None, time_limit_s: float | None) -> SubprocessPredictor | None:
    """`predictor`'s model in a process of its own: where `isolate` says so, where a time limit is given, and by default
    where onnxruntime would end the process on some inputs of the model.

    UsageError for a model that no other process can open, and for a limit that is none.
    """
    if time_limit_s is not None:
        if isolate is False:
            raise UsageError("time_limit_s= needs a process that can be ended: leave isolate=False out")
        if not 0 < time_limit_s < float("inf"):
            raise UsageError(f"time_limit_s is a number of seconds above 0, not {time_limit_s}")
    if isolate is False or (isolate is None and time_limit_s is None and not _may_end(predictor)):
        return None
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot be asked in a process of its own: no file stands behind it; export the model "
            "and serve the artifact, or leave isolate= and time_limit_s= out"
        )
    return SubprocessPredictor(_onnx(predictor), time_limit_s=TIME_LIMIT_S if time_limit_s is None else time_limit_s)


def served_again(predictor: Predictor, *, threads: int | None) -> Predictor:
    """The same model in a session of its own, to be closed by the caller; UsageError where no file stands behind it."""
    if isinstance(predictor, SubprocessPredictor):
        return predictor.again(threads=threads)
    if predictor.artifact is None:
        raise UsageError(
            f"{predictor.subject} cannot be opened again: no file stands behind it; export the model and serve the "
            "artifact, or ask for determinism within one session"
        )
    from pytest_modelserve.serving import OnnxPredictor

    like = _onnx(predictor)
    return OnnxPredictor(
        like.artifact,
        providers=like.providers,
        threads=like.threads if threads is None else threads,
        optimize=like.optimize,
    )


def _onnx(predictor: Predictor) -> OnnxPredictor:
    """The predictor of the file behind `predictor`: itself, unless somebody has wrapped one."""
    from pytest_modelserve.serving import OnnxPredictor

    if isinstance(predictor, OnnxPredictor):
        return predictor
    raise UsageError(f"a {type(predictor).__name__} cannot be opened again: serve its artifact with modelserve.serve")


def _may_end(predictor: Predictor) -> bool:
    known_crashes = getattr(predictor, "known_crashes", None)
    return known_crashes is not None and bool(known_crashes.minimum)


_CALL_BYTES = 64 * 2**20
"""The most input handed to the model at once: a thousand images are 600 MB, and a model holds several times that."""


class Answering(Protocol):
    """What a relation asks: a model that takes any number of rows, all inputs by name."""

    @property
    def subject(self) -> Subject:
        """Who answers."""

    @property
    def predictor(self) -> Predictor:
        """Who is asked, for a relation that calls it in a way of its own."""

    @property
    def batch(self) -> int | None:
        """The rows of one call: any number for None, and for 0 a call's inputs have no axis of rows."""

    @property
    def bare(self) -> bool:
        """Whether a single input is handed over as an array without its name."""

    @property
    def signature(self) -> Signature | None:
        """What the model takes and gives, where it is known; the first axis of every shape counts rows."""

    def predict(self, inputs: Feed, /) -> Feed:
        """The outputs for rows (n, ...), each (n, ...)."""

    def magnitudes(self, base: Feed) -> Mapping[str, float]:
        """The largest finite magnitude of each output over the base rows, which tolerances are relative to."""

    def alike(self, predictor: Predictor, /) -> Answering:
        """Another predictor that is asked in the same way."""

    def again(self, *, threads: int | None = None) -> Answering:
        """The same model in a session of its own, on as many threads as this one or on others."""


class Rows:
    """`predictor` for rows (n, ...): more than one call may hold are split, and a fixed batch is filled up.

    `batch` is the number of rows that the model insists on, None where it takes any; 0 where its inputs have no rows:
    each row is then one whole call, and outputs are stacked. `bare` hands a single input over as an array without its
    name, as a function expects it. `calls` counts what reached the model. `close` lets go of what `alike` and `again`
    have opened, and not of the predictor itself.
    """

    def __init__(self, predictor: Predictor, *, batch: int | None, bare: bool) -> None:
        self.predictor = predictor
        self.batch = batch
        self.calls = 0
        self.bare = bare
        self._magnitudes: tuple[Feed, Mapping[str, float]] | None = None
        self._others: dict[int, Rows] = {}
        self._sessions: dict[int | None, Rows] = {}

    @property
    def subject(self) -> Subject:
        """The predictor's."""
        return self.predictor.subject

    @property
    def signature(self) -> Signature | None:
        """The predictor's, with an axis of rows in front of every shape where its inputs have none."""
        signature = self.predictor.signature
        if signature is None or self.batch != 0:
            return signature
        return Signature(*(tuple(map(_with_rows, specs)) for specs in (signature.inputs, signature.outputs)))

    def predict(self, inputs: Feed) -> Feed:
        """The outputs for rows (n, ...), each (n, ...).

        InputError for an output without rows, and where the model refuses the inputs.
        """
        count = row_count(inputs)
        if self.batch == 0:
            return self._joined([_stacked(self._asked(_one(inputs, row), None)) for row in range(count)])
        step = self.batch or max(1, _CALL_BYTES // max(1, sum(array.nbytes for array in inputs.values()) // count))
        if self.batch is None and count <= step:
            return self._asked(inputs, count)
        return self._joined([self._part(inputs, begin, step) for begin in range(0, count, step)])

    def magnitudes(self, base: Feed) -> Mapping[str, float]:
        """The largest finite magnitude of each output over the base rows; asked once for the same rows."""
        if self._magnitudes is None or self._magnitudes[0] is not base:
            found = {name: magnitude(array) for name, array in self.predict(base).items()}
            self._magnitudes = base, found
        return self._magnitudes[1]

    def alike(self, predictor: Predictor) -> Rows:
        """Another predictor that is asked in the same way, the same one for the same predictor."""
        if id(predictor) not in self._others:
            self._others[id(predictor)] = Rows(predictor, batch=self.batch, bare=self.bare)
        return self._others[id(predictor)]

    def again(self, *, threads: int | None = None) -> Rows:
        """The same model in a session of its own, opened once for each number of threads.

        UsageError for a predictor that no file stands behind.
        """
        if threads not in self._sessions:
            served = served_again(self.predictor, threads=threads)
            self._sessions[threads] = Rows(served, batch=self.batch, bare=self.bare)
        return self._sessions[threads]

    def close(self) -> None:
        """Let go of the sessions and processes that were opened beside the predictor."""
        for other in self._others.values():
            other.close()
        for session in self._sessions.values():
            session.close()
            session.predictor.close()
        self._others.clear()
        self._sessions.clear()

    def _part(self, inputs: Feed, begin: int, step: int) -> Feed:
        part = taken(inputs, slice(begin, begin + step))
        count = row_count(part)
        if self.batch is None or count == step:
            return self._asked(part, count)
        filled = joined([part, *[taken(part, slice(0, 1))] * (step - count)])
        return taken(self._asked(filled, step), slice(0, count))

    def _asked(self, feed: Mapping[str, NDArray[Any]], count: int | None) -> Feed:
        self.calls += 1
        outputs = self.predictor.predict(next(iter(feed.values())) if self.bare else feed)
        for name, array in outputs.items():
            if count is not None and array.shape[:1] != (count,):
                raise InputError(
                    f"output {name!r} has shape {list(array.shape)} for {count} rows: a search needs one answer a row"
                )
        return outputs

    @staticmethod
    def _joined(parts: list[Feed]) -> Feed:
        try:
            return parts[0] if len(parts) == 1 else joined(parts)
        except ValueError as error:
            raise InputError(f"the model's outputs have other shapes for other rows: {error}") from error


def rows_of(predictor: Predictor, inputs: object) -> tuple[Rows, Feed]:
    """`predictor` for any number of rows, and `inputs` as such rows.

    Where the signature says that inputs have no axis of rows in common, or a single input is a scalar, the whole of
    `inputs` is one row of what is then asked call by call.
    """
    bare = not isinstance(inputs, Mapping)
    names = [spec.name for spec in predictor.signature.inputs] if predictor.signature else ["input"]
    if bare and len(names) != 1:
        raise InputError(f"the model has {len(names)} inputs ({', '.join(names)}): give a mapping from names to arrays")
    given: Feed = dict(inputs) if isinstance(inputs, Mapping) else {names[0]: inputs}  # type: ignore[dict-item]
    for name, array in given.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}, not a numpy array")
    batch = batch_of(predictor.signature) if predictor.signature else None
    if batch != 0 and len({array.shape[:1] for array in given.values()} - {()}) == 1:
        return Rows(predictor, batch=batch, bare=bare), given
    return Rows(predictor, batch=0, bare=bare), {name: array[np.newaxis] for name, array in given.items()}


def batch_of(signature: Signature) -> int | None:
    """The number of rows in a batch: None where it is free, 0 where the inputs share no axis of rows.

    An axis whose name another axis of an input bears as well is none of rows: the two have to be of one length.
    """
    shapes = [spec.shape for spec in signature.inputs if spec.shape is not None]
    firsts = {shape[0] if shape else 0 for shape in shapes}
    if len(firsts) != 1:
        return 0 if firsts else None
    (first,) = firsts
    if isinstance(first, str) and any(first in shape[1:] for shape in shapes):
        return 0
    return first if isinstance(first, int) else None


def magnitude(array: NDArray[Any]) -> float:
    """The largest finite magnitude; 0 where there is none, and for text."""
    if kind_of(array.dtype) in (None, "text") or array.size == 0:
        return 0.0
    numbers = np.abs(array.astype(np.float64))
    return float(np.where(np.isfinite(numbers), numbers, 0).max())


def _with_rows(spec: TensorSpec) -> TensorSpec:
    return spec if spec.shape is None else replace(spec, shape=(None, *spec.shape))


def _one(inputs: Feed, row: int) -> Feed:
    """One row without its axis; the ellipsis keeps a scalar an array."""
    return {name: array[row, ...] for name, array in inputs.items()}


def _stacked(outputs: Feed) -> Feed:
    return {name: array[np.newaxis] for name, array in outputs.items()}
