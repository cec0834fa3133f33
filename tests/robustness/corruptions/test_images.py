from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness import corruptions

IMAGES = np.random.default_rng(0).integers(0, 17, size=(50, 8, 8)).astype(np.uint8)
ALL = [
    make(low=0, high=16)
    for make in (
        corruptions.noise,
        corruptions.blur,
        corruptions.shift,
        corruptions.rotation,
        corruptions.brightness,
        corruptions.contrast,
    )
]


def corrupted(corruption: corruptions.Corruption, severity: float, images: np.ndarray = IMAGES) -> np.ndarray:
    return corruption.at(images, severity, np.random.default_rng(1))


@pytest.mark.parametrize("corruption", ALL, ids=lambda c: c.name)
def test_images_keep_their_dtype_shape_and_range_and_the_given_ones_stay(corruption: corruptions.Corruption) -> None:
    before = IMAGES.copy()
    for severity in corruption.severities:
        changed = corrupted(corruption, severity)
        assert changed.dtype == IMAGES.dtype
        assert changed.min() >= 0
        assert changed.max() <= 16
        assert (changed != IMAGES).any()
    assert (before == IMAGES).all()


@pytest.mark.parametrize("corruption", ALL, ids=lambda c: c.name)
def test_a_later_severity_is_further_away(corruption: corruptions.Corruption) -> None:
    first, *_, last = corruption.severities
    smooth = np.add.outer(np.arange(8.0), np.arange(8.0))[None].repeat(20, axis=0)
    milder, stronger = (np.abs(corrupted(corruption, severity, smooth) - smooth).mean() for severity in (first, last))
    assert stronger > milder


@pytest.mark.parametrize("corruption", ALL, ids=lambda c: c.name)
def test_images_follow_from_the_generator_alone(corruption: corruptions.Corruption) -> None:
    severity = corruption.severities[2]
    assert (corrupted(corruption, severity) == corrupted(corruption, severity)).all()


def test_a_shift_of_whole_pixels_moves_a_point_by_that_distance() -> None:
    point = np.zeros((200, 1, 9, 9), dtype=np.float32)
    point[:, 0, 4, 4] = 1
    moved = corrupted(corruptions.shift(low=0, high=1), 2.0, point)
    rows, columns = np.indices((9, 9))
    mass = moved.sum(axis=(1, 2, 3))
    centres = np.stack([(moved[:, 0] * axis).sum(axis=(1, 2)) / mass - 4 for axis in (rows, columns)])
    assert mass == pytest.approx(1, abs=1e-5)  # nothing is lost, bilinear
    assert np.hypot(*centres) == pytest.approx(2, abs=1e-5)
    assert np.abs(centres.mean(axis=1)).max() < 0.3  # in no direction of its own


def test_a_quarter_turn_is_the_transposed_image() -> None:
    turned = corrupted(corruptions.rotation(low=0, high=16, severities=[90]), 90)
    either = [np.rot90(IMAGES, sign, axes=(1, 2)) for sign in (1, -1)]
    assert all(any((one[i] == turned[i]).all() for one in either) for i in range(len(IMAGES)))


def test_noise_has_the_stated_deviation() -> None:
    grey = np.full((50, 40, 40), 0.5)
    assert corrupted(corruptions.noise(low=0, high=1), 0.1, grey).std() == pytest.approx(0.1, rel=0.02)


def test_channels_last_are_blurred_along_their_own_axes() -> None:
    image = np.zeros((1, 9, 9, 3))
    image[0, 4, 4, 0] = 1
    blurred = corrupted(corruptions.blur(low=0, high=1, axes=(1, 2)), 1.0, image)
    assert blurred[0, 3, 4, 0] > 0
    assert not blurred[..., 1:].any()


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match=r"^low and high are the range of a value \(0 and 255, say\), not 1 and 0$"):
        corruptions.noise(low=1, high=0)
    with pytest.raises(UsageError, match=r"^blur names a severity twice: \(1\.0, 1\.0\)$"):
        corruptions.blur(low=0, high=1, severities=[1, 1])
    with pytest.raises(UsageError, match=r"^blur needs severities, finite numbers, not \(\)$"):
        corruptions.blur(low=0, high=1, severities=[])
    with pytest.raises(
        InputError, match=r"^axes \(-2, -1\) of rows of shape \(3, 4\) are not a height and a width beside the rows'$"
    ):
        corrupted(corruptions.blur(low=0, high=1), 1.0, np.zeros((3, 4)))
    other = corruptions.corruption("cut", lambda rows, severity, rng: rows[1:], [1])
    with pytest.raises(
        InputError,
        match=r"^cut makes rows of shape \(49, 8, 8\) and dtype uint8 of rows of shape \(50, 8, 8\) and dtype uint8: a "
        r"corruption changes neither$",
    ):
        corrupted(other, 1)
