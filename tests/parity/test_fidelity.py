"""Output fidelity: SQNR, cosine, agreement and KL divergence against their budgets, for outputs and slices."""

import math

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


def test_measures_have_their_values_by_definition(answering):
    """An error of 1 % of every element: 40 dB, and the same direction."""
    evidence = ms.measure_output_fidelity(
        answering(Y * np.float32(1.01)), answering(Y), ROWS, min_sqnr_db=39, min_cosine=0.999, min_agreement=1.0
    )
    sqnr, cosine, agreement = evidence.quantities
    assert sqnr.value == pytest.approx(40, abs=0.01)
    assert cosine.value == pytest.approx(1, abs=1e-6)
    assert agreement.value == 1
    assert evidence.verdict is ms.Verdict.PASS


@pytest.mark.parametrize("budget", [{"min_sqnr_db": 25}, {"min_cosine": 0.999}, {"min_agreement": 0.9}])
def test_each_measure_can_fail(answering, budget):
    with pytest.raises(ms.GateFailure, match="outputs differ from the reference's by more than allowed"):
        ms.assert_output_fidelity(answering(Y[:, ::-1]), answering(Y), ROWS, **budget)


def test_mean_kl_divergence_is_judged(answering):
    with pytest.raises(ms.GateFailure, match="output fidelity: outputs differ from the reference's by more"):
        ms.assert_output_fidelity(
            answering(OFF, "int8"), answering(EVEN, "fp32"), ROWS, max_kl=0.03, scores="probabilities"
        )
    passing = ms.measure_output_fidelity(answering(OFF), answering(EVEN), ROWS, max_kl=0.037, scores="probabilities")
    assert passing.quantities[0].value == pytest.approx(KL, rel=1e-6)
    assert passing.verdict is ms.Verdict.PASS
    logits = ms.measure_output_fidelity(
        answering(np.log(OFF) + 7), answering(np.log(EVEN)), ROWS, max_kl=1, scores="logits"
    )
    assert logits.quantities[0].value == pytest.approx(KL, rel=1e-5)


def test_worst_output_decides_and_each_has_its_figures(answering):
    evidence = ms.measure_output_fidelity(
        answering({"a": Y, "b": Y * np.float32(1.1)}), answering({"a": Y, "b": Y}), ROWS, min_sqnr_db=10
    )
    exact, off = evidence.details["outputs"]
    assert (exact["name"], exact["SQNR"]) == ("a", math.inf)
    assert (off["name"], off["SQNR"]) == ("b", pytest.approx(20, abs=0.01))
    assert evidence.quantities[0].value == off["SQNR"]
    evidence.to_json()
    kl = ms.measure_output_fidelity(
        answering({"a": OFF, "b": EVEN}), answering({"a": EVEN, "b": EVEN}), ROWS, max_kl=1, scores="probabilities"
    )
    assert kl.quantities[0].value == pytest.approx(KL, rel=1e-6)


BOXES_AND_SCORES = np.concatenate(
    [np.random.default_rng(0).uniform(0, 640, (20, 4, 5)), np.random.default_rng(1).uniform(0.4, 0.6, (20, 3, 5))],
    axis=1,
).astype(np.float32)
DETECTIONS = np.zeros((20, 1), np.float32)


@pytest.mark.parametrize("budget", [{"min_sqnr_db": 18}, {"min_cosine": 0.99}], ids=["SQNR", "cosine"])
@pytest.mark.parametrize(
    ("axes", "named"), [((0, 1, 2), "of axis 1"), ((0, 2, 1), "of axis 2")], ids=["maps", "features"]
)
def test_scores_that_are_zero_beside_boxes_in_pixels_fail_by_name(answering, budget, axes, named):
    lost = BOXES_AND_SCORES.copy()
    lost[:, 5] = 0
    evidence = ms.measure_output_fidelity(
        answering(lost.transpose(axes)), answering(BOXES_AND_SCORES.transpose(axes)), DETECTIONS, **budget
    )
    assert evidence.verdict is ms.Verdict.FAIL
    figure, constant = evidence.findings
    assert figure.startswith(f"output 'output' channel 5 {named}: ")
    assert constant.startswith(f"output 'output' channel 5 {named}: constant in the candidate and not in the reference")
    assert f"channel 5 {named}" in evidence.details["outputs"][0].values()


def test_channel_that_agreement_does_not_see_is_named(answering):
    scores = np.array([[0.7, 0.2, 0.3], [0.8, 0.1, 0.2], [0.1, 0.3, 0.9], [0.2, 0.6, 0.4]], np.float32)
    lost = scores * np.array([1, 1, 0], np.float32) + np.array([0, 0, 0.5], np.float32)
    evidence = ms.measure_output_fidelity(answering(lost), answering(scores), ROWS, min_agreement=0.5)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings[0].startswith("output 'output' channel 2 of axis 1: constant in the candidate")


def test_constant_channel_of_the_reference_is_named(answering):
    fixed = Y.copy()
    fixed[:, 1] = 3
    evidence = ms.assert_output_fidelity(answering(fixed), answering(fixed), ROWS, min_sqnr_db=25)
    assert evidence.findings == (
        "output 'output' channel 1 of axis 1 is constant on these rows, so that they show nothing about it",
    )


def test_class_that_the_candidate_rules_out_fails_any_budget(answering):
    never = np.array([[1, 0]] * 4, np.float32)
    evidence = ms.measure_output_fidelity(answering(never), answering(EVEN), ROWS, max_kl=1e9, scores="probabilities")
    assert evidence.quantities[0].value == math.inf
    assert evidence.verdict is ms.Verdict.FAIL


def test_rows_below_the_margin_do_not_count(answering):
    reference = np.array([[0.9, 0.1], [0.2, 0.8], [0.51, 0.49], [0.3, 0.7]], np.float64)
    candidate = reference.copy()
    candidate[2] = 0.49, 0.51

    def agreement(**options):
        return ms.measure_output_fidelity(
            answering(candidate), answering(reference), ROWS, min_agreement=1.0, **options
        )

    assert agreement().quantities[0].value == 0.75
    assert agreement(min_margin=0.0).quantities[0].value == 0.75
    decided = agreement(min_margin=0.1)
    assert (decided.quantities[0].value, decided.verdict) == (1.0, ms.Verdict.PASS)
    assert decided.findings == (
        "output 'output': 3 of 4 rows have a reference margin above 0.1; 1 of all rows change their top class, with a "
        "margin of at most 0.02",
    )
    with pytest.raises(ms.InputError, match=r"min_margin"):
        agreement(min_margin=0.9)


def test_bfloat16_outputs_are_compared(answering):
    """Their dtype is of numpy's kind "V": a gate that looks for "f" would find no output."""
    narrow = Y.astype(ml_dtypes.bfloat16)
    evidence = ms.measure_output_fidelity(
        answering(narrow + narrow * ml_dtypes.bfloat16(0.25)), answering(narrow), ROWS, min_sqnr_db=10, min_cosine=0.9
    )
    assert evidence.quantities[0].value == pytest.approx(12.0, abs=0.3)  # an error of a quarter: 20 log10(4)


def test_slices_inform_and_do_not_decide(answering):
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


def test_worst_slice_of_a_divergence_is_the_highest(answering):
    evidence = ms.measure_output_fidelity(
        answering(OFF), answering(EVEN), ROWS, max_kl=1, scores="probabilities", slices={"row": np.arange(4) // 2}
    )
    assert evidence.findings == ("worst slice row=0: KL in nats 0.07192 over 2 rows",)


def test_slice_without_a_decided_row_has_no_figure(answering):
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.5, 0.5]])
    evidence = ms.measure_output_fidelity(
        answering(scores), answering(scores), ROWS, min_agreement=1, min_margin=0.1, slices={"half": [0, 0, 1, 1]}
    )
    assert [each["agreement"] for each in evidence.details["slices"]] == [1.0, None]
    assert "worst slice half=0: agreement 100.0 % over 2 rows" in evidence.findings


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ({"a": Y[:2]}, "output 'a': shape is (2, 3) where the reference has (4, 3)"),
        ({"b": Y, "c": Y}, "output 'a' is missing from the candidate"),
        ({"a": Y.astype(str)}, "output 'a': dtype is str where the reference has float32"),
        (
            {"a": np.where(Y == 5, np.nan, Y)},
            "output 'a': NaN where the reference is finite, 1 elements, first at (1, 1)",
        ),
    ],
    ids=["shape", "missing", "dtype", "nan"],
)
def test_outputs_that_cannot_be_compared_fail(answering, outputs, sentence):
    evidence = ms.measure_output_fidelity(answering(outputs), answering({"a": Y}), ROWS, min_sqnr_db=1)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings == (sentence,)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({}, "give at least one of min_sqnr_db, min_cosine, min_agreement and max_kl"),
        ({"min_cosine": 2}, "min_cosine must be between 0 and 1, got 2"),
        ({"max_kl": 0.1}, "max_kl and scores must be given together"),
        ({"min_sqnr_db": 1, "scores": "logits"}, "max_kl and scores must be given together"),
        ({"max_kl": 0.1, "scores": "logit"}, "unknown scores 'logit'"),
        ({"max_kl": -1, "scores": "logits"}, "max_kl must be a finite number of nats of at least 0, got -1"),
        ({"min_cosine": 0.9, "min_margin": 0.1}, "min_margin needs min_agreement"),
        ({"min_agreement": 0.9, "min_margin": -0.1}, "min_margin must be a finite number of at least 0, got -0.1"),
        ({"min_sqnr_db": 1, "slices": {"kind": np.arange(3)}}, "slice 'kind' has shape"),
        (
            {"min_sqnr_db": 1, "slices": ms.Slices({"kind": np.arange(4)}, max_drop=0.1, min_rows=1)},
            "max_drop= does not apply to output fidelity",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value) or "none",
)
def test_invalid_arguments_are_refused_before_anything_runs(options, fact):
    def never(x):
        raise AssertionError("was run")

    with pytest.raises(ms.UsageError, match=fact):
        ms.measure_output_fidelity(ms.serve(never), ms.serve(never), ROWS, **options)


def test_outputs_that_a_budget_does_not_apply_to_are_refused(answering):
    with pytest.raises(ms.UsageError, match="no floating-point output"):
        ms.measure_output_fidelity(answering(Y.astype(int)), answering(Y.astype(int)), ROWS, min_sqnr_db=1)
    with pytest.raises(ms.InputError, match=r"output 'output' has shape \(2, 3\) for 4 rows"):
        ms.measure_output_fidelity(
            answering(Y[:2]), answering(Y[:2]), ROWS, min_sqnr_db=1, slices={"kind": np.arange(4)}
        )
