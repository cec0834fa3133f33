"""The table of session options: real sessions of a small model, and given times."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence.recorder import Recorder, recording
from pytest_modelserve.performance import session_table
from pytest_modelserve.performance.child_calls import ChildCalls
from pytest_modelserve.performance.session_table import Setting
from pytest_modelserve.reporting.charts import charts_of
from pytest_modelserve.serving.subprocess_predictor import ServingProcess

X = np.ones((4, 64), np.float32)
CPU = ("CPUExecutionProvider",)


@pytest.fixture
def microseconds(monkeypatch):
    """Sessions whose calls take so long."""

    def given(by_level):
        names = {onnxruntime: level for level, onnxruntime in session_table.LEVELS.items()}

        def duration(self, repeats):
            return repeats * by_level[names[self._predictor._level]] * 1000

        monkeypatch.setattr(ChildCalls, "duration", duration)

    return given


def test_table_has_a_row_for_each_combination_with_its_ratio(microseconds, small_model):
    microseconds({"none": 30, "all": 20, "basic": 10})
    found = ms.session_options(small_model, X, threads=(1, 2), levels=("none", "all", "basic"))
    assert [str(row.setting) for row in found.rows][:3] == [
        "CPU, 1 thread, none",
        "CPU, 1 thread, all",
        "CPU, 1 thread, basic",
    ]
    assert [row.ratio for row in found.rows] == pytest.approx([1.5, 1, 0.5] * 2)
    assert (found.reference, found.rounds) == (Setting(1, "all", CPU), 31)
    assert "     0.0300  × 1.500  [1.500, 1.500]    CPU, 1 thread, none\n" in str(found)
    assert str(found).count("fastest") == 1


def test_table_is_recorded_and_drawn(microseconds, small_model):
    microseconds({"none": 30, "all": 20})
    recorder = Recorder("t", "t")
    with recording(recorder):
        ms.session_options(small_model, X, threads=[1], levels=("none", "all"))
    (evidence,) = (each.evidence for each in recorder.records())
    assert evidence.verdict is None
    assert evidence.findings == ("fastest of 2: CPU, 1 thread, all, compared with CPU, 1 thread, all",)
    (chart,) = charts_of(ms.Evidence.from_json(evidence.to_json()))
    assert chart.description == "CPU, 1 thread, all is the fastest: 0.02 ms, × 1."
    assert [label.text for label in chart.labels[:2]] == ["CPU, 1 thread, none", "CPU, 1 thread, all"]


def test_combination_that_does_not_open_is_a_row_with_the_reason(small_model):
    providers = [CPU, ["TensorrtExecutionProvider"]]
    found = ms.session_options(small_model, X, threads=[1], levels=["all"], providers=providers, time_limit_s=0.001)
    assert found.rows[1].ratio is None
    assert "is not in the installed build of onnxruntime" in str(found)
    assert found.rounds == 1


def test_provider_that_does_not_start_leaves_the_other_sessions_as_they_are(small_model, monkeypatch):
    """A build that has a provider without its driver."""
    hello = ServingProcess.start

    def with_cuda(self):
        hello(self)
        self.runtime["providers"] = ["CUDAExecutionProvider", *CPU]

    monkeypatch.setattr(ServingProcess, "start", with_cuda)
    providers = [CPU, ["CUDAExecutionProvider"], [*CPU, "CUDAExecutionProvider"]]
    found = ms.session_options(small_model, X, threads=[1], levels=["all", "none"], providers=providers)
    assert [row.ratio is not None for row in found.rows] == [True, True, False, False, False, False]
    assert "provider 'CUDAExecutionProvider' did not start" in found.rows[5].refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": ()}, "threads must be a sequence with at least one item"),
        ({"threads": (0,)}, "threads must be an integer of at least 1"),
        ({"levels": "all"}, "levels must be a sequence with at least one item; got 'all'"),
        ({"levels": ("ful",)}, "unknown level 'ful'"),
        ({"providers": CPU}, "providers must be a sequence of sequences of names"),
        ({"time_limit_s": 0}, "time_limit_s must be a positive number"),
    ],
)
def test_invalid_options_are_refused(options, message, small_model):
    with pytest.raises(ms.UsageError, match=message):
        ms.session_options(small_model, X, **options)


def test_a_model_that_opens_nowhere_is_an_error(small_model):
    with pytest.raises(ms.ArtifactError, match="opens in no combination: provider 'TensorrtExecutionProvider'"):
        ms.session_options(small_model, X, providers=[["TensorrtExecutionProvider"]])
