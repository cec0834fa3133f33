"""Placement gate: the execution providers on which the nodes of a model really run."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pytest_modelserve.errors import ArtifactError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    worst_verdict,
)
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.child_calls import file_in_child
from pytest_modelserve.performance.operator_costs import KERNEL, PROFILE_S, PROFILED_CALLS, WARM_UP_CALLS
from pytest_modelserve.serving import Inputs, Servable
from pytest_modelserve.serving.predictor import CPU
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor
from pytest_modelserve.stats import median_bounds

_MOST_LISTED = 10


def measure_placement(
    model: Servable,
    inputs: Any,
    *,
    providers: Sequence[str],
    min_fraction: float,
    min_time_fraction: float | None = None,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure which part of a model's nodes runs on the execution providers that it was meant for.

    onnxruntime gives a node that no requested provider can run to the CPU without a word. A session with these
    providers, and the CPU behind them, is profiled in a process of its own, or in that of `ms.serve(interpreter=...)`.
    Nodes are those of the graph after optimization and partition: a provider that fuses half of the graph has one.

    FAIL also if a requested provider takes no node at all: because this build of onnxruntime lacks it, because it did
    not start, or because no node suits it. The findings name the nodes that fell back, by operator. The number of nodes
    is exact. The fraction of time is the median over the profiled runs after a warm-up, with the sign test's interval.

    Args:
        model: An artifact, the path of an ONNX file, or a predictor that serves one. Its threads are taken over.
        inputs: One batch, shape (rows, ...) for each input.
        providers: The execution providers that are meant, in order of preference. "CPUExecutionProvider" counts only
            where it is the only one: behind others it is the fallback.
        min_fraction: The smallest fraction of the nodes allowed on `providers`, in (0, 1].
        min_time_fraction: The smallest fraction of the time allowed on them, in (0, 1].
        confidence: The level at which PASS is claimed for the time.
        alpha: The error rate of FAIL for the time.

    Returns:
        Evidence with the fractions of nodes and time, and the number of providers without a node.

    Raises:
        UsageError: `providers` is empty or names an unknown one, a fraction is not in (0, 1], or `model` is no file.
        ArtifactError: onnxruntime refuses the model.

    Example:
        `ms.assert_placement("model.onnx", batch, providers=["CUDAExecutionProvider"], min_fraction=0.95)`.
    """
    wanted = _wanted(providers)
    for name, fraction in (("min_fraction", min_fraction), ("min_time_fraction", min_time_fraction)):
        if fraction is not None and not 0 < fraction <= 1:
            raise UsageError(f"{name} must be above 0 and at most 1, such as 0.95; got {fraction}")
    check_error_rates(confidence=confidence, alpha=alpha)
    began = time.perf_counter()
    with open_models(model, inputs=inputs) as (batch, (served,)), file_in_child(served) as child:
        check_batch(batch)
        placement = profile_placement(child, batch, wanted)
        runtime = child.process.runtime
    fraction = placement.fraction_of_nodes(wanted)
    idle = placement.idle(wanted)
    time_budget = None if min_time_fraction is None else Budget.of("min_time_fraction", min_time_fraction)
    nodes = Quantity("nodes", fraction, "proportion", budget=Budget.of("min_fraction", min_fraction))
    quantities = (
        nodes,
        _time_quantity(placement.fractions_of_time(wanted), time_budget, confidence=confidence, alpha=alpha),
        Quantity("idle providers", len(idle), "count", budget=Budget("at_most", 0, "providers")),
    )
    verdict = worst_verdict(quantities)
    return Evidence(
        gate="placement",
        subject=served.subject,
        quantities=quantities,
        n=len(placement.nodes),
        n_unit="nodes",
        method=Method(
            f"nodes of onnxruntime {runtime['onnxruntime']} after optimization, counted in its profile",
            assumptions="profiling slows all nodes alike",
        ),
        summary=_SUMMARIES[verdict],
        confidence=None if min_time_fraction is None else confidence,
        alpha=0.0 if min_time_fraction is None else alpha,
        findings=(*(f"{name} takes no node: {why}" for name, why in idle.items()), *placement.fallback(wanted)),
        advice="" if verdict is Verdict.PASS else _ADVICE,
        details={
            "providers": placement.table(),
            "nodes": [[node.name, node.operator, node.provider] for node in placement.nodes],
            "runs": len(placement.runs),
            "runtime": runtime,
        },
        duration_s=time.perf_counter() - began,
    )


def _wanted(providers: Sequence[str]) -> tuple[str, ...]:
    if isinstance(providers, str):
        raise UsageError(f"providers must be a sequence of names: pass [{providers!r}]")
    if not providers:
        raise UsageError(f"providers is empty: pass at least one execution provider, for example [{CPU!r}]")
    for name in providers:
        if name not in onnxruntime.get_all_providers():
            raise UsageError(unknown_choice("provider", name, onnxruntime.get_all_providers()))
    return tuple(name for name in dict.fromkeys(providers) if name != CPU) or (CPU,)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the optimized graph and the provider on which it ran."""

    name: str
    operator: str
    provider: str


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes of a model, and the time on each provider in each profiled run, in microseconds.

    `absent` says for what reason a requested provider is not in the session.
    """

    nodes: tuple[Node, ...]
    runs: tuple[Mapping[str, float], ...]
    absent: Mapping[str, str]

    def fraction_of_nodes(self, providers: Sequence[str]) -> float:
        """Return which part of the nodes runs on `providers`; 1 for a graph without nodes on the CPU alone."""
        if not self.nodes:
            return float(CPU in providers)
        return sum(node.provider in providers for node in self.nodes) / len(self.nodes)

    def fractions_of_time(self, providers: Sequence[str]) -> list[float]:
        """Return which part of the time of each run is on `providers`."""
        totals = [(sum(run.get(name, 0.0) for name in providers), sum(run.values())) for run in self.runs]
        return [part / whole for part, whole in totals if whole]

    def idle(self, providers: Sequence[str]) -> dict[str, str]:
        """Return the providers that take no node, each with the reason."""
        used = {node.provider for node in self.nodes}
        if not self.nodes and CPU in providers:
            return {}
        why = "it is in the session, and no node of the graph suits it"
        return {name: self.absent.get(name, why) for name in providers if name not in used}

    def fallback(self, providers: Sequence[str]) -> tuple[str, ...]:
        """Return a sentence on the nodes that run elsewhere, and one with their names; none if there are none."""
        others = [node for node in self.nodes if node.provider not in providers]
        if not others:
            return ()
        operators = Counter(f"{node.operator} on {node.provider}" for node in others).most_common()
        kinds = ", ".join(f"{count} × {kind}" for kind, count in operators[:_MOST_LISTED])
        names = ", ".join(node.name for node in others[:_MOST_LISTED])
        more = f" and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
        return (f"{len(others)} of {len(self.nodes)} nodes run elsewhere: {kinds}", f"these are {names}{more}")

    def table(self) -> dict[str, dict[str, float]]:
        """Return the fraction of nodes and the median fraction of time of each provider."""
        names = dict.fromkeys([node.provider for node in self.nodes])
        return {
            name: {
                "nodes": self.fraction_of_nodes([name]),
                "time": float(np.median(self.fractions_of_time([name]) or [np.nan])),
            }
            for name in names
        }


def profile_placement(child: SubprocessPredictor, inputs: Inputs, providers: Sequence[str]) -> Placement:
    """Run the model on `providers`, with the CPU behind them, and return where its nodes ran.

    ArtifactError if onnxruntime refuses the model on the CPU, too.
    """
    available = child.process.runtime["providers"]
    version = child.process.runtime["onnxruntime"]
    absent = {
        name: f"this build of onnxruntime {version} has only {', '.join(available)}"
        for name in providers
        if name not in available
    }
    asked = [name for name in providers if name not in absent]
    if asked != [CPU]:
        asked.append(CPU)
    with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
        try:
            started, events = _profile(child, inputs, asked, folder)
        except ArtifactError as error:
            if len(asked) == 1:
                raise
            started, events = _profile(child, inputs, [CPU], folder)
            absent |= {name: str(error) for name in asked if name != CPU}
    did_not = "it did not start: check the driver and the libraries that it needs"
    absent |= {name: did_not for name in asked if name not in started and name not in absent}
    return placement_of_profile(events, absent)


def _profile(
    child: SubprocessPredictor, inputs: Inputs, providers: Sequence[str], folder: str
) -> tuple[list[str], list[dict[str, Any]]]:
    return child.profile(inputs, providers, Path(folder), calls=PROFILED_CALLS, most_s=PROFILE_S)


def placement_of_profile(events: Iterable[Mapping[str, Any]], absent: Mapping[str, str]) -> Placement:
    """Return the placement from the events of onnxruntime's profile; the first runs do not count for the times."""
    nodes: dict[tuple[str, str, str], Node] = {}
    runs: list[dict[str, float]] = [defaultdict(float)]
    for event in events:
        name = str(event.get("name", ""))
        if name == "model_run":
            runs.append(defaultdict(float))
        elif event.get("cat") == "Node" and name.endswith(KERNEL):
            node = Node(name.removesuffix(KERNEL), str(event["args"]["op_name"]), str(event["args"]["provider"]))
            # A node without a name has a number; a loop runs its nodes many times.
            nodes.setdefault((node.name, node.operator, str(event["args"].get("node_index"))), node)
            runs[-1][node.provider] += float(event["dur"])
    timed = [run for run in runs if run]
    return Placement(tuple(nodes.values()), tuple(timed[min(WARM_UP_CALLS, len(timed) // 2) :]), absent)


def _time_quantity(fractions: Sequence[float], budget: Budget | None, *, confidence: float, alpha: float) -> Quantity:
    """Return the median fraction of time with its interval, which is unbounded for too few runs."""
    if not fractions:
        unknown = Interval(0.0, 1.0, confidence, 1 - alpha)
        return Quantity("time", float("nan"), "proportion", unknown, budget)
    bounds = median_bounds(fractions, low_level=confidence, high_level=1 - alpha)
    interval = Interval(max(bounds.low, 0.0), min(bounds.high, 1.0), bounds.low_level, bounds.high_level)
    return Quantity("time", bounds.estimate, "proportion", interval, budget)


_SUMMARIES = {
    Verdict.PASS: "the model runs on the providers that it was meant for",
    Verdict.FAIL: "the model does not run on the providers that it was meant for",
    Verdict.INCONCLUSIVE: "the profiled runs do not decide whether enough time is spent on the providers",
}
_ADVICE = (
    "install the build of onnxruntime that has the provider, replace the operators that fell back, or lower the budget"
)
