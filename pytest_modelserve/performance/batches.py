"""Batches of inputs for the performance gates: several shapes in turn, and new rows from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.inputs import as_batch, batch_size, check_not_empty, is_one_batch

Batches = Inputs | Sequence[Inputs]
InputStream = Batches | Iterable[Inputs] | Callable[[], Inputs]

# More than the calls of any gate; afterwards the order repeats.
_ORDER_LENGTH = 100_000
# The largest relative change of a floating-point number: above the resolution of float16 and bfloat16, too.
_PERTURBATION = 0.01


def batches_of(inputs: Batches) -> tuple[Inputs, ...]:
    """Return the batches of `inputs`: those of a list or tuple, else one.

    Tensors and frames become arrays. InputError for a list without batches or of anything else, for an iterable such as
    a DataLoader, and for a batch without rows.
    """
    if not isinstance(inputs, (list, tuple)):
        check_batch(inputs)
        return (inputs,)  # type: ignore[return-value]
    if not inputs:
        raise InputError("inputs hold no batch: pass an array, a mapping of arrays, or a list of these")
    for number, batch in enumerate(inputs):
        if not is_one_batch(batch) or isinstance(batch, list):
            raise InputError(
                f"batch {number} of the inputs must be an array or a mapping from names to arrays; got "
                f"{type(batch).__name__}: pass np.asarray(...) for one batch"
            )
    batches = tuple(map(as_batch, inputs))
    for batch in batches:
        check_not_empty(batch)
    return batches


def check_batch(inputs: object) -> None:
    """Raise InputError for a batch without rows, and for an iterable of batches, such as a DataLoader."""
    if _is_stream(inputs):
        raise InputError(
            f"inputs is a {type(inputs).__name__}: time and memory are those of a call, so pass one batch as it is "
            "served, such as next(iter(loader))[0][:1]"
        )
    check_not_empty(inputs)


def largest_batch(batches: Sequence[Inputs]) -> Inputs:
    """Return the batch with the most values."""
    return max(batches, key=lambda batch: sum(np.size(array) for array in _arrays(batch).values()))


class BatchCalls:
    """A call of `predictor` with one of `batches`: each twice in turn, then in random order, so that calls are
    exchangeable.
    """

    def __init__(self, predictor: Predictor, batches: Sequence[Inputs]) -> None:
        self._batches = tuple(batches)
        self._predict = predictor.predict
        count = len(self._batches)
        first = [*range(count)] * 2
        self._order = first + np.random.default_rng(0).integers(count, size=_ORDER_LENGTH).tolist()
        self._calls = 0

    def __call__(self) -> object:
        """Predict the next batch."""
        which = self._order[self._calls % len(self._order)]
        self._calls += 1
        return self._predict(self._batches[which])

    def take(self, n: int) -> NDArray[np.int64]:
        """Return the numbers of the next `n` batches."""
        numbers = np.arange(self._calls, self._calls + n) % len(self._order)
        self._calls += n
        return np.take(self._order, numbers)

    def put_back(self, n: int) -> None:
        """Count the last `n` batches as not predicted."""
        self._calls -= n

    def details(self, durations_ms: NDArray[np.float64]) -> dict[str, Any]:
        """Return the shapes, number and median duration of the last calls by batch, where there are several batches."""
        if len(self._batches) == 1:
            return {}
        numbers = range(self._calls - durations_ms.size, self._calls)
        which = np.array([self._order[number % len(self._order)] for number in numbers], dtype=np.intp)
        return {
            "batches": [
                {
                    "shapes": {name: list(np.shape(array)) for name, array in _arrays(batch).items()},
                    "calls": int((which == number).sum()),
                    "median_ms": float(np.median(durations_ms[which == number])) if (which == number).any() else None,
                }
                for number, batch in enumerate(self._batches)
            ]
        }


class InputSource:
    """The inputs of a long run of calls, and how they change, for a report.

    A callable or an iterable gives the next inputs itself. The batches of an array, a mapping or a list are repeated
    in turn; with `vary` each call gets new values: floating-point numbers come up to 1 % closer to zero, within the
    range of their batch, and the rows change their order. Integers, booleans and text keep their values, as new ones
    could be ids that the model does not know.
    """

    def __init__(self, inputs: InputStream, *, vary: bool, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._vary = vary
        self.batches: tuple[Inputs, ...] = ()
        self.is_varied = False
        self._given = 0
        if callable(inputs):
            self._stream: Iterator[Inputs] = _called(inputs)
            self.method = "inputs from a callable"
        elif _is_stream(inputs):
            self._stream = self._from_iterable(inputs)
            self.method = "inputs from an iterable"
        else:
            self.batches = batches_of(inputs)  # type: ignore[arg-type]
            self.is_varied = vary and any(self._can_change(batch) for batch in self.batches)
            self._stream = self._in_turn()
            self.method = "varied inputs" if self.is_varied else "repeated inputs"

    def __call__(self) -> Inputs:
        """Return the inputs of the next call."""
        inputs = next(self._stream)
        if not self.batches:
            check_not_empty(inputs)
        self._given += 1
        return inputs

    @property
    def last_is_varied(self) -> bool:
        """Whether the inputs of the last call were other ones than those that were passed."""
        return self.is_varied and self._given > len(self.batches)

    def finding(self) -> str:
        """Return what kinds of leak the inputs cannot show; empty if there is none."""
        if not self.batches or not self._vary:
            return ""
        advice = "pass more rows, or a callable that makes new ones, to find leaks on new inputs"
        if not self.is_varied:
            return f"every call got the same values, as no floating-point number and no order can change: {advice}"
        if not any(_is_float(array) for batch in self.batches for array in _arrays(batch).values()):
            return f"rows were reordered and no new ones made, as they hold no floating-point number: {advice}"
        return ""

    def _in_turn(self) -> Iterator[Inputs]:
        yield from self.batches  # as they are, so that an error on them is not blamed on the variation
        while True:
            for batch in self.batches:
                yield vary_rows(batch, self._rng) if self.is_varied else batch

    def _from_iterable(self, inputs: Any) -> Iterator[Inputs]:
        while True:
            before = self._given
            yield from inputs
            if self._given == before:
                raise InputError(
                    f"inputs ended after {before:,} batches, and more calls are needed: pass a list, which is "
                    "repeated, or a callable"
                )

    def _can_change(self, batch: Inputs) -> bool:
        given = _arrays(batch)
        for _ in range(8):
            changed = _arrays(vary_rows(batch, self._rng))
            if any(changed[name] is not given[name] and not _equal(given[name], changed[name]) for name in given):
                return True
        return False


def vary_rows(batch: Inputs, rng: np.random.Generator) -> Inputs:
    """Return new values in the shapes of `batch`: rows in another order, floating-point numbers slightly changed.

    All inputs get the same order of rows, so that what belongs together stays together. Zeros, infinities and NaN are
    kept, and no number leaves the range of its array unless all are equal.
    """
    given = _arrays(batch)
    # What is no array is left to the predictor, whose error says how to convert it.
    rows = batch_size(batch) if all(isinstance(array, np.ndarray) for array in given.values()) else None
    order = rng.permutation(rows) if rows is not None and rows > 1 else None
    changed = {}
    for name, array in given.items():
        ordered = array if order is None else array[order]
        changed[name] = _perturbed(ordered, rng) if _is_float(array) else ordered
    return changed if isinstance(batch, Mapping) else changed[""]


def _perturbed(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    factors = 1 - _PERTURBATION * rng.random(array.shape, np.float64 if array.dtype.itemsize > 4 else np.float32)
    changed = np.asarray(array * factors).astype(array.dtype, copy=False)
    low, high = np.fmin.reduce(array, axis=None), np.fmax.reduce(array, axis=None)
    # clip returns float32 for bfloat16
    return np.clip(changed, low, high).astype(array.dtype, copy=False) if low < high else changed


def _called(inputs: Callable[[], Inputs]) -> Iterator[Inputs]:
    while True:
        yield inputs()


def _is_stream(inputs: object) -> bool:
    """Return whether `inputs` is an iterable of batches, and not one batch of whatever library."""
    return isinstance(inputs, Iterable) and not (
        isinstance(inputs, (list, tuple, str, bytes, Mapping)) or hasattr(inputs, "shape")
    )


def _arrays(batch: Inputs) -> Mapping[str, Any]:
    return batch if isinstance(batch, Mapping) else {"": batch}


def _is_float(array: Any) -> bool:
    """Return whether a change of 1 % is another number; it is not with the three bits of float8."""
    return isinstance(array, np.ndarray) and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _equal(first: Any, second: Any) -> bool:
    return np.array_equal(first, second, equal_nan=_is_float(first))
