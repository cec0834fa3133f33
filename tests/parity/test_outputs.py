"""Output parity and output fidelity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pytest_modelserve as ms

ROWS = np.zeros((4, 1), np.float32)
Y = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def test_equal_outputs_pass_and_their_names_do_not_matter_when_single(answering: Any) -> None:
    evidence = ms.measure_output_parity(
        answering({"logits": Y}), answering({"output": Y.copy()}), ROWS, rtol=1e-5, atol=0
    )
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[0].value == 0
    assert evidence.alpha == 0


def test_failure_names_the_element(answering: Any) -> None:
    off = Y.copy()
    off[2, 1] += 1
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_parity(answering(off, "int8"), answering(Y, "fp32"), ROWS, rtol=0.01, atol=0)
    assert (
        str(failure.value)
        == """\
output parity: outputs differ from the reference's

  error      12.5 × tolerance
  method     every element compared, rtol 0.01, atol 0, n = 4 rows
  budget     at most 1.00 × tolerance
  verdict    FAIL: the value lies above the budget

  output 'output': 1 of 12 elements are beyond rtol 0.01, atol 0; the worst is 12.5 × its tolerance at [2, 1] (candidate 9.0, reference 8.0)
  candidate  int8
  reference  fp32
  next       find the first operator that differs: compare both graphs with outputs at every node"""
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda y: {"a": y[:2], "b": Y}, "output 'a': shape is (2, 3) where the reference has (4, 3)"),
        (lambda y: {"a": y.astype(np.float64), "b": Y}, "output 'a': dtype is float64 where the reference has float32"),
        (
            lambda y: {"a": np.where(y == 5, np.nan, y), "b": Y},
            "output 'a': NaN in one and not in the other at 1 of 12",
        ),
        (lambda y: {"b": Y}, "output 'a' is missing from the candidate"),
        (lambda y: {"a": y, "b": Y, "c": Y}, "output 'c' is unknown to the reference"),
    ],
    ids=["shape", "dtype", "nan", "missing", "unexpected"],
)
def test_structural_mismatch_is_a_sentence_of_its_own(answering: Any, change: Any, sentence: str) -> None:
    evidence = ms.measure_output_parity(answering(change(Y.copy())), answering({"a": Y, "b": Y}), ROWS, rtol=1, atol=1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.quantities[0].name == "mismatches"
    assert any(finding.startswith(sentence) for finding in evidence.findings)


def test_tolerances_come_as_a_pair(answering: Any) -> None:
    with pytest.raises(TypeError, match="atol"):
        ms.measure_output_parity(answering(Y), answering(Y), ROWS, rtol=1e-3)  # type: ignore[call-arg]
    with pytest.raises(ms.UsageError, match="give both"):
        ms.measure_output_parity(answering(Y), answering(Y), ROWS, rtol=1e-3, atol=None)  # type: ignore[arg-type]
    with pytest.raises(ms.InputError, match="no rows to judge by"):
        ms.measure_output_parity(answering(Y), answering(Y), ROWS[:0], rtol=0, atol=0)


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
    with pytest.raises(ms.UsageError, match="give at least one of min_sqnr_db, min_cosine and min_agreement"):
        ms.measure_output_fidelity(answering(Y), answering(Y), ROWS)
    with pytest.raises(ms.UsageError, match=r"min_cosine lies between 0 and 1, not 2"):
        ms.measure_output_fidelity(answering(Y), answering(Y), ROWS, min_cosine=2)
    with pytest.raises(ms.UsageError, match="no floating-point output"):
        ms.measure_output_fidelity(answering(Y.astype(int)), answering(Y.astype(int)), ROWS, min_sqnr_db=1)
