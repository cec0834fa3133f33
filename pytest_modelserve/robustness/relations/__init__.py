"""Statements about a model that need no labels: each is a frozen value with a definition and a batched check."""

from pytest_modelserve.robustness.relations.agreement import Agreement, agreement
from pytest_modelserve.robustness.relations.answers import (
    FiniteOutputs,
    Simplex,
    finite_outputs,
    simplex,
)
from pytest_modelserve.robustness.relations.batching import (
    BatchInvariance,
    RowPermutation,
    batch_invariance,
    row_permutation,
)
from pytest_modelserve.robustness.relations.determinism import Determinism, determinism
from pytest_modelserve.robustness.relations.directional import Directional, directional
from pytest_modelserve.robustness.relations.functionality import MinimumFunctionality, minimum_functionality
from pytest_modelserve.robustness.relations.missing import MissingValues, missing_values
from pytest_modelserve.robustness.relations.monotone import Monotone, monotone
from pytest_modelserve.robustness.relations.own import OwnRelation, relation
from pytest_modelserve.robustness.relations.padding import PaddingInvariance, padding_invariance
from pytest_modelserve.robustness.relations.rejection import CleanRejection, clean_rejection
from pytest_modelserve.robustness.relations.responses import (
    InvariantTo,
    LocalStability,
    invariant_to,
    local_stability,
)
from pytest_modelserve.robustness.relations.scaling import Scaling, scale_equivariant, scale_invariant
from pytest_modelserve.robustness.relations.sets import SetPermutation, set_permutation
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.relations.units import UnitChange, unit_change
from pytest_modelserve.robustness.violations import Relation, Violations

__all__ = [
    "Agreement",
    "BatchInvariance",
    "CleanRejection",
    "Determinism",
    "Directional",
    "FiniteOutputs",
    "InvariantTo",
    "LocalStability",
    "MinimumFunctionality",
    "MissingValues",
    "Monotone",
    "OwnRelation",
    "PaddingInvariance",
    "Relation",
    "RowPermutation",
    "Scaling",
    "SetPermutation",
    "Simplex",
    "Tolerance",
    "UnitChange",
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
