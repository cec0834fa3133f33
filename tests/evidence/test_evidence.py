"""Verdicts, error rates and the JSON of evidence."""

import json
import math

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    holm_step_down,
    levels_for,
)
from pytest_modelserve.stats import holm


def test_json_comes_back_equal(evidence_of):
    evidence = evidence_of(details={"rows": [1, 2]}, findings=("größer",))
    assert Evidence.from_json(evidence.to_json()) == evidence


def test_infinities_and_nan_come_back_from_strict_json(evidence_of):
    """Equal outputs have an infinite SQNR: a report that turned it into NaN would turn PASS into FAIL."""
    quantities = (
        Quantity("SQNR", math.inf, "dB", budget=Budget("at_least", 25)),
        Quantity("p95", math.nan, "ms", Interval(-math.inf, math.inf, 0.999, 0.95), Budget("at_most", 1)),
    )
    text = evidence_of(quantities=quantities).to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    equal, unknown = Evidence.from_json(text).quantities
    assert equal == quantities[0]
    assert equal.verdict is Verdict.PASS
    assert unknown.interval == quantities[1].interval
    assert math.isnan(unknown.value)


def test_numpy_scalars_become_builtins(evidence_of):
    """A numpy scalar in a report property ends an xdist run with an INTERNALERROR."""
    evidence = evidence_of(details={"a": np.float32(0.5), "b": np.int64(3), "c": (np.bool_(True),)})
    assert json.loads(evidence.to_json())["details"] == {"a": 0.5, "b": 3, "c": [True]}


def test_array_in_details_is_refused(evidence_of):
    with pytest.raises(TypeError, match="JSON builtins only, not object"):
        evidence_of(details={"x": object()}).to_json()


def test_long_evidence_says_what_it_left_out(evidence_of):
    evidence = evidence_of(details={"rows": list(range(10_000))}, findings=("seen",))
    text = evidence.to_json()
    assert len(text.encode()) <= 16 * 1024
    assert json.loads(text)["shortened"] == ["details"]
    assert Evidence.from_json(text).findings == ("seen",)

    wordy = evidence_of(findings=("x" * 2_000,) * 20)
    data = json.loads(wordy.to_json())
    assert data["shortened"] == ["details", "findings"]
    assert data["findings"] == ["x" * 200] * 5


def test_other_schema_version_is_refused(evidence_of):
    data = {**json.loads(evidence_of().to_json()), "schema_version": 99}
    with pytest.raises(ValueError, match="schema version 99; this release reads version 2"):
        Evidence.from_json(json.dumps(data))


def test_verdict_is_the_worst_of_its_quantities(evidence_of):
    good, bad = (Quantity("q", value, "", budget=Budget("at_most", 1)) for value in (0, 2))
    assert evidence_of(quantities=(good, bad)).verdict is Verdict.FAIL
    assert evidence_of(quantities=(good, Quantity("told only", 5, ""))).verdict is Verdict.PASS


def interval(low, high):
    return Interval(low, high, 0.999, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.9, Verdict.PASS),
        (0.1, 1.0, Verdict.PASS),  # the limit is inside
        (0.9, 1.1, Verdict.INCONCLUSIVE),
        (1.0, 1.1, Verdict.INCONCLUSIVE),
        (1.1, 1.2, Verdict.FAIL),
        (-math.inf, math.inf, Verdict.INCONCLUSIVE),
    ],
)
def test_interval_is_judged_against_at_most_and_mirrored_against_at_least(low, high, verdict):
    assert Budget("at_most", 1.0).verdict(0.0, interval(low, high)) is verdict
    assert Budget("at_least", -1.0).verdict(0.0, interval(-high, -low)) is verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.0, Verdict.PASS), (1.1, Verdict.FAIL), (math.nan, Verdict.FAIL)])
def test_exact_value_never_is_inconclusive(value, verdict):
    assert Budget("at_most", 1.0).verdict(value) is verdict


def test_pass_rests_on_confidence_and_fail_on_alpha():
    assert levels_for(Budget("at_most", 0), confidence=0.95, alpha=0.001) == (0.999, 0.95)
    assert levels_for(Budget("at_least", 0), confidence=0.95, alpha=0.001) == (0.95, 0.999)


def test_severity_orders_verdicts():
    assert sorted(Verdict, key=lambda v: v.severity) == [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]


@pytest.mark.parametrize("ends", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_interval_refuses_ends_that_are_none(ends):
    with pytest.raises(ValueError, match="not an interval"):
        interval(*ends)


@pytest.mark.parametrize("limit", [math.nan, math.inf])
def test_budget_is_finite(limit):
    with pytest.raises(UsageError, match="the limit of a budget must be a finite number"):
        Budget("at_most", limit)


@pytest.mark.parametrize(("confidence", "alpha"), [(0.5, 0.001), (1.0, 0.001), (0.95, 0.0), (0.95, 0.5)])
def test_error_rates_leave_room_for_a_verdict(confidence, alpha):
    with pytest.raises(UsageError):
        check_error_rates(confidence=confidence, alpha=alpha)


def significant_at(p_value):
    """A quantity whose interval lies above its budget as soon as the error rate reaches its p-value."""

    def at(alpha):
        low = 1.5 if p_value <= alpha else 0.5
        return Quantity("q", 2.0, "", Interval(low, 3.0, 1 - alpha, 0.95), Budget("at_most", 1.0))

    return at


@pytest.mark.parametrize("seed", range(50))
def test_exactly_those_fail_that_holm_rejects(seed):
    rng = np.random.default_rng(seed)
    p_values = rng.beta(0.2, 1, size=rng.integers(1, 12))
    found = holm_step_down({index: significant_at(p) for index, p in enumerate(p_values)}, alpha=0.05)
    failed = [found[index].verdict is Verdict.FAIL for index in range(len(p_values))]
    assert failed == (holm(p_values) <= 0.05).tolist()


def test_nothing_to_judge_is_nothing_judged():
    assert holm_step_down({}, alpha=0.05) == {}


@pytest.mark.parametrize(
    ("gate", "names"),
    [
        ("accuracy", ("measure_accuracy", "assert_accuracy")),
        ("ROC AUC", ("measure_accuracy", "assert_accuracy")),
        ("log loss parity", ("measure_accuracy_parity", "assert_accuracy_parity")),
        ("output parity", ("measure_output_parity", "assert_output_parity")),
        ("latency p95", ("measure_latency", "assert_latency")),
        ("memory growth on reload", ("measure_memory_growth", "assert_no_leak")),
        ("memory", ("measure_memory", "assert_memory")),
        ("drift", ("measure_drift", "assert_no_drift")),
    ],
)
def test_truth_value_of_evidence_is_refused_with_the_assertion_to_call(evidence_of, gate, names):
    measure, assertion = names
    with pytest.raises(TypeError, match=rf"`assert {measure}\(\.\.\.\)` would pass .*; call {assertion}\(\.\.\.\)"):
        assert evidence_of(gate=gate)


def test_evidence_shows_what_decides_and_prints_its_failure_text(evidence_of):
    slow = Quantity("slowdown", 2.0, "ratio", Interval(1.9, 2.1, 0.999, 0.95), Budget("at_most", 1.1))
    fast = Quantity("p50", 0.9, "ratio", Interval(0.8, 1.0, 0.999, 0.95), Budget("at_most", 1.1))
    evidence = evidence_of(gate="slowdown", quantities=(fast, slow), n=50, n_unit="pairs", findings=("on a busy host",))
    assert (evidence.value, evidence.interval, evidence.budget) == (2.0, slow.interval, slow.budget)
    assert not evidence.passed
    assert repr(evidence) == (
        "<Evidence slowdown of digits / int8 vs digits / fp32: FAIL, slowdown × 2.00 [1.90, 2.10] ≤ × 1.10, n = 50 pairs>"
    )
    assert str(evidence).startswith("slowdown: accuracy stays within its budget\n")
    assert "on a busy host" in str(evidence)


def test_notebook_shows_one_line_that_opens_to_the_text(evidence_of):
    good, bad = evidence_of(), evidence_of(0.03, 0.02, subject=Subject("<script>alert(1)</script>"))
    assert good._repr_html_().startswith("<details><summary>accuracy parity of digits / int8 vs digits / fp32: PASS, ")
    assert bad._repr_html_().startswith("<details open><summary>accuracy parity of &lt;script&gt;alert(1)")
    assert "  verdict    FAIL: the whole interval lies above the budget\n" in bad._repr_html_()
    assert "<script" not in bad._repr_html_()


def test_passed_is_pass_alone(evidence_of):
    assert [evidence_of(high=high, low=low).passed for low, high in ((0, 0.005), (0, 0.02), (0.02, 0.03))] == [
        True,
        False,
        False,
    ]


def test_evidence_without_budgets_is_a_measurement_and_comes_back_from_json(evidence_of):
    measured = evidence_of().without_budgets()
    assert (measured.verdict, measured.budget, measured.alpha, measured.passed) == (None, None, 0.0, False)
    assert Evidence.from_json(measured.to_json()) == measured
    assert "measured, without a budget" in str(measured)
    assert "budget   " not in str(measured)
    assert "measured, drop" in repr(measured)
