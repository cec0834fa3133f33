"""Monitoring of the digits that come in: images and what the model answers, against those of training.

No labels are needed. The profile is asked to keep some raw images (`sketch_rows`): what changes in 64 pixels together
shows in none of them alone, and a classifier that tells new images from kept ones sees it. Four of the tests show what
a catch looks like.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from example_models.digits_cnn.model import PREPROCESS
from fixtures.digits import Digits

MAX_DISTANCE = 0.2
"""What 597 images against 1,200 can pass in all pixels, their pairs and their whole."""


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel) -> ms.Predictor:
    served = modelserve.compose(modelserve.export(digits_cnn), preprocess=PREPROCESS, input_dtype="uint8")
    return modelserve.serve(served)


def day(champion: ms.Predictor, images: NDArray[np.uint8]) -> dict[str, Any]:
    """What is watched of `images` (n, 8, 8): every pixel, and the digit that the model reads, both without labels."""
    (scores,) = champion.predict(images).values()
    return {"pixel": images.reshape(len(images), -1), "answer": scores.argmax(axis=1).astype(str)}


@pytest.fixture(scope="module")
def profile(champion: ms.Predictor, digits: Digits) -> ms.ReferenceProfile:
    return ms.reference_profile(day(champion, digits.training.images), name="training digits", sketch_rows=1200)


def corrupted(corruption: ms.corruptions.Corruption, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return corruption.at(images, corruption.severities[0], np.random.default_rng(0))


def test_images_of_the_day_look_like_those_of_training(
    champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits
) -> None:
    images = day(champion, digits.held_out.images)
    ms.assert_no_drift(images, profile, max_distance=MAX_DISTANCE, block=1, name="digits held out")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches a digit that is no longer written")
def test_digit_that_stopped_coming_is_caught(
    champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits
) -> None:
    """Nobody writes a seven any more: the largest shift is that of one answer in ten."""
    images = digits.held_out.images[digits.held_out.labels != 7]
    ms.assert_no_drift(day(champion, images), profile, max_distance=0.05, block=1, name="digits without sevens")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches a lens out of focus")
def test_blurred_images_are_caught(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    """At 0.6 pixels the model still reads 95 of 100: the images tell before the accuracy does."""
    blurred = corrupted(ms.corruptions.blur(low=0, high=16, severities=[0.6]), digits.held_out.images)
    ms.assert_no_drift(day(champion, blurred), profile, max_distance=MAX_DISTANCE, block=1, name="digits blurred")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches a lamp that is too bright")
def test_brightened_images_are_caught(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    bright = corrupted(ms.corruptions.brightness(low=0, high=16, severities=[0.1]), digits.held_out.images)
    ms.assert_no_drift(day(champion, bright), profile, max_distance=MAX_DISTANCE, block=1, name="digits brightened")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches images that arrive twice")
def test_images_that_arrive_twice_are_caught(
    champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits
) -> None:
    """A job that was started twice: every third image is there again, and no distribution has changed."""
    images = digits.held_out.images
    again = np.concatenate([images, images[::3]])
    ms.assert_data_quality(day(champion, again), profile, max_rate=0.1, name="digits, some twice")
