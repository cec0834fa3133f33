"""The profile privacy gate, and the reconstruction of rows from profiles."""

import numpy as np
import pytest

import pytest_modelserve as ms
from benchmarks.profile_reconstruction import ATTACKS, attacked, random_rows
from pytest_modelserve.errors import ArtifactError, UsageError


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    city = rng.choice(["Bern", "Graz"], 500).astype(object)
    city[0] = "Linz"
    notes = np.array([f"note {number}" for number in range(500)], dtype=object)
    return {"income": rng.lognormal(8, 1, 500), "city": city, "note": notes}


def test_a_profile_gives_rows_away_and_each_place_is_named(people):
    profile = ms.reference_profile(people, sketch_rows=7, row_digest_key="password")
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_profile_private(profile, min_count=10)
    found = [f"{place}: {what}" for place, what, _ in failure.value.evidence.details["disclosures"]]
    for wanted in (
        "sketch: 7 raw rows",
        "row digests: their key is easy to guess",
        "associations: exact sums",
        "duplicates: the exact number",
        "column 'income': exact sums or moments",
        "column 'income': minimum and maximum of fewer than 10 rows",
        "column 'income': edges that lie halfway",
        "column 'city': 1 counts of fewer than 10 rows, the smallest of 1",
        "column 'note': texts in hash buckets without a key",
    ):
        assert any(line.startswith(wanted) for line in found), wanted


def test_a_profile_saved_with_min_count_passes_up_to_that_count(tmp_path, people):
    path = ms.reference_profile(people, sketch_rows=7).save(tmp_path / "profile.json", min_count=10)
    assert ms.assert_profile_private(path, min_count=10).passed
    evidence = ms.measure_profile_privacy(path, min_count=50)
    assert evidence.verdict.name == "FAIL"
    assert evidence.advice.startswith("save the profile that it was made of with profile.save(path, min_count=50)")


def test_no_finding_names_a_value_of_a_row(people):
    evidence = ms.measure_profile_privacy(ms.reference_profile(people), min_count=10)
    assert "Linz" not in str(evidence.to_json())


def test_bad_input_is_named(tmp_path, people):
    with pytest.raises(UsageError, match="min_count must be a number of rows of at least 2"):
        ms.measure_profile_privacy(ms.reference_profile(people), min_count=1)
    with pytest.raises(UsageError, match="profile must be a ReferenceProfile; got dict"):
        ms.measure_profile_privacy(people, min_count=10)
    with pytest.raises(ArtifactError, match="there is no profile"):
        ms.measure_profile_privacy(tmp_path / "none.json", min_count=10)


def test_attacks_recover_rows_from_profiles_and_none_from_suppressed_ones(monkeypatch):
    recovered = dict.fromkeys(ATTACKS, 0)
    for number in range(3):
        rows = random_rows(np.random.default_rng([4, number]))
        monkeypatch.delenv("MODELSERVE_PROJECT_KEY", raising=False)
        for name, count in attacked(rows, 10, guarded=False, rng=np.random.default_rng(10 + number)).items():
            recovered[name] += count
        monkeypatch.setenv("MODELSERVE_PROJECT_KEY", "a secret of sixteen letters")
        assert not any(attacked(rows, 10, guarded=True, rng=np.random.default_rng(10 + number)).values())
    assert all(recovered.values())
