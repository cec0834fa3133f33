"""Parity gates: two models agree element by element, within a loss of precision, or on a task metric."""

from pytest_modelserve.parity.accuracy.conditions import where
from pytest_modelserve.parity.accuracy.gates import measure_accuracy, measure_accuracy_parity
from pytest_modelserve.parity.accuracy.group_gap import measure_group_gap
from pytest_modelserve.parity.accuracy.lost_rows import measure_lost_rows
from pytest_modelserve.parity.accuracy.slice_search import Region, SliceSearch, find_slices
from pytest_modelserve.parity.divergence import Divergence, locate_divergence
from pytest_modelserve.parity.fidelity import measure_output_fidelity
from pytest_modelserve.parity.outputs import measure_output_parity
from pytest_modelserve.parity.recordings import Exchange, Recording, open_recording, record_answers
from pytest_modelserve.parity.served_model import measure_served_model

__all__ = [
    "Divergence",
    "Exchange",
    "Recording",
    "Region",
    "SliceSearch",
    "find_slices",
    "locate_divergence",
    "measure_accuracy",
    "measure_accuracy_parity",
    "measure_group_gap",
    "measure_lost_rows",
    "measure_output_fidelity",
    "measure_output_parity",
    "measure_served_model",
    "open_recording",
    "record_answers",
    "where",
]
