"""Raw rows that a profile keeps on request, and what a classifier sees in all columns at once."""

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import ReferenceProfile, measure_drift, reference_profile
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.drift.multivariate_tests import compare_rows, feature_matrix
from pytest_modelserve.monitoring.sketch import Sketch, aligned, spread


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ring(rng, rows, *, hollow=False):
    """Two columns that lie evenly in a square, or in it without its middle and corners: every column alone, and the
    correlation, stay what they are."""
    points = rng.uniform(-1, 1, size=(8 * rows, 2))
    if hollow:
        points = points[(points[:, 0] > 0) ^ (points[:, 1] > 0) ^ (rng.random(len(points)) < 0.5)]
        x, y = points.T
        points = points[np.abs(np.abs(x) - np.abs(y)) < 0.6]
    return {"x": points[:rows, 0], "y": points[:rows, 1]}


def test_sketch_rows_are_raw_and_survive_the_file(people):
    rows = people(300, 0)
    rows["age"][3] = np.nan
    profile = reference_profile(rows, sketch_rows=300)
    again = ReferenceProfile.from_json(profile.to_json())
    assert again == profile
    values = again.sketch.values()
    np.testing.assert_array_equal(values[:, 0], rows["age"])
    words = again.sketch.vocabularies[3]
    assert [words[int(code)] for code in values[:, 3]] == rows["city"].tolist()
    assert again.sketch.vocabularies[4] == ()  # of text in pools no name is kept


def test_rows_are_spread_evenly_without_a_fixed_step():
    chosen = spread(10_000, 100)
    assert (chosen // 100 == np.arange(100)).all()
    assert len(set(np.diff(chosen))) > 20
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_merged_sketches_hold_rows_in_proportion_and_no_more_than_the_larger(rng):
    profile = reference_profile({"x": rng.normal(size=6000), "c": ["b", "c"] * 3000}, sketch_rows=300)
    other = reference_profile(
        {"x": rng.normal(100, 1, size=3000), "c": ["a", "b"] * 1500}, like=profile, sketch_rows=300
    )
    merged = profile.merge(other).sketch
    values = merged.values()
    assert (merged.seen, merged.rows) == (9000, 300)
    assert (values[:, 0] > 50).sum() == 100
    assert merged.vocabularies[1] == ("b", "c", "a")
    assert set(values[values[:, 0] > 50, 1]) == {0.0, 2.0}


def test_names_aligned_with_hash_buckets_are_hashed():
    from pytest_modelserve.monitoring.column_profile import hash_bucket

    pooled = Sketch.of(np.array([[7.0]]), seen=1, vocabularies=((),))
    named = Sketch.of(np.array([[0.0], [np.nan]]), seen=2, vocabularies=(("a",),))
    vocabularies, one, other = aligned(pooled, named)
    assert vocabularies == ((),)
    assert (one[0, 0], other[0, 0]) == (7.0, hash_bucket("a"))
    assert np.isnan(other[1, 0])


@pytest.mark.parametrize("rows", [-1, 20_001])
def test_a_sketch_of_impossible_size_is_refused(people, rows):
    with pytest.raises(UsageError, match="sketch_rows must be from 0 to 20,000; got"):
        reference_profile(people(50, 0), sketch_rows=rows)


def test_what_neither_columns_nor_correlations_show_is_found_in_whole_rows(rng):
    profile = reference_profile(ring(rng, 6000), sketch_rows=2000)
    changed = measure_drift(ring(rng, 2000, hollow=True), profile, max_distance=0.10, block=1)
    assert changed.verdict is Verdict.FAIL
    assert changed.details["moved"] == ["whole rows"]
    assert changed.summary == "the rows as a whole differ from the profile by more than max_distance"
    same = measure_drift(ring(rng, 2000), profile, max_distance=0.15, block=1)
    assert same.verdict is Verdict.PASS
    assert same.summary == "no distance exceeds max_distance (2 columns, 1 pair, whole rows)"


def test_the_least_similar_rows_are_reported_by_number(rng):
    rows = {"x": rng.normal(size=8000), "y": rng.normal(size=8000)}
    profile = reference_profile({name: values[:2000] for name, values in rows.items()}, sketch_rows=1000)
    night = {name: values[2000:].copy() for name, values in rows.items()}
    night["x"][5000:5900] += 4
    night["y"][5000:5900] -= 4
    evidence = measure_drift(night, profile, max_distance=0.10, block=1)
    assert len(evidence.details["outlier_rows"]) == 5
    assert set(evidence.details["outlier_rows"]) <= set(range(5000, 5900))
    newest = ", ".join(map(str, evidence.details["outlier_rows"]))
    assert f"a classifier distinguishes these rows from the profile's; least similar: rows {newest}" in "\n".join(
        evidence.findings
    )


def test_digits_without_one_class_are_found(data_folder):
    digit = 1
    with np.load(data_folder / "digits.npz") as archive:
        images, labels = archive["images"].reshape(-1, 64).astype(float), archive["labels"]
    order = np.random.default_rng(digit).permutation(len(images))
    profile, rest = reference_profile(images[order[:1200]], sketch_rows=1200), order[1200:]
    missing = measure_drift(images[rest[labels[rest] != digit]], profile, max_distance=0.03, alpha=0.05, block=1)
    assert missing.verdict is Verdict.FAIL
    whole = measure_drift(images[rest], profile, max_distance=0.03, alpha=0.05, block=1)
    assert whole.verdict is Verdict.INCONCLUSIVE
    assert "sketch_rows=" in whole.advice or "raise max_distance" in whole.advice


def test_every_kind_of_column_is_read(people):
    profile = reference_profile(people(1500, 0), sketch_rows=500)
    same, moved = people(700, 1), people(700, 2)
    moved["age"] = np.where(moved["member"], moved["age"] + 8, moved["age"] - 3.4)
    moved["age"][::50] = np.nan
    assert measure_drift(same, profile, max_distance=1e-9, alpha=0.05).verdict is not Verdict.FAIL
    assert measure_drift(moved, profile, max_distance=0.05, alpha=0.05).verdict is Verdict.FAIL


def test_sketches_of_unchanged_rows_rarely_differ(rng):
    alarms = 0
    for _ in range(8):
        profile = reference_profile(rng.standard_cauchy(size=(200, 3)), sketch_rows=100)
        now = reference_profile(rng.standard_cauchy(size=(100, 3)), like=profile, sketch_rows=100)
        change = compare_rows(profile.sketch, now.sketch, profile.columns, blocks=Blocks(), level=0.05)
        alarms += change.p_value <= 0.05
    assert alarms <= 3


def test_one_row_of_each_block_is_read(rng):
    def blocky(blocks):
        return np.repeat(rng.normal(size=(blocks, 3)), 10, axis=0) + 1e-3 * rng.normal(size=(10 * blocks, 3))

    alarms = {1: 0, 10: 0}
    for _ in range(4):
        profile = reference_profile(blocky(60), sketch_rows=600)
        now = reference_profile(blocky(40), like=profile, sketch_rows=400)
        for block in alarms:
            change = compare_rows(profile.sketch, now.sketch, profile.columns, blocks=Blocks(block, block), level=0.05)
            alarms[block] += change.p_value <= 0.05
            assert (change.reference_rows, change.current_rows) == (600 / block, 400 / block)
    assert alarms[1] == 4
    assert alarms[10] <= 1


def test_a_handful_of_rows_says_nothing(people):
    profile = reference_profile(people(500, 0), sketch_rows=200)
    change = compare_rows(
        profile.sketch,
        reference_profile(people(19, 1), like=profile, sketch_rows=19).sketch,
        profile.columns,
        blocks=Blocks(),
        level=0.01,
    )
    assert (change.distance, change.p_value, change.upper) == (0.0, 1.0, 1.0)


def test_design_knows_nulls_infinities_constants_and_heavy_tails():
    rng = np.random.default_rng(1)
    values = np.column_stack(
        (
            np.ones(200),
            rng.normal(size=200),
            rng.standard_cauchy(200) ** 3,
            rng.integers(0, 3, 200),
            np.full(200, np.nan),
        )
    )
    values[:10, 1], values[10:12, 1] = np.nan, np.inf
    design = feature_matrix(values, np.array([False, False, False, True, False]))
    assert design.shape == (200, 1 + 1 + 1 + 3)  # a column that tells nulls, two of numbers, three of categories
    assert np.isfinite(design).all()
    assert np.abs(design).max() <= 5
    assert design[:, 2].std() == pytest.approx(1, abs=0.05)
