"""Where the time of a model goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import pytest_modelserve as ms
from pytest_modelserve.performance.breakdown import breakdown, broken_down

X = np.ones((4, 64), np.float32)


def event(node: str, operator: str, us: int) -> dict[str, object]:
    return {"cat": "Node", "name": f"{node}_kernel_time", "dur": us, "args": {"op_name": operator}}


RUN = {"cat": "Session", "name": "model_run", "dur": 1}


def test_shares_are_of_the_time_in_nodes_after_the_warm_up() -> None:
    slow_start = [event("fc", "MatMul", 1_000_000), RUN] * 5
    later = [event("fc", "MatMul", 60), event("act", "Relu", 40), RUN] * 5
    found = broken_down(slow_start + later)
    assert found is not None
    assert [(cost.node, cost.operator, cost.share) for cost in found.costliest] == [
        ("fc", "MatMul", 0.6),
        ("act", "Relu", 0.4),
    ]
    assert found.told() == (
        "costliest operators (a profiling run of its own, on onnxruntime's CPU provider): MatMul fc 60 %, Relu act 40 %"
    )


def test_steps_are_told_against_the_model() -> None:
    runs = [RUN] * 10
    nodes = [event("preprocess/0_scale/mul", "Mul", 10), event("postprocess_2/0_softmax/s", "Softmax", 20)]
    found = broken_down([*runs, *nodes, event("preprocessing", "MatMul", 70), RUN])
    assert found is not None
    assert (found.preprocess, found.postprocess) == (0.1, 0.2)
    assert found.told().endswith("; preprocessing 10 %, postprocessing 20 %")


def test_few_runs_leave_out_half() -> None:
    found = broken_down([event("slow", "Add", 1000), RUN, event("fast", "Add", 10), RUN])
    assert found is not None
    assert [cost.node for cost in found.costliest] == ["fast"]


def test_ten_costliest_are_told() -> None:
    found = broken_down([RUN] * 10 + [event(f"n{i}", "Add", i + 1) for i in range(30)] + [RUN])
    assert found is not None
    assert [cost.node for cost in found.costliest] == [f"n{i}" for i in range(29, 19, -1)]


def test_real_profile_names_the_nodes(small_model: ms.Artifact) -> None:
    before = set(Path.cwd().iterdir())
    with ms.serve(small_model) as served:
        found = breakdown(served, X)
    assert found is not None
    assert {cost.node: cost.operator for cost in found.costliest}["fc"] == "MatMul"
    assert found.preprocess > 0
    assert found.postprocess > 0
    assert set(Path.cwd().iterdir()) == before


def test_what_cannot_be_profiled_has_no_breakdown(small_model: ms.Artifact) -> None:
    assert breakdown(ms.serve(lambda x: x), X) is None
    assert broken_down([]) is None
    with ms.serve(small_model) as served:
        assert breakdown(served, X.astype(np.float64)) is None
