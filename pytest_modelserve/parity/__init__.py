"""Parity gates: two models agree element by element, within a loss of precision, or on a task metric."""

from pytest_modelserve.parity.accuracy.gates import measure_accuracy, measure_accuracy_parity
from pytest_modelserve.parity.divergence import Divergence, locate_divergence
from pytest_modelserve.parity.fidelity import measure_output_fidelity
from pytest_modelserve.parity.outputs import measure_output_parity
from pytest_modelserve.parity.recordings import Exchange, Recording, open_recording, record_answers

__all__ = [
    "Divergence",
    "Exchange",
    "Recording",
    "locate_divergence",
    "measure_accuracy",
    "measure_accuracy_parity",
    "measure_output_fidelity",
    "measure_output_parity",
    "open_recording",
    "record_answers",
]
