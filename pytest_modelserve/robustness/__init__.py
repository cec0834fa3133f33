"""Does the model hold where nobody has looked? Strategies of inputs, relations that need no labels, and a search."""

from pytest_modelserve.robustness import relations, strategies
from pytest_modelserve.robustness.relation import measure_relation

__all__ = ["measure_relation", "relations", "strategies"]
