"""Comparing outputs, decoding scores, task metrics: arrays in, frozen dataclasses out."""

from pytest_modelserve.numerics.comparing import Outputs, check_tolerances, compare_outputs, pair_outputs
from pytest_modelserve.numerics.comparison import Disagreement, OutputComparison, Place, TensorComparison, Tolerance
from pytest_modelserve.numerics.confusion import ClassRows, class_rows, positive_label, positive_rows
from pytest_modelserve.numerics.decoding import Decoded, Decoding, decode
from pytest_modelserve.numerics.divergence import kl_divergences
from pytest_modelserve.numerics.dtypes import dtype_name, kind_of, machine_epsilon
from pytest_modelserve.numerics.fidelity import (
    row_cosines,
    signal_to_quantization_noise_db,
    top1_agreement,
    top1_matches,
)
from pytest_modelserve.numerics.floors import Floor, floors
from pytest_modelserve.numerics.joining import join_comparisons
from pytest_modelserve.numerics.labels import class_labels
from pytest_modelserve.numerics.losses import Loss, row_losses, row_squares
from pytest_modelserve.numerics.margins import MarginAgreement, agreement_by_margin, decision_margins
from pytest_modelserve.numerics.metrics import accuracy, class_pairs, correct_rows
from pytest_modelserve.numerics.probabilities import Scores, row_brier_scores, row_log_losses
from pytest_modelserve.numerics.ranking import positive_scores, top_k_rows
from pytest_modelserve.numerics.ulp import ulp_distance

__all__ = [
    "ClassRows",
    "Decoded",
    "Decoding",
    "Disagreement",
    "Floor",
    "Loss",
    "MarginAgreement",
    "OutputComparison",
    "Outputs",
    "Place",
    "Scores",
    "TensorComparison",
    "Tolerance",
    "accuracy",
    "agreement_by_margin",
    "check_tolerances",
    "class_labels",
    "class_pairs",
    "class_rows",
    "compare_outputs",
    "correct_rows",
    "decision_margins",
    "decode",
    "dtype_name",
    "floors",
    "join_comparisons",
    "kind_of",
    "kl_divergences",
    "machine_epsilon",
    "pair_outputs",
    "positive_label",
    "positive_rows",
    "positive_scores",
    "row_brier_scores",
    "row_cosines",
    "row_log_losses",
    "row_losses",
    "row_squares",
    "signal_to_quantization_noise_db",
    "top1_agreement",
    "top1_matches",
    "top_k_rows",
    "ulp_distance",
]
