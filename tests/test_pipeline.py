"""The stages bound to one store, without pytest."""

import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Recorder, recording


@pytest.mark.parametrize("name", ["train", "export", "compress", "compose", "serve"])
def test_stages_show_the_signature_and_the_documentation_of_their_function(name):
    stage = getattr(importlib.import_module(getattr(ms.Pipeline, name).__module__), name)
    parameters = list(inspect.signature(stage).parameters.values())
    bound = getattr(ms, name)
    assert list(inspect.signature(bound).parameters.values()) == parameters
    assert list(inspect.signature(getattr(ms.Pipeline, name)).parameters.values())[1:] == parameters
    assert inspect.getdoc(bound) == inspect.getdoc(stage)


def test_pipeline_closes_what_it_served(tmp_path):
    with ms.Pipeline(tmp_path) as pipeline:
        predictor = pipeline.serve(lambda x: x, name="echo", variant="loud")
        assert str(predictor.subject) == "echo / loud"
    assert predictor.closed
    with pytest.raises(ms.UsageError, match="closed"):
        predictor.predict(np.zeros(1))


def test_functions_of_the_package_share_the_store_that_the_environment_names(tmp_path):
    code = "import numpy as np, pytest_modelserve as ms; ms.prepare([ms.Scale(0.5)], np.ones((1, 2), np.float32))"
    environment = {"MODELSERVE_CACHE": str(tmp_path / "cache"), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert list((tmp_path / "cache" / "entries").iterdir())


def test_assertions_carry_the_name_and_text_of_their_measure():
    for name, (_, measure) in ms._GATES.items():
        assertion = getattr(ms, name)
        assert (assertion.__name__, assertion.__module__) == (name, "pytest_modelserve")
        assert getattr(ms, measure).__doc__ in assertion.__doc__


def test_inconclusive_only_warns_where_the_run_says_so():
    """With 92 right rows of 100, neither 90 % nor less can be told."""
    labels = np.arange(100) % 2
    scores = np.eye(2, dtype=np.float32)[np.where(np.arange(100) < 8, 1 - labels, labels)]
    predictor, rows = ms.serve(lambda x: scores), np.zeros((100, 1), np.float32)

    def judge():
        return ms.assert_accuracy(predictor, rows, labels, min_value=0.9)

    with pytest.raises(ms.GateInconclusive):
        judge()
    with (
        recording(Recorder("t", "t", inconclusive="warn")),
        pytest.warns(ms.ModelServeWarning, match="not enough rows to decide"),
    ):
        assert judge().verdict is ms.Verdict.INCONCLUSIVE


def test_verdicts_survive_pickling():
    """pytest-xdist and multiprocessing send exceptions between processes."""
    import pickle

    labels = np.arange(100) % 2
    predictor = ms.serve(lambda x: np.eye(2, dtype=np.float32)[1 - labels])
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_accuracy(predictor, np.zeros((100, 1), np.float32), labels, min_value=0.9)
    back = pickle.loads(pickle.dumps(failure.value))
    assert str(back) == str(failure.value)
    assert back.evidence.quantities == failure.value.evidence.quantities
