"""Profiles: what they store, how they are merged, their file, and duplicates."""

import dataclasses
import json
import math

import numpy as np
import pytest

from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import ReferenceProfile, measure_data_quality, measure_drift, reference_profile
from pytest_modelserve.monitoring.column_profile import HASH_BUCKETS, CategoricalColumn, hash_bucket
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.duplicates import repeated_rows
from pytest_modelserve.monitoring.readers import read_table


def test_a_column_of_numbers_keeps_counts_and_moments():
    values = np.array([1.0, 2.0, 2.0, np.nan, 4.0, np.inf, -np.inf, np.inf])
    column = reference_profile({"x": values}).column("x")
    assert (column.rows, column.nulls, column.known) == (8, 1, 7)
    assert (column.negative_infinities, column.positive_infinities) == (1, 2)
    assert (column.minimum, column.maximum) == (1, 4)
    assert (column.mean, column.std) == pytest.approx((2.25, np.std([1, 2, 2, 4])))
    assert column.counts == (1, 1, 2, 1, 2)  # the infinities beyond the outer edges
    assert not column.constant


def test_a_constant_column_has_exact_moments():
    column = reference_profile({"x": np.full(1000, 0.1)}).column("x")
    assert column.constant
    assert (column.mean, column.std) == (0.1, 0.0)


def test_few_categories_are_stored_by_name_and_many_in_hash_buckets():
    few = reference_profile({"x": ["a", "b", "a", None]}).column("x")
    assert (few.categories, few.counts, few.nulls, few.hashed) == (("a", "b"), (2, 1), 1, False)
    many = reference_profile({"x": [f"name {index}" for index in range(101)]}).column("x")
    assert (many.categories, many.hashed, len(many.counts), sum(many.counts)) == ((), True, HASH_BUCKETS, 101)
    text = reference_profile({"x": ["short", "long " * 21]}).column("x")
    assert text.hashed


def test_the_hash_bucket_of_a_category_never_changes():
    # Committed profiles count in these pools.
    assert [hash_bucket(name) for name in ("", "a", "Graz", "street 17", "日本")] == [36, 0, 55, 0, 40]


def test_no_row_is_in_the_file(people):
    rows = people(3000, 0)
    text = reference_profile(rows).to_json()
    extremes = {rows["age"].min(), rows["age"].max()}
    assert not [value for value in rows["age"] if repr(float(value)) in text and value not in extremes]
    assert "street 17" not in text


def test_fifty_columns_fit_into_500_kb():
    rng = np.random.default_rng(0)
    columns = {f"feature {index}": rng.normal(size=5000) * 10.0**index for index in range(25)}
    columns |= {f"amount {index}": rng.lognormal(0, 2, 5000) for index in range(15)}
    names = [f"a category with a rather long name, number {index}" for index in range(100)]
    columns |= {f"text {index}": rng.choice(names, 5000) for index in range(10)}
    assert len(reference_profile(columns).to_json().encode()) <= 500_000


def test_categories_that_become_too_many_by_merging_are_hashed():
    def column(names):
        return CategoricalColumn.of("x", dict.fromkeys(names, 3), nulls=1, dependence=Dependence())

    low, high = [f"n{index}" for index in range(60)], [f"n{index}" for index in range(40, 110)]
    merged = column(low).merged(column(high))
    counts = {name: 3 * ((name in low) + (name in high)) for name in {*low, *high}}
    assert merged == CategoricalColumn.of("x", counts, nulls=2, dependence=Dependence())
    assert merged.hashed
    assert merged.merged(column(low)).counts == column(low).merged(merged).counts


def test_infinities_and_dependence_merge():
    like = reference_profile({"x": np.arange(50.0)})
    other = reference_profile({"x": np.array([np.inf, 1.0, 1.0, -np.inf])}, like=like)
    merged = like.merge(other).column("x")
    assert (merged.negative_infinities, merged.positive_infinities, merged.mean) == (1, 1, pytest.approx(1227 / 52))
    assert merged.dependence == like.columns[0].dependence.merged(other.columns[0].dependence)
    assert merged.dependence.rows == 54


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": [1.0, 2.0], "z": [1, 2]}, "other must have the same columns in the same order, and the same block"),
        ({"x": [1.0, 2.5], "y": [1, 2]}, "the profiles count column 'x' between different edges"),
        ({"x": ["a", "b"], "y": [1, 2]}, "column 'x' has kind float in one profile and category in the other"),
    ],
)
def test_profiles_that_do_not_fit_are_not_merged(other, message):
    with pytest.raises(UsageError) as caught:
        reference_profile({"x": [1.0, 2.0], "y": [1, 2]}).merge(reference_profile(other))
    assert str(caught.value).startswith(message)


def test_a_saved_profile_is_loaded_as_it_was(tmp_path, people):
    profile = reference_profile(people(400, 3), name="training, 2026", block=7)
    path = profile.save(tmp_path / "profile.json")
    assert ReferenceProfile.load(path) == profile
    assert ReferenceProfile.from_json(profile.to_json()).digest == profile.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


def edited(profile, change):
    data = json.loads(profile.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda p: p.to_json()[:-40], "is not JSON ("),
        (lambda p: "[1, 2]", "is not a reference profile: write one with ReferenceProfile.save"),
        (lambda p: '{"a": NaN}', "is not JSON (it holds NaN)"),
        (
            lambda p: edited(p, lambda data: data.update(schema_version=6)),
            "has schema version 6, and this release reads 4 and 5: install the release that wrote it, or profile the data again",
        ),
        (
            lambda p: edited(p, lambda data: data.update(schema_version=3)),
            "has schema version 3, and this release reads 4 and 5: install the release that wrote it, or profile the data again",
        ),
        (
            lambda p: edited(p, lambda data: data["columns"][0].update(maximum=1e9)),
            "was changed after it was written: its content does not match its digest. Profile the data again",
        ),
        (lambda p: edited(p, lambda data: data.pop("digest")), "was changed after it was written"),
        (lambda p: edited(p, lambda data: data.update(block=5)), "was changed after it was written"),
    ],
    ids=["truncated", "other JSON", "NaN", "newer", "older", "edited", "no digest", "edited block"],
)
def test_a_file_that_is_no_sound_profile_is_named(tmp_path, people, text, message):
    path = tmp_path / "profile.json"
    path.write_text(text(reference_profile(people(100, 4))))
    with pytest.raises(ArtifactError) as caught:
        ReferenceProfile.load(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path, people):
    with pytest.raises(ArtifactError, match=r"^there is no profile \S+nowhere\.json: write it with ReferenceP"):
        ReferenceProfile.load(tmp_path / "nowhere.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match=r"^the profile .*binary\.json cannot be read: "):
        ReferenceProfile.load(tmp_path / "binary.json")
    with pytest.raises(ArtifactError, match=r"^the profile cannot be written to .*binary\.json/profile\.json: "):
        reference_profile(people(100, 4)).save(tmp_path / "binary.json" / "profile.json")


def test_save_makes_the_folder(tmp_path, people):
    profile = reference_profile(people(100, 4))
    path = profile.save(tmp_path / "profiles" / "nightly" / "people.json")
    assert ReferenceProfile.load(path) == profile


def test_the_digest_is_of_everything(people):
    profile = reference_profile(people(100, 5))
    digests = {
        profile.digest,
        dataclasses.replace(profile, name="x").digest,
        dataclasses.replace(profile, block=2).digest,
    }
    assert len(digests) == 3
    assert reference_profile(people(100, 5)).digest == profile.digest


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ({"x": [1.0]}, {}, InputError, "data has 1 row: a profile needs at least 2 rows (thousands recommended)"),
        ({"x": [None, None]}, {}, InputError, "column 'x' is null in every row: exclude=('x',) leaves it out"),
        ({"x": [math.inf, math.nan]}, {}, InputError, "column 'x' is infinite in every non-null row"),
        ({"x": [1, 2]}, {"block": 0}, UsageError, "block must be a number of rows, at least 1; got 0"),
        ({"x": [1, 2]}, {"bins": 1}, UsageError, "bins must be from 2 to 1024; got 1"),
        ({"x": [1, 2]}, {"columns": ["y"]}, UsageError, "columns names the columns of an array without `like`"),
    ],
)
def test_what_cannot_be_profiled_is_one_clear_error(data, options, error, message):
    with pytest.raises(error) as caught:
        reference_profile(data, **options)
    assert str(caught.value).startswith(message)


def test_like_refuses_other_columns(people):
    profile = reference_profile(people(100, 7), name="training")
    other = people(100, 8)
    other["Age"] = other.pop("age")
    with pytest.raises(InputError, match="reference does not fit the profile 'training': column 'age' is missing"):
        reference_profile(other, like=profile)


def test_a_part_of_one_row_or_without_values_is_counted_like_another():
    like = reference_profile({"x": [1.0, 2.0, 3.0], "city": ["Bern", "Graz", "Graz"], "on": [True, False, True]})
    part = reference_profile({"x": [None], "city": [None], "on": [None]}, like=like)
    assert [(column.kind, column.rows, column.nulls) for column in part.columns] == [
        ("float", 1, 1),
        ("category", 1, 1),
        ("boolean", 1, 1),
    ]
    assert (part.column("x").minimum, part.column("x").mean, part.column("x").constant) == (0, 0, False)
    assert part.column("city").categories == ("Bern", "Graz")
    assert not any(sum(column.counts) for column in part.columns)
    for merged in (part.merge(like), like.merge(part)):
        for one, other in zip(merged.columns, like.columns, strict=True):
            assert (one.counts, one.rows, one.nulls) == (other.counts, 4, 1)
        assert (merged.column("x").minimum, merged.column("x").mean) == (1, 2)
    assert ReferenceProfile.from_json(part.to_json()) == part


def test_a_part_that_is_infinite_throughout_is_counted_like_another():
    like = reference_profile({"x": [1.0, 2.0, 3.0]})
    profile = reference_profile({"x": [math.inf, -math.inf, math.inf]}, like=like)
    part = profile.column("x")
    assert (part.counts[0], part.counts[-1], part.finite, part.below, part.above) == (1, 2, 0, 0, 0)
    assert like.columns[0].merged(part).maximum == 3
    chained = reference_profile({"x": [-5.0, 5.0]}, like=profile).column("x")
    assert (chained.below, chained.above) == (0, 0)  # there is no range to be outside of


def count(data):
    return repeated_rows(read_table(data).columns).rows


def oracle(data):
    """Rows that a set has seen, null equal to null."""
    rows = list(zip(*(np.asarray(values).tolist() for values in data.values()), strict=True))
    return len(rows) - len({tuple("null" if value is None or value != value else value for value in r) for r in rows})


@pytest.mark.parametrize("seed", range(6))
def test_copies_are_as_many_as_a_set_of_tuples_finds(seed):
    rng = np.random.default_rng(seed)
    data = {
        "small": rng.integers(0, 3, 3000),
        "float": rng.integers(-2, 3, 3000) / 2,
        "flag": rng.random(3000) < 0.5,
        "nulls": np.where(rng.random(3000) < 0.3, np.nan, rng.integers(0, 4, 3000)),
        "text": rng.choice(np.array(["a", "b", None], dtype=object), 3000),
        "single": rng.integers(0, 2, 3000).astype(np.float32),
    }
    assert 0 < count(data) == oracle(data) < 3000


def test_rows_with_one_distinct_column_are_no_duplicates():
    x = np.random.default_rng(0).normal(size=5000)
    assert count({"x": x, "same": np.zeros(5000)}) == 0
    assert count({"same": np.zeros(5000), "x": x}) == 0


def test_nulls_of_an_otherwise_distinct_column_are_equal():
    x = np.random.default_rng(0).normal(size=5000)
    x[[3, 900]] = np.nan
    assert count({"x": x, "same": np.zeros(5000)}) == 1


def test_text_alone_is_compared():
    assert count({"x": ["a", "b", "a", None, None, ""]}) == 2


def test_zeros_of_either_sign_are_equal_and_so_are_all_nan():
    nan = np.array([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001], dtype=np.uint64).view(np.float64)
    assert count({"x": np.concatenate(([0.0, -0.0, 1.0], nan))}) == 3


def test_integers_beyond_doubles_are_distinct():
    assert count({"id": 2**60 + np.arange(1000)}) == 0


def test_a_million_rows_of_few_values_hash_without_a_collision():
    # 10⁶ different rows: digits of the row's number in columns of small numbers, the worst case for a weak hash.
    numbers = np.arange(1_000_000)
    assert count({f"digit {place}": (numbers // 10**place % 10).astype(float) for place in range(6)}) == 0
    assert count({f"bit {place}": (numbers >> place) & 1 for place in range(20)}) == 0


def notes(rows, seed, *, words=8):
    """Texts of a random number of words, about `words`."""
    rng = np.random.default_rng(seed)
    return ["word " * (1 + number) + str(row) for row, number in enumerate(rng.poisson(words, rows).tolist())]


def test_text_has_hash_buckets_and_lengths():
    profile = reference_profile({"note": ["x" * 101, "", "añb", None], "city": ["Bern", "Graz", None, None]})
    assert profile.names == ("note", "city", "note (length)")
    assert profile.input_names == ("note", "city")
    length = profile.column("note (length)")
    assert (length.kind, length.source, length.rows, length.nulls) == ("integer", "note", 4, 1)
    assert (length.minimum, length.maximum, length.mean) == (0, 101, pytest.approx(104 / 3))
    assert profile.column("note").hashed


def test_a_column_with_the_name_of_a_length_is_refused():
    with pytest.raises(InputError, match=r"2 columns are called 'note \(length\)': give each its own name"):
        reference_profile({"note": ["x" * 101, "y"], "note (length)": [1, 2]})


def test_longer_texts_drift_in_their_length():
    profile = reference_profile({"note": notes(3000, 0)})
    same = measure_drift({"note": notes(3000, 1)}, profile, max_distance=0.1)
    assert same.verdict is Verdict.PASS
    longer = measure_drift({"note": notes(3000, 2, words=16)}, profile, max_distance=0.1)
    assert longer.verdict is Verdict.FAIL
    assert any("'note (length)'" in finding for finding in longer.findings)


def test_texts_that_are_few_in_the_data_alone_keep_their_length():
    profile = reference_profile({"note": notes(300, 0)})
    evidence = measure_data_quality({"note": notes(50, 1)}, profile, max_rate=0.2)
    assert evidence.verdict is not Verdict.FAIL
    lost = measure_data_quality({"note": [None] * 50}, profile, max_rate=0.2)
    assert lost.verdict is Verdict.FAIL
    assert any("column 'note' is null in every row" in finding for finding in lost.findings)


def test_an_array_of_texts_fits_its_profile():
    data = np.array([[f"{'long ' * 25}{row}", "a"] for row in range(200)], dtype=object)
    profile = reference_profile(data, columns=["note", "letter"])
    assert profile.names == ("note", "letter", "note (length)")
    assert measure_drift(data, profile, max_distance=0.5, block=1).verdict is not Verdict.FAIL
    assert reference_profile(data, like=profile).columns[2].counts == profile.columns[2].counts


def test_an_embedding_is_counted_in_few_bins():
    rng = np.random.default_rng(0)
    profile = reference_profile({"face": rng.normal(size=(2000, 3)), "x": rng.normal(size=2000)})
    assert profile.names == ("face[0]", "face[1]", "face[2]", "x")
    assert [column.source for column in profile.columns] == ["face"] * 3 + [None]
    assert all(len(column.edges) <= 64 for column in profile.columns[:3])
    assert len(profile.column("x").edges) > 200
    moved = rng.normal((0, 0.3, 0), size=(2000, 3))
    drift = measure_drift({"face": moved, "x": rng.normal(size=2000)}, profile, max_distance=0.05)
    assert drift.verdict is Verdict.FAIL
    assert any("'face[1]'" in finding for finding in drift.findings)


def test_an_embedding_of_768_numbers_fits_into_800_kb():
    embedding = np.random.default_rng(1).normal(size=(2000, 768)).astype(np.float32)
    assert len(reference_profile({"e": embedding}, associations=False).to_json().encode()) <= 800_000


def test_profile_shows_its_size_and_first_columns_in_one_line():
    data = {f"column {number}": np.arange(2000.0) for number in range(9)}
    profile = reference_profile(data, name="people")
    assert repr(profile) == (
        "<ReferenceProfile 'people': 2,000 rows, 9 columns ('column 0' float, 'column 1' float, "
        f"'column 2' float, 'column 3' float, 'column 4' float, …), sha256 {profile.digest[:12]}…>"
    )
    one = reference_profile({"city": ["a", "b"]}, name="cities")
    assert repr(one) == f"<ReferenceProfile 'cities': 2 rows, 1 column ('city' category), sha256 {one.digest[:12]}…>"
