from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness import corruptions

ROWS = np.arange(400, dtype=np.float32).reshape(100, 4)


def corrupted(corruption: corruptions.Corruption, severity: float, rows: np.ndarray = ROWS) -> np.ndarray:
    return corruption.at(rows, severity, np.random.default_rng(0))


def test_dropped_features_are_filled_together_in_that_share_of_rows() -> None:
    changed = corrupted(corruptions.dropped([1, -1], fill=np.nan), 0.25)
    lost = np.isnan(changed)
    assert lost.sum(axis=0).tolist() == [0, 25, 0, 25]
    assert (lost[:, 1] == lost[:, 3]).all()
    assert (changed[~lost] == ROWS[~lost]).all()


def test_stale_features_are_those_of_earlier_rows() -> None:
    changed = corrupted(corruptions.stale([2]), 5)
    assert (changed[5:, 2] == ROWS[:-5, 2]).all()
    assert (changed[:5] == ROWS[:5]).all()
    assert (changed[:, [0, 1, 3]] == ROWS[:, [0, 1, 3]]).all()


def test_a_unit_slip_multiplies_in_that_share_of_rows_and_stops_at_the_largest_number() -> None:
    changed = corrupted(corruptions.unit_slip([0], factor=1000), 0.5, ROWS + 1)
    slipped = changed[:, 0] == 1000 * (ROWS[:, 0] + 1)
    assert slipped.sum() == 50
    assert (changed[~slipped] == ROWS[~slipped] + 1).all()
    small = np.full((10, 1), 100, dtype=np.int8)
    assert corrupted(corruptions.unit_slip([0], factor=1000), 1.0, small).max() == 127


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"^rows of 4 features have none numbered \[4\]$"):
        corrupted(corruptions.stale([4]), 1)
    with pytest.raises(InputError, match=r"^100 rows are too few to be 100 rows late$"):
        corrupted(corruptions.stale([0], severities=[100]), 100)
    with pytest.raises(UsageError, match=r"^stale counts whole rows, at least 1, not \(0\.5,\)$"):
        corruptions.stale([0], severities=[0.5])
    with pytest.raises(UsageError, match=r"^dropped counts shares of rows, above 0 and at most 1, not \(2,\)$"):
        corruptions.dropped([0], fill=0, severities=[2])
    with pytest.raises(InputError, match=r"^fill=nan cannot stand in rows of int64$"):
        corrupted(corruptions.dropped([0], fill=np.nan), 0.5, ROWS.astype(np.int64))
