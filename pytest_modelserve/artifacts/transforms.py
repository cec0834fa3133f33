"""Preprocessing and postprocessing steps, each a small ONNX graph.

A step is a frozen dataclass. `compose` joins steps with a model, and `steps_artifact` writes steps alone.
"""

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


# One number for all features, or one for each feature.
PerFeature = float | Sequence[float] | NDArray[Any]

FLOATS = ("float32", "float64", "float16")
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
# Those of ONNX's Clip for which onnxruntime has a kernel.
_CLIPPED_INTEGERS = ("uint8", "int8", "uint32", "int32", "uint64", "int64")


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """Base class of an operation on one tensor before or after a model.

    Attributes:
        outputs: Names of the results, for example "probabilities". Empty if the one result keeps the name of the input.
        is_last: Whether no step can follow this one.
    """

    outputs: ClassVar[tuple[str, ...]] = ()
    is_last: ClassVar[bool] = False

    @abstractmethod
    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """Return a graph of ai.onnx operators, opset 13 or later, with one input that fits `spec`.

        Names inside the graph are free: they get a prefix when steps are joined.

        Raises:
            UsageError: The step cannot take an input of `spec`.
        """


@dataclass(frozen=True, slots=True)
class Impute(Step):
    """Replacement of NaN by `values`; infinities stay.

    Inputs must be float16, float32 or float64, because integers have no NaN.

    Args:
        values: One finite number, or one per feature, for example the training medians.
        axis: Axis of the features.

    Raises:
        UsageError: A value is not finite. `compose` raises it for inputs of another dtype or number of features.

    Example:
        >>> Impute(0.0)
        Impute(values=0.0, axis=-1)
        >>> Impute([1.5, 20.0]).values
        (1.5, 20.0)
    """

    values: PerFeature
    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _finite("Impute", "values", self.values))

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Where(IsNaN(x), values, x)`."""
        if spec.dtype not in FLOATS:
            raise UsageError(f"Impute replaces NaN, and {spec} has none: remove the step, or put Scale before it")
        values = _along(self, "values", self.values, spec, spec.dtype)
        nodes = [node("IsNaN", ["x"], ["missing"]), node("Where", ["missing", "values", "x"], ["y"])]
        return small_graph(nodes, spec, {"y": spec}, {"values": values})


@dataclass(frozen=True, slots=True)
class Clip(Step):
    """Limits of a value range: values below `low` become `low`, values above `high` become `high`.

    NaN stays NaN.

    Args:
        low: Finite lower bound. For integer inputs a value of their dtype.
        high: Finite upper bound, at least `low`.

    Raises:
        UsageError: A bound is not one finite number, or `low` is above `high`. `compose` raises it for bounds that the
            dtype of the input cannot represent.

    Example:
        >>> Clip(-3, 3)
        Clip(low=-3.0, high=3.0)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = _finite("Clip", name, getattr(self, name))
            if isinstance(value, tuple):
                raise UsageError(f"Clip: {name} must be one number, got {len(value)}")
            object.__setattr__(self, name, value)
        if self.low > self.high:
            raise UsageError(f"Clip: low must be at most high, got {self.low:g} > {self.high:g}")

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
            raise UsageError(
                f"Clip: {name} = {value:g} is not a value of {spec.dtype}, the dtype of {spec}: put Scale before it"
            )
        return np.array(int(value), spec.dtype)


@dataclass(frozen=True, slots=True)
class Standardize(Step):
    """Standardization `(x - mean) / std`; integers become float32 first.

    Args:
        mean: Mean of the training data, one number or one per feature.
        std: Standard deviation of the training data, one number or one per feature, above 0.
        axis: Axis of the features.

    Raises:
        UsageError: A value is not finite, or a `std` is not above 0: drop a constant feature, or pass 1 for it.

    Example:
        >>> rows = np.array([[0.0, 10.0], [2.0, 30.0]])
        >>> Standardize(rows.mean(0), rows.std(0))
        Standardize(mean=(1.0, 20.0), std=(1.0, 10.0), axis=-1)
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
                    f"Standardize: std{place} must be above 0, got {value:g}: drop a constant feature, or pass 1 for it"
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
    """Scaling `x * factor + offset` by one number each; integers and booleans become float32 first.

    Args:
        factor: Finite number other than 0.
        offset: Finite number.

    Raises:
        UsageError: A value is not one finite number, or `factor` is 0. Use `Standardize` for one number per feature.

    Example:
        >>> Scale(1 / 255)  # uint8 images to 0 ... 1
        Scale(factor=0.00392156862745098, offset=0.0)
    """

    factor: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("factor", "offset"):
            value = _finite("Scale", name, getattr(self, name))
            if isinstance(value, tuple):
                raise UsageError(f"Scale: {name} must be one number; Standardize takes one per feature")
            object.__setattr__(self, name, value)
        if self.factor == 0:
            raise UsageError("Scale: factor must not be 0")

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
    """Return a graph with the input "x", which fits `spec`, outputs named by the keys of `outputs`, and constants."""
    import onnx

    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    results = [TensorSpec(name, result.dtype, result.shape) for name, result in outputs.items()]
    given = TensorSpec("x", spec.dtype, spec.shape)
    return onnx.helper.make_graph(list(nodes), "step", [value_info(given)], list(map(value_info, results)), tensors)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    """Return a node named by its operator."""
    import onnx

    return onnx.helper.make_node(operator, inputs, outputs, name=operator, **attributes)


def need_dtype(step: str, spec: TensorSpec, dtypes: Sequence[str]) -> None:
    """Raise UsageError for an input of another dtype."""
    if spec.dtype not in dtypes:
        raise UsageError(f"{step} takes {', '.join(dtypes)}, got {spec}")


def _as_floats(step: str, spec: TensorSpec) -> tuple[str, list[onnx.NodeProto], TensorSpec]:
    """Return the name of the input as floats, the Cast that makes it where needed, and its spec."""
    need_dtype(step, spec, (*FLOATS, *_INTEGERS, "bool"))
    if spec.dtype in FLOATS:
        return "x", [], spec
    cast = node("Cast", ["x"], ["floats"], to=elem_type("float32"))
    return "floats", [cast], TensorSpec(spec.name, "float32", spec.shape)


def _finite(step: str, name: str, value: Any) -> float | tuple[float, ...]:
    """Return `value` as a float or a tuple of floats; raise UsageError unless all are finite."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{step}: {name} must be numbers: {error}") from error
    if array.ndim > 1 or not array.size:
        raise UsageError(f"{step}: {name} must be one number or a row of them, got an array of shape {array.shape}")
    plain = float(array) if array.ndim == 0 else tuple(map(float, array))
    for place, number in _numbered(plain):
        if not math.isfinite(number):
            raise UsageError(f"{step}: {name}{place} must be finite, got {number}")
    return plain


def _numbered(values: Any) -> Iterable[tuple[str, float]]:
    return ((f"[{i}]", value) for i, value in enumerate(values)) if isinstance(values, tuple) else (("", values),)


def _cast(step: str, name: str, values: Any, dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        array = np.asarray(values, np.float64).astype(dtype)
    if not np.isfinite(array).all():
        raise UsageError(f"{step}: {name} overflows {dtype}")
    return array


def _along(step: Impute | Standardize, name: str, values: Any, spec: TensorSpec, dtype: str) -> NDArray[Any]:
    """Return `values` reshaped to broadcast along the feature axis of `spec`."""
    kind = type(step).__name__
    array = _cast(kind, name, values, dtype)
    if array.ndim == 0:
        return array
    rank = len(spec.shape) if spec.shape is not None else 0
    if spec.shape is None or not -rank <= step.axis < rank:
        raise UsageError(f"{kind}: {spec} has no axis {step.axis} for the {len(array)} values of {name}")
    features = spec.shape[step.axis]
    if features != len(array):
        # A symbolic dim is an error, too: at run time a dim of 1 would silently broadcast to as many features.
        raise UsageError(f"{kind}: {name} has {len(array)} values, but axis {step.axis} of {spec} has {features}")
    return array.reshape(-1, *[1] * (rank - 1 - step.axis % rank))


@dataclass(frozen=True, slots=True)
class Softmax(Step):
    """Softmax `exp(x) / sum(exp(x))` along `axis`, as the output "probabilities".

    Args:
        axis: Axis of the classes.

    Example:
        >>> Softmax().outputs
        ('probabilities',)
    """

    axis: int = -1
    outputs: ClassVar[tuple[str, ...]] = ("probabilities",)

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Softmax(x)`, as defined since opset 13."""
        need_dtype("Softmax", spec, FLOATS)
        rank = None if spec.shape is None else len(spec.shape)
        if rank is not None and not -rank <= self.axis < rank:
            raise UsageError(f"Softmax: {spec} has no axis {self.axis}")
        return small_graph([node("Softmax", ["x"], ["y"], axis=self.axis)], spec, {"y": spec}, {})


@dataclass(frozen=True, slots=True)
class ArgMax(Step):
    """Class with the highest score on the last axis, as the output "label".

    The first of equal scores wins. The label of a row with NaN is unspecified. No step can follow.

    Args:
        labels: One distinct name per class; the output is then text. Without names it is the index (int64).

    Raises:
        UsageError: Labels that are not text or not distinct. `compose` raises it for another number of classes.

    Example:
        >>> ArgMax(["cat", "dog"])
        ArgMax(labels=('cat', 'dog'))
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
    """The `k` classes with the highest scores on the last axis, best first, as "top_labels" and "top_scores".

    Both outputs have the shape of the scores with a last dim of `k`. Equal scores are in order of their index. The
    output of a row with NaN is unspecified. No step can follow.

    Args:
        k: Number of classes, at least 1.
        labels: One distinct name per class; "top_labels" is then text. Without names it is the index (int64).

    Raises:
        UsageError: An invalid `k` or labels. `compose` raises it for fewer classes than `k`.

    Example:
        >>> TopK(2)
        TopK(k=2, labels=None)
    """

    k: int
    labels: Sequence[str] | None = None
    outputs: ClassVar[tuple[str, ...]] = ("top_labels", "top_scores")
    is_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _distinct("TopK", self.labels))
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"TopK: k must be an integer of at least 1, got {self.k!r}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`TopK(x, k)`, then `Gather(labels, ...)` where there are labels."""
        classes = _classes("TopK", spec, self.labels)
        if isinstance(classes, int) and self.k > classes:
            raise UsageError(f"TopK: k must be at most {classes}, the number of classes of {spec}; got {self.k}")
        shape = None if spec.shape is None else (*spec.shape[:-1], self.k)
        look_up, label, constants = _label("top_labels", shape, self.labels)
        best = node("TopK", ["x", "k"], ["top_scores", "index"], axis=-1, largest=1, sorted=1)
        outputs = {"top_labels": label, "top_scores": TensorSpec("top_scores", spec.dtype, shape)}
        return small_graph([best, look_up], spec, outputs, {"k": np.array([self.k], np.int64), **constants})


def _label(
    name: str, shape: tuple[Dim, ...] | None, labels: Sequence[str] | None
) -> tuple[onnx.NodeProto, TensorSpec, dict[str, Any]]:
    """Return the node that computes the output `name` from "index", the spec of that output, and constants."""
    if labels is None:
        return node("Identity", ["index"], [name]), TensorSpec(name, "int64", shape), {}
    texts = {"labels": np.array(labels, np.object_)}
    return node("Gather", ["labels", "index"], [name]), TensorSpec(name, "str", shape), texts


def _distinct(step: str, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"{step}: labels must be a sequence of str, one per class, got {labels!r}")
    twice = sorted({label for label in labels if list(labels).count(label) > 1})
    if twice:
        raise UsageError(f"{step}: labels must be distinct, but {twice[0]!r} occurs twice")
    return tuple(map(str, labels))


def _classes(step: str, spec: TensorSpec, labels: Sequence[str] | None) -> Dim:
    """Return the number of classes on the last axis of `spec`, which must match the labels."""
    need_dtype(step, spec, FLOATS)
    if spec.shape == ():
        raise UsageError(f"{step}: {spec} is a scalar without an axis of classes")
    classes = None if spec.shape is None else spec.shape[-1]
    if labels is not None and classes != len(labels):
        size = f"has {classes} classes" if isinstance(classes, int) else "has an unknown number of classes"
        raise UsageError(f"{step}: got {len(labels)} labels, but {spec} {size}")
    return classes
