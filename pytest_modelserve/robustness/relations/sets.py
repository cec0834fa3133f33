"""Models of sets: the order of the elements changes no answer, or the answers come in that order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.relations.variants import farthest
from pytest_modelserve.robustness.violations import Violations

SetAnswer = Literal["invariant", "equivariant"]


@dataclass(frozen=True, slots=True)
class SetPermutation:
    """See `set_permutation`."""

    axis: int | str
    answer: SetAnswer
    inputs: tuple[str, ...] | None
    output_axis: int | None
    tolerance: Tolerance
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

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise when their elements are reversed, or turned by one."""
        axes = self._axes(predictor, candidates)
        count = _common_size(candidates, axes)
        expected = chosen(predictor.predict(candidates), self.output)
        back = self._output_axes(predictor, expected, count) if self.answer == "equivariant" else {}
        several = []
        for order in (np.arange(count)[::-1], np.roll(np.arange(count), 1)):
            permuted = {**candidates, **{name: np.take(candidates[name], order, axis) for name, axis in axes.items()}}
            answers = dict(chosen(predictor.predict(permuted), self.output))
            for name, axis in back.items():
                answers[name] = _put_back(answers[name], order, axis, expected[name].shape)
            several.append(apart(answers, expected, self.tolerance, predictor.magnitudes(base)))
        return farthest(several, ("with the elements reversed", "with the elements turned by one"), "in this order")

    def _axes(self, predictor: Answering, rows: Feed) -> dict[str, int]:
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

    def _output_axes(self, predictor: Answering, outputs: Feed, count: int) -> dict[str, int]:
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
    return SetPermutation(axis, answer, names, output_axis, Tolerance.of(rtol, atol), output)


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
