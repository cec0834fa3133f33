"""Rows needed: the gates' own figures, closed forms, and what planning refuses."""

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
        ("accuracy", 0.01, {}, "metric='accuracy' with paired=True needs discordance="),
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
