"""Time of each operator of a model, from onnxruntime's profiler."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.performance.child_calls import file_in_child
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.predictor import CPU
from pytest_modelserve.serving.substitution import is_replacing

WARM_UP_CALLS = 5
PROFILED_CALLS = WARM_UP_CALLS + 20
# Slow models make fewer calls: profiling must not take longer than the gate that it explains.
PROFILE_S = 2.0
_MOST_LISTED = 10
KERNEL = "_kernel_time"
_STEPS = ("preprocess", "postprocess")


def measure_operator_costs(predictor: Predictor, inputs: Inputs) -> OperatorCosts | None:
    """Profile `predict(inputs)` operator by operator; None for anything but a model file in onnxruntime.

    Up to twenty calls of a separate session, in the process that serves the model or in one of its own.
    onnxruntime profiles a session from its start on, which slows calls down several times, so that proportions are
    reported and no times. None also where profiling fails: it must not hide the verdict that it explains.
    """
    if is_replacing():
        return None
    try:
        with file_in_child(predictor) as child, tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
            providers = child.providers
            _, events = child.profile(inputs, providers, Path(folder), calls=PROFILED_CALLS, most_s=PROFILE_S)
    except ModelServeError:
        return None
    return costs_of_profile(events, composed=_composed(child.artifact), providers=providers)


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One node of the optimized graph, and its proportion of the time in all nodes."""

    node: str
    operator: str
    proportion: float


@dataclass(frozen=True, slots=True)
class OperatorCosts:
    """The costliest nodes. For a composed artifact, also the proportions of preprocessing, model and postprocessing."""

    costliest: tuple[OperatorCost, ...]
    parts: tuple[tuple[str, float], ...] = ()
    providers: tuple[str, ...] = (CPU,)

    def details(self) -> dict[str, Any]:
        """Return the entries for the details of evidence: "operators", and "parts" where there are any."""
        operators = {"operators": [asdict(cost) for cost in self.costliest]}
        return {**operators, "parts": dict(self.parts)} if self.parts else operators

    def __str__(self) -> str:
        nodes = ", ".join(f"{cost.operator} {cost.node} {100 * cost.proportion:.0f} %" for cost in self.costliest)
        parts = ", ".join(f"{part} {100 * proportion:.0f} %" for part, proportion in self.parts)
        on = "onnxruntime's CPU provider" if self.providers == (CPU,) else ", ".join(self.providers)
        where = f"profiled separately, on {on}"
        return f"costliest operators ({where}): {nodes}" + (f"; {parts}" if parts else "")


def costs_of_profile(
    events: Iterable[Mapping[str, Any]],
    *,
    composed: Mapping[str, int] | None = None,
    providers: tuple[str, ...] = (CPU,),
) -> OperatorCosts | None:
    """Return the costs from onnxruntime's profile; None where no node ran. A node's time is its median over the runs.

    The first five runs are left out, or the first half of fewer than ten. `composed` is how often "preprocess" and
    "postprocess" steps were put around the model; without it there are no parts.
    """
    events = tuple(events)
    runs, warm_up = 0, min(WARM_UP_CALLS, sum(event.get("name") == "model_run" for event in events) // 2)
    runs_with_nodes: set[int] = set()
    spent: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for event in events:
        name = str(event.get("name", ""))
        if name == "model_run":
            runs += 1
        elif event.get("cat") == "Node" and name.endswith(KERNEL) and runs >= warm_up:
            spent[name.removesuffix(KERNEL), str(event["args"]["op_name"])][runs] += float(event["dur"])
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
    return OperatorCosts(
        tuple(OperatorCost(node, operator, us / total) for (node, operator), us in ordered[:_MOST_LISTED]),
        _parts(by_node, composed or {}),
        providers,
    )


def _parts(proportions: Mapping[str, float], composed: Mapping[str, int]) -> tuple[tuple[str, float], ...]:
    before, after = (_of_steps(proportions, word, composed.get(word, 0)) for word in _STEPS)
    if before is None and after is None:
        return ()
    model = max(sum(proportions.values()) - (before or 0.0) - (after or 0.0), 0.0)
    named = (("preprocessing", before), ("model", model), ("postprocessing", after))
    return tuple((name, proportion) for name, proportion in named if proportion is not None)


def _of_steps(proportions: Mapping[str, float], word: str, times: int) -> float | None:
    """Return the proportion of the nodes that `times` calls of `compose` added; None if it was not called.

    `compose` names them "preprocess/…", or "preprocess_2/…" where an earlier call or the model itself uses that name.
    Its own are those with the highest numbers.
    """
    if not times:
        return None
    of_prefix: dict[int, float] = defaultdict(float)
    for node, proportion in proportions.items():
        if found := re.match(rf"{word}(?:_(\d+))?/", node):
            of_prefix[int(found[1] or 1)] += proportion
    return sum(of_prefix[number] for number in sorted(of_prefix)[-times:])


def _composed(artifact: Artifact) -> dict[str, int]:
    """Count the calls of `compose` that put steps before the model and after it."""
    settings = [step.settings for step in artifact.lineage if step.stage == "compose"]
    return {word: sum(bool(setting.get(word)) for setting in settings) for word in _STEPS}
