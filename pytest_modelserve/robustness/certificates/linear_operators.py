"""Operators that are linear in their variable inputs: matrices, sums, products with constants, moved values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import LinearOperator, Node, Operator, unbroadcast
from pytest_modelserve.robustness.certificates.interval_arithmetic import LARGEST, Array, smallest_normal


class Matrix(LinearOperator):
    """Gemm and MatMul: a product with a constant matrix over the last axis."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        if node.op == "Gemm":
            node.only_variable(0)
            if node.attributes.get("transA", 0):
                raise node.refused("it transposes its rows (transA=1)")
            weight = node.required(1)
            weight = weight.T if node.attributes.get("transB", 0) else weight
            alpha = node.attributes.get("alpha", 1.0)
            self.weight = weight * alpha
            self.gain = max(1.0, 1.0 / abs(alpha)) if alpha else 1.0
            bias = node.constant(2)
            if bias is not None and bias.ndim == 2 and len(bias) > 1:
                raise node.refused("its constant C differs between rows")
            self.bias = 0.0 if bias is None else bias * node.attributes.get("beta", 1.0)
        else:
            node.only_variable(0, 1)
            if node.positions != (0,):
                raise node.refused("it multiplies values that depend on the model's input, or a constant from the left")
            self.weight = node.required(1)
        if self.weight.ndim != 2:
            raise node.refused(f"its weight has {self.weight.ndim} axes, not 2")
        self.terms = self.weight.shape[0]
        self._absolute = np.abs(self.weight)

    def forward(self, *values: Array) -> Array:
        found: Array = values[0] @ self.weight
        return found

    def forward_absolute(self, *values: Array) -> Array:
        found: Array = values[0] @ self._absolute
        return found

    def adjoint(self, coefficients: Array) -> list[Array]:
        return [_product(coefficients, self.weight.T)]


def _product(coefficients: Array, matrix: Array) -> Array:
    """Return one product with a matrix: numpy would make one for each row."""
    shape = coefficients.shape
    found: Array = (coefficients.reshape(-1, shape[-1]) @ matrix).reshape(*shape[:-1], matrix.shape[1])
    return found


class Sum(LinearOperator):
    """Add, Sub and Sum of variable inputs and constants."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._signs = [-1.0 if node.op == "Sub" and at else 1.0 for at in node.positions]
        if any(len(shape) != len(node.shape) for shape in node.shapes):
            raise node.refused("it broadcasts an input along a new axis")
        signs = {at: -1.0 if node.op == "Sub" and at else 1.0 for at in node.constants}
        self.bias = sum((signs[at] * value for at, value in node.constants.items()), np.zeros(()))
        self.bias_magnitude = sum((np.abs(value) for value in node.constants.values()), np.zeros(()))
        self.terms = len(node.inputs)

    @property
    def keeps_independence(self) -> bool:
        return self.node.shapes == (self.node.shape,)

    def forward(self, *values: Array) -> Array:
        return self._sum(values, self._signs)

    def forward_absolute(self, *values: Array) -> Array:
        return self._sum(values, [1.0] * len(values))

    def adjoint(self, coefficients: Array) -> list[Array]:
        return [
            unbroadcast(coefficients, shape) * sign for shape, sign in zip(self.node.shapes, self._signs, strict=True)
        ]

    def _sum(self, values: tuple[Array, ...], signs: list[float]) -> Array:
        total = np.zeros((len(values[0]), *self.node.shape))
        for value, sign in zip(values, signs, strict=True):
            total += sign * value
        return total


class Factor(LinearOperator):
    """Mul and Div by a constant, Neg, Scaler, BatchNormalization and Cast: a factor and an offset for each value."""

    terms = 2

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        factor: Array = np.ones(())
        if node.op == "Neg":
            factor = np.full((), -1.0)
        elif node.op == "ai.onnx.ml.Scaler":
            factor = np.asarray(node.attributes.get("scale", 1.0), np.float64)
            self.bias = -np.asarray(node.attributes.get("offset", 0.0), np.float64) * factor
        elif node.op == "BatchNormalization":
            factor = self._normalization(node)
        elif node.op == "Cast":
            if node.dtype not in LARGEST:
                raise node.refused(f"it converts {node.dtypes[0]} to {node.dtype}")
            self.terms = 1
        else:
            if len(node.positions) != 1:
                raise node.refused("both of its inputs depend on the model's input")
            (at,) = node.constants
            if node.op == "Div" and at == 0:
                raise node.refused("it divides by a value that depends on the model's input")
            factor = node.constants[at]
            if node.op == "Div" and not factor.all():
                raise node.refused("it divides by a constant that is 0")
            if len(node.shapes[0]) != len(node.shape):
                raise node.refused("it broadcasts its input along a new axis")
            factor = 1.0 / factor if node.op == "Div" else factor
        self.factor = factor

    def _normalization(self, node: Node) -> Array:
        node.only_variable(0)
        if node.attributes.get("training_mode", 0) or node.attributes.get("is_test", 1) == 0:
            raise node.refused("it runs in training mode, where rows depend on each other")
        shape = (-1, *[1] * (len(node.shape) - 1))
        scale, shift, mean, variance = (node.required(at).reshape(shape) for at in range(1, 5))
        factor: Array = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        self.bias = shift - mean * factor
        self.bias_magnitude = np.abs(shift) + np.abs(mean * factor)
        self.terms = 8
        return factor

    def forward(self, *values: Array) -> Array:
        return self._full(values[0] * self.factor)

    def forward_absolute(self, *values: Array) -> Array:
        return self._full(values[0] * np.abs(self.factor))

    def adjoint(self, coefficients: Array) -> list[Array]:
        factor = self.factor
        if factor.ndim > len(self.node.shape):  # its axis of rows has length 1
            factor = factor[0]
        return [unbroadcast(coefficients * factor, self.node.shapes[0])]

    @property
    def keeps_independence(self) -> bool:
        return self.node.shapes[0] == self.node.shape

    def _full(self, values: Array) -> Array:
        return np.broadcast_to(values, (len(values), *self.node.shape))


def allow_for_folding(nodes: Sequence[Node], operators: Mapping[str, Operator]) -> None:
    """Allow for weights that underflow or overflow where onnxruntime multiplies them with the factors that follow."""
    weighted: dict[str, tuple[LinearOperator, Array]] = {}
    for node in nodes:
        operator = operators[node.output]
        if isinstance(operator, LinearOperator) and node.op in ("Conv", "Gemm", "MatMul"):
            weighted[node.output] = operator, np.ones(())
        elif (
            isinstance(operator, (Factor, Sum))
            and operator.keeps_independence
            and node.op != "Cast"
            and node.sources[0] in weighted
        ):
            source, factor = weighted[node.sources[0]]
            if isinstance(operator, Factor):
                factor = np.abs(operator.factor) * factor
                most = max(float(np.abs(each).max(initial=0.0)) for each in (source.weight, np.asarray(source.bias)))
                tiny = np.divide(smallest_normal(node.dtype), factor, out=np.zeros_like(factor), where=factor > 0)
                tiny = np.where(factor * most < LARGEST[node.dtype], tiny, np.inf)
                source.flushed = source.flushed + np.broadcast_to(tiny, (1, *node.shape))[0]
            weighted[node.output] = source, factor


class Concat(LinearOperator):
    """Concat of variable inputs and constants along an axis other than that of the rows."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        rank = len(node.shape) + 1
        self._axis = int(node.attributes["axis"]) % rank
        if self._axis == 0:
            raise node.refused("it joins rows (axis=0)")
        parts = [np.zeros((1, *shape)) for shape in node.shapes]
        whole = [
            node.constants[at] if at in node.constants else parts[node.positions.index(at)]
            for at in range(len(node.inputs))
        ]
        self.bias = np.concatenate(whole, axis=self._axis)
        ends = np.cumsum([part.shape[self._axis] for part in whole])
        self._spans = [slice(int(ends[at]) - whole[at].shape[self._axis], int(ends[at])) for at in node.positions]

    def forward(self, *values: Array) -> Array:
        result = np.zeros((len(values[0]), *self.node.shape))
        for span, value in zip(self._spans, values, strict=True):
            result[(slice(None),) * self._axis + (span,)] = value
        return result

    def adjoint(self, coefficients: Array) -> list[Array]:
        return [coefficients[(slice(None),) * (self._axis + 1) + (span,)] for span in self._spans]


class Moved(LinearOperator):
    """Operators that only move, repeat or leave out values: Reshape, Transpose, Slice, Gather, Pad and others.

    The operator runs once on the numbers of the values, which tells where each value of the output comes from.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        (shape,) = node.shapes
        self._size = int(np.prod(shape))
        index = _moved_numbers(node, self._size)
        self._index, self._filled = np.maximum(index, 0), index < 0
        if self._filled.any():
            value = node.constant(2)
            self.bias = np.where(self._filled, 0.0 if value is None else float(np.reshape(value, ())), 0.0)
        kept = index[index >= 0]
        self._is_reshape = index.size == self._size and (index.reshape(-1) == np.arange(self._size)).all()
        self._is_unique = len(np.unique(kept)) == len(kept)

    @property
    def keeps_independence(self) -> bool:
        return self._is_reshape or self._is_unique

    def forward(self, *values: Array) -> Array:
        (value,) = values
        if self._is_reshape:
            return value.reshape(len(value), *self.node.shape)
        moved = value.reshape(len(value), -1)[:, self._index]
        moved[:, self._filled] = 0.0
        return moved

    def adjoint(self, coefficients: Array) -> list[Array]:
        shape = (*coefficients.shape[:2], *self.node.shapes[0])
        if self._is_reshape:
            return [coefficients.reshape(shape)]
        result = np.zeros((*coefficients.shape[:2], self._size))
        kept = coefficients[:, :, ~self._filled]
        index = self._index[~self._filled]
        if self._is_unique:
            result[:, :, index] = kept
        else:
            moved = np.moveaxis(result, 2, 0)
            np.add.at(moved, index, np.moveaxis(kept, 2, 0))
        return [result.reshape(shape)]


def _moved_numbers(node: Node, size: int) -> NDArray[np.int64]:
    """Return for each value of the output the number of its value of the input, -1 for one that is filled in."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    proto, rows = node.proto
    numbers = np.arange(rows * size, dtype=np.int64).reshape(rows, *node.shapes[0])
    feed: dict[str, NDArray[Any]] = {node.inputs[0]: numbers}
    for at, value in node.constants.items():
        feed[node.inputs[at]] = np.array(-1, np.int64) if node.op == "Pad" and at == 2 else value
    inputs = list(proto.input)
    copy = type(proto).FromString(proto.SerializeToString())
    if node.op == "Pad" and len(inputs) < 3:
        copy.input.append("fill")
        feed["fill"] = np.array(-1, np.int64)
    elif node.op == "Pad" and not inputs[2]:
        copy.input[2] = "fill"
        feed["fill"] = np.array(-1, np.int64)
    declared = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    output = onnx.ValueInfoProto(name=node.output)
    graph = onnx.helper.make_graph([copy], "moved", declared, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", node.opset)])
    try:
        (found,) = ReferenceEvaluator(model).run(None, feed)
    except Exception as error:  # the evaluator's exceptions share no base class
        raise node.refused("its form is not known") from error
    moved = np.asarray(found)
    expected = np.where(moved[:1] < 0, -1, moved[:1] + size * np.arange(rows).reshape(-1, *[1] * (moved.ndim - 1)))
    first = moved[0]
    if moved.shape != (rows, *node.shape) or not (moved == expected).all() or (first >= size).any():
        raise node.refused("it moves values between rows")
    return np.asarray(first, np.int64)


class Reduction(LinearOperator):
    """ReduceMean and ReduceSum over axes other than that of the rows."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        given = node.constant(1)
        axes = node.attributes.get("axes") if given is None else given.reshape(-1)
        rank = len(node.shapes[0]) + 1
        if axes is None or not len(axes):
            if node.attributes.get("noop_with_empty_axes", 0):
                raise node.refused("it has no axes")
            axes = range(rank)
        self._axes = tuple(sorted(int(axis) % rank for axis in axes))
        if 0 in self._axes:
            raise node.refused("it reduces the axis of the rows")
        self.terms = math.prod(node.shapes[0][axis - 1] for axis in self._axes)
        self.gain = float(self.terms) if node.op == "ReduceMean" else 1.0
        self._factor = 1.0 / self.gain

    def forward(self, *values: Array) -> Array:
        found: Array = values[0].sum(axis=self._axes) * self._factor
        return found.reshape(len(found), *self.node.shape)

    def adjoint(self, coefficients: Array) -> list[Array]:
        shape = self.node.shapes[0]
        kept = [1 if axis + 1 in self._axes else length for axis, length in enumerate(shape)]
        flat = coefficients.reshape(*coefficients.shape[:2], *kept) * self._factor
        return [np.broadcast_to(flat, (*coefficients.shape[:2], *shape))]
