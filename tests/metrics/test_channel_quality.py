"""Signal quality by channel: strong and weak channels, destroyed ones, and quality row by row."""

import numpy as np
import pytest

from pytest_modelserve.metrics import row_cosines, signal_to_quantization_noise_db
from pytest_modelserve.metrics.channel_quality import RowSignalQuality
from pytest_modelserve.metrics.channels import Channel
from pytest_modelserve.metrics.output_quality import (
    channel_cosine,
    channel_sqnr_db,
    describe_channels_of,
    destroyed_channel,
    worst_sqnr_db,
)

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


BOXES_AND_SCORES = np.concatenate([RNG.uniform(0, 640, (32, 4, 20)), RNG.uniform(0.4, 0.6, (32, 3, 20))], axis=1)


def without_channel(reference, index, axis=1, value=0.0):
    candidate = reference.copy()
    np.moveaxis(candidate, axis, 0)[index] = value
    return candidate


@pytest.mark.parametrize(
    ("reference", "axis", "index"),
    [
        (BOXES_AND_SCORES, 1, 5),
        (BOXES_AND_SCORES.transpose(0, 2, 1), 2, 6),
        (BOXES_AND_SCORES[:, :, 0], 1, 4),
        (BOXES_AND_SCORES.reshape(32, 7, 4, 5), 1, 5),
        (BOXES_AND_SCORES[:4, :, 0], 1, 4),
    ],
    ids=["maps", "features", "columns", "images", "four rows"],
)
def test_small_channel_that_is_zeroed_beside_large_ones_is_found(reference, axis, index):
    candidate = without_channel(reference, index, axis)
    assert signal_to_quantization_noise_db(candidate, reference) > 50
    figure = channel_sqnr_db(candidate, reference)
    assert (figure.value, figure.channel) == (pytest.approx(0, abs=1e-9), Channel(axis, index))
    assert row_cosines(candidate, reference).min() > 0.9999
    cosine = channel_cosine(candidate, reference)
    assert (cosine.value, cosine.channel) == (0, Channel(axis, index))


def test_channel_that_keeps_its_mean_and_loses_its_variation_is_found():
    """A column from 95 to 105 that int8 steps of 20 make 100: an error of 3 %, and nothing of what it says."""
    reference = np.stack([RNG.uniform(0, 5000, 200), RNG.uniform(95, 105, 200)], axis=1)
    candidate = without_channel(reference, 1, value=100.0)
    assert channel_sqnr_db(candidate, reference).value < 1
    assert describe_channels_of(candidate, reference) == (
        "channel 1 of axis 1: constant in the candidate and not in the reference; channel 1 is 100 where the reference "
        f"goes from {reference[:, 1].min():.4g} to {reference[:, 1].max():.4g}",
    )


def test_even_noise_has_the_ratio_of_the_whole_whatever_the_channels_are():
    """Sound models add the same noise to weak channels as to strong ones; a quarter of the magnitude is usual."""
    reference = RNG.standard_normal((500, 10)) * np.linspace(0.25, 1, 10)
    candidate = reference + 0.02 * RNG.standard_normal((500, 10))
    figure = channel_sqnr_db(candidate, reference)
    whole = signal_to_quantization_noise_db(candidate, reference)
    assert (figure.value, figure.channel) == (pytest.approx(whole), None)
    assert channel_cosine(candidate, reference).value == row_cosines(candidate, reference).min()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 16])
def test_few_rows_condemn_no_sound_model(rows):
    """Of 300 sound int8 models (28 dB) with 20 channels of equal size, none falls below the usual 25 dB."""
    figures = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        reference = rng.standard_normal((rows, 20))
        noise = rng.standard_normal((rows, 20))
        noise *= 10 ** (-28 / 20) * np.linalg.norm(reference) / np.linalg.norm(noise)
        figures.append(channel_sqnr_db(reference + noise, reference).value)
    assert min(figures) > 25


def test_channels_without_signal_are_judged_with_the_others():
    reference = RNG.standard_normal((50, 4))
    reference[:, 2] = 0
    candidate = reference + 1e-3 * RNG.standard_normal((50, 4))
    assert channel_sqnr_db(candidate, reference).value > 55
    assert channel_cosine(candidate, reference).value > 0.999


def test_probabilities_that_add_up_to_one_share_a_scale():
    """A class that no row has keeps nothing in 8 bits, and nobody needs it to."""
    scores = RNG.standard_normal((64, 5)) + np.array([3, 3, 3, 3, -9])
    reference = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    candidate = np.rint(reference * 255) / 255
    assert (candidate[:, 4] == 0).all()
    assert channel_sqnr_db(candidate, reference).channel is None


def test_border_of_a_mask_that_is_never_an_object_is_no_lost_channel():
    """Probabilities near 0 in the first rows of pixels are 0 in 8 bits."""
    reference = RNG.uniform(0, 1, (16, 2, 8, 8))
    reference[:, :, 0] *= 1e-3
    candidate = np.rint(reference * 255) / 255
    assert (candidate[:, :, 0] == 0).all()
    assert channel_sqnr_db(candidate, reference).value > 45


def test_row_quality_finds_the_destroyed_channel_over_batches():
    found = RowSignalQuality()
    for part in (slice(0, 10), slice(10, 32)):
        found.add(without_channel(BOXES_AND_SCORES, 5)[part], BOXES_AND_SCORES[part])
    assert found.sqnr_db > 50
    assert (found.worst().value, found.worst().channel) == (pytest.approx(0, abs=1e-9), Channel(1, 5))


def test_row_quality_forgives_a_clipped_row_in_a_channel():
    reference = ROWS.copy()
    reference[3, 7] = 1e4
    candidate = np.clip(reference, -4, 4) + 0.01
    found = RowSignalQuality()
    found.add(candidate, reference)
    assert found.worst().value > 25


def test_axis_of_changing_length_holds_no_channels():
    found = RowSignalQuality()
    for steps in (5, 7):
        reference = RNG.standard_normal((4, steps, 3))
        found.add(without_channel(reference, 1, axis=2), reference)
    assert found.worst().channel == Channel(2, 1)


def test_destroyed_channel_is_constant_beside_others_that_are_not():
    reference = BOXES_AND_SCORES[:, :, 0]
    assert destroyed_channel(reference + 0.3, reference) == ""
    assert destroyed_channel(np.zeros_like(reference), reference) == ""
    assert destroyed_channel(without_channel(reference, [4, 6]), reference).startswith(
        "channels 4, 6 of axis 1: channel 4 is 0 where the reference goes from 0.4"
    )
