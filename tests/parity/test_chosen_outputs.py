"""`outputs=` of the output gates: some outputs of both models are compared, the others are ignored."""

import re
import shlex

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.parity.replay import main

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
REFERENCE = ms.serve(lambda x: {"scores": 2 * x, "hidden": x, "label": x.argmax(axis=1)}, name="reference")
CANDIDATE = ms.serve(lambda x: {"scores": x + x, "hidden": x + 9, "extra": x}, name="candidate")
EXACT = {"rtol": 0, "atol": 0}


def test_only_the_chosen_output_is_compared():
    assert ms.measure_output_parity(CANDIDATE, REFERENCE, X, **EXACT).verdict is ms.Verdict.FAIL
    chosen = ms.measure_output_parity(CANDIDATE, REFERENCE, X, **EXACT, outputs="scores")
    assert chosen.verdict is ms.Verdict.PASS
    assert chosen.method.name == "every element compared of output 'scores', rtol 0, atol 0"
    assert [each["name"] for each in chosen.details["outputs"]] == ["scores"]


def test_several_outputs_can_be_chosen_and_each_decides():
    evidence = ms.measure_output_parity(CANDIDATE, REFERENCE, X, **EXACT, outputs=["hidden", "scores"])
    assert evidence.verdict is ms.Verdict.FAIL
    assert [each["name"] for each in evidence.details["outputs"]] == ["scores", "hidden"]


def test_an_output_that_only_the_candidate_lacks_fails():
    evidence = ms.measure_output_parity(CANDIDATE, REFERENCE, X, **EXACT, outputs=("label",))
    assert evidence.findings[0] == "output 'label' is missing from the candidate"


def test_the_single_output_of_a_module_is_compared_with_the_chosen_one():
    single = ms.serve(lambda x: 2 * x)
    assert ms.measure_output_parity(single, REFERENCE, X, **EXACT, outputs="scores").verdict is ms.Verdict.PASS


@pytest.mark.parametrize("gate", [ms.measure_output_parity, ms.measure_output_fidelity])
def test_an_unknown_output_is_one_error_with_the_nearest_name(gate):
    budget = EXACT if gate is ms.measure_output_parity else {"min_sqnr_db": 20}
    message = "reference: unknown output 'score': did you mean 'scores'? Known: 'scores', 'hidden', 'label'"
    with pytest.raises(ms.UsageError, match=f"^{re.escape(message)}$"):
        gate(CANDIDATE, REFERENCE, X, **budget, outputs="score")
    with pytest.raises(ms.UsageError, match=r"^outputs must be the name of an output, or several names, got \[\]$"):
        gate(CANDIDATE, REFERENCE, X, **budget, outputs=[])


def test_fidelity_of_the_chosen_output_alone_decides():
    assert ms.measure_output_fidelity(CANDIDATE, REFERENCE, X, min_sqnr_db=20).verdict is ms.Verdict.FAIL
    evidence = ms.measure_output_fidelity(CANDIDATE, REFERENCE, X, min_sqnr_db=20, outputs="scores")
    assert evidence.verdict is ms.Verdict.PASS
    with pytest.raises(ms.UsageError, match=r"^output 'label' of reference holds no floating-point numbers"):
        ms.measure_output_fidelity(CANDIDATE, REFERENCE, X, min_sqnr_db=20, outputs=["scores", "label"])


def test_calibration_reads_the_chosen_output_alone(build, save):
    nodes = [("Add", ["x", "x"], "up", {}), ("RandomUniformLike", ["x"], "noise", {})]
    path = save(build(nodes, outputs=("up", "noise")), "noisy")
    with pytest.raises(ms.UsageError, match=r"output 'noise' of noisy changes by"):
        ms.measure_output_parity(path, path, X)
    assert ms.measure_output_parity(path, path, X, outputs="up").verdict is ms.Verdict.PASS


def test_the_saved_input_of_a_chosen_output_is_replayed_with_it_alone(build, save, capsys):
    nodes = [("Add", ["x", "x"], "up", {}), ("Neg", ["x"], "down", {})]
    path = save(build(nodes, outputs=("up", "down")), "model")
    reference = ms.serve(lambda x: {"up": x + x + (x > 1), "down": x}, name="reference")
    evidence = ms.measure_output_parity(path, reference, X, **EXACT, outputs="up")
    command = shlex.split(evidence.details["failing_input"]["command"])
    assert command[-2:] == ["--output", "up"]
    assert main(command[3:]) == 1
    assert "output 'down'" not in capsys.readouterr().out
