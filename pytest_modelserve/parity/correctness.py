"""Which rows a predictor answers rightly, and what has to be said about how it answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics import Decoding, correct_rows, decode
from pytest_modelserve.parity.predicting import Inputs, chosen_output, rows_with_nan
from pytest_modelserve.serving import Predictor


@dataclass(frozen=True, slots=True)
class Answers:
    """Whether each row is answered rightly, shape (n,), and sentences on rows whose scores hold NaN."""

    correct: NDArray[np.bool_]
    findings: tuple[str, ...]

    @property
    def right(self) -> int:
        """The number of right answers."""
        return int(self.correct.sum())


def answers_of(
    predictor: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    output: str | None,
    decode_as: Decoding,
    may_be_nan: bool = True,
) -> Answers:
    """The answers of `predictor` held against `labels`; a row whose scores hold NaN is wrong.

    InputError for labels that do not fit and, unless `may_be_nan`, for scores that hold NaN.
    """
    name, scores = chosen_output(predictor, inputs, output)
    decoded = decode(scores, decode_as)
    if not decoded.invalid.any():
        return Answers(correct_rows(decoded, labels), ())
    bad = np.flatnonzero(decoded.invalid)
    told = (
        f"output {name!r} of {predictor.subject} holds NaN in {len(bad)} of {len(scores)} rows, first in row {bad[0]} "
        f"({rows_with_nan(inputs)} rows of the inputs hold NaN)"
    )
    if not may_be_nan:
        raise InputError(f"{told}: a reference that answers NaN cannot judge; clean the inputs or mend the reference")
    return Answers(correct_rows(decoded, labels), (f"{told}: counted as wrong",))
