"""What holds of a model's answers by themselves: they are finite, they are probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import kind_of, machine_epsilon
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.domains import is_numpys_own
from pytest_modelserve.robustness.relations.tolerance import STEPS, chosen
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class FiniteOutputs:
    """See `finite_outputs`."""

    output: str | None
    name: str = "finite outputs"
    definition: str = "finite inputs have outputs without NaN and infinities"
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: Answering, candidates: Feed, _base: Feed) -> Violations:
        """Which rows of finite numbers are answered by something that is not finite."""
        answers = chosen(predictor.predict(candidates), self.output)
        asked = finite_rows(candidates)
        bad = asked & ~finite_rows(answers)
        return Violations(bad, None, lambda row: self._told(answers, row))

    @staticmethod
    def _told(answers: Feed, row: int) -> str:
        for name, array in answers.items():
            if kind_of(array.dtype) == "real":
                numbers = array[row].astype(np.float64).reshape(-1)
                if not np.isfinite(numbers).all():
                    count = int((~np.isfinite(numbers)).sum())
                    first = numbers[~np.isfinite(numbers)][0]
                    return f"{count} of {numbers.size} values of output {name!r} are not finite, the first is {first}"
        return ""


@dataclass(frozen=True, slots=True)
class Simplex:
    """See `simplex`."""

    output: str | None
    axis: int
    name: str = "probability simplex"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        return (
            f"probabilities along axis {self.axis} lie in [0, 1] and sum to 1, within {STEPS} units in the last place"
        )

    def check(self, predictor: Answering, candidates: Feed, _base: Feed) -> Violations:
        """Which rows of finite numbers have answers that are no probabilities."""
        answers = chosen(predictor.predict(candidates), self.output)
        if len(answers) != 1:
            raise UsageError(f"the model has {len(answers)} outputs: name the probabilities by output=")
        ((name, array),) = answers.items()
        if kind_of(array.dtype) != "real" or not -array.ndim <= self.axis < array.ndim or self.axis == 0:
            raise UsageError(
                f"output {name!r}, {array.dtype.name}{list(array.shape)}, has no axis {self.axis} of scores"
            )
        room = STEPS * machine_epsilon(array.dtype.name)
        numbers = array.astype(np.float64)
        total = np.abs(numbers.sum(axis=self.axis) - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        outside = np.maximum(-numbers, numbers - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        excess = np.where(finite_rows(candidates), np.maximum(total, outside) / room, 0.0)

        def told(row: int) -> str:
            sums = numbers.sum(axis=self.axis)[row]
            return (
                f"output {name!r} holds {numbers[row].min():.6g} to {numbers[row].max():.6g} and sums to "
                f"{np.ravel(sums)[np.abs(np.ravel(sums) - 1).argmax()]:.6g}"
            )

        return Violations.beyond(excess, told)


def finite_outputs(*, output: str | None = None) -> FiniteOutputs:
    """Inputs without NaN and infinities have outputs without them.

    Nothing is tolerated. Holds within the range of the data for every sound model; in the domain "far" only where the
    graph itself limits its inputs. Broken by a division or a logarithm that meets zero, and by float16 overflow.
    """
    return FiniteOutputs(output)


def simplex(*, output: str | None = None, axis: int = -1) -> Simplex:
    """Scores along `axis` are probabilities: none outside [0, 1], and their sum is 1, for inputs that are finite.

    Tolerated are 256 units in the last place of 1: a softmax rounds each of its terms once, and their sum by the
    square root of their number. Broken by logits that are served as probabilities, and by a softmax over another axis.
    `output` is required where there are several.
    """
    return Simplex(output, axis)


def finite_rows(arrays: Feed) -> NDArray[np.bool_]:
    """The rows (n,) without NaN or infinities in any array of real numbers."""
    count = len(next(iter(arrays.values())))
    found = np.ones(count, np.bool_)
    for array in arrays.values():
        if kind_of(array.dtype) == "real":
            numbers: NDArray[Any] = array if is_numpys_own(array.dtype) else array.astype(np.float32)
            found &= np.isfinite(numbers).reshape(count, -1).all(axis=1)
    return found
