"""Convolution and pooling over windows of one, two or three axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import LinearOperator, Node, Operator, Relaxation
from pytest_modelserve.robustness.certificates.interval_arithmetic import Array, Box, own_error, up

_DENSE, _SPARSITY = 1 << 18, 16
"""Entries of a matrix that replaces a convolution, and its zeros for each other entry: one product is faster."""
_DENSE_SPATIAL = 1 << 20


def windows_of(node: Node, kernel: Sequence[int]) -> NDArray[np.int64]:
    """Return the flat position of each value of each window (outputs, kernel values), -1 for padding."""
    spatial = node.shapes[0][1:]
    outputs = node.shape[1:]
    axes = len(kernel)
    if len(spatial) != axes:
        raise node.refused(f"its kernel has {axes} axes and its input {len(spatial)}")
    strides = [int(each) for each in node.attributes.get("strides", [1] * axes)]
    dilations = [int(each) for each in node.attributes.get("dilations", [1] * axes)]
    starts = _pads(node, kernel, strides, dilations)
    steps = np.cumprod([1, *spatial[:0:-1]])[::-1]
    position = np.zeros((1, 1), np.int64)
    valid = np.ones((1, 1), np.bool_)
    for axis in range(axes):
        along = (
            np.arange(outputs[axis])[:, None] * strides[axis]
            - starts[axis]
            + np.arange(kernel[axis])[None, :] * dilations[axis]
        )
        position = (position[:, None, :, None] + (along * steps[axis])[None, :, None, :]).reshape(
            len(position) * len(along), -1
        )
        inside = (along >= 0) & (along < spatial[axis])
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).reshape(position.shape)
    return np.where(valid, position, -1)


def _pads(node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Return the padding before each axis."""
    how = node.attributes.get("auto_pad", "NOTSET")
    axes = len(kernel)
    if how in ("NOTSET", ""):
        return [int(each) for each in node.attributes.get("pads", [0] * 2 * axes)[:axes]]
    if how == "VALID":
        return [0] * axes
    starts = []
    for axis in range(axes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max((node.shape[1 + axis] - 1) * strides[axis] + reach - node.shapes[0][1 + axis], 0)
        starts.append(total // 2 if how == "SAME_UPPER" else total - total // 2)
    return starts


class Convolution(LinearOperator):
    """Conv with groups, strides, pads and dilations.

    A small one becomes one matrix; others multiply by the kernel and add each position of the window to its place.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        weight = node.required(1)
        bias = node.constant(2)
        self._groups = int(node.attributes.get("group", 1))
        kernel = weight.shape[2:]
        self._windows = windows_of(node, kernel)
        self._channels, self._positions = node.shapes[0][0], math.prod(node.shapes[0][1:])
        self._maps, self._outputs = weight.shape[0], math.prod(node.shape[1:])
        # (groups, maps of a group, channels of a group, kernel values)
        self.weight = weight.reshape(self._groups, self._maps // self._groups, weight.shape[1], -1)
        self._absolute = np.abs(self.weight)
        self.terms = math.prod(weight.shape[1:])
        if bias is not None:
            self.bias = bias.reshape(-1, *[1] * len(kernel))
        self._matrix: Array | None = None
        size = self._channels * self._positions
        if size * node.size <= _DENSE and size <= _SPARSITY * self.terms:
            identity = np.eye(node.size).reshape(1, node.size, *node.shape)
            self._matrix = self._scattered(identity)[0].reshape(node.size, size)
            self._absolute_matrix = np.abs(self._matrix)

    def forward(self, *values: Array) -> Array:
        if self._matrix is not None:
            return self._multiplied(values[0], self._matrix)
        return self._gathered(values[0], self.weight)

    def forward_absolute(self, *values: Array) -> Array:
        if self._matrix is not None:
            return self._multiplied(values[0], self._absolute_matrix)
        return self._gathered(values[0], self._absolute)

    def adjoint(self, coefficients: Array) -> list[Array]:
        if self._matrix is None:
            return [self._scattered(coefficients)]
        shape = coefficients.shape[:2]
        found: Array = coefficients.reshape(-1, self.node.size) @ self._matrix
        return [found.reshape(*shape, *self.node.shapes[0])]

    def _multiplied(self, values: Array, matrix: Array) -> Array:
        found: Array = (values.reshape(len(values), -1) @ matrix.T).reshape(len(values), *self.node.shape)
        return found

    def _gathered(self, values: Array, weight: Array) -> Array:
        rows = len(values)
        flat = values.reshape(rows, self._groups, -1, self._positions)
        padded = np.concatenate([flat, np.zeros((*flat.shape[:3], 1))], axis=3)
        parts = padded[..., self._windows]  # (rows, groups, channels, outputs, kernel values)
        found: Array = np.einsum("rgcok,gmck->rgmo", parts, weight, optimize=True)
        return found.reshape(rows, *self.node.shape)

    def _scattered(self, coefficients: Array) -> Array:
        rows, functions = coefficients.shape[:2]
        flat = coefficients.reshape(rows * functions, self._groups, self._maps // self._groups, self._outputs)
        result = np.zeros((rows * functions, self._groups, self._positions, self.weight.shape[2]))
        moved = np.ascontiguousarray(flat.transpose(0, 1, 3, 2))  # (…, groups, outputs, maps)
        for at in range(self._windows.shape[1]):
            inside = self._windows[:, at] >= 0
            if inside.any():
                part = moved[:, :, inside] @ self.weight[None, :, :, :, at]
                result[:, :, self._windows[inside, at]] += part
        moved = result.transpose(0, 1, 3, 2)
        return moved.reshape(rows, functions, *self.node.shapes[0])


def _pool_windows(node: Node) -> NDArray[np.int64]:
    if node.op.startswith("Global"):
        return np.arange(math.prod(node.shapes[0][1:]))[None, :]
    return windows_of(node, [int(each) for each in node.attributes["kernel_shape"]])


class AveragePool(LinearOperator):
    """AveragePool and GlobalAveragePool: a matrix over the positions, the same for each channel."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        positions, outputs = math.prod(node.shapes[0][1:]), math.prod(node.shape[1:])
        windows = _pool_windows(node)
        counted = (windows >= 0).sum(axis=1)
        if node.attributes.get("count_include_pad", 0):
            if node.attributes.get("ceil_mode", 0):
                raise node.refused("it counts padding (count_include_pad=1) and rounds up (ceil_mode=1)")
            counted = np.full(outputs, windows.shape[1])
        if positions * outputs > _DENSE_SPATIAL:
            raise node.refused(f"its input has {positions} positions and its output {outputs}, too many for a matrix")
        self._matrix = np.zeros((positions, outputs))
        for at in range(windows.shape[1]):
            inside = windows[:, at] >= 0
            self._matrix[windows[inside, at], np.flatnonzero(inside)] += 1.0 / counted[inside]
        self.terms = windows.shape[1] + 1
        self.gain = float(windows.shape[1])

    def forward(self, *values: Array) -> Array:
        (value,) = values
        found: Array = value.reshape(len(value), value.shape[1], -1) @ self._matrix
        return found.reshape(len(value), *self.node.shape)

    def adjoint(self, coefficients: Array) -> list[Array]:
        shape = coefficients.shape[:2]
        flat = coefficients.reshape(-1, self._matrix.shape[1])
        return [(flat @ self._matrix.T).reshape(*shape, *self.node.shapes[0])]


class MaxPool(Operator):
    """MaxPool and GlobalMaxPool.

    Below: the value of the window with the largest lower bound. Above: values join one by one, each by the chord of
    max(m, x) = m + relu(x - m).
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        windows = _pool_windows(node)
        if (windows < 0).all(axis=1).any():
            raise node.refused("a window of it holds padding only")
        self._windows = windows
        self._positions = math.prod(node.shapes[0][1:])
        read = windows[windows >= 0]
        self._disjoint = len(np.unique(read)) == len(read)

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the maxima of the bounds."""
        lower, upper = self._gathered(boxes[0].lower), self._gathered(boxes[0].upper)
        shape = (len(lower), *self.node.shape)
        return Box(lower.max(axis=-1).reshape(shape), upper.max(axis=-1).reshape(shape))

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return the values of windows in which no value is surely the largest."""
        lower, upper = self._gathered(boxes[0].lower), self._gathered(boxes[0].upper)
        rivals = upper > lower.max(axis=-1, keepdims=True)
        open_ = rivals & (rivals.sum(axis=-1, keepdims=True) > 1)
        chosen = np.zeros((*open_.shape[:2], self._positions), np.bool_)
        for at in range(self._windows.shape[1]):
            inside = self._windows[:, at] >= 0
            chosen[:, :, self._windows[inside, at]] |= open_[:, :, inside, at]
        return [chosen.reshape(boxes[0].lower.shape)]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return weights of each window for the bound below and for that above."""
        lower, upper = self._gathered(boxes[0].lower), self._gathered(boxes[0].upper)
        best = lower.argmax(axis=-1)
        below = np.zeros_like(lower)
        np.put_along_axis(below, best[..., None], 1.0, axis=-1)
        above = below.copy()
        low = np.take_along_axis(lower, best[..., None], axis=-1)[..., 0]
        high = np.take_along_axis(upper, best[..., None], axis=-1)[..., 0]
        offset = np.zeros_like(low)
        for at in range(lower.shape[-1]):
            rival = (best != at) & (upper[..., at] > low)
            if not rival.any():
                continue
            least = np.where(rival, lower[..., at] - high, 0.0)  # of x - m
            most = np.where(rival, upper[..., at] - low, 0.0)
            chord = np.divide(most, most - least, out=np.zeros_like(most), where=rival & (most > least))
            chord = np.where(rival & (least >= 0.0), 1.0, chord)
            above *= (1.0 - chord)[..., None]
            above[..., at] += chord
            offset = (1.0 - chord) * offset - chord * np.minimum(least, 0.0)
            high = np.where(rival, np.maximum(high, upper[..., at]), high)
        offset = up(offset + own_error(np.abs(offset) + np.maximum(np.abs(low), np.abs(high)), lower.shape[-1]))
        plain = above == below
        offset = np.where(plain.all(axis=-1), 0.0, offset)
        return _Windows(self, below, above, offset)

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return our own error: the runtime computes maxima exactly."""
        magnitude = self._gathered(boxes[0].magnitude).max(axis=-1).reshape(len(boxes[0].lower), *self.node.shape)
        return own_error(np.where(np.isfinite(magnitude), magnitude, np.inf), self._windows.size)

    def scattered(self, parts: Sequence[Array], rows: int, functions: int) -> Array:
        """Add coefficients (rows, functions, channels, outputs) of each kernel value to the values of the input."""
        channels = self.node.shapes[0][0]
        result = np.zeros((rows, functions, channels, self._positions))
        for at, part in enumerate(parts):
            inside = self._windows[:, at] >= 0
            if self._disjoint and inside.all():
                result[..., self._windows[:, at]] = part
            elif inside.any():
                result[..., self._windows[inside, at]] += part[..., inside]
        return result.reshape(rows, functions, *self.node.shapes[0])

    def _gathered(self, values: Array) -> Array:
        """Return the windows (rows, channels, outputs, kernel values); padding is -infinity."""
        flat = values.reshape(*values.shape[:2], -1)
        padded = np.concatenate([flat, np.full((*flat.shape[:2], 1), -np.inf)], axis=2)
        return np.asarray(padded[..., self._windows])


class _Windows(Relaxation):
    """Weights of each window (rows, channels, outputs, kernel values), and the offset of the bound above."""

    def __init__(self, pool: MaxPool, below: Array, above: Array, offset: Array) -> None:
        self._pool, self._below, self._above, self._offset = pool, below, above, offset

    def backward(self, coefficients: Array) -> tuple[list[Array], Array | float]:
        """Take the bound below for positive coefficients and that above for negative ones."""
        rows, functions = coefficients.shape[:2]
        flat = coefficients.reshape(*coefficients.shape[:3], -1)
        negative = np.minimum(flat, 0.0)
        positive = flat - negative
        constant = (negative.reshape(rows, functions, -1) @ self._offset.reshape(rows, -1, 1))[..., 0]
        parts = (
            positive * self._below[:, None, ..., at] + negative * self._above[:, None, ..., at]
            for at in range(self._below.shape[-1])
        )
        return [self._pool.scattered(list(parts), rows, functions)], constant
