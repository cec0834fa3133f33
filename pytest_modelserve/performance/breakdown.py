"""Where a model's time goes: operator by operator, in a profiling run apart from the timed one."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.serving import Inputs, Predictor

_CALLS = 20
_WARM_UP_CALLS = 5
_PATIENCE_S = 2.0
"""Slow models make fewer calls, two at least: a breakdown must not take longer than the gate that it explains."""
_SHOWN = 10
_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One node of the optimised graph and its share, 0 to 1, of the time in all nodes."""

    node: str
    operator: str
    share: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The costliest nodes, and the shares of what `compose` put before and after the model."""

    costliest: tuple[OperatorCost, ...]
    preprocess: float
    postprocess: float

    def plain(self) -> dict[str, Any]:
        """As an entry for the details of evidence."""
        return {"operators": [asdict(cost) for cost in self.costliest]}

    def told(self) -> str:
        """One sentence: "costliest operators (…): MatMul /fc1 45 %, …"."""
        nodes = ", ".join(f"{cost.operator} {cost.node} {100 * cost.share:.0f} %" for cost in self.costliest)
        around = f"; preprocessing {100 * self.preprocess:.0f} %, postprocessing {100 * self.postprocess:.0f} %"
        steps = around if self.preprocess or self.postprocess else ""
        return f"costliest operators (a profiling run of its own, on onnxruntime's CPU provider): {nodes}{steps}"


def breakdown(predictor: Predictor, inputs: Inputs) -> Breakdown | None:
    """Where the time of `predict(inputs)` goes; None for what is not a model file in onnxruntime.

    Up to twenty calls of a session of its own on the CPU, one thread: onnxruntime profiles a session from its start on,
    and makes calls several times slower by it, so shares are told and no times. None too where it cannot be run: a
    breakdown that fails must not hide the verdict that it explains.
    """
    if predictor.artifact is None or predictor.transport != "in-process":
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
            events = _profile(predictor, inputs, Path(folder))
    except Exception:  # the runtime's exceptions share no base class
        return None
    return broken_down(events)


def broken_down(events: Iterable[Mapping[str, Any]]) -> Breakdown | None:
    """The breakdown of onnxruntime's profile; the first five runs are left out, or the first half of fewer than ten.
    None where no node ran."""
    events = tuple(events)
    runs, warm_up = 0, min(_WARM_UP_CALLS, sum(event.get("name") == "model_run" for event in events) // 2)
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        name = str(event.get("name", ""))
        if name == "model_run":
            runs += 1
        elif event.get("cat") == "Node" and name.endswith(_KERNEL) and runs >= warm_up:
            spent[name.removesuffix(_KERNEL), str(event["args"]["op_name"])] += float(event["dur"])
    total = sum(spent.values())
    if not total:
        return None
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return Breakdown(
        tuple(OperatorCost(node, operator, time / total) for (node, operator), time in ordered[:_SHOWN]),
        preprocess=sum(time for (node, _), time in ordered if _is_of(node, "preprocess")) / total,
        postprocess=sum(time for (node, _), time in ordered if _is_of(node, "postprocess")) / total,
    )


def _profile(predictor: Predictor, inputs: Inputs, folder: Path) -> list[dict[str, Any]]:
    import onnxruntime

    assert predictor.artifact is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(predictor.artifact.path), options, providers=["CPUExecutionProvider"])
    feed = dict(inputs) if isinstance(inputs, Mapping) else {session.get_inputs()[0].name: inputs}
    began = time.perf_counter()
    for made in range(_WARM_UP_CALLS + _CALLS):
        if made >= 2 and time.perf_counter() - began > _PATIENCE_S:
            break
        session.run(None, feed)
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _is_of(node: str, word: str) -> bool:
    """Whether `compose` made the node: "preprocess/…", or "preprocess_2/…" where that name was taken."""
    return re.match(rf"{word}(_\d+)?/", node) is not None
