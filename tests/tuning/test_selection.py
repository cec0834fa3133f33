"""The rules of selection: which rows search and which judge, and how often a too bad variant is shown to pass."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget
from pytest_modelserve.parity.accuracy.estimates import ErrorRates
from pytest_modelserve.parity.accuracy.evaluation import JudgedFigure
from pytest_modelserve.parity.accuracy.metrics import Rows, metric_named
from pytest_modelserve.stats import Sampling
from pytest_modelserve.tuning import Trial
from pytest_modelserve.tuning.gate import GateResult, run_gate
from pytest_modelserve.tuning.selection import Split, missing_rows, select
from pytest_modelserve.tuning.variant import Variant

LIMIT = 0.05


def _trial(correct, reference, name="v", **gate):
    """A trial whose accuracy gate saw a model that is right in the rows of `correct`."""
    labels = np.arange(len(correct)) % 2
    outputs, before = np.where(correct, labels, 1 - labels), np.where(reference, labels, 1 - labels)
    budgets = {"max_drop": LIMIT, **gate}
    result = run_gate(lambda _: ms.assert_accuracy_parity(outputs, before, labels=labels, **budgets), None)
    return Trial(Variant(name, lambda: None), results=[result])


def _losses_figure(rises):
    """The figure of a gate on the rise of a mean loss, with a budget of `LIMIT`."""
    units, none = Sampling().units(len(rises)), np.zeros(0, dtype=np.intp)
    before, after = (Rows(losses, none, losses) for losses in (np.zeros(len(rises)), rises))
    estimate = metric_named("brier_score").change(before, after, units)
    return JudgedFigure(estimate, Budget("at_most", LIMIT), ErrorRates(0.95, 0.001), units)


def _rows(rng, n, drop):
    """Rows that a reference has all right, and a candidate loses with probability `drop`."""
    return rng.random(n) >= drop, np.ones(n, dtype=bool)


def test_search_and_judging_rows_are_divided_by_the_seed_alone():
    units = Sampling().units(1000)
    searched = Split(3).searched(units)
    assert searched.sum() == 300
    np.testing.assert_array_equal(searched, Split(3).searched(Sampling().units(1000)))
    assert (searched != Split(4).searched(units)).any()


def test_groups_are_divided_as_a_whole():
    groups = np.repeat(np.arange(100), 5)
    searched = Split(0).searched(Sampling(groups=groups).units(500)).reshape(100, 5)
    assert (searched.all(axis=1) | ~searched.any(axis=1)).all()
    assert searched.all(axis=1).sum() == 30


def test_too_few_units_cannot_be_divided():
    with pytest.raises(UsageError, match="10 independent rows, too few to search"):
        Split(0).searched(Sampling(groups=np.repeat(np.arange(10), 50)).units(500))


def test_a_variant_far_inside_its_budget_is_shown_and_one_beyond_it_is_not():
    rng = np.random.default_rng(0)
    trials = [_trial(*_rows(rng, 1000, drop), name=str(drop)) for drop in (0.01, 0.045, 0.1)]
    found = select(trials, error_rate=0.05)
    assert [trial.name for trial in found.shown] == ["0.01"]
    assert found.family == 3
    assert found.level > 0.95


def test_variants_that_were_not_judged_make_the_level_stricter():
    trials = [_trial(*_rows(np.random.default_rng(0), 1000, 0.01))]
    assert select(trials, error_rate=0.05).level == pytest.approx(0.95, abs=0.003)
    assert select(trials, error_rate=0.05, unjudged=59).level > 0.998


def test_a_variant_needs_all_of_its_figures():
    rng = np.random.default_rng(0)
    good = _trial(*_rows(rng, 1000, 0.01))
    bad = _trial(*_rows(rng, 1000, 0.045))
    both = Trial(Variant("both", lambda: None), results=[*good.results, *bad.results])
    assert select([both], error_rate=0.05).shown == ()


def test_figures_of_other_rows_and_of_functions_are_judged_too():
    rng = np.random.default_rng(0)
    correct, reference = _rows(rng, 900, 0.01)
    rows, other = _trial(correct, reference), _trial(*_rows(rng, 1000, 0.01))

    def accuracy(labels, outputs):
        return float((labels == outputs).mean())

    function = _trial(correct, reference, metric=accuracy)
    joined = Trial(Variant("all", lambda: None), results=[*rows.results, *other.results, *function.results])
    assert select([joined], error_rate=0.05).shown == (joined,)


def test_too_bad_variants_are_shown_in_five_percent_of_searches_at_most():
    """Eight variants exactly at the budget, whose losses are correlated."""
    rng = np.random.default_rng(5)
    shown = naive = 0
    for _ in range(150):
        rises = LIMIT + rng.standard_normal((400, 8)) + rng.standard_normal((400, 1))
        figures = [_losses_figure(column) for column in rises.T]
        trials = [Trial(Variant("v", lambda: None), results=[GateResult((), (figure,))]) for figure in figures]
        shown += bool(select(trials, error_rate=0.05).shown)
        naive += any(figure.passes(figure.estimate, 0.95) for figure in figures)
    assert 0 < shown / 150 <= 0.105  # 5 % ± 3 standard errors
    assert naive / 150 > 0.15


def test_the_searched_rows_tell_the_probability_of_passing_and_do_not_judge():
    n = 2000
    split, reference = Split(0), np.ones(n, dtype=bool)
    searched = split.searched(Sampling().units(n))
    lost = np.random.default_rng(0).random(n) < 0.2
    lucky = _trial(~(lost & ~searched), reference, name="no row lost in the search")
    unlucky = _trial(~(lost & searched), reference, name="rows lost in the search alone")
    level = 1 - 0.05 / 6
    assert split.pass_probability(lucky, level=level) > 0.9
    assert split.pass_probability(unlucky, level=level) < 0.01
    assert select([lucky], error_rate=0.05, split=split).shown == ()


def test_missing_rows_are_those_that_would_show_it():
    trial = _trial(*_rows(np.random.default_rng(1), 200, 0.03))
    has, needs = missing_rows(trial, level=0.95)
    assert has == 200
    assert 200 < needs <= 5000
    enough = _trial(*_rows(np.random.default_rng(2), 2 * needs, 0.03))
    assert select([enough], error_rate=0.05).shown == (enough,)


def test_no_number_of_rows_shows_a_variant_beyond_its_budget():
    assert missing_rows(_trial(*_rows(np.random.default_rng(1), 200, 0.2)), level=0.99) is None
