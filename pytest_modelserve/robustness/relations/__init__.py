"""Statements about a model that need no labels: each is a frozen value with a definition and a batched check."""

from pytest_modelserve.robustness.relations.agreement import Agreement, agreement
from pytest_modelserve.robustness.relations.answers import (
    Determinism,
    FiniteOutputs,
    Simplex,
    determinism,
    finite_outputs,
    simplex,
)
from pytest_modelserve.robustness.relations.batching import (
    BatchInvariance,
    RowPermutation,
    batch_invariance,
    row_permutation,
)
from pytest_modelserve.robustness.relations.monotone import Monotone, monotone
from pytest_modelserve.robustness.relations.own import OwnRelation, relation
from pytest_modelserve.robustness.relations.padding import PaddingInvariance, padding_invariance
from pytest_modelserve.robustness.relations.responses import (
    InvariantTo,
    LocalStability,
    invariant_to,
    local_stability,
)
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.violations import Relation, Violations

__all__ = [
    "Agreement",
    "BatchInvariance",
    "Determinism",
    "FiniteOutputs",
    "InvariantTo",
    "LocalStability",
    "Monotone",
    "OwnRelation",
    "PaddingInvariance",
    "Relation",
    "RowPermutation",
    "Simplex",
    "Tolerance",
    "Violations",
    "agreement",
    "batch_invariance",
    "determinism",
    "finite_outputs",
    "invariant_to",
    "local_stability",
    "monotone",
    "padding_invariance",
    "relation",
    "row_permutation",
    "simplex",
]
