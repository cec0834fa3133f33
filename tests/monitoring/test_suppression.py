"""Suppressed profiles: small counts, ends, sums and texts."""

from pathlib import Path

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring import (
    ReferenceProfile,
    measure_data_quality,
    measure_drift,
    measure_overlap,
    reference_profile,
)
from pytest_modelserve.monitoring.monitor import Monitor, streams

FILES = Path(__file__).parent / "files"
KEY = "a secret of sixteen letters"


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MODELSERVE_PROJECT_KEY", KEY)


def counts_of(profile):
    return [count for column in profile.columns for count in (column.nulls, *column.counts)]


@pytest.fixture
def patients():
    """Rows with rare values of every kind."""

    def draw(rows, seed):
        rng = np.random.default_rng(seed)
        weight = rng.normal(70, 12, rows)
        weight[:3] = np.nan
        disease = rng.choice(["cold", "flu"], rows).astype(object)
        disease[:4] = "kuru"
        return {
            "weight": weight,
            "visits": rng.poisson(1.5, rows),
            "cost": np.where(rng.random(rows) < 0.6, 0.0, rng.lognormal(5, 2, rows)),
            "disease": disease,
            "dead": np.arange(rows) < 2,
            "note": np.array([f"note {number}" for number in rng.integers(0, 10**9, rows)], dtype=object),
        }

    return draw


def test_no_count_of_a_suppressed_profile_is_smaller_than_min_count(patients):
    profile = reference_profile(patients(600, 0)).suppressed(20)
    assert min(count for count in counts_of(profile) if count) >= 20
    assert len({column.rows for column in profile.columns}) == 1


def test_a_suppressed_profile_has_no_rare_category_no_extreme_value_and_no_sum(patients):
    rows = patients(600, 0)
    profile = reference_profile(rows).suppressed(20)
    assert profile.column("disease").categories == ("cold", "flu")
    weight, cost = profile.column("weight"), profile.column("cost")
    known = rows["weight"][~np.isnan(rows["weight"])]
    assert (known < weight.minimum).sum() >= 20
    assert (known > weight.maximum).sum() >= 20
    assert cost.minimum == 0  # of 360 rows
    assert weight.sums is None
    assert profile.column("dead").counts == (0, profile.rows, 0, 0)


@pytest.mark.parametrize(
    ("common", "rare"), [(5.0, 6.0), (5, -1), (True, False), (5.0, np.nan), (5.0, np.inf)], ids=str
)
@pytest.mark.parametrize("nulls", [0, 200])
def test_one_row_of_another_value_does_not_change_what_a_constant_column_shows(common, rare, nulls):
    def column(last):
        values = np.array([*[common] * 400, last], dtype=object)
        rows = {"x": np.concatenate([values, np.full(nulls, None)])}
        shown = reference_profile(rows).suppressed(10).column("x")
        return shown.minimum, shown.maximum, shown.edges, len(shown.counts)

    assert column(rare) == column(common)


def test_a_small_change_of_the_dependence_of_rows_is_rounded_away_at_random():
    values = np.random.default_rng(0).normal(size=300).cumsum()
    profiles = [reference_profile({"x": values[: 300 - end]}) for end in (0, 1)]
    found = [[each.suppressed(10).column("x").dependence for _ in range(25)] for each in profiles]
    for part in ("block", "inflation"):
        values = [{getattr(dependence, part) for dependence in each} for each in found]
        assert values[0] & values[1]


def test_rare_categories_are_one_other_category(patients):
    rows = patients(600, 0)
    rows["disease"][:60] = [f"rare {number}" for number in range(60)]
    column = reference_profile(rows).suppressed(20).column("disease")
    assert column.labels == ("cold", "flu", "(other)")
    assert 20 <= column.counts[-1] <= 60


def test_a_suppressed_profile_says_so_and_is_loaded_as_it_was(tmp_path, patients):
    whole = reference_profile(patients(600, 0), sketch_rows=10, row_digest_key="secret of the rows")
    path = whole.save(tmp_path / "profile.json", min_count=10)
    profile = ReferenceProfile.load(path)
    assert profile.min_count == 10
    assert profile.left_out == ("associations", "sketch", "duplicates", "row digests")
    assert "no count below 10" in repr(profile)
    assert ReferenceProfile.load(profile.save(tmp_path / "again.json")) == profile


def test_with_a_project_key_the_same_profile_gives_the_same_file(patients, key):
    whole = reference_profile(patients(600, 0))
    assert whole.suppressed(10).digest == whole.suppressed(10).digest
    assert whole.suppressed(10).digest != whole.suppressed(20).digest


def test_without_a_project_key_texts_keep_only_their_lengths(patients):
    profile = reference_profile(patients(600, 0)).suppressed(10)
    assert profile.column("note").counts == (profile.rows,)
    assert sum(profile.column("note (length)").counts) == profile.rows


def test_with_a_project_key_texts_keep_keyed_hashes(patients, key, monkeypatch):
    profile = reference_profile(patients(600, 0)).suppressed(10)
    assert len(profile.column("note").counts) > 1
    evidence = measure_drift(patients(600, 1), profile, max_distance=0.3)
    assert "note" in profile.names
    assert evidence.details["moved"] == []
    monkeypatch.setenv("MODELSERVE_PROJECT_KEY", "another secret of the team")
    with pytest.raises(UsageError, match="'note' is counted in hash buckets with a project key: set MODELSERVE_PRO"):
        measure_drift(patients(600, 1), profile, max_distance=0.3)


def test_a_short_project_key_is_refused(patients, monkeypatch):
    monkeypatch.setenv("MODELSERVE_PROJECT_KEY", "short")
    with pytest.raises(UsageError, match="MODELSERVE_PROJECT_KEY has 5 characters and needs at least 16"):
        reference_profile(patients(600, 0))


def test_merging_a_suppressed_profile_is_refused(patients):
    whole = reference_profile(patients(600, 0))
    for one, other in ((whole, whole.suppressed(10)), (whole.suppressed(10), whole)):
        with pytest.raises(UsageError, match="cannot be merged, because one was saved with min_count"):
            one.merge(other)


@pytest.mark.parametrize(
    ("min_count", "message"),
    [
        (0, "min_count must be a number of rows of at least 2"),
        (2.5, "min_count must be a number of rows of at least 2"),
        (True, "min_count must be a number of rows of at least 2"),
        (400, "min_count=400 needs a profile of at least 1,000 rows; this one has 600"),
    ],
)
def test_invalid_min_count_is_named(patients, min_count, message):
    with pytest.raises(UsageError, match=message):
        reference_profile(patients(600, 0)).suppressed(min_count)


def test_a_suppressed_profile_is_suppressed_once_and_is_no_data(patients):
    profile = reference_profile(patients(600, 0)).suppressed(10)
    with pytest.raises(UsageError, match="min_count must be a number of rows of at least 2"):
        reference_profile(patients(600, 0)).save("profile.json", min_count=True)
    with pytest.raises(UsageError, match="saved with min_count=10 already"):
        profile.save("profile.json", min_count=20)
    with pytest.raises(UsageError, match="data is the profile 'reference', which was saved with min_count=10"):
        measure_drift(profile, profile, max_distance=0.2)


def test_drift_is_found_and_unchanged_data_pass_against_a_suppressed_profile(patients):
    profile = reference_profile(patients(4000, 0), block=1).suppressed(10)
    same = measure_drift(patients(4000, 1), profile, max_distance=0.1)
    assert same.verdict.name == "PASS"
    assert "correlations were not compared: the profile was saved with min_count=10" in same.method.assumptions
    moved = patients(4000, 1)
    moved["weight"] += 10
    evidence = measure_drift(moved, profile, max_distance=0.1)
    assert (evidence.verdict.name, evidence.details["moved"]) == ("FAIL", ["weight"])


def test_faulty_rows_are_found_and_unchanged_data_pass_against_a_suppressed_profile(patients):
    profile = reference_profile(patients(4000, 0)).suppressed(10)
    assert measure_data_quality(patients(4000, 1), profile, max_rate=0.05).verdict.name == "PASS"
    faulty = patients(4000, 1)
    faulty["weight"][:400] = np.nan
    faulty["cost"][:400] = -1.0
    faulty["disease"][:400] = "new"
    findings = " ".join(measure_data_quality(faulty, profile, max_rate=0.05).findings)
    for fault in ("'weight' null", "'cost' outside [0, ", "'disease' has a rare or a new category in 400"):
        assert fault in findings


def test_closed_columns_and_row_digests_need_the_whole_profile(patients):
    rows = patients(600, 0)
    profile = reference_profile(rows, row_digest_key="secret of the rows").suppressed(10)
    with pytest.raises(UsageError, match="closed: column 'disease' has its rare categories pooled"):
        measure_data_quality(rows, profile, max_rate=0.05, closed=["disease"])
    with pytest.raises(UsageError, match="has no row digests, because it was saved with min_count=10"):
        measure_overlap(rows, profile, row_digest_key="secret of the rows")


def test_a_suppressed_profile_can_be_monitored_and_compared_with_profiles_made_like_it(tmp_path, patients):
    profile = reference_profile(patients(2000, 0)).suppressed(10)
    monitor = Monitor("visits", [streams.columns(profile)], state=tmp_path / "visits.state")
    assert monitor.check(0, data=patients(2000, 1)).verdict.name in ("PASS", "INCONCLUSIVE")
    like = reference_profile(patients(2000, 2), like=profile)
    assert measure_drift(like, profile, max_distance=0.2).verdict.name == "PASS"


def test_unchanged_data_seldom_fail_against_suppressed_profiles():
    fails = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        draw = lambda n, rng=rng: {"x": rng.normal(size=n), "n": rng.poisson(2, n)}  # noqa: E731
        profile = reference_profile(draw(300), block=1).suppressed(10)
        fails += measure_drift(draw(300), profile, max_distance=1e-6, alpha=0.05).verdict.name == "FAIL"
    assert fails <= 5  # of 30 at 5 %: more in one of 100 runs


def test_a_profile_of_schema_version_4_is_read():
    profile = ReferenceProfile.load(FILES / "profile_4.json")
    assert profile.digest == "25948c2aef5352a255a31086ff741b59467479196330e6cf40c6c13b4c577bd2"
    assert profile.row_digests.has_key("a secret of the tests")
    assert profile.suppressed(10).min_count == 10


def test_a_profile_keeps_the_hashes_that_it_was_made_with(key):
    profile = ReferenceProfile.load(FILES / "profile_4.json")
    notes = [f"note {number}" for number in range(400)]
    column = profile.column("note")
    assert column.align(dict.fromkeys(notes, 1))[2] == column.counts
    keyed = reference_profile({"note": notes}).column("note")
    assert keyed.key_check
    assert keyed.counts != column.counts


def test_a_monitor_state_of_before_is_read(tmp_path):
    state = tmp_path / "monitor.state"
    state.write_bytes((FILES / "monitor_1.state").read_bytes())
    ages = np.random.default_rng(0).integers(18, 80, 400)
    monitor = Monitor(
        "fraud", [streams.columns(reference_profile({"age": ages}, bins=8))], state=state, start="2026-11-01"
    )
    assert [event.window for event in monitor.history()] == ["2026-11-01"]
