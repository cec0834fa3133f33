"""Gates on whether two predictors agree: element by element, within a loss of precision, and on the task."""

from pytest_modelserve.parity.accuracy import measure_accuracy, measure_accuracy_parity
from pytest_modelserve.parity.fidelity import measure_output_fidelity
from pytest_modelserve.parity.outputs import measure_output_parity

__all__ = ["measure_accuracy", "measure_accuracy_parity", "measure_output_fidelity", "measure_output_parity"]
