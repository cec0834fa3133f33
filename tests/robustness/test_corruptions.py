"""Corruptions of tables and images: what they change, by how much, and what they leave as it is."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError

c = ms.corruptions
TABLE = np.arange(400, dtype=np.float32).reshape(100, 4)
IMAGES = np.random.default_rng(0).integers(0, 17, size=(20, 8, 8)).astype(np.uint8)
SMOOTH = np.add.outer(np.arange(8.0), np.arange(8.0))[None].repeat(20, axis=0)
OF_IMAGES = [make(low=0, high=16) for make in (c.noise, c.blur, c.shift, c.rotation, c.brightness, c.contrast)]


def corrupted(corruption, severity, rows):
    return np.asarray(corruption.at(rows, severity, np.random.default_rng(1)))


def test_missing_features_are_filled_together_in_that_proportion_of_rows():
    changed = corrupted(c.missing_feature([1, -1], fill=np.nan), 0.25, TABLE)
    lost = np.isnan(changed)
    assert lost.sum(axis=0).tolist() == [0, 25, 0, 25]
    assert (lost[:, 1] == lost[:, 3]).all()
    assert (changed[~lost] == TABLE[~lost]).all()


def test_lagged_features_are_those_of_earlier_rows():
    changed = corrupted(c.lagged_feature([2]), 5, TABLE)
    assert (changed[5:, 2] == TABLE[:-5, 2]).all()
    assert (changed[:5] == TABLE[:5]).all()
    assert (changed[:, [0, 1, 3]] == TABLE[:, [0, 1, 3]]).all()


def test_a_unit_error_multiplies_in_that_proportion_of_rows_and_stops_at_the_limit_of_the_dtype():
    changed = corrupted(c.unit_error([0], factor=1000), 0.5, TABLE + 1)
    scaled = changed[:, 0] == 1000 * (TABLE[:, 0] + 1)
    assert scaled.sum() == 50
    assert (changed[~scaled] == TABLE[~scaled] + 1).all()
    small = np.full((10, 1), 100, dtype=np.int8)
    assert corrupted(c.unit_error([0], factor=1000), 1.0, small).max() == 127


@pytest.mark.parametrize("corruption", OF_IMAGES, ids=lambda corruption: corruption.name)
def test_image_corruptions_are_seeded_and_keep_dtype_range_and_their_argument(corruption):
    before = IMAGES.copy()
    for severity in corruption.severities:
        changed = corrupted(corruption, severity, IMAGES)
        assert changed.dtype == IMAGES.dtype
        assert changed.min() >= 0
        assert changed.max() <= 16
        assert (changed != IMAGES).any()
    assert (corrupted(corruption, severity, IMAGES) == changed).all()
    assert (before == IMAGES).all()


@pytest.mark.parametrize("corruption", OF_IMAGES, ids=lambda corruption: corruption.name)
def test_the_last_severity_changes_more_than_the_first(corruption):
    milder, stronger = (
        np.abs(corrupted(corruption, corruption.severities[place], SMOOTH) - SMOOTH).mean() for place in (0, -1)
    )
    assert stronger > milder


def test_a_shift_of_whole_pixels_moves_a_point_by_that_distance_in_any_direction():
    point = np.zeros((200, 1, 9, 9), dtype=np.float32)
    point[:, 0, 4, 4] = 1
    moved = corrupted(c.shift(low=0, high=1), 2.0, point)
    rows, columns = np.indices((9, 9))
    mass = moved.sum(axis=(1, 2, 3))
    centers = np.stack([(moved[:, 0] * axis).sum(axis=(1, 2)) / mass - 4 for axis in (rows, columns)])
    assert mass == pytest.approx(1, abs=1e-5)  # bilinear interpolation loses nothing
    assert np.hypot(*centers) == pytest.approx(2, abs=1e-5)
    assert np.abs(centers.mean(axis=1)).max() < 0.3


def test_a_quarter_turn_is_the_rotated_image():
    turned = corrupted(c.rotation(low=0, high=16, severities=[90]), 90, IMAGES)
    either = [np.rot90(IMAGES, sign, axes=(1, 2)) for sign in (1, -1)]
    assert all(any((one[i] == turned[i]).all() for one in either) for i in range(len(IMAGES)))


def test_noise_has_the_stated_deviation():
    gray = np.full((50, 40, 40), 0.5)
    assert corrupted(c.noise(low=0, high=1), 0.1, gray).std() == pytest.approx(0.1, rel=0.02)


def test_images_with_channels_last_are_blurred_along_their_own_axes():
    image = np.zeros((1, 9, 9, 3))
    image[0, 4, 4, 0] = 1
    blurred = corrupted(c.blur(low=0, high=1, axes=(1, 2)), 1.0, image)
    assert blurred[0, 3, 4, 0] > 0
    assert not blurred[..., 1:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: c.lagged_feature([0], severities=[0.5]), "whole numbers of at least 1, got (0.5,)"),
        (lambda: c.missing_feature([0], fill=0, severities=[2]), "proportions of rows in (0, 1], got (2,)"),
        (lambda: c.noise(low=1, high=0), "low and high must be the finite range of a pixel"),
        (lambda: c.blur(low=0, high=1, severities=[1, 1]), "severities of blur must differ, got (1.0, 1.0)"),
        (lambda: c.blur(low=0, high=1, severities=[]), "severities of blur must be one or more finite numbers, got ()"),
    ],
)
def test_invalid_parameters_are_refused_where_the_corruption_is_made(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("corruption", "severity", "rows", "message"),
    [
        (c.lagged_feature([4]), 1, TABLE, "features must be columns of rows with 4 features, got [4]"),
        (c.lagged_feature([0], severities=[100]), 100, TABLE, "rows must be more than the lag of 100, got 100"),
        (c.missing_feature([0], fill=np.nan), 0.5, TABLE.astype(np.int64), "fill=nan cannot be stored in rows"),
        (c.blur(low=0, high=1), 1.0, TABLE, "axes (-2, -1) of rows of shape (100, 4) must be two different axes"),
        (c.blur(low=0, high=1, axes=(1, 2)), 1.0, TABLE, "axes (1, 2) do not exist in rows of shape (100, 4)"),
        (c.Corruption("cut", lambda rows, severity, rng: rows[1:], [1]), 1, IMAGES, "corruption 'cut' must return"),
    ],
)
def test_rows_that_do_not_fit_are_an_input_error(corruption, severity, rows, message):
    with pytest.raises(InputError) as error:
        corrupted(corruption, severity, rows)
    assert message in str(error.value)
