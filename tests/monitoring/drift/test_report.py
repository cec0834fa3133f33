"""The description of a column that changed."""

import numpy as np
import pytest

from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.drift.report import describe_change, describe_gain
from pytest_modelserve.monitoring.window import read_window


def told(then, now, *, counted=False):
    profile = reference_profile({"x": then})
    [(column, reference)] = read_window(
        reference_profile({"x": now}, like=profile) if counted else {"x": now}, profile
    ).pairs
    return describe_change(column, reference) + describe_gain(column, reference)


THEN = np.arange(1000) / 100


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    ("then", "now", "where"),
    [
        (THEN, np.where(THEN < 2, 4.5, THEN), "in [4.48, 4.527): 0.4 % → 20.4 % (+20.0 points)"),
        (THEN, np.where(THEN < 2, 20.0, THEN), "from 9.949 on: 0.5 % → 20.5 % (+20.0 points)"),
        (THEN, np.where(THEN > 8, -1.0, THEN), "below 0.02734: 0.3 % → 20.2 % (+19.9 points)"),
        (
            np.arange(1000) % 10,
            np.where(np.arange(1000) % 10 == 3, 4, np.arange(1000) % 10),
            "at 4: 10.0 % → 20.0 % (+10.0 points)",
        ),
        (np.arange(1000) % 10, np.arange(1000) % 5 + 2, "from 2 to 6: 50.0 % → 100.0 % (+50.0 points)"),
    ],
    ids=["inside", "above", "below", "one whole number", "whole numbers"],
)
def test_the_range_that_gained_most_is_reported(then, now, where, counted):
    assert told(then, now, counted=counted).endswith(f"; most gained {where}")


def test_the_range_is_the_one_of_brute_force():
    rng = np.random.default_rng(0)
    then, now = rng.normal(size=3000), np.concatenate((rng.normal(size=1500), rng.normal(0.7, 0.2, 1500)))
    profile = reference_profile({"x": then}, bins=32)
    [(column, reference)] = read_window({"x": now}, profile).pairs
    edges = [-np.inf, *reference.edges, np.inf]
    gains = {
        (low, high): np.mean((now >= low) & (now < high)) - 1.1 * np.mean((then >= low) & (then < high))
        for index, low in enumerate(edges)
        for high in edges[index + 1 :]
    }
    low, high = max(gains, key=gains.__getitem__)
    assert f"in [{low:.4g}, {high:.4g})" in describe_gain(column, reference)


def test_booleans_categories_and_what_did_not_move_tell_no_range():
    assert told(np.arange(100) % 2 == 0, np.ones(50, dtype=bool)) == "true in 50.0 % → 100.0 % (+50.0 points)"
    assert told(["a", "b"] * 50, ["a"] * 50).endswith("'b' 50.0 % → 0.0 % (-50.0 points)")
    assert "gained" not in told(np.arange(10.0), np.arange(10.0))


def test_dates_are_formatted_as_dates():
    days = np.datetime64("2026-01-01") + np.arange(100).astype("timedelta64[D]")
    found = told(days, days + np.timedelta64(30, "D"))
    assert found.startswith("mean 2026-02-19")
    assert "(+30 days)" in found
    assert "most gained from 2026-0" in found
