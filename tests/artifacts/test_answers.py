"""Steps that make answers say less, each against plain numpy through onnxruntime."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.artifacts import (
    Noise,
    Round,
    Softmax,
    Temperature,
    TensorSpec,
    TopKMask,
    steps_artifact,
)
from pytest_modelserve.errors import UsageError

FLOATS = ["float32", "float64", "float16"]
RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(400, 5))).astype(np.float32)


@pytest.fixture
def apply(store, run):
    """What steps make of an array (n, classes)."""

    def apply_steps(array, *steps):
        spec = TensorSpec("logits", array.dtype.name, ("batch", array.shape[1]))
        (found,) = run(steps_artifact(steps, spec, name="steps", store=store), logits=array).values()
        return found

    return apply_steps


@pytest.mark.parametrize("dtype", FLOATS)
def test_round_and_temperature_are_those_of_numpy(apply, dtype):
    x = LOGITS[:5].astype(dtype)
    x[0, 0], x[1, 1] = np.nan, np.inf
    tolerance = 2e-3 if dtype == "float16" else 1e-6
    rounded = apply(x, Round(1))
    assert rounded.dtype == x.dtype
    np.testing.assert_allclose(rounded, np.round(x, 1), rtol=tolerance)
    np.testing.assert_allclose(apply(x, Temperature(2.5)), x / 2.5, rtol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
def test_top_k_mask_keeps_the_k_highest_and_of_equal_ones_the_first(apply, dtype):
    x = np.array([[0.5, 0.25, 0.25, 0.0], [-1, -2, -3, -4]], dtype)
    np.testing.assert_array_equal(apply(x, TopKMask(2)), np.array([[0.5, 0.25, 0, 0], [-1, -2, 0, 0]], dtype))
    np.testing.assert_array_equal(apply(x, TopKMask(4)), x)


def test_noise_is_gaussian_and_the_same_for_the_same_row_in_any_batch(apply):
    step = Noise(0.5, seed=3)
    noise = apply(LOGITS, step) - LOGITS
    assert abs(noise.mean()) < 0.05  # five standard errors
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    assert np.abs(np.corrcoef(noise.T) - np.eye(5)).max() < 0.25
    assert np.abs(np.corrcoef(noise.ravel(), LOGITS.ravel())[0, 1]) < 0.1
    again = apply(LOGITS[[7, 7, 3]], step) - LOGITS[[7, 7, 3]]
    np.testing.assert_array_equal(again, noise[[7, 7, 3]])


def test_noise_needs_the_seed_and_keeps_nan(apply):
    first, second = (apply(LOGITS, Noise(0.5, seed=seed)) - LOGITS for seed in (1, 2))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1
    assert np.isnan(apply(np.full((1, 5), np.nan, np.float32), Noise(0.5, seed=1))).all()
    assert apply(LOGITS.astype(np.float64), Noise(0.5, seed=1)).dtype == np.float64


@pytest.mark.parametrize("dtype", FLOATS)
def test_noise_without_a_seed_is_drawn_anew_in_every_call(store, dtype):
    x = LOGITS.astype(dtype)
    step = steps_artifact([Noise(0.5, seed=None)], TensorSpec("x", dtype, ("batch", 5)), name="noise", store=store)
    with ms.serve(step) as predictor:
        first, second = (predictor.predict(x)["prepared"].astype(np.float64) - x for _ in range(2))
    assert first.std() == pytest.approx(0.5, rel=0.1)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_noise_on_logits_leaves_probabilities(apply):
    found = apply(LOGITS, Noise(1.0, seed=1), Temperature(2), Softmax(), Round(2), TopKMask(2))
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found > 0).sum(axis=1) <= 2).all()
    np.testing.assert_array_equal(found, np.round(found, 2).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Round(8), "Round: decimals must be an integer from 0 to 7, got 8"),
        (lambda: Temperature(0), "Temperature: t must be a finite number above 0, got 0"),
        (lambda: TopKMask(0), "TopKMask: k must be an integer of at least 1, got 0"),
        (lambda: Noise(-1, seed=0), "Noise: scale must be a finite number above 0, got -1"),
        (lambda: Noise(1, seed="x"), "Noise: seed must be an integer of at least 0, or None, got 'x'"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_steps_that_do_not_fit_are_refused(apply):
    with pytest.raises(UsageError, match="Temperature takes logits: put it before Softmax"):
        apply(LOGITS, Softmax(), Temperature(2))
    with pytest.raises(UsageError, match="TopKMask: k must be at most 5, the number of classes"):
        apply(LOGITS, TopKMask(6))
    with pytest.raises(UsageError, match="Round takes float32, float64, float16, got"):
        apply(LOGITS.astype(np.int64), Round(1))
