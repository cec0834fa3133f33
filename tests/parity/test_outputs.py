"""Output parity: the same outputs, element by element."""

from __future__ import annotations

from pathlib import Path
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


def test_failure_names_the_element(answering: Any, failures: Path) -> None:
    off = Y.copy()
    off[2, 1] += 1
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_parity(answering(off, "int8"), answering(Y, "fp32"), ROWS, rtol=0.01, atol=0)
    (saved,) = failures.glob("*.npz")
    assert (
        str(failure.value)
        == f"""\
output parity: outputs differ from the reference's

  error      12.5 × tolerance
  method     every element compared, rtol 0.01, atol 0, n = 4 rows
  budget     at most 1.00 × tolerance
  verdict    FAIL: the value lies above the budget

  output 'output': 1 of 12 elements are beyond rtol 0.01, atol 0; the worst is 12.5 × its tolerance at [2, 1] (candidate 9.0, reference 8.0)
  the smallest failing input, row 2 alone, is saved with the reference's answer in {saved}, which ms.open_recording reads; the candidate has no file that a command could replay
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
    for half in ({"rtol": 1e-3}, {"atol": 0.0}):
        with pytest.raises(ms.UsageError) as caught:
            ms.measure_output_parity(answering(Y), answering(Y), ROWS, **half)
        assert str(caught.value) == (
            "rtol and atol only mean something together: give both, or neither to calibrate them"
        )
    with pytest.raises(ms.InputError, match="no rows to judge by"):
        ms.measure_output_parity(answering(Y), answering(Y), ROWS[:0], rtol=0, atol=0)
