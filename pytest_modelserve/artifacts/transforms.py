"""Steps that prepare inputs, or put outputs into units: each one line of arithmetic, as a small ONNX graph."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts.metadata import Dim, TensorSpec, elem_type, value_info
from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    import onnx


# One number for all features, or one for each.
PerFeature = float | Sequence[float] | NDArray[Any]

FLOATS = ("float32", "float64", "float16")
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
# Those of ONNX's Clip for which onnxruntime has a kernel.
_CLIPPED_INTEGERS = ("uint8", "int8", "uint32", "int32", "uint64", "int64")


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """What is done to one tensor before or after a model; a frozen dataclass that yields a small ONNX graph.

    `outputs` names the results where they mean something of their own; empty, the one result keeps the name that its
    input had. Nothing can follow a step that `is_last`.
    """

    outputs: ClassVar[tuple[str, ...]] = ()
    is_last: ClassVar[bool] = False

    @abstractmethod
    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """A graph of ai.onnx operators, opset 13 or later, with one input that fits `spec`.

        Names inside are free: they get a prefix when steps are joined. A `spec` that the step cannot take is a
        UsageError.
        """


@dataclass(frozen=True, slots=True)
class Impute(Step):
    """NaN → `values`: one number, or one per feature along `axis`. Inputs must be floats, as integers hold no NaN."""

    values: PerFeature
    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _finite("Impute", "values", self.values))

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Where(IsNaN(x), values, x)`."""
        if spec.dtype not in FLOATS:
            raise UsageError(f"Impute replaces NaN, and {spec} holds none: leave the step out, or put Scale before it")
        values = _along(self, "values", self.values, spec, spec.dtype)
        nodes = [node("IsNaN", ["x"], ["missing"]), node("Where", ["missing", "values", "x"], ["y"])]
        return small_graph(nodes, spec, {"y": spec}, {"values": values})


@dataclass(frozen=True, slots=True)
class Clip(Step):
    """Values below `low` → `low`, above `high` → `high`; NaN stays NaN. Integers need bounds of their own dtype."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = _finite("Clip", name, getattr(self, name))
            if isinstance(value, tuple):
                raise UsageError(f"Clip takes one number as {name}, not one per feature: got {len(value)}")
            object.__setattr__(self, name, value)
        if self.low > self.high:
            raise UsageError(f"Clip needs low <= high, not {self.low:g} > {self.high:g}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Clip(x, low, high)`."""
        need_dtype("Clip", spec, (*FLOATS, *_CLIPPED_INTEGERS))
        bounds = {name: self._bound(name, spec) for name in ("low", "high")}
        return small_graph([node("Clip", ["x", "low", "high"], ["y"])], spec, {"y": spec}, bounds)

    def _bound(self, name: str, spec: TensorSpec) -> NDArray[Any]:
        value = getattr(self, name)
        if spec.dtype in FLOATS:
            return _cast("Clip", name, value, spec.dtype)
        limits = np.iinfo(spec.dtype)
        if value != int(value) or not limits.min <= value <= limits.max:
            raise UsageError(f"Clip: {name} = {value:g} is no {spec.dtype}, which {spec} holds: put Scale before it")
        return np.array(int(value), spec.dtype)


@dataclass(frozen=True, slots=True)
class Standardize(Step):
    """`(x - mean) / std`, each one number or one per feature along `axis`; integers become float32 first.

    Give the mean and standard deviation of the training data: `Standardize(x.mean(0), x.std(0))`. A feature that does
    not vary has a std of 0 and is a UsageError here: drop it, or give 1 in its place.
    """

    mean: PerFeature
    std: PerFeature
    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _finite("Standardize", "mean", self.mean))
        object.__setattr__(self, "std", _finite("Standardize", "std", self.std))
        for place, value in _numbered(self.std):
            if value <= 0:
                raise UsageError(
                    f"Standardize needs a std above 0, and std{place} is {value:g}: "
                    "a feature that does not vary carries nothing; drop it, or give 1 in its place"
                )

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Div(Sub(Cast(x), mean), std)`."""
        x, cast, floats = _as_floats("Standardize", spec)
        mean = _along(self, "mean", self.mean, floats, floats.dtype)
        std = _along(self, "std", self.std, floats, floats.dtype)
        if not std.all():
            raise UsageError(f"Standardize: a std is too small for {floats.dtype}, where it becomes 0")
        nodes = [*cast, node("Sub", [x, "mean"], ["centered"]), node("Div", ["centered", "std"], ["y"])]
        return small_graph(nodes, spec, {"y": floats}, {"mean": mean, "std": std})


@dataclass(frozen=True, slots=True)
class Scale(Step):
    """`x * factor + offset`; integers and booleans become float32 first: `Scale(1 / 255)` prepares uint8 images."""

    factor: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("factor", "offset"):
            value = _finite("Scale", name, getattr(self, name))
            if isinstance(value, tuple):
                raise UsageError(f"Scale takes one number as {name}, not one per feature; Standardize takes those")
            object.__setattr__(self, name, value)
        if self.factor == 0:
            raise UsageError("Scale by a factor of 0 would wipe out the input")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Add(Mul(Cast(x), factor), offset)`; without an offset there is no Add."""
        x, cast, floats = _as_floats("Scale", spec)
        constants = {"factor": _cast("Scale", "factor", self.factor, floats.dtype)}
        nodes = [*cast, node("Mul", [x, "factor"], ["scaled" if self.offset else "y"])]
        if self.offset:
            nodes.append(node("Add", ["scaled", "offset"], ["y"]))
            constants["offset"] = _cast("Scale", "offset", self.offset, floats.dtype)
        return small_graph(nodes, spec, {"y": floats}, constants)


def small_graph(
    nodes: Iterable[onnx.NodeProto],
    spec: TensorSpec,
    outputs: Mapping[str, TensorSpec],
    constants: Mapping[str, NDArray[Any]],
) -> onnx.GraphProto:
    """A graph with the input "x", which fits `spec`, the given outputs (their own names are not used) and constants."""
    import onnx

    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    results = [TensorSpec(name, result.dtype, result.shape) for name, result in outputs.items()]
    given = TensorSpec("x", spec.dtype, spec.shape)
    return onnx.helper.make_graph(list(nodes), "step", [value_info(given)], list(map(value_info, results)), tensors)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """One node of a step's graph, named by its operator."""
    import onnx

    return onnx.helper.make_node(operator, inputs, outputs, name=operator, **attributes)


def need_dtype(step: str, spec: TensorSpec, dtypes: Sequence[str]) -> None:
    """Raise the UsageError that a step gives for an input of another dtype."""
    if spec.dtype not in dtypes:
        raise UsageError(f"{step} takes {', '.join(dtypes)}, not {spec}")


def _as_floats(step: str, spec: TensorSpec) -> tuple[str, list[onnx.NodeProto], TensorSpec]:
    """The name of the input as floats, the node that makes it where "x" is none yet, and its dtype and shape."""
    need_dtype(step, spec, (*FLOATS, *_INTEGERS, "bool"))
    if spec.dtype in FLOATS:
        return "x", [], spec
    cast = node("Cast", ["x"], ["floats"], to=elem_type("float32"))
    return "floats", [cast], TensorSpec(spec.name, "float32", spec.shape)


def _finite(step: str, name: str, value: Any) -> float | tuple[float, ...]:
    """`value` as a float or a tuple of floats; what is no finite number is a UsageError."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{step}: {name} must be numbers: {error}") from error
    if array.ndim > 1 or not array.size:
        raise UsageError(f"{step}: {name} must be one number or a row of them, not an array of shape {array.shape}")
    plain = float(array) if array.ndim == 0 else tuple(map(float, array))
    for place, number in _numbered(plain):
        if not math.isfinite(number):
            raise UsageError(f"{step}: {name}{place} is {number}; it must be a finite number")
    return plain


def _numbered(values: Any) -> Iterable[tuple[str, float]]:
    return ((f"[{i}]", value) for i, value in enumerate(values)) if isinstance(values, tuple) else (("", values),)


def _cast(step: str, name: str, values: Any, dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float64).astype(dtype)
    if not np.isfinite(array).all():
        raise UsageError(f"{step}: {name} does not fit into {dtype}")
    return array


def _along(step: Impute | Standardize, name: str, values: Any, spec: TensorSpec, dtype: str) -> NDArray[Any]:
    """`values` so shaped that they meet the features of `spec` on the step's axis."""
    kind = type(step).__name__
    array = _cast(kind, name, values, dtype)
    if array.ndim == 0:
        return array
    rank = len(spec.shape) if spec.shape is not None else 0
    if spec.shape is None or not -rank <= step.axis < rank:
        raise UsageError(f"{kind}: {spec} has no axis {step.axis} on which {len(array)} values of {name} could lie")
    features = spec.shape[step.axis]
    if features != len(array):
        # A symbolic dim counts as wrong: at run time a dim of 1 would stretch to as many features without a word.
        raise UsageError(f"{kind}: {name} has {len(array)} values, and axis {step.axis} of {spec} has {features}")
    return array.reshape(-1, *[1] * (rank - 1 - step.axis % rank))


# Steps that turn scores into answers: probabilities, a label, the best few.


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
