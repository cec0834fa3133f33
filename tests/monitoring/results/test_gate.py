"""The gate on results: valid outputs, distributed as those of a profile of outputs."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_results, output_columns, reference_profile


def probabilities(rows, seed, *, classes=3, temperature=1.0):
    logits = np.random.default_rng(seed).normal(0, 2, (rows, classes)) / temperature
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def scores(rows, seed):
    """Probabilities of class 1, 13 % of them above 0.5."""
    return np.random.default_rng(seed).beta(1, 3, rows)


@pytest.fixture(scope="module")
def profile():
    return reference_profile(output_columns(probabilities(10_000, 0)), name="validation")


@pytest.fixture(scope="module")
def alert_profile():
    return reference_profile(output_columns(scores(10_000, 0), alert_at=0.5))


def quantity(evidence, name):
    return next(each for each in evidence.quantities if each.name == name)


def test_unchanged_outputs_pass(profile):
    evidence = measure_results(probabilities(3000, 1), profile, max_distance=0.08)
    assert evidence.verdict is Verdict.PASS
    assert [each.name for each in evidence.quantities] == ["distance", "rate increase", "broken rules", "invalid rows"]
    assert evidence.n == 3000
    assert sum(before for before, _ in evidence.details["class_shares"].values()) == pytest.approx(1, abs=1e-4)


def test_less_confident_outputs_fail_and_the_text_names_the_columns(profile):
    evidence = measure_results(probabilities(3000, 1, temperature=2), profile, max_distance=0.08)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.summary.endswith("by more than a budget: distance")
    assert evidence.findings[0].startswith("'entropy' distance")
    before, now = evidence.details["means"]["confidence"]
    assert now < before - 0.1


def test_few_rows_are_inconclusive(profile):
    assert measure_results(probabilities(50, 1), profile, max_distance=0.08).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("row", "reason"),
    [([np.nan, 0.5, 0.5], "NaN or infinite"), ([0.5, 0.5, 0.5], "sum of 1"), ([-0.2, 0.6, 0.6], "from 0 to 1")],
    ids=["nan", "sum", "negative"],
)
def test_one_invalid_row_fails_and_is_named(profile, row, reason):
    outputs = probabilities(3000, 1)
    outputs[7] = row
    evidence = measure_results(outputs, profile, max_distance=0.08)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.decisive.name == "invalid rows"
    assert evidence.value == 1
    assert reason in evidence.findings[0]
    assert evidence.findings[0].endswith("in 1 of 3,000 rows, first in row 7")


def test_logits_in_place_of_probabilities_fail_with_the_option_that_reads_them(profile):
    logits = np.log(probabilities(3000, 1)) - 3
    evidence = measure_results(logits, profile, max_distance=0.08)
    assert evidence.value == 3000
    assert "ms.Output(scores='logits')" in evidence.advice
    assert measure_results(logits, profile, max_distance=0.08, output=ms.Output(scores="logits")).passed


def test_repeated_default_output_fails_by_its_own_budget(profile):
    outputs = probabilities(3000, 1)
    outputs[::25] = [0.5, 0.3, 0.2]
    evidence = measure_results(outputs, profile, max_distance=0.2, max_rate=0.01)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.summary.endswith(": rate increase")
    assert any("0.5" in finding for finding in evidence.findings)


def test_rate_of_alerts_has_a_budget_of_its_own(alert_profile):
    outputs = scores(6000, 1)
    usual = measure_results(outputs, alert_profile, max_distance=0.1, max_alert_change=0.03)
    assert usual.verdict is Verdict.PASS
    outputs[::16] = 0.51 + 0.4 * outputs[::16]
    evidence = measure_results(outputs, alert_profile, max_distance=0.1, max_alert_change=0.03, block=1)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.decisive.name == "alert rate change"
    change = np.mean(outputs >= 0.5) - np.mean(scores(10_000, 0) >= 0.5)
    assert evidence.value == pytest.approx(change)
    assert quantity(evidence, "distance").verdict is Verdict.PASS


def test_profiles_of_days_are_judged_without_their_rows(alert_profile):
    days = [reference_profile(output_columns(scores(3000, day), alert_at=0.5), like=alert_profile) for day in (1, 2)]
    merged = days[0].merge(days[1])
    evidence = measure_results(merged, alert_profile, max_distance=0.08, max_alert_change=0.03)
    assert evidence.verdict is Verdict.PASS
    assert evidence.n == 6000


def test_labels_and_numbers_have_profiles_too():
    rng = np.random.default_rng(0)
    labels = reference_profile(output_columns(rng.choice(["ham", "spam"], 5000, p=[0.8, 0.2])))
    spam = rng.choice(["ham", "spam"], 3000, p=[0.5, 0.5])
    evidence = measure_results(spam, labels, max_distance=0.1)
    assert evidence.verdict is Verdict.FAIL
    assert list(evidence.details["class_shares"]) == ["class ham", "class spam"]
    prices = reference_profile(output_columns(rng.lognormal(size=5000), kind="values"))
    assert measure_results(rng.lognormal(size=3000), prices, max_distance=0.1).verdict is Verdict.PASS
    assert measure_results(2 * rng.lognormal(size=3000), prices, max_distance=0.1).verdict is Verdict.FAIL


def test_model_predicts_the_rows_itself(profile):
    def model(rows):
        odds = np.exp(rows)
        return odds / odds.sum(axis=1, keepdims=True)

    rows = np.random.default_rng(3).normal(0, 2, (3000, 3))
    evidence = measure_results(ms.serve(model, name="net"), profile, inputs=rows, max_distance=0.08)
    assert evidence.verdict is Verdict.PASS
    assert evidence.subject.name == "net"


def test_false_alarms_of_unchanged_outputs_are_within_alpha(profile):
    alarms = sum(
        measure_results(probabilities(500, 100 + seed), profile, max_distance=1e-6, max_rate=0.5, alpha=0.2).verdict
        is Verdict.FAIL
        for seed in range(40)
    )
    assert alarms <= 14  # P(more than 14 of 40 at 0.2) < 0.01


def test_another_number_of_classes_fails(profile):
    evidence = measure_results(probabilities(100, 1, classes=4), profile, max_distance=0.1)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.findings[0].endswith("holds embeddings of 4 numbers, the profile embeddings of 3 numbers")


def test_profile_of_inputs_is_refused_with_the_call_that_makes_one():
    inputs = reference_profile({"age": np.arange(100.0)})
    with pytest.raises(ms.UsageError, match=r"is not one of outputs.*'age'.*reference_profile\(ms.output_columns"):
        measure_results(probabilities(100, 1), inputs, max_distance=0.1)


def test_single_row_and_a_reference_with_nan_are_refused(profile):
    with pytest.raises(ms.InputError, match="one row"):
        measure_results(probabilities(1, 1), profile, max_distance=0.1)
    with pytest.raises(ms.InputError, match=r"NaN or infinite in 1 of 2 rows, first in row 1: a reference needs valid"):
        output_columns(np.array([0.5, np.nan]))
    with pytest.raises(ms.UsageError, match=r"max_alert_change needs a profile with alerts"):
        measure_results(probabilities(100, 1), profile, max_distance=0.1, max_alert_change=0.1)
    with pytest.raises(ms.UsageError, match=r"give output=ms.Output\(pos_label=\)"):
        output_columns(probabilities(100, 1), alert_at=0.5)
