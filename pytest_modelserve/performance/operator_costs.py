"""Where a model's time goes: operator by operator, in a profiling run apart from the timed one."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.serving import Inputs, Predictor

_CALLS = 20
_WARM_UP_CALLS = 5
_PATIENCE_S = 2.0
"""Slow models make fewer calls, two at least: a breakdown must not take longer than the gate that it explains."""
_SHOWN = 10
_KERNEL = "_kernel_time"
_STEPS = ("preprocess", "postprocess")


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One node of the optimised graph and its share, 0 to 1, of the time in all nodes."""

    node: str
    operator: str
    share: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The costliest nodes; and, of a composed artifact, the shares of its "preprocessing", "model" and
    "postprocessing", as far as it has them."""

    costliest: tuple[OperatorCost, ...]
    parts: tuple[tuple[str, float], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As an entry for the details of evidence: "operators", and "parts" where there are any."""
        told: dict[str, Any] = {"operators": [asdict(cost) for cost in self.costliest]}
        return {**told, "parts": dict(self.parts)} if self.parts else told

    def told(self) -> str:
        """One sentence: "costliest operators (…): MatMul /fc1 45 %, …"."""
        nodes = ", ".join(f"{cost.operator} {cost.node} {100 * cost.share:.0f} %" for cost in self.costliest)
        parts = ", ".join(f"{part} {100 * share:.0f} %" for part, share in self.parts)
        where = "a profiling run of its own, on onnxruntime's CPU provider"
        return f"costliest operators ({where}): {nodes}" + (f"; {parts}" if parts else "")


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
    return broken_down(events, composed=_composed(predictor.artifact))


def broken_down(events: Iterable[Mapping[str, Any]], *, composed: Mapping[str, int] | None = None) -> Breakdown | None:
    """The breakdown of onnxruntime's profile; the first five runs are left out, or the first half of fewer than ten.
    None where no node ran. A node's time is its median over the runs.

    `composed` says how often "preprocess" and "postprocess" steps were put around the model; without it no parts are
    told.
    """
    events = tuple(events)
    runs, warm_up = 0, min(_WARM_UP_CALLS, sum(event.get("name") == "model_run" for event in events) // 2)
    runs_with_nodes: set[int] = set()
    spent: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        name = str(event.get("name", ""))
        if name == "model_run":
            runs += 1
        elif event.get("cat") == "Node" and name.endswith(_KERNEL) and runs >= warm_up:
            spent[name.removesuffix(_KERNEL), str(event["args"]["op_name"])][runs] += float(event["dur"])
            runs_with_nodes.add(runs)
    # Medians over the runs: in a sum, one interruption by the host would outweigh every node.
    typical = {key: statistics.median(us.get(run, 0.0) for run in runs_with_nodes) for key, us in spent.items()}
    total = sum(typical.values())
    if not total:
        return None
    ordered = sorted(typical.items(), key=lambda item: -item[1])
    by_node: dict[str, float] = defaultdict(float)
    for (node, _), us in ordered:
        by_node[node] += us / total
    return Breakdown(
        tuple(OperatorCost(node, operator, us / total) for (node, operator), us in ordered[:_SHOWN]),
        _parts(by_node, composed or {}),
    )


def _parts(shares: Mapping[str, float], composed: Mapping[str, int]) -> tuple[tuple[str, float], ...]:
    before, after = (_of_steps(shares, word, composed.get(word, 0)) for word in _STEPS)
    if before is None and after is None:
        return ()
    model = max(sum(shares.values()) - (before or 0.0) - (after or 0.0), 0.0)
    named = (("preprocessing", before), ("model", model), ("postprocessing", after))
    return tuple((name, share) for name, share in named if share is not None)


def _of_steps(shares: Mapping[str, float], word: str, times: int) -> float | None:
    """The share of the nodes that `compose` made in so many goes; None where it made none.

    It names them "preprocess/…", and "preprocess_2/…" where that is taken: by its last go, or by a node of the model's
    own. Those of `compose` are the last ones.
    """
    if not times:
        return None
    of_prefix: dict[int, float] = defaultdict(float)
    for node, share in shares.items():
        if found := re.match(rf"{word}(?:_(\d+))?/", node):
            of_prefix[int(found[1] or 1)] += share
    return sum(of_prefix[number] for number in sorted(of_prefix)[-times:])


def _composed(artifact: Artifact) -> dict[str, int]:
    """How often `compose` put steps before the model and after it."""
    settings = [step.settings for step in artifact.lineage if step.stage == "compose"]
    return {word: sum(bool(setting.get(word)) for setting in settings) for word in _STEPS}


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
