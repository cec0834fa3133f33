"""Two models that are to give the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import pair_outputs
from pytest_modelserve.metrics.tolerance import (
    RoundingTolerance,
    decision_differences,
    output_differences,
    select_output,
)
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, magnitude
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.relations.base import Violations, farthest

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import TensorSpec
    from pytest_modelserve.serving import Predictor


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """See `agreement`."""

    other: Predictor
    decision: bool
    tolerance: RoundingTolerance
    output: str | None
    name: str = "agreement"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        what = "decision" if self.decision else "answer"
        return f"both models give the same {what}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows the other model answers otherwise."""
        expected = select_output(predictor.wrap(self.other).predict(candidates), self.output)
        found = pair_outputs(predictor.predict(candidates), expected)
        if missing := [name for name in expected if name not in found]:
            raise UsageError(f"{predictor.subject} has no output {missing[0]!r}, which {self.other.subject} has")
        sizes = {name: magnitude(array) for name, array in predictor.wrap(self.other).predict(base).items()}
        if self.decision:
            if len(expected) != 1:
                raise UsageError(f"the models have {len(expected)} outputs: say which one decides by output=")
            ((name, scores),) = expected.items()
            excess = decision_differences(found[name], scores, self.tolerance, sizes[name])
        else:
            excess = output_differences(
                {name: found[name] for name in expected}, expected, self.tolerance, sizes
            ).excess
        compared = output_differences({name: found[name] for name in expected}, expected, self.tolerance, sizes)
        words = f"by {predictor.subject}", f"by {self.other.subject}"
        return Violations.beyond(excess, lambda row: compared.sentence(row, *words))


def agreement(
    other: Predictor,
    *,
    decision: bool = False,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Agreement:
    """`other`, the reference, gives the same answers, or with `decision=True` the same decisions (arg-max, or label).

    Without `rtol` and `atol` the tolerance is the room for rounding, which an export of the same precision keeps and a
    quantised model does not: ask that one for `decision=True`, where scores within the tolerance of each other are a
    tie.
    """
    return Agreement(other, decision, RoundingTolerance.of(rtol, atol), output)


# A row's answer is its own: it depends neither on the rows beside it nor on their order.


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """See `batch_invariance`."""

    tolerance: RoundingTolerance
    output: str | None
    name: str = "batch invariance"
    unit: Literal["row", "batch"] = "batch"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"a row has the same answer in a batch as alone, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows of one batch are answered otherwise alone."""
        together = select_output(predictor.predict(candidates), self.output)
        rows = range(row_count(candidates))
        alone = select_output(
            concat_rows([predictor.predict(take_rows(candidates, slice(i, i + 1))) for i in rows]), self.output
        )
        found = output_differences(together, alone, self.tolerance, predictor.magnitudes(base))
        beside = f"in a batch of {len(rows)}"
        return Violations.beyond(found.excess, lambda row: found.sentence(row, beside, "alone"))


@dataclass(frozen=True, slots=True)
class RowPermutation:
    """See `row_permutation`."""

    tolerance: RoundingTolerance
    output: str | None
    name: str = "row permutation"
    unit: Literal["row", "batch"] = "batch"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"rows in another order have the same answers in that order, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows of one batch are answered otherwise when the batch is reversed, or turned by one."""
        count = row_count(candidates)
        expected = select_output(predictor.predict(candidates), self.output)
        orders = (np.arange(count)[::-1], np.roll(np.arange(count), 1))
        several = []
        for order in orders:
            answers = select_output(predictor.predict(take_rows(candidates, order)), self.output)
            back = take_rows(answers, np.argsort(order))
            several.append(output_differences(back, expected, self.tolerance, predictor.magnitudes(base)))
        return farthest(several, ("reversed", "turned by one place"), "in this order")


def batch_invariance(
    *, output: str | None = None, rtol: float | None = None, atol: float | None = None
) -> BatchInvariance:
    """A row has the same answer in a batch as alone.

    Holds for every model without cross-row operations. Broken by normalisation over the batch (a module exported in
    training mode), by an attention mask that is made from the whole batch, and by dynamic quantisation, whose scale is
    that of the batch. Without `rtol` and `atol` the tolerance is the room for rounding: other batch sizes take other
    kernels. Of `output` alone, or of all.
    """
    return BatchInvariance(RoundingTolerance.of(rtol, atol), output)


def row_permutation(
    *, output: str | None = None, rtol: float | None = None, atol: float | None = None
) -> RowPermutation:
    """Rows in another order have the same answers, in that order.

    Holds wherever rows are independent, and for normalisation over the batch too; broken by whatever takes a row's
    place for a feature: a mixed-up reshape, a state that is carried from row to row. Tolerance as in
    `batch_invariance`.
    """
    return RowPermutation(RoundingTolerance.of(rtol, atol), output)


# The same inputs have the same answers: asked again, in another session, on other numbers of threads.


@dataclass(frozen=True, slots=True)
class Determinism:
    """See `determinism`."""

    repeats: int
    new_session: bool
    threads: tuple[int, ...]
    again: RoundingTolerance
    threaded: RoundingTolerance
    output: str | None
    name: str = "determinism"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        where = " and in a session opened anew" if self.new_session else ""
        told = f"asked {self.repeats + 1} times{where}, the model gives the same answers {_within(self.again)}"
        if not self.threads:
            return told
        return f"{told}, and on {_listed(self.threads)} threads the same {_within(self.threaded)}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows get another answer when they are asked again."""
        first = select_output(predictor.predict(candidates), self.output)
        asked = [(predictor, "when asked again", self.again)] * self.repeats
        if self.new_session:
            asked.append((predictor.new_session(), "in a new session", self.again))
        for count in self.threads:
            threads = f"{count} thread{'s' if count > 1 else ''}"
            asked.append((predictor.new_session(threads=count), f"on {threads}", self.threaded))
        magnitudes = predictor.magnitudes(base) if self.threads else {}
        several = [
            output_differences(select_output(other.predict(candidates), self.output), first, tolerance, magnitudes)
            for other, _, tolerance in asked
        ]
        return farthest(several, [words for _, words, _ in asked], "at first")


def determinism(
    *,
    repeats: int = 1,
    new_session: bool = False,
    threads: Iterable[int] = (),
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Determinism:
    """The same inputs have the same answers: when asked again, in a new session, and on each number of `threads`.

    Bit for bit where `rtol` and `atol` are not given, but for other numbers of threads: there sums may come in another
    order, and the tolerance is the room for rounding. Holds for onnxruntime on one CPU thread, also from session to
    session; on a GPU give tolerances. Broken by dropout that is left on, by random operators without a seed (a new
    session draws anew, or the same again), by state from call to call, and by kernels that choose by the number of
    threads. A new session needs a model that is served from a file; it is opened in this process, or in another one of
    its own where the search is isolated.
    """
    if repeats < 1:
        raise UsageError(f"repeats is a whole number of at least 1, not {repeats}")
    counts = tuple(threads)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"threads holds whole numbers of at least 1, not {count!r}")
    given = RoundingTolerance.of(rtol, atol)
    exact = RoundingTolerance(steps=0) if rtol is None else given
    return Determinism(repeats, new_session, counts, exact, given, output)


def _within(tolerance: RoundingTolerance) -> str:
    return "bit for bit" if tolerance.steps == 0 else f"within {tolerance}"


def _listed(counts: tuple[int, ...]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, counts[:-1])), str(counts[-1]))))


# What fills up a sequence changes nothing about it.


@dataclass(frozen=True, slots=True)
class PaddingInvariance:
    """See `padding_invariance`."""

    value: float | int | str | tuple[tuple[str, float | int | str], ...]
    axis: int
    by: tuple[int, ...]
    tolerance: RoundingTolerance
    output: str | None
    name: str = "padding invariance"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        steps = " or ".join(map(str, self.by))
        return f"{steps} more steps of padding at the end of axis {self.axis} change no answer, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise when padding follows them."""
        expected = select_output(predictor.predict(candidates), self.output)
        several = []
        for steps in self.by:
            answers = select_output(predictor.predict(self._padded(candidates, steps)), self.output)
            several.append(
                output_differences(_cut(answers, expected, steps), expected, self.tolerance, predictor.magnitudes(base))
            )
        return farthest(several, [f"with {steps} more steps of padding" for steps in self.by], "without")

    def _padded(self, rows: Feed, steps: int) -> Feed:
        values = dict(self.value) if isinstance(self.value, tuple) else dict.fromkeys(rows, self.value)
        for name in values:
            if name not in rows:
                raise UsageError(unknown_choice("input", name, rows))
            if not 0 < self.axis < rows[name].ndim:
                raise UsageError(f"input {name!r} of shape {list(rows[name].shape)} has no axis {self.axis} of steps")
        padded = dict(rows)
        for name, value in values.items():
            array = rows[name]
            shape = (*array.shape[: self.axis], steps, *array.shape[self.axis + 1 :])
            padded[name] = np.concatenate([array, np.full(shape, value, array.dtype)], axis=self.axis)
        return padded


def padding_invariance(
    value: float | int | str | Mapping[str, float | int | str],
    *,
    axis: int = 1,
    by: tuple[int, ...] = (1, 4),
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> PaddingInvariance:
    """More steps of padding at the end of a sequence change none of its answers; an answer a step keeps those it had.

    `value` is what the model takes for padding: one for every input, or by name for the inputs that have the axis (an
    attention mask is padded by 0 as well). Holds for models that mask padding; broken by a mean or maximum over all
    steps and by attention without a mask. The axis has to be free in the model. Without `rtol` and `atol` the tolerance
    is the room for rounding: longer sums take another order.
    """
    if not by or min(by) < 1:
        raise UsageError(f"by holds numbers of steps of at least 1, not {by}")
    held = tuple(sorted(value.items())) if isinstance(value, Mapping) else value
    return PaddingInvariance(held, axis, tuple(by), RoundingTolerance.of(rtol, atol), output)


def _cut(answers: Feed, expected: Feed, steps: int) -> Feed:
    """Answers a step without those of the added steps: whichever axis has grown by as many."""
    cut = {}
    for name, array in answers.items():
        for axis, size in enumerate(expected[name].shape if array.ndim == expected[name].ndim else ()):
            if array.shape[axis] == size + steps:
                array = np.take(array, np.arange(size), axis=axis)
        cut[name] = array
    return cut


# Models of sets: the order of the elements changes no answer, or the answers come in that order.


SetAnswer = Literal["invariant", "equivariant"]


@dataclass(frozen=True, slots=True)
class SetPermutation:
    """See `set_permutation`."""

    axis: int | str
    answer: SetAnswer
    inputs: tuple[str, ...] | None
    output_axis: int | None
    tolerance: RoundingTolerance
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"permutation {'invariance' if self.answer == 'invariant' else 'equivariance'} along {self.axis!r}"

    @property
    def definition(self) -> str:
        """What holds."""
        what = "changes no answer" if self.answer == "invariant" else "gives the answers in that order"
        return f"another order of the elements along axis {self.axis!r} {what}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise when their elements are reversed, or turned by one."""
        axes = self._axes(predictor, candidates)
        count = _common_size(candidates, axes)
        expected = select_output(predictor.predict(candidates), self.output)
        back = self._output_axes(predictor, expected, count) if self.answer == "equivariant" else {}
        several = []
        for order in (np.arange(count)[::-1], np.roll(np.arange(count), 1)):
            permuted = {**candidates, **{name: np.take(candidates[name], order, axis) for name, axis in axes.items()}}
            answers = dict(select_output(predictor.predict(permuted), self.output))
            for name, axis in back.items():
                answers[name] = _put_back(answers[name], order, axis, expected[name].shape)
            several.append(output_differences(answers, expected, self.tolerance, predictor.magnitudes(base)))
        return farthest(several, ("with the elements reversed", "with the elements turned by one"), "in this order")

    def _axes(self, predictor: BatchedPredictor, rows: Feed) -> dict[str, int]:
        """The inputs that are permuted together, and along which axis each."""
        for name in self.inputs or ():
            if name not in rows:
                raise UsageError(unknown_choice("input", name, rows))
        names = tuple(rows) if self.inputs is None else self.inputs
        if isinstance(self.axis, int):
            for name in names:
                _check_axis("input", name, rows[name], self.axis)
            return dict.fromkeys(names, self.axis)
        found = _named(predictor.signature.inputs if predictor.signature else (), self.axis)
        axes = {name: axis for name, axis in found.items() if name in names}
        if not axes:
            raise UsageError(f"no input of {predictor.subject} has an axis {self.axis!r}: give its number")
        return axes

    def _output_axes(self, predictor: BatchedPredictor, outputs: Feed, count: int) -> dict[str, int]:
        """Along which axis each output follows the elements."""
        named = {}
        if isinstance(self.axis, str) and self.output_axis is None and predictor.signature is not None:
            named = _named(predictor.signature.outputs, self.axis)
        axes = {}
        for name, array in outputs.items():
            axis = self.output_axis if self.output_axis is not None else named.get(name, self.axis)
            if isinstance(axis, str):
                raise UsageError(f"output {name!r} has no axis {self.axis!r}: say which one by output_axis=")
            _check_axis("output", name, array, axis)
            if array.shape[axis] != count:
                raise UsageError(
                    f"output {name!r} of shape {list(array.shape)} has {array.shape[axis]} answers along axis {axis} "
                    f"for {count} elements: say which axis by output_axis="
                )
            axes[name] = axis
        return axes


def set_permutation(
    axis: int | str = 1,
    *,
    answer: SetAnswer = "invariant",
    inputs: str | Iterable[str] | None = None,
    output_axis: int | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> SetPermutation:
    """The elements of a set in another order have the same answer, or one answer each in that order.

    `axis` counts from the rows, which are axis 0, or is the name that the model's signature gives it; all `inputs`
    (every one that has the name, or every one at all) are permuted together: elements, their mask, their weights.
    With answer="equivariant" the answers are expected to follow, along the axis of the same name or number, or along
    `output_axis`. Holds for deep sets, for attention without positions, and for graphs under their nodes' order; broken
    by position embeddings, by recurrent layers and by a flattened dense layer. Asked are the reversed order and one
    that is turned by one place. Without `rtol` and `atol` the tolerance is the room for rounding: sums over the
    elements come in another order.
    """
    if isinstance(axis, int) and axis < 1:
        raise UsageError(
            f"axis counts from the rows, which are axis 0: give 1 or more, not {axis}; see row_permutation"
        )
    if answer not in get_args(SetAnswer):
        raise UsageError(unknown_choice("answer", answer, get_args(SetAnswer)))
    if output_axis is not None and (answer == "invariant" or output_axis < 1):
        raise UsageError("output_axis is for answer='equivariant', and at least 1")
    names = (inputs,) if isinstance(inputs, str) else None if inputs is None else tuple(inputs)
    if names == ():
        raise UsageError("inputs is empty: name one or more, or leave it out")
    return SetPermutation(axis, answer, names, output_axis, RoundingTolerance.of(rtol, atol), output)


def _named(specs: Iterable[TensorSpec], symbol: str) -> dict[str, int]:
    return {spec.name: spec.shape.index(symbol) for spec in specs if spec.shape is not None and symbol in spec.shape}


def _check_axis(what: str, name: str, array: NDArray[np.generic], axis: int) -> None:
    if not 0 < axis < array.ndim:
        raise UsageError(f"{what} {name!r} of shape {list(array.shape)} has no axis {axis} of elements")


def _common_size(rows: Feed, axes: dict[str, int]) -> int:
    sizes: dict[str, int] = {name: rows[name].shape[axis] for name, axis in axes.items()}
    if len(set(sizes.values())) != 1:
        raise InputError(f"inputs have different numbers of elements: {sizes}; name those that belong together")
    count = next(iter(sizes.values()))
    if count < 2:
        raise InputError(f"rows have {count} element{'s' if count != 1 else ''}, which has no other order: add some")
    return count


def _put_back(
    answers: NDArray[np.generic], order: NDArray[np.intp], axis: int, shape: tuple[int, ...]
) -> NDArray[np.generic]:
    return np.take(answers, np.argsort(order), axis) if answers.shape == shape else answers
