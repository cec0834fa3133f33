"""Comparing outputs, decoding scores, task metrics: arrays in, frozen dataclasses out."""

from pytest_modelserve.numerics.comparing import Outputs, compare_outputs, pair_outputs
from pytest_modelserve.numerics.comparison import Disagreement, OutputComparison, Place, TensorComparison
from pytest_modelserve.numerics.decoding import Decoded, Decoding, decode
from pytest_modelserve.numerics.fidelity import (
    row_cosines,
    signal_to_quantization_noise_db,
    top1_agreement,
    top1_matches,
)
from pytest_modelserve.numerics.losses import Loss, row_losses
from pytest_modelserve.numerics.metrics import accuracy, correct_rows
from pytest_modelserve.numerics.ulp import ulp_distance

__all__ = [
    "Decoded",
    "Decoding",
    "Disagreement",
    "Loss",
    "OutputComparison",
    "Outputs",
    "Place",
    "TensorComparison",
    "accuracy",
    "compare_outputs",
    "correct_rows",
    "decode",
    "pair_outputs",
    "row_cosines",
    "row_losses",
    "signal_to_quantization_noise_db",
    "top1_agreement",
    "top1_matches",
    "ulp_distance",
]
