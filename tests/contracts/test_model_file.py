"""Checks of a model file that pytest's reports do not show by themselves."""

from dataclasses import replace

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.contracts.model_file import CHECKS, ModelFile, NotJudgedError, Options
from pytest_modelserve.evidence import Recorder, recording
from tests.contracts.conftest import linear_model

CHECK = {check.name: check for check in CHECKS}


@pytest.fixture
def judged(tmp_path):
    """Run one check of a linear model, and return its evidence."""
    opened = []

    def run(name, *, batch="batch", weight=1.0, **options):
        path = linear_model(tmp_path / "m.onnx", weight * np.eye(4), batch=batch)
        opened.append(ModelFile(path, Options(**options, counterexamples=tmp_path)))
        with recording(Recorder("test", "test")) as recorder:
            opened[-1].run(CHECK[name])
        return recorder.records()[0].evidence

    yield run
    for file in opened:
        file.close()


@pytest.mark.parametrize(
    ("batch", "reason"), [(8, "the signature has no batch"), ("seq_len", "the first axis is called 'seq_len'")]
)
def test_first_axis_that_need_not_be_a_batch_is_not_judged_as_one(judged, batch, reason):
    with pytest.raises(NotJudgedError, match=reason):
        judged("batch_invariance", batch=batch)


def test_model_with_a_fixed_batch_is_judged_as_one_call(judged):
    assert judged("deterministic", batch=8).passed


def test_crash_on_generated_inputs_is_named_and_not_judged(judged, monkeypatch):
    model = ms.serve(lambda x: x * np.nan)
    found = ms.measure_relation(model, np.ones((3, 2)), ms.relations.finite_outputs(), save_to=None)
    crash = replace(found, summary="the model crashes", findings=("finite", "killed by SIGFPE"))
    monkeypatch.setattr(ms, "measure_relation", lambda *_, **__: crash)
    with pytest.raises(
        NotJudgedError, match=r"the model crashes on inputs that were generated .* \(killed by SIGFPE\)"
    ):
        judged("deterministic")


def test_operators_and_providers_are_counted(judged):
    operators = judged("operators")
    assert (operators.verdict, operators.value, operators.details["operators"]) == (None, 1, {"MatMul": 1})
    assert "CPUExecutionProvider" in judged("providers").details["available"]


def test_rows_that_are_given_and_have_infinite_outputs_fail(judged, tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.full((3, 4), 100, np.float32))
    with pytest.raises(ms.GateFailure, match="values of output 'logits' are not finite"):
        judged("finite", weight=1e38, inputs=tmp_path / "rows.npz")


@pytest.mark.parametrize(("option", "check"), [("inputs", "finite"), ("inputs", "opens"), ("against", "slowdown")])
def test_file_of_the_command_line_that_cannot_be_read_is_an_error_of_every_check(judged, tmp_path, option, check):
    cut = tmp_path / ("cut.npz" if option == "inputs" else "cut.onnx")
    cut.write_bytes(b"PK cut")
    with pytest.raises(ms.InputError, match=f"--modelserve-{option}: .*cut"):
        judged(check, **{option: cut})
