"""Robustness gates: metamorphic relations with a search for counterexamples, label stability, and corruptions."""

from pytest_modelserve.robustness import corruptions, relations, strategies
from pytest_modelserve.robustness.conformance import measure_conformance
from pytest_modelserve.robustness.corruption_accuracy import measure_corruption_accuracy
from pytest_modelserve.robustness.label_stability import measure_label_stability
from pytest_modelserve.robustness.relation_gate import measure_relation

__all__ = [
    "corruptions",
    "measure_conformance",
    "measure_corruption_accuracy",
    "measure_label_stability",
    "measure_relation",
    "relations",
    "strategies",
]
