"""Two models made comparable: their graphs, the inputs for both, and the tensors that both have."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, load_model, open_artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.parity.locating.graph import Graph, graph_of
from pytest_modelserve.parity.locating.points import Points, common_points
from pytest_modelserve.parity.locating.precision import Precision, precision_of
from pytest_modelserve.parity.predicting import Inputs
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.hazards import hazards_of
from pytest_modelserve.serving.inputs import checked_feed

Model = Artifact | Predictor | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """`feed` are the inputs by the reference's names and in its dtypes."""

    candidate: Graph
    reference: Graph
    feed: Mapping[str, NDArray[Any]]
    precision: Precision
    points: Points

    def without(self, tensors: Collection[str]) -> Pair:
        """The same pair, not compared at `tensors`, which are named as the candidate has them."""
        known = {point.candidate for point in self.points.points}
        every = (set(self.candidate.producer) - known) | set(tensors)
        return replace(self, points=common_points(self.candidate, self.reference, without=every))

    @property
    def candidate_feed(self) -> dict[str, NDArray[Any]]:
        """The inputs that the candidate takes, in its own dtypes."""
        types = {value.name: value.type.tensor_type.elem_type for value in self.candidate.model.graph.input}
        return {name: as_type(self.feed[name], types[name]) for name in self.candidate.inputs if name in self.feed}


def pair_of(candidate: Model, reference: Model, inputs: Inputs) -> Pair:
    """Both models, loaded. A single input or output of each belongs together, whatever it is called."""
    theirs, other = opened(reference, "reference")
    _, mine = opened(candidate, "candidate")
    feed = checked_feed(inputs, theirs.signature)
    for model in (mine, other):
        hazards_of(model).refuse(feed)
    reference_graph = graph_of(other)
    candidate_graph = _with_ends(graph_of(mine), reference_graph)
    return Pair(
        candidate=candidate_graph,
        reference=reference_graph,
        feed=feed,
        precision=precision_of(candidate_graph, reference_graph),
        points=common_points(candidate_graph, reference_graph),
    )


def as_type(array: NDArray[Any], element_type: int) -> NDArray[Any]:
    """`array` in ONNX's element type; what does not fit there becomes infinite, as in a Cast."""
    if array.dtype.kind in "OU":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(element_type), copy=False)


def opened(model: Model, side: str) -> tuple[Artifact, onnx.ModelProto]:
    """The artifact behind `model` and its graph with all weights; `side` is what an error calls it."""
    if isinstance(model, Predictor):
        if model.artifact is None:
            raise UsageError(
                f"the {side} {model.subject} is no file with a graph to look into: give an artifact, the path of an "
                "ONNX file, or a predictor of one"
            )
        model = model.artifact
    if isinstance(model, Artifact):
        artifact, loaded = model, load_model(model)
    else:
        artifact = open_artifact(model)
        loaded = onnx.load(artifact.path, load_external_data=False)
    onnx.load_external_data_for_model(loaded, str(artifact.path.parent))
    return artifact, loaded


def _with_ends(candidate: Graph, reference: Graph) -> Graph:
    """`candidate` with its one input and its one output named as those of `reference`, where each side has one."""
    names = {}
    for ours, theirs in ((candidate.inputs, reference.inputs), (candidate.outputs, reference.outputs)):
        if len(ours) == len(theirs) == 1 and ours != theirs:
            if {theirs[0]} & {*candidate.producer, *candidate.constants, *candidate.inputs}:
                raise UsageError(
                    f"the candidate calls {ours[0]!r} what the reference calls {theirs[0]!r}, and has another tensor "
                    "of that name: name both alike"
                )
            names[ours[0]] = theirs[0]
    return candidate.renamed(names) if names else candidate
