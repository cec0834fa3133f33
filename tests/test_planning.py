"""Rows needed: the gates' own figures, closed forms, and what planning refuses."""

import re

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve import stats

rows_needed = ms.planning.rows_needed


def test_rows_for_accuracy_are_those_of_the_statistics():
    expected = stats.rows_needed(discordance=0.02, margin=0.01, confidence=0.95)
    assert rows_needed("accuracy", 0.01, discordance=0.02) == expected
    assert rows_needed("top_5_accuracy", 0.01, discordance=0.02) == expected
    assert rows_needed("recall", 0.01, discordance=0.02, positive_rate=0.1) == 10 * expected
    worse = rows_needed("accuracy", 0.01, discordance=0.02, difference=0.005)
    assert worse == stats.rows_needed(discordance=0.02, margin=0.01, difference=0.005, confidence=0.95)
    assert worse > 3 * expected


def test_rows_for_accuracy_by_itself_keep_the_exact_bound():
    assert rows_needed("accuracy", 0.01, value=1.0, paired=False) == 299
    n = rows_needed("accuracy", 0.02, value=0.92, paired=False)
    assert n == pytest.approx(8.564 * 0.92 * 0.08 / 0.02**2, rel=0.15)


def test_rows_for_a_loss_are_those_that_the_gate_tells():
    rng = np.random.default_rng(0)
    targets, old = rng.standard_normal(300), rng.standard_normal(300)
    new = old + 0.2 * rng.standard_normal(300)
    evidence = ms.measure_accuracy_parity(
        ms.serve(lambda x: targets + new, name="new"),
        ms.serve(lambda x: targets + old, name="old"),
        np.zeros((300, 1)),
        targets,
        metric="mae",
        max_rise=0.035,
    )
    differences = np.abs(new) - np.abs(old)
    planned = rows_needed("mae", 0.035, pilot=differences, difference=float(differences.mean()))
    assert planned == evidence.details["rows_needed"]


@pytest.mark.parametrize("metric", ["mae", "log_loss", "brier_score"])
def test_standard_deviation_alone_gives_the_closed_form(metric):
    assert rows_needed(metric, 0.01, standard_deviation=0.2) == pytest.approx(8.564 * 0.2**2 / 0.01**2, rel=0.01)
    assert rows_needed(metric, 0.01, standard_deviation=0.2, paired=False) == rows_needed(
        metric, 0.01, standard_deviation=0.2
    )


def test_rows_for_an_area_make_the_gate_pass_as_often_as_planned():
    n = rows_needed("roc_auc", 0.03, value=0.856, positive_rate=0.3, paired=False)
    rng, passed = np.random.default_rng(0), []
    for _ in range(120):
        labels = (rng.random(n) < 0.3).astype(int)
        score = rng.standard_normal(n) + 1.5 * labels  # an area of 0.856
        evidence = ms.measure_accuracy(
            ms.serve(lambda x, score=score: score, name="m"),
            np.zeros((n, 1)),
            labels,
            metric="roc_auc",
            min_value=0.826,
        )
        passed.append(evidence.verdict is ms.Verdict.PASS)
    assert 0.8 <= np.mean(passed) <= 1.0


def test_correlated_areas_take_fewer_rows():
    one, other = (
        rows_needed("roc_auc", 0.01, value=0.9, positive_rate=0.3, correlation=correlation)
        for correlation in (0.5, 0.95)
    )
    assert one == pytest.approx(10 * other, rel=0.01)


def test_variance_of_an_area_is_exact_for_exponential_scores():
    """A positive row's score is four times as large on average: an area of 0.8."""
    rng, positive = np.random.default_rng(0), np.arange(50) < 15
    areas = [stats.auc_of(rng.exponential(np.where(positive, 4.0, 1.0)), positive).value for _ in range(4000)]
    assert np.mean(areas) == pytest.approx(0.8, abs=0.005)
    assert np.var(areas) == pytest.approx(stats.area_variance(0.8, 15, 35), rel=0.08)
    with pytest.raises(ms.UsageError, match="at least one row of both classes"):
        stats.area_variance(0.8, 0, 35)


@pytest.mark.parametrize(
    ("metric", "margin", "arguments", "message"),
    [
        ("recall", 0.01, {}, "metric='recall' with paired=True needs positive_rate="),
        ("label_stability", 0.01, {}, "metric='label_stability' with paired=False needs value="),
        ("label_stability", 0.01, {"value": 0.9, "difference": 0.001}, "difference is not supported by"),
        ("accuracy", 0.01, {"paired": False}, "metric='accuracy' with paired=False needs value="),
        ("accuracy", 0.01, {"discordance": 0.02, "value": 0.9}, "value is not supported by metric='accuracy'"),
        ("mae", 0.01, {}, "metric='mae' with paired=True needs one of pilot= and standard_deviation="),
        ("mae", 0.01, {"pilot": [1.0, 2], "standard_deviation": 1.0}, "metric='mae' with paired=True"),
        ("mae", 0.01, {"standard_deviation": 0.0}, "standard_deviation must be above 0 and finite, got 0.0"),
        ("mae", 0.01, {"pilot": [1.0]}, "pilot has one row and thus no variance: give two or more"),
        ("accuracy", 0.01, {"discordance": 0.02, "difference": 0.01}, "difference must be below margin=0.01, got 0.01"),
        ("mae", 0.01, {"standard_deviation": 1.0, "difference": 0.005, "paired": False}, "difference is not supported"),
        ("roc_auc", 0.01, {"value": 0.4, "positive_rate": 0.5, "correlation": 0.9}, "value must be at least 0.5"),
        ("roc_auc", 0.01, {"value": 0.9, "positive_rate": 0.5, "correlation": 1}, "correlation must be at least -1"),
        ("roc_auc", 0.01, {"value": 0.9, "positive_rate": 5, "correlation": 0.9}, "positive_rate must be above 0"),
        ("acuracy", 0.01, {}, "unknown metric to plan for 'acuracy': did you mean 'accuracy'? Known"),
    ],
)
def test_invalid_plans_are_one_clear_error(metric, margin, arguments, message):
    with pytest.raises(ms.UsageError) as caught:
        rows_needed(metric, margin, **arguments)
    assert str(caught.value).startswith(message)


def test_rows_for_accuracy_without_a_discordance_say_which_they_took():
    with pytest.warns(ms.ModelServeWarning, match="discordance was not given: planned for 0.02, as of"):
        assert rows_needed("accuracy", 0.01) == rows_needed("accuracy", 0.01, discordance=0.02)
    with pytest.warns(ms.ModelServeWarning, match="planned for 0.04"):
        planned = rows_needed("recall", 0.03, difference=0.02, positive_rate=0.5)
    assert planned == rows_needed("recall", 0.03, difference=0.02, discordance=0.04, positive_rate=0.5)


def test_rows_for_label_stability_make_the_gate_pass_as_often_as_planned():
    n = rows_needed("label_stability", 0.02, value=0.97)
    assert n == rows_needed("accuracy", 0.02, value=0.97, paired=False)
    rng, passed = np.random.default_rng(0), []
    for _ in range(100):
        rows = np.where(rng.random((n, 1)) < 0.97, 1.0, -1.0).astype(np.float32)
        evidence = ms.measure_label_stability(
            ms.serve(lambda x: np.hstack([x, np.zeros_like(x)])), rows, lambda x: abs(x), min_agreement=0.95
        )
        passed.append(evidence.passed)
    assert 0.8 <= np.mean(passed) <= 1.0


def people(rows, seed=0):
    rng = np.random.default_rng(seed)
    age = np.where(rng.random(rows) < 0.02, np.nan, rng.normal(40, 12, rows))
    return {"age": age, "city": rng.choice(["a", "b", "c"], rows)}


def test_rows_for_drift_are_those_that_the_gate_tells_and_pass():
    profile = ms.reference_profile(people(10_000))
    planned = ms.planning.rows_for_drift(profile, 0.1)
    undecided = ms.measure_drift(people(300, seed=1), profile, max_distance=0.1)
    assert undecided.details["rows"] == pytest.approx(planned, rel=0.02)
    passed = [ms.measure_drift(people(planned, seed), profile, max_distance=0.1).passed for seed in range(1, 41)]
    assert np.mean(passed) >= 0.85
    assert ms.planning.rows_for_drift(profile, 0.1, block=7) > 5 * planned


def test_rows_for_quality_are_those_that_the_gate_tells_and_pass():
    profile = ms.reference_profile(people(10_000))
    planned = ms.planning.rows_for_quality(profile, 0.02)
    undecided = ms.measure_data_quality(people(200, seed=1), profile, max_rate=0.02)
    told = re.match(r"provide about ([\d,]+) rows in place of 200", undecided.advice)
    assert int(told[1].replace(",", "")) == pytest.approx(planned, rel=0.1)  # a profile has no rate of repeated values
    passed = [ms.measure_data_quality(people(planned, seed), profile, max_rate=0.02).passed for seed in range(1, 41)]
    assert np.mean(passed) >= 0.85


@pytest.mark.parametrize(
    ("plan", "budget", "message"),
    [
        (
            ms.planning.rows_for_drift,
            0.1,
            r"profile has too few rows \(200\) for max_distance=0.1: profile about [\d,]+ r",
        ),
        (
            ms.planning.rows_for_quality,
            0.001,
            r"profile has too few rows \(200\) for max_rate=0.001: profile about [\d,]+",
        ),
        (ms.planning.rows_for_drift, 0.0001, "max_distance must be at least "),
        (ms.planning.rows_for_quality, 2.0, "max_rate must lie between 0 and 1"),
    ],
)
def test_profile_that_is_too_small_and_budgets_out_of_range_are_one_clear_error(plan, budget, message):
    with pytest.raises(ms.UsageError, match=message):
        plan(ms.reference_profile(people(200)), budget)
