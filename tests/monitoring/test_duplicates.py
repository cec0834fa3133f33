"""Copies of rows in samples of every size, by theory and by drawing samples."""

from dataclasses import asdict

import numpy as np
import pytest

from pytest_modelserve.monitoring.duplicates import RepeatedRows


def zipf(rng, rows):
    weights = 1 / np.arange(1, 3001) ** 1.1
    return rng.choice(3000, rows, p=weights / weights.sum())


def drawn_rate(kinds, size, rng):
    """The mean proportion of copies in samples that are drawn."""
    samples = [rng.choice(kinds, size, replace=False) for _ in range(max(300, 60_000 // size))]
    return float(np.mean([1 - np.unique(sample).size / size for sample in samples]))


@pytest.mark.parametrize("size", [2, 37, 700, 1999, 2000])
def test_the_rate_of_a_size_is_that_of_samples_of_that_size(size):
    rng = np.random.default_rng(0)
    kinds = zipf(rng, 2000)
    found = RepeatedRows.of(np.bincount(kinds))
    assert found.rate(size) == pytest.approx(drawn_rate(kinds, size, rng), abs=0.003)
    assert found.largest == found.among == 2000


def test_few_kinds_are_nearly_all_copies_at_every_size():
    found = RepeatedRows.of([3000, 3000, 2044])
    assert found.rate(7063) == pytest.approx(1 - 3 / 7063)
    assert found.rate_of_more(600_000) == pytest.approx(1 - 3 / 600_000)


def even(kinds):
    return lambda rng, rows: rng.integers(0, kinds, rows)


@pytest.mark.parametrize(
    "draw", [even(30), even(625), even(3000), even(10**6), zipf], ids=["30", "625", "3000", "10⁶", "uneven"]
)
def test_the_rate_of_more_rows_has_a_lower_bound_however_frequent_the_different_rows_are(draw):
    rng = np.random.default_rng(1)
    truth = np.mean([1 - np.unique(draw(rng, 10_000)).size / 10_000 for _ in range(20)])
    profiles = [RepeatedRows.of(np.bincount(draw(rng, 1000))) for _ in range(60)]
    assert np.mean([found.rate_of_more(10_000, z=1.645) <= truth + 1e-3 for found in profiles]) >= 0.9
    assert np.mean([found.rate_of_more(10_000) for found in profiles]) == pytest.approx(truth, abs=0.06)


def test_the_variance_of_a_rate_is_not_above_its_bound():
    rng = np.random.default_rng(3)
    for draw in (even(30), even(1000), zipf):
        found = [RepeatedRows.of(np.bincount(draw(rng, 2000))) for _ in range(200)]
        for size in (300, 2000):
            bound = np.mean([counts.rate_variance(size) for counts in found])
            assert np.var([counts.rate(size) for counts in found]) < 1.1 * bound


def test_shards_merge_to_the_same_bits_in_any_order_and_rates_are_those_of_one_shard():
    rng = np.random.default_rng(2)
    parts = [RepeatedRows.of(np.bincount(zipf(rng, rows))) for rows in (500, 2000, 900)]
    merged = parts[0].merged(parts[1]).merged(parts[2])
    assert merged == parts[2].merged(parts[0].merged(parts[1]))
    assert (merged.among, merged.total, merged.largest) == (500, 3400, 1722)
    assert merged.rate(400) == pytest.approx(parts[1].rate(400), abs=0.03)
    assert RepeatedRows.of_content({**asdict(merged), "curve": [list(pair) for pair in merged.curve]}) == merged
