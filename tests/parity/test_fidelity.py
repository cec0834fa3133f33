"""Output fidelity: how much of the reference's signal is left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms

ROWS = np.zeros((4, 1), np.float32)
Y = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def test_fidelity_measures_what_it_is_asked_for(answering: Any) -> None:
    """An error of 1 % of every element: 40 dB, and the same direction, by definition."""
    evidence = ms.measure_output_fidelity(
        answering(Y * np.float32(1.01)), answering(Y), ROWS, min_sqnr_db=39, min_cosine=0.999, min_agreement=1.0
    )
    sqnr, cosine, agreement = evidence.quantities
    assert sqnr.value == pytest.approx(40, abs=0.01)
    assert cosine.value == pytest.approx(1, abs=1e-6)
    assert agreement.value == 1
    assert evidence.verdict is ms.Verdict.PASS


def test_each_measure_of_fidelity_can_fail(answering: Any) -> None:
    swapped = answering(Y[:, ::-1])
    for budget in ({"min_sqnr_db": 25}, {"min_cosine": 0.999}, {"min_agreement": 0.9}):
        with pytest.raises(ms.GateFailure, match="further from the reference than allowed"):
            ms.assert_output_fidelity(swapped, answering(Y), ROWS, **budget)


def test_worst_of_several_outputs_is_judged(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(
        answering({"a": Y, "b": Y * 2}), answering({"a": Y, "b": Y}), ROWS, min_sqnr_db=25
    )
    assert evidence.quantities[0].value == pytest.approx(0)
    equal = ms.measure_output_fidelity(answering({"a": Y}), answering({"a": Y}), ROWS, min_sqnr_db=25)
    assert equal.quantities[0].value == math.inf
    assert equal.verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ({"a": Y[:2]}, "output 'a': shape is (2, 3) where the reference has (4, 3)"),
        ({"b": Y, "c": Y}, "output 'a' is missing from the candidate"),
        (
            {"a": np.where(Y == 5, np.nan, Y)},
            "output 'a': NaN where the reference is finite, 1 elements, first at (1, 1)",
        ),
    ],
    ids=["shape", "missing", "nan"],
)
def test_fidelity_tells_what_cannot_be_compared(answering: Any, outputs: Any, sentence: str) -> None:
    evidence = ms.measure_output_fidelity(answering(outputs), answering({"a": Y}), ROWS, min_sqnr_db=1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings == (sentence,)


def test_fidelity_refuses_what_it_cannot_mean(answering: Any) -> None:
    with pytest.raises(ms.UsageError, match="give at least one of min_sqnr_db, min_cosine, min_agreement and max_kl"):
        ms.measure_output_fidelity(answering(Y), answering(Y), ROWS)
    with pytest.raises(ms.UsageError, match=r"min_cosine lies between 0 and 1, not 2"):
        ms.measure_output_fidelity(answering(Y), answering(Y), ROWS, min_cosine=2)
    with pytest.raises(ms.UsageError, match="no floating-point output"):
        ms.measure_output_fidelity(answering(Y.astype(int)), answering(Y.astype(int)), ROWS, min_sqnr_db=1)
