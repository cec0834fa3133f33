"""Sampling units and weights, as gates take them."""

import numpy as np
import pytest

import pytest_modelserve as ms

N = 40


def test_units_are_numbered_in_the_order_of_their_first_rows_and_follow_a_mask():
    units = ms.Sampling(groups=np.array(["b", "a", "b", None], dtype=object), sample_weight=[1, 2, 3, 4]).units(4)
    assert units.ids is not None
    assert (units.ids.tolist(), units.count, str(units), units.is_plain) == ([0, 1, 0, 2], 3, " over 3 groups", False)
    part = units.over(np.array([False, True, False, True]))
    assert part.ids is not None
    assert part.weights is not None
    assert (part.ids.tolist(), part.weights.tolist(), part.n) == ([0, 1], [2, 4], 2)


def test_units_of_a_block_are_runs_of_rows():
    units = ms.Sampling(block=20).units(N)
    assert units.ids is not None
    assert (units.ids.tolist(), str(units)) == ([0] * 20 + [1] * 20, " over 2 blocks of 20 rows")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": np.zeros(3)}, "groups have shape (3,); they need one id for each of the 40 rows"),
        ({"groups": np.where(np.arange(N) < 2, np.nan, 1.0)}, "groups hold NaN in 2 of 40 rows: give every row an id"),
        ({"groups": np.zeros(N), "block": 16}, "block is for consecutive rows and groups for rows that share an id"),
        ({"block": 0}, "block must be an integer of at least 1"),
        ({"sample_weight": np.ones(3)}, "sample_weight has shape (3,) and dtype float64; 40 rows need one number each"),
        ({"sample_weight": np.full(N, "a")}, "sample_weight has shape (40,) and dtype <U1"),
        ({"sample_weight": -np.ones(N)}, "sample_weight is finite and at least 0; got -1 in row 0"),
        ({"sample_weight": np.full(N, np.nan)}, "sample_weight is finite and at least 0; got nan in row 0"),
        ({"sample_weight": np.zeros(N)}, "sample_weight is 0 in every row: no row counts"),
    ],
)
def test_groups_and_weights_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ms.UsageError) as caught:
        ms.Sampling(**arguments).units(N)
    assert str(caught.value).startswith(message)
