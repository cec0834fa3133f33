"""Change points against the enumeration of all permutations, and simulations of their error rate."""

import itertools

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import change_points


def statistics_by_definition(rows):
    """The largest standardized difference of the means inside and outside an interval, for each row."""
    rows = np.asarray(rows, dtype=float)
    deviations = rows - np.median(rows, axis=1, keepdims=True)
    unit = np.median(np.abs(deviations[0])) or np.mean(np.abs(deviations[0]))
    scores = np.clip(deviations / unit, -5, 5)
    n = rows.shape[1]
    found = np.zeros(len(rows))
    for first, last in itertools.combinations(range(n + 1), 2):
        m = last - first
        if m >= 3 and n - m >= 3 and (first == 0 or first >= 3) and (last == n or n - last >= 3):
            inside = np.zeros(n, dtype=bool)
            inside[first:last] = True
            change = scores[:, inside].mean(axis=1) - scores[:, ~inside].mean(axis=1)
            found = np.maximum(found, np.abs(change) * np.sqrt(m * (n - m)) / n)
    return found


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 9, 8, 7, 6], [1, 1, 1, 1, 2, 2, 2, 2], [9, 9, 9, 1, 1, 1, 9, 9]])
def test_p_value_is_the_share_of_all_permutations(values):
    permutations = np.array(list(itertools.permutations(values)))
    exact = np.mean(statistics_by_definition(permutations) >= statistics_by_definition([values]) - 1e-9)
    found = change_points({"it": values}, error_rate=0.49)["it"][0].p_value
    # The sequential p-value ends at ten exceedances, with a relative standard error of about a third.
    assert exact / 2.2 < found < 2.2 * exact


def test_lasting_change_and_change_that_went_back_are_found_at_their_places():
    rng = np.random.default_rng(0)
    step = np.concatenate([rng.normal(10, 1, 20), rng.normal(20, 1, 8)])
    bump = np.concatenate([rng.normal(10, 1, 12), rng.normal(20, 1, 8), rng.normal(10, 1, 12)])
    found = change_points({"step": step, "bump": bump, "same": rng.normal(size=30)})
    assert [point.at for point in found["step"]] == [20]
    assert [point.at for point in found["bump"]] == [12, 20]
    assert found["same"] == ()
    (point,) = found["step"]
    assert (point.before, point.after) == (np.median(step[:20]), np.median(step[20:]))
    assert 0 < point.p_value < 0.01


def test_file_size_that_is_constant_on_both_sides_is_a_change():
    (point,) = change_points({"size": [88.0] * 12 + [96.0] * 5})["size"]
    assert (point.at, point.before, point.after) == (12, 88.0, 96.0)


@pytest.mark.parametrize("values", [[], [1.0], [5.0] * 50, [1, 2, 3, 9, 9, 9, 9]])
def test_series_that_is_short_or_constant_has_no_change_point(values):
    assert change_points({"it": values}) == {"it": ()}


def test_more_series_ask_for_more_evidence():
    values = np.array([1, 2, 3, 1, 2, 3, 1, 4, 5, 6, 4, 5], dtype=float)
    alone = change_points({0: values})[0]
    rng = np.random.default_rng(0)
    assert alone
    assert not change_points({0: values, **{i: rng.normal(size=12) for i in range(1, 400)}})[0]


def test_result_does_not_depend_on_the_order_or_the_scale_of_series():
    rng = np.random.default_rng(3)
    series = {name: np.append(rng.normal(size=12), rng.normal(3, 1, 10)) for name in "ab"}
    found = change_points(series)
    assert change_points(dict(reversed(series.items()))) == found
    assert [p.at for p in change_points({"a": np.exp(series["a"]), "b": series["b"]})["a"]] == [
        p.at for p in found["a"]
    ]


def test_table_without_change_has_a_change_point_in_at_most_five_percent():
    rng = np.random.default_rng(5)
    tables = [dict(enumerate(rng.normal(size=(8, 16)))) for _ in range(150)]
    with_change = sum(any(change_points(table, seed=number).values()) for number, table in enumerate(tables))
    assert with_change <= 15  # of 150 at 5 %: above it with probability 0.6 %


def test_series_beside_one_that_changes_keeps_its_error_rate_and_the_change_is_not_split():
    rng = np.random.default_rng(6)
    false = extra = 0
    for number in range(60):
        changed = np.append(rng.normal(size=14), rng.normal(4, 1, 10))
        found = change_points({"changed": changed, **dict(enumerate(rng.normal(size=(5, 24))))}, seed=number)
        extra += len(found.pop("changed")) > 1
        false += any(found.values())
    assert false <= 8  # of 60 at 5 %: above it with probability 0.7 %
    assert extra <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"series": {"p95": [1.0, np.nan]}}, "series 'p95' holds NaN or infinities: leave"),
        ({"series": {"p95": [1.0, np.inf]}}, "series 'p95' holds NaN or infinities: leave"),
        ({"series": {"p95": [[1.0]]}}, "series 'p95' must be numbers of shape"),
        ({"series": {}, "error_rate": 0.0}, "error_rate must be above 0"),
        ({"series": {}, "min_segment": 0}, "min_segment must be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        change_points(**arguments)
