"""Does the model hold where nobody has looked? Strategies of inputs, relations that need no labels, and a search."""

from pytest_modelserve.robustness import corruptions, relations, strategies
from pytest_modelserve.robustness.corruption_accuracy import measure_corruption_accuracy
from pytest_modelserve.robustness.label_agreement import measure_agreement_under
from pytest_modelserve.robustness.relation_gate import measure_relation

__all__ = [
    "corruptions",
    "measure_agreement_under",
    "measure_corruption_accuracy",
    "measure_relation",
    "relations",
    "strategies",
]
