"""The search finds the frozen list of planted faults, and models that obey their relations pass."""

import pytest

from benchmarks import planted_faults, relation_runs
from benchmarks.planted_faults import FAULTS


def test_the_list_of_faults_covers_every_family():
    assert len(FAULTS) >= 60
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len({fault.family for fault in FAULTS}) >= 10


def test_planted_faults_are_found_with_few_features_changed():
    found = {fault.name: planted_faults.search_fault(fault, seed=1) for fault in FAULTS}
    missed = [name for name, outcome in found.items() if outcome.features_left is None]
    assert 1 - len(missed) / len(FAULTS) >= planted_faults.GOAL, missed
    few = [(found[fault.name].features_left or 0) <= max(2 * fault.needs, 1) for fault in FAULTS]
    assert sum(few) / len(few) >= planted_faults.GOAL


@pytest.mark.parametrize("name", relation_runs.BUILDERS)
def test_correct_models_violate_none_of_their_relations(name, tmp_path):
    failed, _, count = relation_runs.failures(name, 0, tmp_path, candidates=300)
    assert failed == []
    assert count >= 7
