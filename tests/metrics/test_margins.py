"""Agreement by decision margin, against sorted scores and rows made by hand."""

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import agreement_by_margin, decision_margins

REFERENCE = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.5, 0.5]])


def test_a_margin_is_the_best_score_less_the_second():
    scores = np.random.default_rng(0).normal(size=(6, 4, 9)).astype(np.float32)
    ordered = np.sort(scores.astype(np.float64), axis=-1)
    np.testing.assert_array_equal(decision_margins(scores), ordered[..., -1] - ordered[..., -2])


def test_integers_do_not_wrap():
    assert decision_margins(np.array([[-128, 127]], np.int8)).tolist() == [255]


def test_only_rows_that_the_reference_decided_count():
    flipped = REFERENCE[:, ::-1].copy()
    flipped[2] = REFERENCE[2]  # rows 0 and 1 have another top class; row 3 keeps its first
    found = agreement_by_margin(flipped, REFERENCE, min_margin=0.2)
    assert (found.rows, found.decided, found.agreeing, found.flipped) == (4, 2, 1, 2)
    assert found.agreement == 0.5
    assert found.largest_flipped == pytest.approx(0.8)


def test_a_margin_equal_to_the_threshold_is_not_decided():
    scores = np.array([[1.0, 0.5], [2.0, 0.5]])
    assert agreement_by_margin(scores, scores, min_margin=0.5).decided == 1
    assert agreement_by_margin(scores, scores, min_margin=0.0).decided == 2


def test_the_largest_flipped_margin_is_where_differences_end():
    candidate = REFERENCE.copy()
    candidate[1] = [0.4, 0.6]
    found = agreement_by_margin(candidate, REFERENCE, min_margin=0)
    assert found.agreement == 2 / 3
    beyond = agreement_by_margin(candidate, REFERENCE, min_margin=found.largest_flipped)
    assert beyond.agreement == 1
    assert agreement_by_margin(REFERENCE, REFERENCE, min_margin=0).largest_flipped is None


def test_a_threshold_that_no_row_reaches_is_refused():
    with pytest.raises(InputError) as caught:
        agreement_by_margin(REFERENCE, REFERENCE, min_margin=3)
    assert str(caught.value) == (
        "no row is decided by more than min_margin 3: the largest margin of the reference is 0.8"
    )
    with pytest.raises(UsageError, match="min_margin is a finite number of at least 0, not -1"):
        agreement_by_margin(REFERENCE, REFERENCE, min_margin=-1)
    with pytest.raises(InputError, match="at least two classes"):
        decision_margins(np.ones((3, 1)))
