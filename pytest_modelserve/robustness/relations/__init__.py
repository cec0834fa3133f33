"""Metamorphic relations: statements about a model that need no labels, each a frozen dataclass.

Outputs are compared within `rtol` and `atol` if both are given. Otherwise differences of up to 256 units in the last
place of the output's largest magnitude are rounding. If a relation rewrites inputs, these units are those of the
input's dtype where it is coarser.

A new relation is one class, imported here and listed in `__all__`: see "How to add a relation" in docs/architecture.md.
"""

from pytest_modelserve.robustness.relations.base import Relation, Violations, relation
from pytest_modelserve.robustness.relations.feature_effects import directional, invariant_to, local_stability, monotone
from pytest_modelserve.robustness.relations.invariance import (
    agreement,
    batch_invariance,
    determinism,
    padding_invariance,
    row_permutation,
    set_permutation,
)
from pytest_modelserve.robustness.relations.scale import scale_equivariant, scale_invariant, unit_change
from pytest_modelserve.robustness.relations.validity import (
    clean_rejection,
    finite_outputs,
    minimum_functionality,
    missing_values,
    simplex,
)

__all__ = [
    "Relation",
    "Violations",
    "agreement",
    "batch_invariance",
    "clean_rejection",
    "determinism",
    "directional",
    "finite_outputs",
    "invariant_to",
    "local_stability",
    "minimum_functionality",
    "missing_values",
    "monotone",
    "padding_invariance",
    "relation",
    "row_permutation",
    "scale_equivariant",
    "scale_invariant",
    "set_permutation",
    "simplex",
    "unit_change",
]
