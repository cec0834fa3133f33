import numpy as np
import pytest

import pytest_modelserve as ms


def bundled(arguments):
    """The arguments of a gate, with the single options of `Output` and `Sampling` bundled."""
    output = {name: arguments.pop(name) for name in ("decode", "scores", "pos_label") if name in arguments}
    sampling = {name: arguments.pop(name) for name in ("groups", "block", "sample_weight") if name in arguments}
    return {
        **arguments,
        **({"output": ms.Output(**output)} if output else {}),
        **({"sampling": ms.Sampling(**sampling)} if sampling else {}),
    }


@pytest.fixture
def level(answering):
    """`measure_accuracy` of a model with the given outputs."""

    def measure(outputs, labels, **arguments):
        rows = np.zeros((len(outputs), 1), np.float32)
        return ms.measure_accuracy(answering(outputs), rows, labels, **bundled(arguments))

    return measure


@pytest.fixture
def change(answering):
    """`measure_accuracy_parity` of models with the outputs `new` and `old`."""

    def measure(new, old, labels, **arguments):
        rows = np.zeros((len(new), 1), np.float32)
        candidate, reference = answering(new, "candidate"), answering(old, "reference")
        return ms.measure_accuracy_parity(candidate, reference, rows, labels, **bundled(arguments))

    return measure
