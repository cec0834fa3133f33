"""Images and texts as embeddings: what the encoder gets, and what comes of it."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.columns import with_embedding
from pytest_modelserve.serving import serve


def brightness(images):
    """The mean of each quarter (n, 4) and the overall mean (n,)."""
    quarters = images.reshape(len(images), 2, 4, 2, 4).mean(axis=(2, 4)).reshape(len(images), 4)
    return {"quarters": quarters, "mean": quarters.mean(axis=1)}


IMAGES = np.random.default_rng(0).random((500, 8, 8))


def test_embeddings_are_those_of_all_items_at_once_whatever_the_batch():
    expected = brightness(IMAGES)
    for batch_size in (1, 7, 500, 1000):
        found = with_embedding(IMAGES, brightness, batch_size=batch_size)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)


def test_a_served_model_and_its_callable_encode_alike():
    with serve(brightness) as predictor:
        found = with_embedding(IMAGES, predictor)
    np.testing.assert_array_equal(found["quarters"], with_embedding(IMAGES, brightness)["quarters"])


def test_texts_come_as_they_are_and_one_output_has_a_name():
    def counted(texts):
        return np.array([[len(text), text.count("b")] for text in texts])

    found = with_embedding(["a", "bb", "ccc"], counted, batch_size=2)
    assert found["output"].tolist() == [[1, 0], [2, 2], [3, 0]]


def test_darker_images_drift():
    profile = reference_profile(with_embedding(IMAGES, brightness), block=1)
    assert profile.names == ("quarters[0]", "quarters[1]", "quarters[2]", "quarters[3]", "mean")
    darker = measure_drift(with_embedding(IMAGES * 0.9, brightness), profile, max_distance=0.1)
    assert darker.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            lambda images: images,
            "encoder returned 'output' with shape (256, 8, 8) for 256 items, expected (items, d): average over any other axes",
        ),
        (
            lambda images: images.mean(axis=0),
            "encoder returned 'output' with shape (8, 8) for 256 items, expected (items, d): average over any other axes",
        ),
        (
            lambda images: {"a" if len(images) == 256 else "b": np.zeros((len(images), 2))},
            "encoder returned 'a' for some batches and not for others",
        ),
    ],
)
def test_an_output_that_is_no_embedding_is_one_clear_error(encoder, message):
    with pytest.raises(InputError) as caught:
        with_embedding(IMAGES, encoder)
    assert str(caught.value) == message


def test_nothing_to_encode_and_no_batch_are_refused():
    with pytest.raises(InputError, match=r"^items is empty: there is nothing to encode$"):
        with_embedding([], brightness)
    with pytest.raises(UsageError, match=r"^batch_size must be at least 1; got 0$"):
        with_embedding(IMAGES, brightness, batch_size=0)


def test_long_work_shows_a_bar_on_a_terminal(monkeypatch):
    from pytest_modelserve.progress import progress_to

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    seen = []
    monkeypatch.setattr("pytest_modelserve.monitoring.columns.progress", lambda *a, **k: seen.append((a[1], k)) or a[0])
    with progress_to(Terminal()):
        with_embedding(IMAGES, brightness, batch_size=100)
    assert seen == [("encoding", {"total": 5})]
