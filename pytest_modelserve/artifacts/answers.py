"""Postprocessing steps that make answers say less: temperature, rounding, the top k alone, and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.artifacts.metadata import TensorSpec, elem_type
from pytest_modelserve.artifacts.transforms import FLOATS, Step, need_dtype, node, small_graph
from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    import onnx

_MAX_DECIMALS = 7
_PRIME = 2**31 - 1
"""Products of two residues fit int64."""
_MAX_CELL = 2.0**30


@dataclass(frozen=True, slots=True)
class Temperature(Step):
    """Division of logits by `t`: above 1 the probabilities of a later Softmax become more equal, below 1 less.

    The order of the classes stays. A client can undo it, as long as the answers have all their decimals: follow it by
    Softmax and Round.

    Args:
        t: Finite number above 0.

    Raises:
        UsageError: `t` is not above 0. `compose` raises it after Softmax, where it would be too late.

    Example:
        >>> Temperature(3)
        Temperature(t=3.0)
    """

    t: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", _positive("Temperature", "t", self.t))

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Div(x, t)`."""
        need_dtype("Temperature", spec, FLOATS)
        if spec.name == "probabilities":
            raise UsageError("Temperature takes logits: put it before Softmax")
        divisor = _constant("Temperature", "t", self.t, spec.dtype)
        return small_graph([node("Div", ["x", "t"], ["y"])], spec, {"y": spec}, {"t": divisor})


@dataclass(frozen=True, slots=True)
class Round(Step):
    """Rounding to `decimals` places after the point, halves to the even neighbor.

    Rounded probabilities add up to about 1. NaN and infinities stay.

    Args:
        decimals: Integer from 0 to 7; for float16 at most 4.

    Raises:
        UsageError: `decimals` is out of range. `compose` raises it for inputs of another dtype.

    Example:
        >>> Round(2)
        Round(decimals=2)
    """

    decimals: int

    def __post_init__(self) -> None:
        if isinstance(self.decimals, bool) or not isinstance(self.decimals, int) or not 0 <= self.decimals <= 7:
            raise UsageError(f"Round: decimals must be an integer from 0 to {_MAX_DECIMALS}, got {self.decimals!r}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Div(Round(Mul(x, 10 ** decimals)), 10 ** decimals)`."""
        need_dtype("Round", spec, FLOATS)
        factor = _constant("Round", "decimals", 10.0**self.decimals, spec.dtype)
        nodes = [
            node("Mul", ["x", "factor"], ["scaled"]),
            node("Round", ["scaled"], ["whole"]),
            node("Div", ["whole", "factor"], ["y"]),
        ]
        return small_graph(nodes, spec, {"y": spec}, {"factor": factor})


@dataclass(frozen=True, slots=True)
class TopKMask(Step):
    """The `k` highest scores on the last axis as they are, and 0 in place of all others.

    The shape stays, so that gates and clients read the scores as before. Of equal scores the first ones stay. With
    `TopK` clients get k labels and scores instead.

    Args:
        k: Number of classes that keep their score, at least 1.

    Raises:
        UsageError: `k` is below 1. `compose` raises it for fewer classes than `k`, and for inputs of another dtype.

    Example:
        >>> TopKMask(1)
        TopKMask(k=1)
    """

    k: int

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"TopKMask: k must be an integer of at least 1, got {self.k!r}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`ScatterElements(zeros, index, values)` with the result of `TopK(x, k)`."""
        import onnx

        classes = _last_dim("TopKMask", spec)
        if self.k > classes:
            raise UsageError(f"TopKMask: k must be at most {classes}, the number of classes of {spec}; got {self.k}")
        zero = onnx.helper.make_tensor("zero", elem_type(spec.dtype), [1], [0])
        nodes = [
            node("TopK", ["x", "k"], ["values", "index"], axis=-1, largest=1, sorted=1),
            node("Shape", ["x"], ["shape"]),
            node("ConstantOfShape", ["shape"], ["zeros"], value=zero),
            node("ScatterElements", ["zeros", "index", "values"], ["y"], axis=-1),
        ]
        return small_graph(nodes, spec, {"y": spec}, {"k": np.array([self.k], np.int64)})


@dataclass(frozen=True, slots=True)
class Noise(Step):
    """Gaussian noise of the standard deviation `scale` on every score.

    With a `seed` the same row gets the same noise however often it is sent: the answer is cut into cells as wide as
    `scale`, and the noise of each class is a pseudorandom function of the cells of all classes, a polynomial of degree
    3 modulo 2^31 - 1 with secret coefficients. Rows whose answers lie in the same cells share their noise. It does not
    hide a column from a client who tries each of its values and compares: the true value gets the same noise. The mean
    over slightly different rows has less of it.

    Without one (`seed=None`) it is drawn anew in every call, so that the mean of n calls has only 1/√n of it, and the
    model is no longer deterministic. It hides an answer that was given once. onnxruntime seeds it once a process: two
    sessions of one process give the same noise.

    On logits, before Softmax, the answers stay probabilities. Noise can change the label.

    Args:
        scale: Standard deviation of the noise, above 0.
        seed: Secret seed of the coefficients, an integer of at least 0, or None. It is in the file, as the weights are.

    Raises:
        UsageError: A value is out of range. `compose` raises it for inputs of another dtype, and if the number of
            classes is unknown.

    Example:
        >>> Noise(0.5, seed=7205759)
        Noise(scale=0.5, seed=7205759)
    """

    scale: float
    seed: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _positive("Noise", "scale", self.scale))
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise UsageError(f"Noise: seed must be an integer of at least 0, or None, got {self.seed!r}")

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`x + scale * sqrt(-2 log(u)) * cos(2 pi v)`, the method of Box and Muller (1958), with hashes u and v."""
        classes = _last_dim("Noise", spec)
        if self.seed is None:
            nodes = [
                node("RandomNormalLike", ["x"], ["noise"], mean=0.0, scale=self.scale),
                node("Add", ["x", "noise"], ["y"]),
            ]
            return small_graph(nodes, spec, {"y": spec}, {})
        rng = np.random.default_rng(self.seed)
        coefficients = rng.integers(1, _PRIME, (2, 4, classes))
        constants: dict[str, Any] = {
            "cell": np.float32(self.scale),
            "lowest": np.float32(-_MAX_CELL),
            "highest": np.float32(_MAX_CELL),
            "keys": rng.integers(1, _PRIME, classes),
            "prime": np.int64(_PRIME),
            "last": np.array([-1], np.int64),
            "one": np.float32(1),
            "primes": np.float32(_PRIME),
            "minus_two": np.float32(-2),
            "turn": np.float32(2 * math.pi),
        }
        nodes = [
            node("Cast", ["x"], ["floats"], to=elem_type("float32")),
            node("Div", ["floats", "cell"], ["in_cells"]),
            node("Round", ["in_cells"], ["rounded"]),
            node("Clip", ["rounded", "lowest", "highest"], ["bounded"]),
            node("Cast", ["bounded"], ["cells"], to=elem_type("int64")),
            node("Mul", ["cells", "keys"], ["keyed"]),
            node("Mod", ["keyed", "prime"], ["residues"]),
            node("ReduceSum", ["residues", "last"], ["sum"], keepdims=1),
            node("Mod", ["sum", "prime"], ["hash"]),
        ]
        for number, name in enumerate(("u", "v")):
            value = f"{name}3"
            constants[value] = coefficients[number, 3]
            for power in (2, 1, 0):  # Horner's scheme
                constants[f"{name}_{power}"] = coefficients[number, power]
                nodes += [
                    node("Mul", [value, "hash"], [f"{name}_times{power}"]),
                    node("Add", [f"{name}_times{power}", f"{name}_{power}"], [f"{name}_plus{power}"]),
                    node("Mod", [f"{name}_plus{power}", "prime"], [f"{name}{power}"]),
                ]
                value = f"{name}{power}"
            nodes += [
                node("Cast", [value], [f"{name}_whole"], to=elem_type("float32")),
                node("Add", [f"{name}_whole", "one"], [f"{name}_above"]),
                node("Div", [f"{name}_above", "primes"], [name]),
            ]
        nodes += [
            node("Log", ["u"], ["logarithm"]),
            node("Mul", ["logarithm", "minus_two"], ["squared"]),
            node("Abs", ["squared"], ["square"]),  # the largest u is a rounding error above 1
            node("Sqrt", ["square"], ["radius"]),
            node("Mul", ["v", "turn"], ["angle"]),
            node("Cos", ["angle"], ["cosine"]),
            node("Mul", ["radius", "cosine"], ["normal"]),
            node("Mul", ["normal", "cell"], ["noise32"]),
            node("Cast", ["noise32"], ["noise"], to=elem_type(spec.dtype)),
            node("Add", ["x", "noise"], ["y"]),
        ]
        for number, each in enumerate(nodes):
            each.name = f"{each.op_type}_{number}"
        return small_graph(nodes, spec, {"y": spec}, {name: np.asarray(value) for name, value in constants.items()})


def _last_dim(step: str, spec: TensorSpec) -> int:
    need_dtype(step, spec, FLOATS)
    size = spec.shape[-1] if spec.shape else None
    if not isinstance(size, int):
        raise UsageError(f"{step}: the number of classes, the last axis of {spec}, must be known")
    return size


def _positive(step: str, name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{step}: {name} must be a finite number above 0, got {value!r}")
    return float(value)


def _constant(step: str, name: str, value: float, dtype: str) -> Any:
    with np.errstate(over="ignore"):
        array = np.asarray(value, np.float64).astype(dtype)
    if not np.isfinite(array) or not array:
        raise UsageError(f"{step}: {name} is out of the range of {dtype}")
    return array
