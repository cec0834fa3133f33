"""Each step against plain numpy, through onnxruntime, and each way to give it wrong."""

import numpy as np
import pytest

from pytest_modelserve.artifacts import (
    ArgMax,
    Clip,
    Impute,
    Scale,
    Softmax,
    Standardize,
    TensorSpec,
    TopK,
    digest_of,
    steps_artifact,
)
from pytest_modelserve.errors import UsageError

FLOATS = ["float32", "float64", "float16"]
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
SPEC = TensorSpec("x", "float32", ("batch", 3))


@pytest.fixture
def apply(store, run):
    """What steps make of an array, by output name."""

    def apply_steps(array, *steps, shape=None, run=run):
        spec = TensorSpec("x", array.dtype.name, shape or ("batch", *array.shape[1:]))
        return run(steps_artifact(steps, spec, name="steps", store=store), x=array)

    return apply_steps


def _rows(dtype, n=5, features=3, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind in "ui":
        return rng.integers(0, 100, (n, features)).astype(dtype)
    return (rng.normal(size=(n, features)) * 3).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_impute_replaces_nan_and_nothing_else(apply, dtype):
    x = _rows(dtype)
    x[0, 0] = x[3, 2] = np.nan
    x[1, 1] = np.inf
    values = np.array([1, 2, 3], dtype)
    np.testing.assert_array_equal(apply(x, Impute([1, 2, 3]))["prepared"], np.where(np.isnan(x), values, x))
    np.testing.assert_array_equal(apply(x, Impute(0))["prepared"], np.nan_to_num(x, nan=0, posinf=np.inf))


@pytest.mark.parametrize("dtype", FLOATS)
def test_clip_keeps_nan(apply, dtype):
    x = _rows(dtype)
    x[0] = np.nan, np.inf, -np.inf
    prepared = apply(x, Clip(-1, 2.5))["prepared"]
    assert prepared.dtype == dtype
    np.testing.assert_array_equal(prepared, np.clip(x, np.dtype(dtype).type(-1), np.dtype(dtype).type(2.5)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int32", "uint64", "int64"])
def test_clip_keeps_integers_integers(apply, dtype):
    x = _rows(dtype)
    prepared = apply(x, Clip(10, 50))["prepared"]
    assert prepared.dtype == dtype
    np.testing.assert_array_equal(prepared, np.clip(x, 10, 50))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_standardize_is_bit_equal_to_numpy(apply, dtype):
    x = _rows(dtype)
    floats = x if np.dtype(dtype).kind == "f" else x.astype(np.float32)
    mean, std = np.array([0.1, 2, -3]), np.array([0.3, 5, 7])
    expected = (floats - mean.astype(floats.dtype)) / std.astype(floats.dtype)
    prepared = apply(x, Standardize(mean, std))["prepared"]
    assert prepared.dtype == floats.dtype
    if dtype == "float16":
        # onnxruntime has no float16 kernel on a CPU: it computes in float32 and rounds once at the end.
        np.testing.assert_allclose(prepared, expected, rtol=2e-3)
    else:
        np.testing.assert_array_equal(prepared, expected)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_scale_is_bit_equal_to_numpy_and_casts_images(apply, dtype):
    x = _rows("uint8").astype(dtype)
    floats = x if np.dtype(dtype).kind == "f" else x.astype(np.float32)
    kind = floats.dtype.type
    prepared = apply(x, Scale(1 / 255, offset=-0.5))["prepared"]
    assert prepared.dtype == floats.dtype
    tolerance = {"rtol": 0, "atol": 1e-3 if dtype == "float16" else 0}
    np.testing.assert_allclose(prepared, floats * kind(1 / 255) + kind(-0.5), **tolerance)


def test_scale_without_an_offset_keeps_the_sign_of_zero(apply):
    x = np.array([[-0.0, 0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(np.signbit(apply(x, Scale(2.0))["prepared"]), [[True, False, False]])


def test_values_can_lie_on_another_axis(apply):
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    mean, std = np.float32([0.4, 0.5, 0.6]), np.float32([0.1, 0.2, 0.3])
    prepared = apply(images, Standardize(mean, std, axis=1))["prepared"]
    np.testing.assert_array_equal(prepared, (images - mean[:, None, None]) / std[:, None, None])
    np.testing.assert_array_equal(apply(images, Standardize(mean, std, axis=-3))["prepared"], prepared)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_sums_to_one_and_survives_large_scores(apply, dtype, axis):
    x = np.concatenate([_rows(dtype), np.full((1, 3), 1e4, dtype)])
    shifted = np.exp((x - x.max(1, keepdims=True)).astype(np.float64))
    probabilities = apply(x, Softmax(axis))["probabilities"]
    np.testing.assert_allclose(probabilities, shifted / shifted.sum(1, keepdims=True), rtol=2e-3, atol=1e-3)
    if dtype != "float16":
        np.testing.assert_allclose(probabilities, shifted / shifted.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_argmax_gives_the_first_of_the_best(apply, dtype):
    x = np.array([[1, 3, 2], [5, 5, 1], [-1, -2, -1]], dtype)
    label = apply(x, ArgMax())["label"]
    assert label.dtype == np.int64
    np.testing.assert_array_equal(label, np.argmax(x, -1))
    assert apply(x, ArgMax(["cat", "dog", "emu"]))["label"].tolist() == ["dog", "cat", "cat"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_topk_gives_the_best_first_and_of_equals_the_smaller_index(apply, dtype):
    x = np.array([[1, 3, 2], [5, 5, 1], [2, 2, 2]], dtype)
    order = np.argsort(-x, axis=-1, kind="stable")[:, :2]
    top = apply(x, TopK(2))
    assert list(top) == ["top_labels", "top_scores"]
    np.testing.assert_array_equal(top["top_labels"], order)
    np.testing.assert_array_equal(top["top_scores"], np.take_along_axis(x, order, -1))
    named = apply(x, TopK(2, ["cat", "dog", "emu"]))
    assert named["top_labels"].tolist() == [["dog", "emu"], ["cat", "dog"], ["cat", "dog"]]
    np.testing.assert_array_equal(named["top_scores"], top["top_scores"])


def test_steps_follow_one_another(apply):
    x = np.array([[np.nan, 300, -5], [1, 2, 3]], np.float32)
    steps = Impute([10, 0, 0]), Clip(0, 255), Scale(0.5), Standardize([1, 2, 3], [4, 5, 6])
    filled = np.clip(np.where(np.isnan(x), np.float32([10, 0, 0]), x), 0, 255) * np.float32(0.5)
    expected = (filled - np.float32([1, 2, 3])) / np.float32([4, 5, 6])
    np.testing.assert_array_equal(apply(x, *steps)["prepared"], expected)


@pytest.mark.parametrize("shape", [("batch", 3), (None, 3), (2, 3)])
def test_dims_stay_what_they_are(store, shape):
    artifact = steps_artifact([Scale(2.0)], TensorSpec("x", "uint8", shape), name="steps", store=store)
    assert artifact.signature.inputs == (TensorSpec("x", "uint8", shape),)
    assert artifact.signature.outputs == (TensorSpec("prepared", "float32", shape),)


def test_an_empty_batch_stays_empty(apply):
    x = np.zeros((0, 3), np.float32)
    assert apply(x, Standardize(0.0, 1.0), Softmax())["probabilities"].shape == (0, 3)


@pytest.mark.parametrize("name", ["y", "mean", "std", "x", "steps/0_scale/y", "prepared", "probabilities"])
def test_an_input_may_have_any_name(store, run, name):
    spec = TensorSpec(name, "float32", ("batch", 3))
    artifact = steps_artifact([Standardize(1.0, 2.0), Softmax()], spec, name="steps", store=store)
    out = run(artifact, **{name: np.ones((1, 3), np.float32)})
    np.testing.assert_allclose(next(iter(out.values())), np.full((1, 3), 1 / 3), rtol=1e-6)


def test_steps_of_the_same_meaning_are_equal():
    assert Standardize([0, 1], [1, 2]) == Standardize(np.array([0.0, 1.0]), (1, 2.0))
    assert hash(Impute(np.float32([0.5]))) == hash(Impute([0.5]))
    assert digest_of(ArgMax(["a"])) == digest_of(ArgMax(("a",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Impute(float("nan")), "Impute: values must be finite, got nan"),
        (lambda: Impute([1, float("inf")]), "Impute: values[1] must be finite, got inf"),
        (lambda: Impute([]), "Impute: values must be one number or a row of them, got an array of shape (0,)"),
        (lambda: Impute([[1]]), "Impute: values must be one number or a row of them, got an array of shape (1, 1)"),
        (lambda: Clip(2, 1), "Clip: low must be at most high, got 2 > 1"),
        (lambda: Clip(float("nan"), 1), "Clip: low must be finite, got nan"),
        (lambda: Clip(0, [1, 2]), "Clip: high must be one number, got 2"),
        (lambda: Standardize([0, float("nan")], 1), "Standardize: mean[1] must be finite, got nan"),
        (lambda: Standardize(0, [1, 0]), "Standardize: std[1] must be above 0, got 0"),
        (lambda: Standardize(0, -1), "Standardize: std must be above 0, got -1"),
        (lambda: Scale(float("nan")), "Scale: factor must be finite, got nan"),
        (lambda: Scale(0), "Scale: factor must not be 0"),
        (lambda: Scale([1, 2]), "Scale: factor must be one number; Standardize takes one per feature"),
        (lambda: ArgMax("cat"), "ArgMax: labels must be a sequence of str, one per class, got 'cat'"),
        (lambda: ArgMax([1, 2]), "ArgMax: labels must be a sequence of str, one per class, got [1, 2]"),
        (lambda: TopK(1, ["a", "b", "a"]), "TopK: labels must be distinct, but 'a' occurs twice"),
        (lambda: TopK(0), "TopK: k must be an integer of at least 1, got 0"),
        (lambda: TopK(1.5), "TopK: k must be an integer of at least 1, got 1.5"),
        (lambda: TopK(True), "TopK: k must be an integer of at least 1, got True"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_where_it_is_made(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value).startswith(message)


NUMBERS = ", ".join([*FLOATS, *INTEGERS, "bool"])


@pytest.mark.parametrize(
    ("step", "spec", "message"),
    [
        (Impute([1, 2]), SPEC, "Impute: values has 2 values, but axis -1 of x: float32[batch, 3] has 3"),
        (Standardize(0, [1, 2, 3, 4]), SPEC, "Standardize: std has 4 values, but axis -1 of x"),
        (
            # A dim of 1 would stretch to three features at run time without a word.
            Standardize([1, 2, 3], 1),
            TensorSpec("x", "float32", ("batch", "features")),
            "Standardize: mean has 3 values, but axis -1 of x: float32[batch, features] has features",
        ),
        (Standardize([1, 2, 3], 1, axis=2), SPEC, "Standardize: x: float32[batch, 3] has no axis 2 for the 3 values"),
        (Impute([1, 2, 3]), TensorSpec("x", "float32", None), "Impute: x: float32[...] has no axis -1 for the 3"),
        (Impute(0), TensorSpec("x", "uint8", ("batch", 3)), "Impute replaces NaN, and x: uint8[batch, 3] has none"),
        (Clip(0, 0.5), TensorSpec("x", "uint8", ("batch", 3)), "Clip: high = 0.5 is not a value of uint8, the dtype"),
        (Clip(-1, 5), TensorSpec("x", "uint8", ("batch", 3)), "Clip: low = -1 is not a value of uint8, the dtype of x"),
        (Clip(0, 1e6), TensorSpec("x", "float16", (3,)), "Clip: high overflows float16"),
        (Scale(1e60), SPEC, "Scale: factor overflows float32"),
        (Standardize(0, 1e-60), SPEC, "Standardize: a std is too small for float32, where it becomes 0"),
        (Scale(2), TensorSpec("x", "str", ("batch",)), f"Scale takes {NUMBERS}, got x: str[batch]"),
        (Softmax(), TensorSpec("x", "sequence(map(int64, float32))", ()), "Softmax takes float32, float64, float16"),
        (Softmax(2), SPEC, "Softmax: x: float32[batch, 3] has no axis 2"),
        (ArgMax(["a", "b"]), SPEC, "ArgMax: got 2 labels, but x: float32[batch, 3] has 3 classes"),
        (ArgMax(["a", "b"]), TensorSpec("x", "float32", ("batch", None)), "ArgMax: got 2 labels, but x"),
        (ArgMax(), TensorSpec("x", "float32", ()), "ArgMax: x: float32[] is a scalar without an axis of classes"),
        (TopK(4), SPEC, "TopK: k must be at most 3, the number of classes of x: float32[batch, 3]; got 4"),
        (TopK(1), TensorSpec("x", "int64", (3,)), "TopK takes float32, float64, float16, got x: int64[3]"),
    ],
)
def test_a_step_that_does_not_fit_its_input_is_refused(store, step, spec, message):
    with pytest.raises(UsageError) as caught:
        steps_artifact([step], spec, name="steps", store=store)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("last", [ArgMax(), TopK(2)])
def test_nothing_can_follow_a_label(store, last):
    with pytest.raises(UsageError, match="which must be the last step"):
        steps_artifact([last, Scale(2.0)], SPEC, name="steps", store=store)


def test_no_steps_at_all_are_refused(store):
    with pytest.raises(UsageError, match="steps is empty: pass at least one"):
        steps_artifact([], SPEC, name="steps", store=store)
