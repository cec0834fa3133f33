import importlib.util
import os
import runpy
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pytest_modelserve.errors import BakedAxisError, ExportError, MissingDependencyError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.training import ModelSource, export, train

RNG = np.random.default_rng(0)
ROW = RNG.standard_normal((1, 6)).astype(np.float32)
ROWS = RNG.standard_normal((4, 6)).astype(np.float32)
SERIES = RNG.standard_normal((2, 7, 1)).astype(np.float32)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.first(x))))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Linear(3 * 4 * 4, 10)

    def forward(self, image):
        hidden = torch.max_pool2d(torch.relu(self.norm(self.conv(image))), 2)
        return self.last(hidden.flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 4, batch_first=True)
        self.last = nn.Linear(4, 1)

    def forward(self, series):
        return self.last(self.gru(series)[0])


class WhileExporting(nn.Module):
    """Does to the exporter what it does not do to eager torch."""

    def __init__(self, trick):
        super().__init__()
        self.trick = trick

    def forward(self, x):
        return self.trick(x) if torch.compiler.is_exporting() else x * 2


def build_small():
    return Small()


def fit_nothing(module, data, progress):
    """Leave the module as it was built."""


@pytest.fixture(scope="module")
def trained(store):
    return train(
        ModelSource(name="small", build=build_small, fit=fit_nothing, data={"x": ROWS}, example_inputs=ROW), store=store
    )


@pytest.fixture(scope="module")
def artifact(store, trained):
    return export(trained, store=store)


def no_child(*_):
    raise AssertionError("exported again")


def entries(store):
    return sorted(path.name for path in (store.root / "entries").iterdir())


def test_example_of_one_row_gives_a_free_batch_axis(artifact):
    assert str(artifact.signature) == "x: float32[batch, 6] -> output: float32[batch, 2]"


def test_outputs_are_those_of_the_module(artifact, trained, check_outputs):
    check_outputs(artifact, trained.module(), RNG.standard_normal((17, 6)).astype(np.float32))


def test_lineage_records_training_export_and_checks(artifact, trained):
    assert artifact.subject == Subject("small", "fp32", artifact.sha256)
    training, step = artifact.lineage
    assert training.stage == "training"
    assert training.settings == {"source": "small", "seed": 0, "weights_sha256": trained.sha256}
    assert (step.stage, step.parent) == ("export", trained.sha256)
    assert step.settings == {"dynamic": {"x": {"0": "batch"}}, "traced": {"batch": 2}, "opset": 20}
    assert step.notes == (
        "outputs match eager torch at batch = 2; batch = 1; batch = 3; batch = 5; a row of zeros; a row of large values",
    )
    assert step.versions["torch"] == torch.__version__


def test_same_export_runs_once(artifact, trained, store, monkeypatch):
    monkeypatch.setattr(sys.modules["pytest_modelserve.training.export"], "ChildProcess", no_child)
    assert export(trained, store=store) == artifact


def test_nodes_keep_the_source_line_that_they_come_from(artifact):
    nodes = onnx.load(artifact.path).graph.node
    traces = [{entry.key: entry.value for entry in node.metadata_props} for node in nodes]
    assert all("test_export.py" in trace["pkg.torch.onnx.stack_trace"] for trace in traces)


def test_precision_fixed_sizes_and_opset_are_in_the_artifact(store):
    exported = export(Small().half().eval(), ROW.astype(np.float16), dynamic=(), opset=18, store=store)
    assert exported.variant == "fp16"
    assert str(exported.signature) == "x: float16[1, 6] -> output: float16[1, 2]"
    assert [entry.version for entry in onnx.load(exported.path).opset_import if entry.domain == ""] == [18]


def test_convolutions_export_silently(store, capfd, recwarn, check_outputs):
    torch.manual_seed(0)
    module = Convolution().eval()
    images = RNG.standard_normal((2, 1, 8, 8)).astype(np.float32)
    check_outputs(export(module, images, store=store), module, np.repeat(images, 3, axis=0))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def trace_in_this_process(module, series):
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(module, (torch.from_numpy(series),), dynamic_shapes=({0: free, 1: free},))


def test_free_time_axis_survives_an_export_in_this_process_and_one_after_another(store, check_outputs):
    # With torch 2.13 only the first trace of a GRU in a process leaves the axis free, and a fork inherits that.
    torch.manual_seed(0)
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        trace_in_this_process(Recurrent().eval(), SERIES)
    for module in (Recurrent().eval(), Recurrent().eval()):
        exported = export(module, SERIES, dynamic=("batch", "time"), store=store)
        assert str(exported.signature) == "series: float32[batch, time, 1] -> output: float32[batch, time, 1]"
        assert exported.lineage[-1].notes[1:] == ("output 'output', axis 1: the exporter wrote 7, observed time",)
        check_outputs(exported, module, RNG.standard_normal((3, 11, 1)).astype(np.float32))


LAYERS = """
import torch
from torch import nn

def squash(x):
    return torch.tanh(x)

class Base(nn.Linear):
    def forward(self, x):
        return squash(super().forward(x))

class Derived(Base):
    pass
"""


def test_new_interpreter_gets_a_class_by_value_whose_module_it_could_not_import(
    store, tmp_path, monkeypatch, capfd, check_outputs
):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    (tmp_path / "layers.py").write_text(LAYERS)
    spec = importlib.util.spec_from_file_location("a.module.that.is.nowhere", tmp_path / "layers.py")
    layers = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, layers)
    spec.loader.exec_module(layers)
    module = nn.Sequential(layers.Derived(6, 3)).eval()
    check_outputs(export(module, ROWS, store=store, name="spawned"), module, ROW)
    assert capfd.readouterr() == ("", "")


def test_parametrized_layer_is_refused_by_its_name(store):
    module = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))).eval()
    with pytest.raises(ExportError, match="layer '0' has a parametrization, which torch cannot send to the process"):
        export(module, np.eye(4, dtype=np.float32), store=store)


def test_module_that_cannot_be_pickled_is_refused(store):
    module = Small().eval()
    module.lock = threading.Lock()
    with pytest.raises(ExportError, match="Small cannot be sent to the process of the export: "):
        export(module, ROW, store=store)


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from pytest_modelserve.artifacts import Store
from pytest_modelserve.training import ModelSource, export, train

class Scripted(nn.Linear):
    pass

def fit(module, data, progress):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    x = torch.from_numpy(data["x"])
    for _ in progress(range(20), "steps"):
        optimizer.zero_grad()
        (module(x) - torch.randn(len(x), 64)).square().mean().backward()
        optimizer.step()

def trained(folder, threads):
    torch.set_num_threads(threads)
    torch.randn(700, 700) @ torch.randn(700, 700)
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    source = ModelSource(name="m", build=lambda: Scripted(64, 64), fit=fit, data={"x": x}, example_inputs=x[:2])
    return train(source, store=Store(Path(folder)))

if len(sys.argv) > 1:
    model = trained(sys.argv[1], 2)
    print(model.sha256, export(model, store=Store(Path(sys.argv[1]))).signature)
"""


def test_script_without_a_main_guard_trains_to_the_same_bits_and_exports_its_own_class(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # torch and onnx may warn of each other on import; the warnings of the exporter are of these two kinds.
    command = [sys.executable, "-W", "error::UserWarning", "-W", "error::FutureWarning", script, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    threads = torch.get_num_threads()
    try:
        here = runpy.run_path(str(script))["trained"](tmp_path / "here", 1)
    finally:
        torch.set_num_threads(threads)
    signature = "input: float32[batch, 64] -> output: float32[batch, 64]"
    assert (done.stdout, done.stderr) == (f"{here.sha256} {signature}\n", "")


def test_time_limit_ends_the_exporter(store):
    before = entries(store)
    began = time.monotonic()
    with pytest.raises(ExportError, match=r"export of slow exceeded its time limit of 1\.5 s"):
        export(WhileExporting(stall).eval(), ROW, store=store, time_limit_s=1.5, name="slow")
    assert time.monotonic() - began < 300
    assert entries(store) == before


def stall(x):
    time.sleep(600)
    return x


def test_crash_of_the_exporter_is_an_error_that_names_the_signal(store):
    with pytest.raises(ExportError, match="export of crash: its process was killed by SIGABRT"):
        export(WhileExporting(lambda x: os.abort()).eval(), ROW, store=store, name="crash")


def test_exception_in_the_exporter_is_reported_with_its_cause(store):
    def fail(x):
        raise LookupError("no kernel for this")

    with pytest.raises(ExportError, match="export of failing failed: LookupError: no kernel for this"):
        export(WhileExporting(fail).eval(), ROW, store=store, name="failing")


def test_axis_fixed_inside_the_graph_is_refused_and_not_stored(store):
    before = entries(store)
    with pytest.raises(BakedAxisError, match=r"axis 'batch' \(axis 0 of input 'x'\) is in `dynamic` but fixed inside"):
        export(WhileExporting(lambda x: x[:2] * 2).eval(), ROWS[:2], store=store)
    assert entries(store) == before


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_missing_package_names_the_extra(store, monkeypatch, package):
    module = nn.Linear(6, 2).eval()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"export needs {package}, which is not installed"):
        export(module, ROW, store=store)
