"""Steps that turn scores into answers: probabilities, a label, the best few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pytest_modelserve.artifacts.signature import Dim, TensorSpec
from pytest_modelserve.artifacts.steps import FLOATS, Step, need_dtype, node, small_graph
from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Softmax(Step):
    """`exp(x) / sum(exp(x))` along `axis`, as the output "probabilities"."""

    axis: int = -1
    outputs: ClassVar[tuple[str, ...]] = ("probabilities",)

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Softmax(x)`, with the meaning that it has since opset 13."""
        need_dtype("Softmax", spec, FLOATS)
        rank = None if spec.shape is None else len(spec.shape)
        if rank is not None and not -rank <= self.axis < rank:
            raise UsageError(f"Softmax: {spec} has no axis {self.axis}")
        return small_graph([node("Softmax", ["x"], ["y"], axis=self.axis)], spec, {"y": spec}, {})


@dataclass(frozen=True, slots=True)
class ArgMax(Step):
    """The best class on the last axis, as the output "label": its index (int64), or its name where `labels` are given.

    Of equal scores the first wins. There must be as many `labels` as classes. Scores with NaN have no best class: what
    comes out for them is unspecified.
    """

    labels: Sequence[str] | None = None
    outputs: ClassVar[tuple[str, ...]] = ("label",)
    is_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _distinct("ArgMax", self.labels))

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`ArgMax(x)`, then `Gather(labels, ...)` where there are labels."""
        _classes("ArgMax", spec, self.labels)
        shape = None if spec.shape is None else spec.shape[:-1]
        look_up, label, constants = _label("label", shape, self.labels)
        best = node("ArgMax", ["x"], ["index"], axis=-1, keepdims=0)
        return small_graph([best, look_up], spec, {"label": label}, constants)


@dataclass(frozen=True, slots=True)
class TopK(Step):
    """The best `k` classes on the last axis, best first, as the outputs "top_labels" and "top_scores".

    Labels are indices (int64), or names where `labels` are given; both outputs end in a dim of `k`. Of equal scores
    the class with the smaller index comes first. What comes out for scores with NaN is unspecified.
    """

    k: int
    labels: Sequence[str] | None = None
    outputs: ClassVar[tuple[str, ...]] = ("top_labels", "top_scores")
    is_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _distinct("TopK", self.labels))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"TopK: k must be a whole number from 1 up, not {self.k!r}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`TopK(x, k)`, then `Gather(labels, ...)` where there are labels."""
        classes = _classes("TopK", spec, self.labels)
        if isinstance(classes, int) and self.k > classes:
            raise UsageError(f"TopK: k = {self.k}, and {spec} has only {classes} classes")
        shape = None if spec.shape is None else (*spec.shape[:-1], self.k)
        look_up, label, constants = _label("top_labels", shape, self.labels)
        best = node("TopK", ["x", "k"], ["top_scores", "index"], axis=-1, largest=1, sorted=1)
        outputs = {"top_labels": label, "top_scores": TensorSpec("top_scores", spec.dtype, shape)}
        return small_graph([best, look_up], spec, outputs, {"k": np.array([self.k], np.int64), **constants})


def _label(
    name: str, shape: tuple[Dim, ...] | None, labels: Sequence[str] | None
) -> tuple[onnx.NodeProto, TensorSpec, dict[str, Any]]:
    """The node that makes the output `name` of "index", what that output is, and the constants that the node needs."""
    if labels is None:
        return node("Identity", ["index"], [name]), TensorSpec(name, "int64", shape), {}
    texts = {"labels": np.array(labels, np.object_)}
    return node("Gather", ["labels", "index"], [name]), TensorSpec(name, "str", shape), texts


def _distinct(step: str, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"{step}: labels must be a sequence of str, one per class, not {labels!r}")
    twice = sorted({label for label in labels if list(labels).count(label) > 1})
    if twice:
        raise UsageError(f"{step}: the label {twice[0]!r} stands for more than one class")
    return tuple(map(str, labels))


def _classes(step: str, spec: TensorSpec, labels: Sequence[str] | None) -> Dim:
    """The number of classes on the last axis of `spec`, which must be that of the labels."""
    need_dtype(step, spec, FLOATS)
    if spec.shape == ():
        raise UsageError(f"{step}: {spec} is one number; it has no axis with classes")
    classes = None if spec.shape is None else spec.shape[-1]
    if labels is not None and classes != len(labels):
        told = f"has {classes} classes" if isinstance(classes, int) else "does not tell how many classes it has"
        raise UsageError(f"{step}: {len(labels)} labels are given, and {spec} {told}")
    return classes
