"""Nodes of a network and the interface of their operators: interval, rounding error and linear bounds.

How to add an operator
----------------------
1. Write a class with a constructor of one `Node`, which refuses what it does not cover by `refusal`:
   - `LinearOperator` for what is linear in its variable inputs: `forward`, `forward_absolute`, `adjoint`, `bias`.
   - `Operator` for anything else; `Lines` are the linear bounds of a function of each value.
2. `interval` and `relax` hold for the exact operator. `error` returns by how much the runtime's result may differ from
   the exact one on the same inputs (`intervals.py` has the formulas). The engine (bounds.py) widens the interval by it
   and subtracts it from linear bounds: the other two never add it.
3. Add the class to `OPERATORS` in operators.py under the name of the operator; of other domains as "domain.Name".
`tests/robustness/certificates/test_operators.py` compares every entry of the table with onnxruntime.

Shapes: values are (rows, *shape) and the coefficients of linear functions (rows, functions, *shape), in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.robustness.certificates.interval_arithmetic import Array, Box, own_error, sum_error


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator of the network.

    Attributes:
        op: Operator, "Gemm"; of other domains "ai.onnx.ml.Scaler".
        name: Name of the node in the file.
        inputs: Names of all inputs, constants included; "" for one that is left out.
        output: Name of the output.
        output_index: Position of the output among those of the node in the file.
        attributes: Attributes by name, texts as str.
        constants: Constant inputs by position; floats as float64.
        shapes: Shape of one row of each variable input, in the order of `sources`.
        shape: Shape of one row of the output.
        dtypes: dtype of each variable input.
        dtype: dtype of the output.
        opset: Version of the operator set.
        proto: The node in the file, and the rows with which the graph was run, for operators that only move values.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    output_index: int
    attributes: Mapping[str, Any]
    constants: Mapping[int, NDArray[Any]]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    dtype: str
    opset: int
    proto: tuple[Any, int]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the variable inputs."""
        return tuple(at for at, name in enumerate(self.inputs) if name and at not in self.constants)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the variable inputs."""
        return tuple(self.inputs[at] for at in self.positions)

    @property
    def size(self) -> int:
        """The number of values of one row of the output."""
        return int(np.prod(self.shape))

    def constant(self, position: int) -> NDArray[Any] | None:
        """Return the constant at `position`, None if it is left out; ArtifactError if it is no constant."""
        if position in self.constants:
            return self.constants[position]
        if position < len(self.inputs) and self.inputs[position]:
            raise self.refused(f"its input {self.inputs[position]!r} depends on the model's input")
        return None

    def required(self, position: int) -> NDArray[Any]:
        """Return the constant at `position`; ArtifactError if it is left out, or no constant."""
        value = self.constant(position)
        if value is None:
            raise self.refused(f"its input {position} is missing")
        return value

    def only_variable(self, *positions: int) -> None:
        """Raise ArtifactError unless the variable inputs are those at `positions`."""
        for at in self.positions:
            if at not in positions:
                raise self.refused(f"its input {self.inputs[at]!r} depends on the model's input")

    def refused(self, why: str) -> ArtifactError:
        """Return the error for a form of the operator that has no bounds here."""
        return refusal(self.op, self.name, why)


def refusal(op: str, name: str, why: str = "", advice: str = "") -> ArtifactError:
    """Return the error for an operator that certificates do not cover, with its node."""
    reason = f": {why}" if why else ", which is not in the table of operators (docs/certificates.md)"
    what = advice or "attack it by queries (ms.assert_robust), or export the model without this operator"
    return ArtifactError(f"artifact cannot be certified: node {name!r} is {op}{reason}; {what}")


class Relaxation(ABC):
    """Linear bounds of one operator's output by its inputs, over the boxes of some rows."""

    @abstractmethod
    def backward(self, coefficients: Array) -> tuple[list[Array], Array | float]:
        """Bound a linear function of the output from below by one of the inputs.

        Args:
            coefficients: (rows, functions, *shape of the output).

        Returns:
            Coefficients of each variable input (rows, functions, *its shape), and a constant (rows, functions).
        """


class Operator(ABC):
    """Interval and linear bounds of one operator of the graph."""

    added_error: Array | float = 0.0
    """Radius of what onnxruntime changes when it opens the file; broadcasts to the shape of the output."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @abstractmethod
    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the box of the exact output for the boxes of the variable inputs."""

    @abstractmethod
    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return linear bounds over the boxes; `slopes` replace the lower slopes of operators that leave a choice."""

    @abstractmethod
    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return the radius of the runtime's rounding error and of ours, (rows, *shape) or 0."""

    @property
    def keeps_independence(self) -> bool:
        """Whether each value of the output depends on a value of the only input that no other one depends on."""
        return False

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return for each variable input where a tighter box would tighten the linear bounds; None for nowhere."""
        return [None] * len(boxes)


class LinearOperator(Operator, Relaxation):
    """An operator that is linear in its variable inputs, plus a constant `bias`."""

    bias: Array | float = 0.0
    """Broadcasts to the shape of the output."""
    bias_magnitude: Array | float | None = None
    """Sum of the absolute values that make the bias, where the runtime rounds them one by one."""
    terms = 0
    """Products in each sum of the output; 0 for operators that only move values, which the runtime does exactly."""
    gain = 1.0
    """Factor by which partial sums are larger than the output: they may overflow."""
    weight: Array
    """The weights of Gemm, MatMul and Conv."""
    flushed: Array | float = 0.0
    """Largest change of a weight by underflow, where onnxruntime multiplies it with factors that follow."""

    @abstractmethod
    def forward(self, *values: Array) -> Array:
        """Return the linear part for values (rows, *shape)."""

    def forward_absolute(self, *values: Array) -> Array:
        """Return the linear part with the absolute values of all coefficients."""
        return self.forward(*values)

    @abstractmethod
    def adjoint(self, coefficients: Array) -> list[Array]:
        """Return the coefficients of each input for coefficients of the output."""

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return center ± radius."""
        center = self.forward(*(box.center for box in boxes)) + self.bias
        radius = self.forward_absolute(*(box.radius for box in boxes))
        return Box(center - radius, center + radius)

    def relax(self, _boxes: Sequence[Box], _slopes: Array | None = None) -> Relaxation:
        """Return the operator itself: it is linear."""
        return self

    def backward(self, coefficients: Array) -> tuple[list[Array], Array | float]:
        """Return the adjoint, and the coefficients applied to the bias."""
        return self.adjoint(coefficients), dot(coefficients, self.bias)

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return γ_n of the absolute values."""
        bias = np.abs(self.bias) if self.bias_magnitude is None else self.bias_magnitude
        magnitude = self.forward_absolute(*(box.magnitude for box in boxes)) + bias
        if not self.terms:
            return own_error(magnitude, self.node.size)
        error = sum_error(magnitude, self.terms, self.node.dtype, own_terms=self.node.size, gain=self.gain)
        if not np.any(self.flushed):
            return error
        most = self.terms * np.maximum(boxes[0].magnitude.reshape(len(error), -1).max(axis=1), 1e-300)
        return np.asarray(error + self.flushed * most.reshape(-1, *[1] * (error.ndim - 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Lines(Relaxation):
    """Bounds `lower_slope x + lower_offset <= f(x) <= upper_slope x + upper_offset`, each (rows, *shape).

    An offset of None is 0 everywhere.
    """

    lower_slope: Array
    lower_offset: Array | None
    upper_slope: Array
    upper_offset: Array | None

    def backward(self, coefficients: Array) -> tuple[list[Array], Array | float]:
        """Take the lower line for positive coefficients and the upper one for negative ones."""
        negative = np.minimum(coefficients, 0.0)
        positive = coefficients - negative
        constant: Array | float = 0.0
        if self.lower_offset is not None:
            constant = constant + dot_rows(positive, self.lower_offset)
        if self.upper_offset is not None:
            constant = constant + dot_rows(negative, self.upper_offset)
        positive *= self.lower_slope[:, None]
        negative *= self.upper_slope[:, None]
        positive += negative
        return [positive], constant

    def along(self, values: Array, below: NDArray[np.bool_]) -> Array:
        """Return values along the lower lines where `below`, and the upper ones elsewhere."""
        low = self.lower_slope * values + (0.0 if self.lower_offset is None else self.lower_offset)
        high = self.upper_slope * values + (0.0 if self.upper_offset is None else self.upper_offset)
        return np.where(below, low, high)


def dot(coefficients: Array, constant: Array | float) -> Array | float:
    """Return the sums of coefficients (rows, functions, *shape) times a constant that broadcasts to `shape`."""
    if not np.any(constant):
        return 0.0
    shape = coefficients.shape
    full = np.broadcast_to(np.asarray(constant, np.float64), (1, *shape[2:])).reshape(-1)
    found: Array = coefficients.reshape(shape[0], shape[1], -1) @ full
    return found


def dot_rows(coefficients: Array, values: Array) -> Array:
    """Return the sums (rows, functions) of coefficients (rows, functions, *shape) times values (rows, *shape)."""
    rows, functions = coefficients.shape[:2]
    found: Array = coefficients.reshape(rows, functions, -1) @ values.reshape(rows, -1, 1)
    return found[..., 0]


def unbroadcast(coefficients: Array, shape: tuple[int, ...]) -> Array:
    """Sum coefficients (rows, functions, *output) over the axes along which an input of `shape` was broadcast."""
    axes = tuple(
        at + 2 for at, (have, want) in enumerate(zip(coefficients.shape[2:], shape, strict=True)) if have != want
    )
    return coefficients.sum(axis=axes, keepdims=True) if axes else coefficients
