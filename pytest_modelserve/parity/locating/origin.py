"""Who is at fault: eager torch, the graph as it was written and the graph as onnxruntime optimises it, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_modelserve.numerics import Outputs
    from pytest_modelserve.parity.locating.pairing import Model
    from pytest_modelserve.parity.predicting import Inputs
    from pytest_modelserve.serving import Predictor

Fault = Literal["none", "export", "optimiser", "export and optimiser"]

_FAULTS: dict[tuple[bool, bool], Fault] = {
    (False, False): "none",
    (True, False): "export",
    (False, True): "optimiser",
    (True, True): "export and optimiser",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where answers part on the way from eager torch to what is served.

    "export": the graph itself answers otherwise than the eager model, whatever runs it; "optimiser": onnxruntime
    answers otherwise once it has optimised the graph. `exported` and `optimised` are sentences on the worst output of
    each step, "" where it agrees.
    """

    fault: Fault
    exported: str = ""
    optimised: str = ""

    def __str__(self) -> str:
        if self.fault == "none":
            return "eager torch, the plain and the optimised graph agree"
        parts = []
        if self.exported:
            parts.append(f"the exported graph answers otherwise than the eager model: {self.exported}")
        if self.optimised:
            parts.append(f"onnxruntime's optimiser changes the graph's answers: {self.optimised}")
        return "; ".join(parts)


def fault_origin(candidate: Model, eager: Predictor, inputs: Inputs) -> Origin:
    """Whether the export or onnxruntime's optimiser makes `candidate` answer otherwise than `eager`.

    `candidate` is an artifact, a path, or a predictor of one; `eager` is what it was exported from, served. Answers
    agree within what rounding grows to in a whole graph, 2048 machine epsilons of a value and of the output's scale.
    The errors are those of `locate_divergence`.
    """
    from pytest_modelserve.parity.locating.graph import graph_of
    from pytest_modelserve.parity.locating.marking import answers, session_of
    from pytest_modelserve.parity.locating.pairing import opened
    from pytest_modelserve.serving.inputs import checked_feed

    artifact, model = opened(candidate, "candidate")
    feed = checked_feed(inputs, artifact.signature)
    graph = graph_of(model)
    plain, optimised = (
        answers(session_of(graph.model, graph.constants, optimised=is_optimised), feed, graph.outputs)
        for is_optimised in (False, True)
    )
    exported, changed = _told(plain, eager.predict(inputs)), _told(optimised, plain)
    return Origin(_FAULTS[bool(exported), bool(changed)], exported, changed)


def _told(candidate: Outputs, reference: Outputs) -> str:
    """A sentence on the first output that differs beyond rounding, or ""."""
    from pytest_modelserve.numerics import pair_outputs
    from pytest_modelserve.parity.locating.precision import WHOLE_GRAPH_STEPS, gap

    found = pair_outputs(candidate, reference)
    for name, expected in reference.items():
        if name not in found:
            return f"output {name!r} is missing"
        worst = gap(found[name], expected, "same", steps=WHOLE_GRAPH_STEPS)
        if worst is not None:
            where = f" at {list(worst.index)}" if worst.index is not None else ""
            values = f"{worst.candidate:.7g}, not {worst.reference:.7g}" if where else ""
            return f"output {name!r}{where} is {values}" if not worst.problem else f"output {name!r}: {worst.problem}"
    return ""
