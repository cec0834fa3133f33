"""A torch module, its export, and onnxruntime: which of them is at fault, and on which line."""

from pathlib import Path

import onnx
import pytest
import torch

import pytest_modelserve as ms
from pytest_modelserve.parity.divergence import fault_origin, locate


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(8, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.last = torch.nn.Linear(16, 3)

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        hidden = self.norm(hidden)
        return torch.softmax(self.last(hidden), dim=-1)


@pytest.fixture(scope="module")
def exported(modelserve, rows):
    return modelserve.export(Small().eval(), rows[:2], name="small")


@pytest.fixture
def broken(exported, tmp_path):
    model = onnx.load(exported.path)
    norm = next(each for each in model.graph.node if each.op_type == "LayerNormalization")
    next(each for each in norm.attribute if each.name == "epsilon").f = 0.1
    onnx.save(model, tmp_path / "broken.onnx")
    return tmp_path / "broken.onnx"


def test_divergence_has_the_line_of_the_exported_module(exported, broken, rows):
    assert ms.locate_divergence(exported, exported, rows) is None
    found = ms.locate_divergence(broken, exported, rows)
    assert found is not None
    assert found.changes == ("attribute epsilon is 0.1 where the reference has 1e-05",)
    assert Path(found.source.split(":")[0]).name == Path(__file__).name
    assert found.source.endswith(": hidden = self.norm(hidden)")


def test_sound_export_has_no_fault(exported, rows):
    origin = fault_origin(exported, ms.serve(Small().eval()), rows)
    assert origin.fault == "none"
    assert str(origin) == "eager torch, the unoptimized and the optimized graph agree"


def test_graph_that_differs_from_eager_torch_is_the_exports_fault(broken, rows):
    origin = fault_origin(broken, ms.serve(Small().eval()), rows)
    assert (origin.fault, origin.optimized) == ("export", "")
    assert str(origin).startswith("the exported graph differs from the eager model: output 'output' at [")


def test_optimizer_that_changes_outputs_is_at_fault(exported, broken, rows, monkeypatch):
    """Planted: the optimized session is of another model."""
    plain = locate.open_graph_session
    monkeypatch.setattr(
        locate,
        "open_graph_session",
        lambda model, weights, *, optimize=False: plain(onnx.load(broken) if optimize else model, weights),
    )
    origin = fault_origin(exported, ms.serve(Small().eval()), rows)
    assert (origin.fault, origin.exported) == ("optimizer", "")
    assert str(origin).startswith("onnxruntime's optimizer changes the graph's outputs: output ")
