"""What a failed comparison tells of where two predictors part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.parity.outputs import PartingTold, tell_parting

ROWS = np.ones((2, 3), np.float32)


def saved(op: str, path: Path) -> Path:
    """y = op(x, 2)"""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "two"], ["y"], name="node_y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([2], np.float32), "two")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture
def served(tmp_path: Path) -> Any:
    return lambda op: ms.serve(saved(op, tmp_path / f"{op}.onnx"))


def test_node_is_told_between_two_files(served: Any) -> None:
    told = tell_parting(served("Add"), served("Mul"), ROWS)
    assert told.finding == (
        "first diverging node: Add 'node_y', given the reference's inputs to it; tensor 'y' at [0, 0] is 3 where the "
        "reference has 2; operator is Add where the reference has Mul"
    )
    assert told.details["divergence"]["node"] == "node_y"
    assert tell_parting(served("Mul"), served("Mul"), ROWS) == PartingTold()


def test_fault_is_told_between_a_file_and_eager_torch(served: Any) -> None:
    told = tell_parting(served("Add"), ms.serve(Doubled().eval()), ROWS)
    assert told.finding == ("the exported graph differs from the eager model: output 'output' at [0, 0] is 3, not 2")
    assert told.details["origin"]["fault"] == "export"
    assert tell_parting(served("Mul"), ms.serve(Doubled().eval()), ROWS) == PartingTold()


def test_nothing_is_told_of_a_callable(served: Any) -> None:
    assert tell_parting(served("Add"), ms.serve(lambda x: x * 2, name="f"), ROWS) == PartingTold()
    assert tell_parting(ms.serve(lambda x: x * 2, name="f"), served("Add"), ROWS) == PartingTold()


def test_search_that_fails_is_told_and_not_raised(served: Any) -> None:
    candidate, reference = served("Add"), served("Mul")
    candidate.artifact.path.write_bytes(b"gone")
    told = tell_parting(candidate, reference, ROWS)
    assert told.finding.startswith("the node at fault could not be searched for: cannot open the model ")
    assert told.details == {}
