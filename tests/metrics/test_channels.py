"""Channels of an output: their scale, and which of them differences have in common."""

import numpy as np
import pytest

from pytest_modelserve.metrics.channels import (
    Channel,
    channel_axes,
    channel_scale,
    count_by_channel,
    describe_channels,
    describe_constant_channels,
    feature_axes,
    few_values_factor,
    narrowest,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((), ()), ((5,), ()), ((5, 3), (1,)), ((5, 1), ()), ((5, 3, 4, 4), (1, 2, 3)), ((2, 100_000), ())],
    ids=["scalar", "one value a row", "columns", "one column", "maps", "audio"],
)
def test_channels_are_the_indices_of_every_axis_but_the_rows(shape, axes):
    assert channel_axes(shape) == axes


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 3), (1,)),
        ((8, 12, 64), (1, 2)),
        ((8, 3, 32, 32), (1,)),
        ((8, 3, 32, 64), (1,)),
        ((8, 32, 32, 3), (3,)),
        ((8, 7, 7, 512), (3,)),
        ((8, 20, 32, 3), (1, 3)),
        ((8, 3, 80, 80, 85), (1, 4)),
        ((8, 2, 16, 32, 32), (1,)),
    ],
    ids=["columns", "sequence", "maps", "wide maps", "maps last", "small maps last", "unclear", "anchors", "volume"],
)
def test_positions_of_images_are_no_features(shape, axes):
    assert feature_axes(shape) == axes


def test_each_column_has_its_own_scale():
    array = RNG.uniform(-1, 1, (100, 3)) * [6e4, 1, 1e-3]
    scale = channel_scale(array)
    assert scale.for_shape(array.shape) == pytest.approx(np.abs(array).max(axis=0, keepdims=True))
    assert scale.smallest() == (np.abs(array[:, 2]).max(), Channel(1, 2))


def test_element_has_the_smallest_scale_of_its_channels():
    array = np.ones((20, 2, 3)) * np.array([[[10, 20, 1], [5, 6, 2]]])
    assert channel_scale(array).for_shape(array.shape).tolist() == [[[10, 20, 2], [6, 6, 2]]]


def test_channel_of_zeros_has_the_scale_of_the_output():
    assert channel_scale(np.array([[0.0, 8.0]] * 20)).for_shape((20, 2)).tolist() == [[8, 8]]


def test_scale_over_runs_is_that_of_the_larger_and_free_axes_hold_no_channels():
    runs = [RNG.uniform(0, 1, (rows, steps, 2)) * [1, 50] for rows, steps in ((3, 8), (5, 9))]
    scale = channel_scale(*runs)
    assert list(scale.axes) == [2]
    assert scale.for_shape((4, 10, 2)).shape == (1, 1, 2)
    assert scale.axes[2][0] == max(run[..., 0].max() for run in runs)


@pytest.mark.parametrize("values", [1, 2, 3, 4, 8, 15])
def test_scale_of_few_values_is_too_small_once_in_ten_thousand_channels(values):
    """Simulated: the largest of a few normal values, times the factor, is below one standard deviation."""
    largest = np.abs(np.random.default_rng(values).standard_normal((400_000, values))).max(axis=1)
    assert (largest * few_values_factor(values) < 1).mean() <= 2e-4


def test_narrowest_axis_is_the_one_with_the_fewest_channels():
    places = np.flatnonzero(np.broadcast_to(np.arange(4)[None, :, None] == 2, (3, 4, 5)))
    counts = count_by_channel(places, (3, 4, 5))
    assert counts == {1: {2: 15}, 2: dict.fromkeys(range(5), 3)}
    assert narrowest(counts, (3, 4, 5)) == (1, [2])
    assert narrowest(count_by_channel(np.arange(60), (3, 4, 5)), (3, 4, 5)) is None


def test_description_lists_five_channels():
    assert describe_channels(1, [4]) == "channel 4 of axis 1"
    assert describe_channels(2, list(range(8))) == "channels 0, 1, 2, 3, 4 and 3 more of axis 2"


def test_constant_channels_are_named_unless_all_are():
    array = RNG.standard_normal((6, 3))
    assert describe_constant_channels(array) == ""
    array[:, 1] = 7
    assert describe_constant_channels(array) == "channel 1 of axis 1 is constant on these rows"
    assert describe_constant_channels(np.ones((6, 3))) == ""
    assert describe_constant_channels(array[:1]) == ""
