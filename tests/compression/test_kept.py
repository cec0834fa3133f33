"""What is measured of a signal that a model's other form keeps."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.metrics.signal_quality import RowSignalQuality, worst_sqnr_db

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((65, 20))


def kept(candidate, reference):
    found = RowSignalQuality()
    found.add(np.asarray(candidate, np.float32), np.asarray(reference, np.float32))
    return found.sqnr_db


def test_even_noise_is_the_same_by_rows_and_as_a_whole():
    """An error of a tenth of every number: 20 dB, by definition."""
    assert kept(ROWS * 1.1, ROWS) == pytest.approx(20, abs=0.01)
    assert kept(ROWS, ROWS) == np.inf


def test_one_enormous_row_that_was_clipped_does_not_condemn_the_others():
    reference = ROWS.copy()
    reference[3] *= 1e6
    candidate = ROWS * 1.1
    assert kept(candidate, reference) == pytest.approx(20, abs=0.1)


def test_many_rows_of_next_to_nothing_do_not_condemn_the_few_that_matter():
    reference = ROWS.copy()
    reference[5:] *= 1e-6
    candidate = np.where(np.abs(reference) < 1e-3, 0, reference * 1.1)
    assert kept(candidate, reference) == pytest.approx(20, abs=0.1)


def test_noise_in_most_rows_and_as_a_whole_is_found():
    assert kept(-ROWS, ROWS) == pytest.approx(-6.02, abs=0.01)
    assert kept(np.zeros_like(ROWS), ROWS) == pytest.approx(0)


def test_batches_add_up_to_one():
    found = RowSignalQuality()
    for part in (slice(0, 1), slice(1, 40), slice(40, None)):
        found.add(ROWS[part] + 0.01, ROWS[part])
    assert found.sqnr_db == pytest.approx(kept(ROWS + 0.01, ROWS), abs=1e-3)


def test_what_is_not_finite_counts_by_whose_it_is():
    hidden = ROWS.copy()
    hidden[:, 0] = -np.inf
    assert kept(np.where(np.isinf(hidden), np.nan, ROWS * 1.1), hidden) == pytest.approx(20, abs=0.01)
    assert kept(hidden, ROWS) == -np.inf


def test_no_signal_has_nothing_to_keep():
    assert kept(ROWS, np.zeros_like(ROWS)) == np.inf
    assert RowSignalQuality().sqnr_db == np.inf


def test_output_without_rows_is_one():
    assert kept(np.float32(1.1), np.float32(1)) == pytest.approx(20, abs=0.01)


def test_worst_of_floating_outputs_counts():
    reference = {"a": ROWS, "b": ROWS, "label": np.arange(3)}
    assert worst_sqnr_db({"a": ROWS, "b": ROWS * 1.1, "label": np.zeros(3)}, reference) == pytest.approx(20, abs=0.01)
    assert worst_sqnr_db({"label": np.zeros(3)}, {"label": np.arange(3)}) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_worst_is_endless_where_only_the_candidate_is_not_finite(bad):
    candidate, hidden = ROWS.copy(), ROWS.copy()
    candidate[2, 2] = bad
    hidden[2, 2] = -np.inf
    assert worst_sqnr_db({"a": candidate}, {"a": ROWS}) == -np.inf
    assert worst_sqnr_db({"a": candidate}, {"a": hidden}) == np.inf
    assert worst_sqnr_db({"a": ROWS}, {"a": np.full_like(ROWS, np.nan)}) == np.inf
