"""Associations of pairs of columns: exact, additive, bounded, and compared."""

import numpy as np
import pytest
from scipy.special import ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import ReferenceProfile, measure_drift, reference_profile
from pytest_modelserve.monitoring.correlations import MAX_FEATURES, Associations
from pytest_modelserve.monitoring.drift.multivariate_tests import compare_associations
from pytest_modelserve.stats.two_sample_tests import POWERS, correlations_of


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pair_of(rng, rows, rho):
    x = rng.normal(size=rows)
    return {"x": x, "y": rho * x + np.sqrt(1 - rho**2) * rng.normal(size=rows), "z": rng.exponential(size=rows)}


def test_correlation_is_that_of_normal_scores(rng):
    rows = pair_of(rng, 5000, 0.6)
    profile = reference_profile(rows)
    scores = [np.clip(ndtri((np.argsort(np.argsort(rows[name])) + 0.5) / 5000), -2, 2) for name in rows]
    sums = np.array(profile.associations.sums).reshape(-1, len(POWERS))
    expected = np.corrcoef(scores)[np.triu_indices(3, 1)]
    assert correlations_of(sums).estimates == pytest.approx(expected, abs=0.01)


def test_shards_add_up_to_the_last_digit(people):
    rows = people(3000, 1)
    rows["age"][::7] = np.nan
    profile = reference_profile(people(2000, 0))
    whole = reference_profile(rows, like=profile)
    shards = [
        reference_profile({name: values[part] for name, values in rows.items()}, like=profile)
        for part in (slice(0, 1), slice(1, 1700), slice(1700, None))
    ]
    merged = shards[0].merge(shards[1]).merge(shards[2])
    assert merged.associations == whole.associations
    assert ReferenceProfile.from_json(merged.to_json()) == merged


def test_profiles_that_score_differently_do_not_merge(people):
    one, other = reference_profile(people(300, 0)).associations, reference_profile(people(300, 1)).associations
    with pytest.raises(UsageError, match=r"^the profiles have different features: make one of them with like="):
        one.merged(other)


def test_a_null_is_in_no_pair_of_its_row(rng):
    rows = pair_of(rng, 4000, 0.8)
    rows["x"][:3000] = np.nan
    sums = np.array(reference_profile(rows).associations.sums).reshape(-1, len(POWERS))
    found = correlations_of(sums)
    assert found.rows.tolist() == [1000, 1000, 4000]
    assert found.estimates[0] == pytest.approx(0.8, abs=0.05)


def test_two_columns_that_let_go_of_each_other_fail_though_neither_moved(rng):
    profile = reference_profile(pair_of(rng, 10_000, 0.6))
    evidence = measure_drift(pair_of(rng, 2000, 0.2), profile, max_distance=0.10, alpha=0.05)
    assert evidence.verdict is Verdict.FAIL
    assert evidence.summary == "1 of 3 pairs differs from the profile by more than max_distance"
    assert evidence.details["moved"] == []
    assert evidence.details["moved_pairs"] == ["'x' with 'y'"]
    [told] = evidence.findings
    assert told == "'x' with 'y' distance 0.196: correlation 0.59 → 0.20 (-0.39)"


def test_a_number_and_a_category_that_let_go_fail(rng):
    def draw(rows, *, tied):
        x = rng.normal(size=rows)
        city = np.where(x + rng.normal(size=rows) > 0, "Graz", "Linz")
        return {"x": x, "city": city if tied else rng.permutation(city)}

    profile = reference_profile(draw(10_000, tied=True))
    evidence = measure_drift(draw(2000, tied=False), profile, max_distance=0.10)
    assert evidence.details["moved_pairs"] == ["'x' with 'city' = 'Graz'"]
    assert measure_drift(draw(2000, tied=True), profile, max_distance=0.10).verdict is Verdict.PASS


def test_counts_from_elsewhere_are_compared_like_rows(rng):
    profile, rows = reference_profile(pair_of(rng, 10_000, 0.6)), pair_of(rng, 2000, 0.2)
    of_rows = measure_drift(rows, profile, max_distance=0.10)
    of_counts = measure_drift(reference_profile(rows, like=profile), profile, max_distance=0.10)
    assert of_rows.details["pairs"] == of_counts.details["pairs"]


def test_counts_without_pairs_say_that_these_were_not_compared(rng):
    profile, rows = reference_profile(pair_of(rng, 10_000, 0.6)), pair_of(rng, 2000, 0.6)
    counted = reference_profile(rows, like=profile, associations=False, name="night")
    evidence = measure_drift(counted, profile, max_distance=0.10)
    assert evidence.verdict is Verdict.PASS
    assert evidence.method.assumptions.endswith(
        "; correlations were not compared: night has none that were made like 'reference'"
    )


def test_columns_that_hardly_vary_and_those_beyond_64_are_in_no_pair(rng):
    columns = {f"x{index}": rng.normal(size=400) for index in range(MAX_FEATURES + 3)}
    columns = {"constant": np.ones(400), "rare": (np.arange(400) < 8).astype(float), **columns}
    features = [feature.column for feature in reference_profile(columns).associations.features]
    assert features == [f"x{index}" for index in range(MAX_FEATURES)]
    assert reference_profile({"x": np.arange(9.0), "y": np.ones(9)}).associations is None
    assert reference_profile(columns, associations=False).associations is None


def test_correlations_are_read_from_at_most_50_000_rows(rng):
    assert reference_profile(rng.normal(size=(51_000, 2))).associations.rows == 50_000


def test_blocks_make_every_pair_worth_fewer_rows(rng):
    then, now = (reference_profile(pair_of(rng, rows, 0.5)) for rows in (4000, 2000))
    now = reference_profile(pair_of(rng, 2000, 0.4), like=then)
    plain = compare_associations(then.associations, now.associations)[0]
    blocked = compare_associations(then.associations, now.associations, reference_block=20, current_block=20)[0]
    assert plain.distance == blocked.distance
    assert blocked.n_effective == pytest.approx(plain.n_effective / 20)
    assert plain.p_value < 0.01 < blocked.p_value
    assert blocked.upper > plain.upper


def test_chains_that_remember_do_not_alarm_with_a_block(rng):
    def chain(rows):
        noise = rng.normal(size=(rows, 4))
        for row in range(1, rows):
            noise[row] += 0.9 * noise[row - 1]
        return noise

    alarms = {1: 0, 20: 0}
    for _ in range(20):
        then = reference_profile(chain(1000))
        now = reference_profile(chain(600), like=then)
        for block in alarms:
            changes = compare_associations(
                then.associations, now.associations, reference_block=block, current_block=block
            )
            alarms[block] += min(change.p_value for change in changes) <= 0.05 / 6
    assert alarms[1] > 5
    assert alarms[20] <= 2


def test_associations_that_lack_sums_are_refused():
    with pytest.raises(UsageError, match=r"^sums must have fifteen entries for each pair of features$"):
        Associations(reference_profile(np.random.default_rng(0).normal(size=(50, 3))).associations.features, 50, (1, 2))


def test_a_column_that_does_not_vary_any_more_is_for_its_own_comparison(rng):
    def draw(rows, share):
        return {"x": rng.normal(size=rows), "y": rng.normal(size=rows), "rare": rng.random(rows) < share}

    profile = reference_profile(draw(10_000, 0.06))
    evidence = measure_drift(draw(3000, 0.0), profile, max_distance=0.10)
    assert list(evidence.details["pairs"]) == ["'x' with 'y'"]
    assert evidence.verdict is Verdict.PASS


def test_rows_sampled_at_a_distance_share_no_block(rng):
    profile = reference_profile(pair_of(rng, 200_000, 0.5), block=3)
    evidence = measure_drift(pair_of(rng, 200_000, 0.5), profile, max_distance=0.10)
    # 50,000 of 200,000 rows of the profile and 6,000 of the data: every one of another block.
    distance, high, _ = evidence.details["pairs"]["'x' with 'y'"]
    assert high - distance == pytest.approx(1.645 / 2 * 0.75 / np.sqrt(5357), rel=0.05)


def test_a_block_of_the_gate_widens_the_bounds_of_pairs(rng):
    profile, night = reference_profile(pair_of(rng, 4000, 0.5)), pair_of(rng, 2000, 0.5)
    widths = {}
    for block in (1, 9):
        distance, high, _ = measure_drift(night, profile, max_distance=0.1, block=block).details["pairs"][
            "'x' with 'y'"
        ]
        widths[block] = high - distance
    assert widths[9] == pytest.approx(3 * widths[1], rel=0.05)  # of both sides: the profile has no block of its own


def test_categories_of_one_column_are_in_no_pair(rng):
    rows = {"x": rng.normal(size=500), "city": rng.choice(["Bern", "Graz", "Linz"], 500)}
    evidence = measure_drift(rows, reference_profile(rows), max_distance=0.3, block=1)
    assert sorted(evidence.details["pairs"]) == [f"'x' with 'city' = '{name}'" for name in ("Bern", "Graz", "Linz")]
