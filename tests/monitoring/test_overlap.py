"""Evaluation rows that occur in the training data."""

import numpy as np
import pandas
import polars
import pytest

import pytest_modelserve as ms
from pytest_modelserve.monitoring import row_digests

RNG = np.random.default_rng(0)
TRAINING = {
    "age": RNG.integers(18, 90, 500),
    "income": np.where(RNG.random(500) < 0.2, np.nan, RNG.lognormal(size=500)),
    "region": RNG.choice(["north", "south"], 500).astype(object),
}
FRESH = {
    "age": RNG.integers(18, 90, 50),
    "income": RNG.lognormal(size=50),
    "region": RNG.choice(["north", "south"], 50).astype(object),
}


def with_copies(rows):
    """The fresh rows, after copies of training rows."""
    return {name: np.concatenate([TRAINING[name][rows], FRESH[name]]) for name in TRAINING}


@pytest.fixture(params=["rows", "profile", "file"])
def training(request, tmp_path):
    """The training data as rows, as a profile and as its file, with the key."""
    if request.param == "rows":
        return {"training": TRAINING}
    profile = ms.reference_profile(TRAINING, row_digest_key="secret")
    path = profile.save(tmp_path / "profile.json")
    return {"training": profile if request.param == "profile" else path, "row_digest_key": "secret"}


def test_copies_are_found_with_their_row_numbers(training):
    evidence = ms.measure_overlap(with_copies([3, 7, 7]), **training)
    assert evidence.verdict == "FAIL"
    assert evidence.value == 3 / 53
    assert evidence.details["rows"] == [0, 1, 2]
    assert evidence.findings[0] == "3 of 53 rows occur in the training data: rows 0, 1, 2"


def test_fresh_rows_pass_and_a_budget_allows_for_some_copies(training):
    assert ms.measure_overlap(FRESH, **training).verdict == "PASS"
    assert ms.measure_overlap(with_copies([3]), max_overlap=0.02, **training).verdict == "PASS"


def test_training_rows_of_the_copies_are_named_where_they_are_given():
    evidence = ms.measure_overlap(with_copies([7, 3]), TRAINING)
    assert evidence.details["training_rows"] == [7, 3]
    assert evidence.findings[1] == "row 0 is training row 7"


@pytest.mark.parametrize("convert", [pandas.DataFrame, polars.DataFrame])
def test_dtypes_order_of_columns_and_nulls_make_no_difference(convert, training):
    missing = int(np.flatnonzero(np.isnan(TRAINING["income"]))[0])
    rows = with_copies([missing, 5])
    frame = convert({"region": rows["region"], "income": rows["income"], "age": rows["age"].astype(np.float32)})
    assert ms.measure_overlap(frame, **training).details["rows"] == [0, 1]


def test_equal_doubles_of_different_integers_are_different_rows():
    ids = np.array([2**60, 2**60 + 1])
    assert ms.measure_overlap({"id": ids[1:]}, {"id": ids[:1]}).verdict == "PASS"
    assert ms.measure_overlap({"id": np.array([2.0**60])}, {"id": ids[:1]}).value == 1


def test_images_are_compared_pixel_by_pixel():
    images = RNG.integers(0, 256, (20, 8, 8))
    assert ms.measure_overlap(images[15:].astype(np.uint8), images[:16].astype(np.float32)).details["rows"] == [0]


def test_near_copies_are_found_within_the_tolerance_of_each_column():
    near = {"age": TRAINING["age"][:3], "income": TRAINING["income"][:3] + 0.01, "region": TRAINING["region"][:3]}
    near["income"][1] += 1
    evidence = ms.measure_overlap(near, TRAINING, tolerance={"income": 0.02})
    known = ~np.isnan(TRAINING["income"][:3])
    assert evidence.details["rows"] == [row for row in (0, 2) if known[row]] + [1] * (not known[1])
    assert ms.measure_overlap(near, TRAINING).value == (~known).mean()


def test_near_copies_are_those_of_a_search_of_all_pairs():
    training, rows = RNG.normal(size=(300, 4)), RNG.normal(size=(200, 4))
    scaled = np.abs(rows[:, None] - training) / training.std(axis=0)
    expected = np.flatnonzero((scaled.max(axis=2) <= 0.3).any(axis=1))
    evidence = ms.measure_overlap(rows, training, tolerance=0.3)
    assert evidence.value == expected.size / 200
    assert evidence.details["rows"] == expected[:50].tolist()
    assert evidence.quantities[1].value == 0  # none of them is equal


def test_text_null_and_infinity_have_to_be_equal_for_near_copies():
    training = {"x": np.array([1.0, np.nan, np.inf]), "city": ["Bern", "Graz", None]}
    rows = {"x": np.array([1.1, 1.1, np.nan, -np.inf, np.inf]), "city": ["Bern", "Graz", "Graz", None, None]}
    assert ms.measure_overlap(rows, training, tolerance={"x": 0.2}).details["rows"] == [0, 2, 4]


def test_sample_of_the_digests_gives_an_interval(monkeypatch):
    monkeypatch.setattr(row_digests, "MAX_DIGESTS", 100)
    rows = RNG.normal(size=(1000, 3))
    profile = ms.reference_profile(rows, row_digest_key="secret")
    copies = ms.measure_overlap(rows, profile, max_overlap=0.5, row_digest_key="secret")
    fresh = ms.measure_overlap(RNG.normal(size=(1000, 3)), profile, row_digest_key="secret")
    few = ms.measure_overlap(RNG.normal(size=(1000, 3)), profile, max_overlap=0.2, row_digest_key="secret")
    assert (copies.verdict, fresh.verdict, few.verdict) == ("FAIL", "INCONCLUSIVE", "PASS")
    assert copies.n == 100
    assert "known for 100 of 1,000 rows" in copies.findings[1]


@pytest.mark.parametrize("limit", [1000, 60])
def test_merged_profiles_have_the_digests_of_all_rows(monkeypatch, limit):
    monkeypatch.setattr(row_digests, "MAX_DIGESTS", limit)
    rows = RNG.normal(size=(300, 3))
    whole = ms.reference_profile(rows, row_digest_key="secret")
    parts = [ms.reference_profile(part, like=whole, row_digest_key="secret") for part in np.split(rows, 3)]
    one = parts[0].merge(parts[1]).merge(parts[2]).row_digests
    other = parts[2].merge(parts[0].merge(parts[1])).row_digests
    for merged in (one, other):
        assert merged.digests.tolist() == whole.row_digests.digests.tolist()
        assert merged.is_complete is whole.row_digests.is_complete is (limit == 1000)


def test_profile_reveals_nothing_without_the_key():
    profile = ms.reference_profile(TRAINING, row_digest_key="secret")
    assert "secret" not in profile.to_json()
    other = ms.reference_profile(TRAINING, row_digest_key="another")
    assert not set(profile.row_digests.digests.tolist()) & set(other.row_digests.digests.tolist())
    with pytest.raises(ms.UsageError, match="same row_digest_key"):
        profile.merge(ms.reference_profile(TRAINING, like=profile, row_digest_key="another"))


def test_profile_without_digests_is_as_before_and_one_with_them_survives_its_file():
    plain = ms.reference_profile(TRAINING)
    assert "row_digests" not in plain.to_json()
    profile = ms.reference_profile(TRAINING, row_digest_key="secret")
    assert ms.ReferenceProfile.from_json(profile.to_json()).digest == profile.digest != plain.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training": ms.reference_profile(TRAINING)}, "has no row digests"),
        ({"training": ms.reference_profile(TRAINING, row_digest_key="a")}, "row_digest_key is missing"),
        ({"training": ms.reference_profile(TRAINING, row_digest_key="a"), "row_digest_key": "b"}, "is not the key"),
        ({"training": ms.reference_profile(TRAINING, row_digest_key="a"), "tolerance": 0.1}, "needs the training rows"),
        ({"row_digest_key": "a"}, "training holds rows"),
        ({"training": {"age": [1]}}, "training has no column 'income'"),
        ({"training": {**TRAINING, "id": np.arange(500)}}, r"exclude=\('id',\)"),
        ({"training": {**TRAINING, "region": np.arange(500)}}, "holds categories in the evaluation data"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": {"incom": 1.0}}, "did you mean 'income'"),
        ({"tolerance": {"region": 1.0}}, "unknown numeric column 'region'"),
        ({"max_overlap": 1.0}, "max_overlap"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_overlap(FRESH, **{"training": TRAINING} | arguments)


def test_empty_key_and_lazy_rows_are_refused():
    with pytest.raises(ms.UsageError, match="row_digest_key must be a text"):
        ms.reference_profile(TRAINING, row_digest_key="")
    with pytest.raises(ms.UsageError, match="row_digest_key needs rows in memory"):
        ms.reference_profile(polars.LazyFrame({"x": [1, 2]}), row_digest_key="a")


def test_copies_rounded_to_32_bits_are_copies():
    training = np.random.default_rng(0).normal(size=(300, 3))
    rounded = training.astype(np.float32)
    profile = ms.reference_profile(rounded, row_digest_key="key")
    assert ms.measure_overlap(rounded[:9], training).value == 1
    assert ms.measure_overlap(training[:9], rounded).value == 1
    assert ms.measure_overlap(training[:9], profile, row_digest_key="key").value == 1


def test_rounded_rows_that_no_row_of_the_profile_can_equal_are_refused():
    training = np.random.default_rng(0).normal(size=(300, 3))
    profile = ms.reference_profile(training, row_digest_key="key")
    with pytest.raises(ms.InputError, match="give the evaluation rows as float64"):
        ms.measure_overlap(training[:9].astype(np.float32), profile, row_digest_key="key")
