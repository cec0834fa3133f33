"""Groups of drift tests: their parts of alpha, and the planned rows."""

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Verdict
from pytest_modelserve.monitoring import measure_drift, reference_profile
from pytest_modelserve.monitoring.decision import Blocks, decide
from pytest_modelserve.monitoring.drift.column_tests import compare_numbers
from pytest_modelserve.monitoring.drift.groups import DriftTests, plan_rows
from pytest_modelserve.stats.two_sample_tests import rows_for_distance


class Seen:
    def __init__(self, name, distance, p_value):
        self.name, self.distance, self.p_value, self.upper = name, distance, p_value, distance + 0.04


@pytest.mark.parametrize(
    ("p_values", "verdict"),
    [
        ((0.03, 0.9), Verdict.FAIL),
        ((0.04, 0.9), Verdict.INCONCLUSIVE),
        ((0.9, 0.012), Verdict.FAIL),
        ((0.9, 0.013), Verdict.INCONCLUSIVE),
    ],
)
def test_each_group_uses_its_part_of_alpha(p_values, verdict):
    families = [(0.75, [Seen("a", 0.2, p_values[0])]), (0.25, [Seen("b", 0.2, p_values[1])])]
    result = decide(families, budget=0.1, alpha=0.05)
    assert Budget("at_most", 0.1).verdict(result.headline.distance, result.interval) is verdict


def test_columns_alone_take_all_of_alpha_and_the_rows_of_one_bound():
    columns = tuple(compare_numbers(f"x{i}", [5000, 5000], [250, 250], blocks=Blocks()) for i in range(20))
    families = DriftTests({"column": columns})
    assert [share for share, _ in families.weighted()] == [1.0]
    plan = plan_rows(families, max_distance=0.10, rows=500, profile_rows=10_000)
    assert plan.rows == rows_for_distance(0.10, reference=10_000, tests=20)
    assert (plan.sketch_rows, plan.floor) == (0, 0.0)


def test_a_sketch_that_is_too_small_for_the_budget_asks_for_a_larger_one():
    rng = np.random.default_rng(1)
    profile = reference_profile(rng.normal(size=(5_000, 2)), sketch_rows=50)
    night = rng.normal(size=(5_000, 2))
    evidence = measure_drift(night, profile, max_distance=0.20, block=1)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    wanted = evidence.details["sketch_rows"]
    assert evidence.advice == f"store more raw rows in the profile: sketch_rows={wanted}, or raise max_distance"
    enough = reference_profile(rng.normal(size=(5_000, 2)), sketch_rows=wanted)
    assert measure_drift(night, enough, max_distance=0.20, block=1).verdict is Verdict.PASS


def test_a_budget_below_what_bounded_rows_can_pass_says_which_they_can():
    rng = np.random.default_rng(2)
    profile = reference_profile(rng.normal(size=(60_000, 2)))
    evidence = measure_drift(rng.normal(size=(60_000, 2)), profile, max_distance=0.004, block=1)
    assert evidence.verdict is Verdict.INCONCLUSIVE
    assert evidence.advice.startswith("raise max_distance to 0.01")
    assert "correlations are read from at most 50,000 rows" in evidence.advice


def test_unchanged_data_of_the_planned_rows_pass_in_95_percent():
    rng, passed = np.random.default_rng(3), 0
    few = measure_drift(rng.normal(size=(100, 4)), reference_profile(rng.normal(size=(5000, 4))), max_distance=0.15)
    rows = few.details["rows"]
    for _ in range(40):
        profile = reference_profile(rng.normal(size=(5000, 4)))
        passed += measure_drift(rng.normal(size=(rows, 4)), profile, max_distance=0.15, block=1).verdict is Verdict.PASS
    assert passed >= 36
