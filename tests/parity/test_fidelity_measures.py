"""Output fidelity: divergence, agreement by margin, and figures for outputs and slices."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pytest_modelserve as ms

ROWS = np.zeros((4, 1), np.float32)
Y = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
EVEN = np.full((4, 2), 0.5, np.float32)
OFF = np.array([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.5, 0.5]], np.float32)
KL = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 4
"""By definition: one row of four differs."""


def test_mean_divergence_is_judged_with_its_whole_story(answering: Any) -> None:
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_fidelity(
            answering(OFF, "int8"), answering(EVEN, "fp32"), ROWS, max_kl=0.03, scores="probabilities"
        )
    assert (
        str(failure.value)
        == """\
output fidelity: outputs are further from the reference than allowed

  KL in nats 0.0360
  method     every row compared, worst output judged, n = 4 rows
  budget     at most 0.0300
  verdict    FAIL: the value lies above the budget

  candidate  int8
  reference  fp32
  next       keep the layers that lose the signal in full precision"""
    )
    passing = ms.measure_output_fidelity(answering(OFF), answering(EVEN), ROWS, max_kl=0.037, scores="probabilities")
    assert passing.quantities[0].value == pytest.approx(KL, rel=1e-6)
    assert passing.verdict is ms.Verdict.PASS


def test_the_output_with_the_largest_divergence_is_judged(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(
        answering({"a": OFF, "b": EVEN}), answering({"a": EVEN, "b": EVEN}), ROWS, max_kl=1, scores="probabilities"
    )
    assert evidence.quantities[0].value == pytest.approx(KL, rel=1e-6)


def test_logits_are_put_through_a_softmax_first(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(
        answering(np.log(OFF) + 7), answering(np.log(EVEN)), ROWS, max_kl=1, scores="logits"
    )
    assert evidence.quantities[0].value == pytest.approx(KL, rel=1e-5)


def test_a_class_that_the_candidate_rules_out_fails_any_budget(answering: Any) -> None:
    never = np.array([[1, 0]] * 4, np.float32)
    evidence = ms.measure_output_fidelity(answering(never), answering(EVEN), ROWS, max_kl=1e9, scores="probabilities")
    assert evidence.quantities[0].value == math.inf
    assert evidence.verdict is ms.Verdict.FAIL


def test_rows_that_the_reference_hardly_decides_do_not_count_by_margin(answering: Any) -> None:
    reference = np.array([[0.9, 0.1], [0.2, 0.8], [0.51, 0.49], [0.3, 0.7]], np.float64)
    candidate = reference.copy()
    candidate[2] = 0.49, 0.51

    def agreement(**options: Any) -> ms.Evidence:
        return ms.measure_output_fidelity(
            answering(candidate), answering(reference), ROWS, min_agreement=1.0, **options
        )

    assert agreement().quantities[0].value == 0.75
    assert agreement(min_margin=0.0).quantities[0].value == 0.75
    decided = agreement(min_margin=0.1)
    assert decided.quantities[0].value == 1.0
    assert decided.verdict is ms.Verdict.PASS
    assert decided.findings == (
        "output 'output': the reference decides 3 of 4 rows by more than 0.1; 1 of all rows change their top class, "
        "the most decided of them by 0.02",
    )
    with pytest.raises(ms.InputError, match=r"no row is decided by more than min_margin 0\.9"):
        agreement(min_margin=0.9)


def test_bfloat16_outputs_are_judged(answering: Any) -> None:
    """Their dtype is of numpy's kind "V": a gate that looks for "f" has nothing to judge."""
    narrow = Y.astype(ml_dtypes.bfloat16)
    evidence = ms.measure_output_fidelity(
        answering(narrow + narrow * ml_dtypes.bfloat16(0.25)), answering(narrow), ROWS, min_sqnr_db=10, min_cosine=0.9
    )
    assert evidence.quantities[0].value == pytest.approx(12.0, abs=0.3)  # an error of a quarter: 20 log10(4)


def test_every_output_has_its_figures_where_there_are_several(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(
        answering({"a": Y, "b": Y * np.float32(1.1)}), answering({"a": Y, "b": Y}), ROWS, min_sqnr_db=10
    )
    exact, off = evidence.details["outputs"]
    assert (exact["name"], exact["SQNR"]) == ("a", math.inf)
    assert (off["name"], off["SQNR"]) == ("b", pytest.approx(20, abs=0.01))
    assert evidence.quantities[0].value == off["SQNR"]
    evidence.to_json()


def test_slices_inform_and_do_not_judge(answering: Any) -> None:
    candidate = Y.copy()
    candidate[3] *= -1
    evidence = ms.measure_output_fidelity(
        answering(candidate),
        answering(Y),
        ROWS,
        min_sqnr_db=-10,
        min_agreement=0.5,
        slices={"kind": np.array(["x", "x", "x", "y"]), "all": lambda rows: np.ones(len(rows), dtype=bool)},
    )
    assert [quantity.name for quantity in evidence.quantities] == ["SQNR", "agreement"]
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings == (
        "worst slice kind=y: SQNR -6.0 dB over 1 rows",
        "worst slice kind=y: agreement 0.0 % over 1 rows",
    )
    assert [(each["slice"], each["rows"], each["output"]) for each in evidence.details["slices"]] == [
        ("kind=x", 3, "output"),
        ("kind=y", 1, "output"),
        ("all", 4, "output"),
    ]
    assert evidence.details["slices"][0]["SQNR"] == math.inf
    assert evidence.details["slices"][2]["SQNR"] == evidence.quantities[0].value


def test_the_worst_slice_of_a_divergence_is_the_highest(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(
        answering(OFF), answering(EVEN), ROWS, max_kl=1, scores="probabilities", slices={"row": np.arange(4) // 2}
    )
    assert evidence.findings == ("worst slice row=0: KL in nats 0.07192 over 2 rows",)


def test_a_slice_in_which_nothing_is_decided_has_no_figure(answering: Any) -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.5, 0.5]])
    evidence = ms.measure_output_fidelity(
        answering(scores), answering(scores), ROWS, min_agreement=1, min_margin=0.1, slices={"half": [0, 0, 1, 1]}
    )
    assert [each["agreement"] for each in evidence.details["slices"]] == [1.0, None]
    assert "worst slice half=0: agreement 100.0 % over 2 rows" in evidence.findings


def test_text_where_the_reference_has_numbers_fails(answering: Any) -> None:
    evidence = ms.measure_output_fidelity(answering(Y.astype(str)), answering(Y), ROWS, min_sqnr_db=1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings == ("output 'output': dtype is str where the reference has float32",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_kl": 0.1},
            "max_kl and scores only mean something together: scores='logits' or 'probabilities' says what the outputs "
            "are",
        ),
        (
            {"min_sqnr_db": 1, "scores": "logits"},
            "max_kl and scores only mean something together: scores='logits' or 'probabilities' says what the outputs "
            "are",
        ),
        (
            {"max_kl": 0.1, "scores": "logit"},
            "unknown scores 'logit': did you mean 'logits'? Known: 'logits', 'probabilities'",
        ),
        (
            {"max_kl": -1, "scores": "logits"},
            "max_kl is a finite number of nats of at least 0, not -1",
        ),
        (
            {"min_cosine": 0.9, "min_margin": 0.1},
            "min_margin says which rows min_agreement counts: give min_agreement as well, or neither",
        ),
        (
            {"min_agreement": 0.9, "min_margin": -0.1},
            "min_margin is a finite number of at least 0, not -0.1",
        ),
        (
            {"min_sqnr_db": 1, "slices": {"kind": np.arange(3)}},
            "slice 'kind' has shape (3,); it needs one value for each of the 4 rows",
        ),
    ],
    ids=["no-scores", "no-budget", "misspelt", "negative", "margin-alone", "negative-margin", "slice"],
)
def test_what_means_nothing_is_refused_before_anything_is_run(options: Any, message: str) -> None:
    def never(x: Any) -> Any:
        raise AssertionError("was run")

    with pytest.raises(ms.UsageError) as caught:
        ms.measure_output_fidelity(ms.serve(never), ms.serve(never), ROWS, **options)
    assert str(caught.value) == message


def test_slices_need_a_row_of_each_output_for_each_row(answering: Any) -> None:
    with pytest.raises(ms.InputError) as caught:
        ms.measure_output_fidelity(
            answering(Y[:2]), answering(Y[:2]), ROWS, min_sqnr_db=1, slices={"kind": np.arange(4)}
        )
    assert str(caught.value) == (
        "output 'output' has shape (2, 3) for 4 rows: slices= needs outputs with one row for each"
    )
