from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

import pytest_modelserve as ms
from pytest_modelserve.robustness.certificates.randomized_smoothing import smoothed_radii

WEIGHTS = np.array([3.0, 4.0])
"""A linear boundary through 0, whose distance from a row x is |WEIGHTS @ x| / 5."""


def linear(x: NDArray[Any]) -> NDArray[np.float64]:
    scores = x.astype(np.float64) @ WEIGHTS
    return np.stack([-scores, scores], axis=1)


ROWS = np.random.default_rng(0).normal(size=(40, 2))
LABELS = (ROWS @ WEIGHTS > 0).astype(int)
DISTANCES = np.abs(ROWS @ WEIGHTS) / 5


def test_no_radius_reaches_beyond_the_boundary_and_most_come_near_it() -> None:
    found = smoothed_radii(ms.serve(linear), ROWS, LABELS, sigma=0.5, samples=4000)

    assert (found.radii < DISTANCES).all()
    near = (DISTANCES > 0.1) & (DISTANCES < 1)
    assert (found.radii > 0.6 * DISTANCES)[near].mean() > 0.9


def test_the_bound_is_that_of_clopper_and_pearson_at_an_equal_part_of_alpha() -> None:
    found = smoothed_radii(ms.serve(linear), ROWS[:5], LABELS[:5], sigma=1.0, samples=200, alpha=0.01)

    for votes, radius in zip(found.votes, found.radii, strict=True):
        low = binomtest(int(votes), 200, alternative="greater").proportion_ci(1 - 0.01 / 5).low
        assert radius == pytest.approx(max(0.0, norm.ppf(low)))


def test_wrong_certificates_are_as_rare_as_alpha_says_for_rows_on_the_boundary() -> None:
    """Under noise a row on the boundary gets its label half of the time, so that no radius is right."""
    rows = np.zeros((50, 2))
    model = ms.serve(linear)
    wrong = sum(
        smoothed_radii(model, rows, np.ones(50, int), sigma=1.0, samples=100, seed=seed, alpha=0.2).certified(0.0).any()
        for seed in range(60)
    )
    assert wrong <= 20  # 12 of 60 are expected at most; 21 or more have a probability of 0.6 %


def test_one_sigma_for_each_feature_certifies_an_ellipsoid() -> None:
    sigma = np.array([0.1, 1.0])
    found = smoothed_radii(ms.serve(linear), np.array([[0.0, 1.0]]), [1], sigma=sigma, samples=2000)
    # the label's score is 4, its noise has the deviation sqrt(0.3² + 4²): the reach is 4/4.01 sigmas
    assert found.certified([0.08, 0.8]).tolist() == [True]
    assert found.certified([0.0, 1.0]).tolist() == [False]
    assert found.radii[0] == pytest.approx(0.1 * 0.9, abs=0.02)


def test_rows_without_enough_samples_abstain_and_wrong_rows_do_not() -> None:
    rows = np.array([[0.01, 0.0], [2.0, 0.0]])
    found = smoothed_radii(ms.serve(linear), rows, [1, 0], sigma=1.0, samples=100)

    assert found.abstained.tolist() == [True, False]
    assert found.radii.tolist() == [0, 0]


def test_results_do_not_depend_on_the_rows_beside_a_row() -> None:
    alone = smoothed_radii(ms.serve(linear), ROWS[:1], LABELS[:1], sigma=1.0, samples=50)
    beside = smoothed_radii(ms.serve(linear), ROWS[:9], LABELS[:9], sigma=1.0, samples=50)
    assert alone.votes[0] == beside.votes[0]


def test_integer_inputs_are_rounded_and_clipped_before_the_model_votes() -> None:
    seen = []

    def model(x: NDArray[np.uint8]) -> NDArray[np.float64]:
        seen.append(x.dtype)
        return np.stack([x[:, 0] < 8, x[:, 0] >= 8], axis=1).astype(float)

    found = smoothed_radii(ms.serve(model), np.array([[12], [0]], np.uint8), [1, 0], sigma=2.0, samples=500)

    assert set(seen) == {np.dtype(np.uint8)}
    assert 2 < found.radii[0] < 4.5
    assert found.votes[1] > 490


def test_text_labels_count_and_rows_with_nan_scores_vote_for_none() -> None:
    def model(x: NDArray[Any]) -> NDArray[Any]:
        return np.where(x[:, 0] > 0, "benign", "malignant")

    read = ms.Output(decode="labels")
    found = smoothed_radii(ms.serve(model), np.ones((1, 1)), ["benign"], sigma=0.1, samples=20, output=read)
    assert found.votes.tolist() == [20]
    nothing = smoothed_radii(
        ms.serve(lambda x: np.full((len(x), 2), np.nan)), np.ones((1, 1)), [0], sigma=1, samples=10
    )
    assert nothing.votes.tolist() == [0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": np.ones(3)}, "sigma has shape"),
        ({"samples": 5}, "samples must be a whole number of at least 10"),
        ({"alpha": 0.5}, "alpha must be above 0"),
        ({"rows": np.full((2, 2), np.nan)}, "rows holds NaN"),
        ({"rows": ROWS[:0]}, "rows has no rows"),
        ({"labels": [1]}, "labels has shape"),
        ({"labels": ["a", "b"]}, "labels are"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    arguments = {"rows": ROWS[:2], "labels": LABELS[:2], "sigma": 1.0, "samples": 10, **changed}
    rows, labels = arguments.pop("rows"), arguments.pop("labels")
    with pytest.raises(ms.ModelServeError, match=message):
        smoothed_radii(ms.serve(linear), rows, labels, **arguments)
