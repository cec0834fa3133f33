"""Monitoring of new digits: images and predicted classes against those of training, without labels.

The profile stores some raw images (`sketch_rows`), so that a classifier test on whole images finds changes that no
single pixel shows. Four tests show a detected fault.
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
"""The smallest budget that 597 images against 1,200 can pass in all pixels, their pairs and whole images."""


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, digits_cnn: ms.TrainedModel) -> ms.Predictor:
    served = modelserve.compose(modelserve.export(digits_cnn), preprocess=PREPROCESS, input_dtype="uint8")
    return modelserve.serve(served)


def day(champion: ms.Predictor, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the monitored columns of `images` (n, 8, 8): every pixel, and the predicted digit."""
    (scores,) = champion.predict(images).values()
    return {"pixel": images.reshape(len(images), -1), "prediction": scores.argmax(axis=1).astype(str)}


@pytest.fixture(scope="module")
def profile(champion: ms.Predictor, digits: Digits) -> ms.ReferenceProfile:
    images = day(champion, digits.training.images)
    types = {"prediction": "category"}  # digits are classes here, and no numbers
    return ms.reference_profile(images, name="training digits", sketch_rows=1200, types=types)


def corrupted(corruption: ms.corruptions.Corruption, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return corruption.at(images, corruption.severities[0], np.random.default_rng(0))


def test_images_of_the_day_look_like_those_of_training(
    champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits
) -> None:
    images = day(champion, digits.held_out.images)
    ms.assert_no_drift(images, profile, max_distance=MAX_DISTANCE, block=1, name="digits held out")


def test_images_of_the_day_have_no_faults(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    ms.assert_data_quality(day(champion, digits.held_out.images), profile, max_rate=0.1, name="digits held out")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects a missing class")
def test_missing_class_is_detected(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    """No image shows a seven: the largest change is that of one predicted class in ten."""
    images = digits.held_out.images[digits.held_out.labels != 7]
    ms.assert_no_drift(day(champion, images), profile, max_distance=0.05, block=1, name="digits without sevens")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects blurred images")
def test_blurred_images_are_detected(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    """At 0.6 pixels, accuracy is still 95 %: drift is detected before accuracy drops."""
    blurred = corrupted(ms.corruptions.blur(low=0, high=16, severities=[0.6]), digits.held_out.images)
    ms.assert_no_drift(day(champion, blurred), profile, max_distance=MAX_DISTANCE, block=1, name="digits blurred")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects brighter images")
def test_brightened_images_are_detected(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    bright = corrupted(ms.corruptions.brightness(low=0, high=16, severities=[0.1]), digits.held_out.images)
    ms.assert_no_drift(day(champion, bright), profile, max_distance=MAX_DISTANCE, block=1, name="digits brightened")


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects duplicate images")
def test_duplicate_images_are_detected(champion: ms.Predictor, profile: ms.ReferenceProfile, digits: Digits) -> None:
    """A job ran twice: every third image is duplicated, and no distribution has changed."""
    images = digits.held_out.images
    again = np.concatenate([images, images[::3]])
    ms.assert_data_quality(day(champion, again), profile, max_rate=0.1, name="digits, some twice")
