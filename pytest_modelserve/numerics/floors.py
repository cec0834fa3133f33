"""The smallest tolerance that rounding alone explains, learnt from a model's own answers computed in several ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.comparing import Outputs
from pytest_modelserve.numerics.dtypes import dtype_name, kind_of, machine_epsilon

FACTOR = 4.0
"""How many times the observed difference is tolerated. The candidate's rounding is a third draw beside the two that
were compared, on more elements than they had: of errors that are normal, the largest of 10**7 is 1.6 times the largest
of 1,000, and that of a difference of two draws 1.4 times that of one; the rest is reserve."""
STEPS = 16
"""How many steps of the dtype at the output's scale are always tolerated, for models whose reruns agree to the bit:
eight operators in a row that each round by one step on either side."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The floor of one output: an error of `relative * (scale + |reference|)` is rounding.

    `scale` is the output's largest finite magnitude, `differences` are the largest differences of each rerun from the
    answers, in the output's own units, and `steps` is what STEPS steps of the dtype are, relative to the scale.
    """

    output: str
    dtype: str
    scale: float
    differences: Mapping[str, float]
    steps: float

    @property
    def observed(self) -> float:
        """The largest difference of any rerun as a share of the scale; 0.0 where nothing differs."""
        largest = max(self.differences.values(), default=0.0)
        return largest / self.scale if largest else 0.0

    @property
    def relative(self) -> float:
        """The floor as a share of the scale."""
        return max(FACTOR * self.observed, self.steps)

    @property
    def is_rounding(self) -> bool:
        """Whether at least half of the dtype's digits are equal in all runs: what differs more is not rounding."""
        return self.observed <= math.sqrt(machine_epsilon(self.dtype))


def floors(answers: Outputs, reruns: Mapping[str, Outputs]) -> tuple[Floor, ...]:
    """The floor of each real output in `answers`, from the same model's answers in `reruns`, by what they are called.

    Elements that are not finite in one of the two count for nothing. InputError where a rerun gives another shape.
    """
    return tuple(
        Floor(
            output=name,
            dtype=dtype_name(array.dtype),
            scale=_scale(array),
            differences={how: _difference(how, name, again[name], array) for how, again in reruns.items()},
            steps=STEPS * machine_epsilon(array.dtype.name),
        )
        for name, array in answers.items()
        if kind_of(array.dtype) == "real"
    )


def _scale(array: NDArray[Any]) -> float:
    wide = array.astype(np.float64)
    return float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))


def _difference(how: str, name: str, again: NDArray[Any], array: NDArray[Any]) -> float:
    if again.shape != array.shape:
        raise InputError(f"output {name!r} has shape {again.shape} {how} and {array.shape} else: no rounding does that")
    first, second = again.astype(np.float64), array.astype(np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    return float(np.abs(first[both] - second[both]).max(initial=0.0))
