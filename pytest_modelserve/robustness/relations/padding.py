"""What fills up a sequence changes nothing about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.relations.variants import farthest
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class PaddingInvariance:
    """See `padding_invariance`."""

    value: float | int | str | tuple[tuple[str, float | int | str], ...]
    axis: int
    by: tuple[int, ...]
    tolerance: Tolerance
    output: str | None
    name: str = "padding invariance"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        steps = " or ".join(map(str, self.by))
        return f"{steps} more steps of padding at the end of axis {self.axis} change no answer, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise when padding follows them."""
        expected = chosen(predictor.predict(candidates), self.output)
        several = []
        for steps in self.by:
            answers = chosen(predictor.predict(self._padded(candidates, steps)), self.output)
            several.append(apart(_cut(answers, expected, steps), expected, self.tolerance, predictor.magnitudes(base)))
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
    return PaddingInvariance(held, axis, tuple(by), Tolerance.of(rtol, atol), output)


def _cut(answers: Feed, expected: Feed, steps: int) -> Feed:
    """Answers a step without those of the added steps: whichever axis has grown by as many."""
    cut = {}
    for name, array in answers.items():
        for axis, size in enumerate(expected[name].shape if array.ndim == expected[name].ndim else ()):
            if array.shape[axis] == size + steps:
                array = np.take(array, np.arange(size), axis=axis)
        cut[name] = array
    return cut
