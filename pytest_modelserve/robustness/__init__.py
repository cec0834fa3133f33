"""Robustness gates: metamorphic relations and the search for counterexamples, label stability, corruptions, attacks."""

from pytest_modelserve.robustness import attacks, corruptions, relations, strategies
from pytest_modelserve.robustness.certified_accuracy import measure_certified_accuracy
from pytest_modelserve.robustness.conformance import measure_conformance
from pytest_modelserve.robustness.corruption_accuracy import measure_corruption_accuracy
from pytest_modelserve.robustness.label_stability import measure_label_stability
from pytest_modelserve.robustness.relation_gate import measure_relation
from pytest_modelserve.robustness.robust_accuracy import measure_robust_accuracy
from pytest_modelserve.robustness.robustness_parity import measure_robustness_parity

__all__ = [
    "attacks",
    "corruptions",
    "measure_certified_accuracy",
    "measure_conformance",
    "measure_corruption_accuracy",
    "measure_label_stability",
    "measure_relation",
    "measure_robust_accuracy",
    "measure_robustness_parity",
    "relations",
    "strategies",
]
