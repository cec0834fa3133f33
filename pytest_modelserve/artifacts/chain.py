"""Steps in a row as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.signature import TensorSpec, spec_of
from pytest_modelserve.artifacts.steps import FLOATS, Step, node, small_graph
from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps joined into one graph, in which every name begins with the same prefix.

    The graph takes the value `entry`. `results` are the values of the last step, `passing` those that earlier steps
    give a name of their own; both map the public name to the value inside.
    """

    graph: onnx.GraphProto
    entry: str
    results: dict[str, TensorSpec]
    passing: dict[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Boundary(Step):
    """What stands between steps and a model, so that both compute the same bits together as each alone.

    onnxruntime fuses a constant factor into a MatMul that it meets (MatMulScaleFusion), and then rounds otherwise than
    the step alone did when it prepared the training data. A Clip without bounds passes every value on, NaN included,
    and no fusion reaches across it; an Identity would be optimised away. It costs about 1 µs for a row.
    """

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Clip(x)` without bounds for floats; integers are not rounded and just pass."""
        return small_graph([node("Clip" if spec.dtype in FLOATS else "Identity", ["x"], ["y"])], spec, {"y": spec}, {})


def chain(steps: Sequence[Step], spec: TensorSpec, *, prefix: str) -> Chain:
    """The graph of `steps`, at least one, for an input that fits `spec`.

    A step that cannot take what comes to it, or that follows one after which nothing can, is a UsageError.
    """
    from onnx.compose import add_prefix_graph, merge_graphs

    graph: onnx.GraphProto | None = None
    results, passing = {spec.name: spec}, {}
    for index, step in enumerate(steps):
        if len(results) > 1 or (index and steps[index - 1].is_last):
            raise UsageError(f"{_kind(step)} cannot follow {_kind(steps[index - 1])}, which must be the last step")
        ((name, value),) = results.items()
        piece = step.graph(TensorSpec(name, value.dtype, value.shape))
        names = step.outputs or (name,)
        if len(piece.input) != 1 or len(piece.output) != len(names):
            raise UsageError(f"the graph of {_kind(step)} must have one input and {len(names)} outputs")
        piece = add_prefix_graph(piece, f"{prefix}{index}_{_kind(step).lower()}/")
        passing.update(results if index and steps[index - 1].outputs else {})
        results = {name: spec_of(output) for name, output in zip(names, piece.output, strict=True)}
        graph = piece if graph is None else merge_graphs(graph, piece, [(value.name, piece.input[0].name)])
    if graph is None:
        raise UsageError("no steps are given")
    return Chain(graph, graph.input[0].name, results, passing)


def _kind(step: Step) -> str:
    return type(step).__name__
