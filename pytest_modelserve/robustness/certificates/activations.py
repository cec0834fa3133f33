"""Functions of each value: boxes, and two lines that hold over a box.

A line of any slope a holds with the right offsets: the least and the largest value of f(x) - a x over the box. They lie
at the ends of the box, at kinks, or where f'(x) = a. Between kinks and inflection points f' is monotone, so that
bisection finds the last ones. Of several slopes the line that is best at the middle of the box is taken.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit, ndtr

from pytest_modelserve.robustness.certificates.base import Lines, Node, Operator, Relaxation
from pytest_modelserve.robustness.certificates.interval_arithmetic import (
    Array,
    Box,
    own_error,
    smallest_normal,
    unit_roundoff,
)


class Relu(Operator):
    """Relu, LeakyRelu and PRelu: linear for a certain sign, else a chord on one side and a line through 0 on the other.

    Zhang et al. 2018: of a convex one, the lower slope is 1 where the chord's slope is above one half, else that of the
    negative side. `slopes` replace it by any slope between both.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        self._slope: Array | float = 0.0
        if node.op == "LeakyRelu":
            self._slope = float(node.attributes.get("alpha", 0.01))
        elif node.op == "PRelu":
            slope = node.required(1)
            self._slope = np.broadcast_to(slope[0] if slope.ndim > len(node.shape) else slope, node.shape)

    @property
    def keeps_independence(self) -> bool:
        return True

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the least and the largest value; a negative slope turns the negative side around."""
        lower, upper = self._value(boxes[0].lower), self._value(boxes[0].upper)
        both = (boxes[0].lower < 0.0) & (boxes[0].upper > 0.0)
        least = np.minimum(lower, upper)
        return Box(np.where(both, np.minimum(least, 0.0), least), np.maximum(lower, upper))

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return where both signs are possible."""
        return [(boxes[0].lower < 0.0) & (boxes[0].upper > 0.0)]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return the lines of Zhang et al."""
        lower, upper = boxes[0].lower, boxes[0].upper
        with np.errstate(invalid="ignore"):
            both = (lower < 0.0) & (upper > 0.0) & np.isfinite(upper - lower)
        slope = np.broadcast_to(self._slope, lower.shape)
        width = np.where(both, upper - lower, 1.0)
        chord = np.where(both, (upper - slope * lower) / width, np.where(lower >= 0.0, 1.0, slope))
        # The chord passes through (upper, upper): its value at 0.
        offset = np.where(both, upper * (1.0 - chord), 0.0)
        margin = np.where(both, own_error(np.maximum(np.abs(lower), upper) * (1.0 + np.abs(chord))), 0.0)
        free = np.where(chord > 0.5 * (1.0 + slope), 1.0, slope)
        if slopes is not None:
            free = np.clip(slopes, np.minimum(slope, 1.0), np.maximum(slope, 1.0))
        free = np.where(both, free, chord)
        lines = Lines(free, None, chord, offset + margin)
        if (slope > 1.0).any():  # concave
            concave = slope > 1.0
            lines = Lines(
                np.where(concave, chord, free),
                np.where(concave, offset - margin, 0.0),
                np.where(concave, free, chord),
                np.where(concave, 0.0, offset + margin),
            )
        return _unbounded(lines, ~np.isfinite(upper - lower))

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return the rounding of the product on the negative side."""
        own = own_error(boxes[0].magnitude * np.maximum(1.0, np.abs(self._slope)), self.node.size)
        if self.node.op == "Relu":
            return own
        product = np.abs(self._slope) * np.maximum(-boxes[0].lower, 0.0)
        return np.asarray(own + 2 * unit_roundoff(self.node.dtype) * product + smallest_normal(self.node.dtype))

    def _value(self, values: Array) -> Array:
        return np.where(values >= 0.0, values, self._slope * values)


def _unbounded(lines: Lines, infinite: NDArray[np.bool_]) -> Lines:
    """Return lines with infinite offsets where the box is infinite, so that no bound follows."""
    if not infinite.any():
        return lines
    zero = np.zeros(infinite.shape)
    below = zero if lines.lower_offset is None else lines.lower_offset
    above = zero if lines.upper_offset is None else lines.upper_offset
    return Lines(
        np.where(infinite, 0.0, lines.lower_slope),
        np.where(infinite, -np.inf, below),
        np.where(infinite, 0.0, lines.upper_slope),
        np.where(infinite, np.inf, above),
    )


class Univariate(Operator):
    """A function of each value with lines of any slope."""

    @property
    def keeps_independence(self) -> bool:
        return True

    @abstractmethod
    def candidates(self, box: Box) -> list[Array]:
        """Return slopes to try for both lines."""

    @abstractmethod
    def extremes(self, box: Box, slope: Array) -> tuple[Array, Array]:
        """Return a lower and an upper bound of f(x) - slope x over the box."""

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the extremes for slope 0."""
        box, huge = _small(boxes[0])
        low, high = self.extremes(box, np.zeros_like(box.lower))
        return Box(np.where(huge, -np.inf, low), np.where(huge, np.inf, high))

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return where the box is wide enough to matter."""
        return [boxes[0].upper - boxes[0].lower > 1e-6]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return the two lines that are best at the middle of the box."""
        box, huge = _small(boxes[0])
        middle = box.center
        best: list[tuple[Array, Array]] = []
        for slope in self.candidates(box):
            low, high = self.extremes(box, slope)
            for side, (offset, sign) in enumerate(((low, 1.0), (high, -1.0))):
                if len(best) <= side:
                    best.append((slope, offset))
                    continue
                better = sign * (slope * middle + offset) > sign * (best[side][0] * middle + best[side][1])
                best[side] = (np.where(better, slope, best[side][0]), np.where(better, offset, best[side][1]))
        (below, low), (above, high) = best
        magnitude = box.magnitude
        low = low - own_error(np.abs(below) * magnitude + np.abs(low))
        high = high + own_error(np.abs(above) * magnitude + np.abs(high))
        return _unbounded(Lines(below, low, above, high), huge)


_HUGE = 1e30


def _small(box: Box) -> tuple[Box, NDArray[np.bool_]]:
    """Return the box with 0 in place of huge and infinite values, and where they are: no bound is computed there."""
    huge = ~(box.magnitude <= _HUGE)
    return (Box(np.where(huge, 0.0, box.lower), np.where(huge, 0.0, box.upper)) if huge.any() else box), huge


@dataclass(frozen=True, slots=True)
class Curve:
    """A function with its derivative, and the points between which the derivative is monotone, kinks included.

    `error` are the units of roundoff of onnxruntime's kernel, as a constant and as a factor of |x|;
    docs/certificates.md says how they were measured.
    """

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    breaks: tuple[float, ...]
    error: tuple[float, float]


_BISECTIONS = 10
"""They leave an offset that is too wide by less than 1e-5 of the distance between both lines."""


class Smooth(Univariate):
    """Linear bounds of a smooth elementwise function, computed from its `Curve`."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)
        if node.dtype == "float64" and node.op not in ("Sigmoid", "Tanh", "Silu", "Pow"):
            raise node.refused("onnxruntime computes it with constants of float32")
        self.curve = curve_of(node)

    def candidates(self, box: Box) -> list[Array]:
        """Return the chord, the tangents at the ends and the middle, and the tangents that pass through an end."""
        f, d = self.curve.value, self.curve.derivative
        width = box.upper - box.lower
        narrow = width < 1e-9
        left, right = f(box.lower), f(box.upper)
        middle = d(box.center)
        chord = np.where(narrow, middle, (right - left) / np.where(narrow, 1.0, width))
        found = [chord, d(box.lower), d(box.upper), middle]
        for end, value, other in ((box.lower, left, box.upper), (box.upper, right, box.lower)):
            # Where the tangent at t passes through the end: bisection between the middle and the other end.
            near, far = box.center, other
            for _ in range(8):
                touch = 0.5 * (near + far)
                gap = f(touch) - value - d(touch) * (touch - end)
                side = gap * ((f(far) - value) - d(far) * (far - end)) > 0
                near, far = np.where(side, near, touch), np.where(side, touch, far)
            found.append(d(0.5 * (near + far)))
        return found

    def extremes(self, box: Box, slope: Array) -> tuple[Array, Array]:
        """Evaluate the ends, the breaks and the points where the derivative equals the slope."""
        f, d = self.curve.value, self.curve.derivative
        ends = [f(box.lower) - slope * box.lower, f(box.upper) - slope * box.upper]
        low, high = np.minimum(*ends), np.maximum(*ends)
        breaks = (-math.inf, *self.curve.breaks, math.inf)
        for first, last in itertools.pairwise(breaks):
            left, right = np.clip(first, box.lower, box.upper), np.clip(last, box.lower, box.upper)
            # One-sided derivatives at kinks: a point inside the piece.
            inner = 1e-12 * (1.0 + np.maximum(np.abs(left), np.abs(right)))
            inner = np.minimum(inner, 0.25 * (right - left))
            near, far = left + inner, right - inner
            sign = np.sign(d(near) - slope)
            crosses = (sign * np.sign(d(far) - slope) < 0) & (right > left)
            if crosses.any():
                near, far, a = near[crosses], far[crosses], slope[crosses]
                sign = sign[crosses]
                for _ in range(_BISECTIONS):
                    middle = 0.5 * (near + far)
                    same = sign * (d(middle) - a) > 0
                    near, far = np.where(same, middle, near), np.where(same, far, middle)
                # f(x) - a x changes by no more than this between both.
                slack = (far - near) * np.maximum(np.abs(d(near) - a), np.abs(d(far) - a))
                value = f(near) - a * near
                low[crosses] = np.minimum(low[crosses], value - slack)
                high[crosses] = np.maximum(high[crosses], value + slack)
            for each in (left, right):
                value = f(each) - slope * each
                low, high = np.minimum(low, value), np.maximum(high, value)
        magnitude = np.maximum(np.abs(box.lower), np.abs(box.upper))
        margin = 1e-13 * (1.0 + magnitude * (1.0 + np.abs(slope)))
        return low - margin, high + margin

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return the error of onnxruntime's kernel."""
        constant, factor = self.curve.error
        found = unit_roundoff(self.node.dtype) * (constant + factor * boxes[0].magnitude)
        return np.asarray(found + own_error(1.0 + boxes[0].magnitude, self.node.size))


class Power(Smooth):
    """Pow by a constant exponent of 2 or 3, as exporters write squares and the cube of GELU."""

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return the rounding of two products, and ours."""
        power = self.curve.value(boxes[0].magnitude)
        own = own_error(1.0 + power, self.node.size)
        return np.asarray(8 * unit_roundoff(self.node.dtype) * power + own + smallest_normal(self.node.dtype))


class Piecewise(Univariate):
    """A piecewise linear function: Clip, Abs, HardSigmoid, and Max and Min with a constant."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._kinks, self._function, self._products = _pieces(node)

    def candidates(self, box: Box) -> list[Array]:
        """Return the slopes between the ends and the kinks."""
        points = [np.broadcast_to(np.clip(kink, box.lower, box.upper), box.lower.shape) for kink in self._kinks]
        points = [box.lower, *points, box.upper]
        found = []
        for at, first in enumerate(points):
            for last in points[at + 1 :]:
                width = last - first
                wide = width > 1e-12
                rise = self._function(last) - self._function(first)
                found.append(np.where(wide, rise / np.where(wide, width, 1.0), 0.0))
        return found

    def extremes(self, box: Box, slope: Array) -> tuple[Array, Array]:
        """Evaluate the ends and the kinks inside."""
        points = [box.lower, box.upper, *(np.clip(kink, box.lower, box.upper) for kink in self._kinks)]
        values = np.stack([self._function(point) - slope * point for point in points])
        return values.min(axis=0), values.max(axis=0)

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return the rounding of the products, none for functions that only compare."""
        own = own_error(boxes[0].magnitude + 1.0, self.node.size)
        return np.asarray(own + self._products * unit_roundoff(self.node.dtype) * (1.0 + boxes[0].magnitude))


def _pieces(node: Node) -> tuple[list[Any], Callable[[Array], Array], float]:
    """Return the kinks, the function, and the units of roundoff."""
    if node.op == "Abs":
        return [0.0], np.abs, 0.0
    if node.op == "HardSigmoid":
        slope, offset = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
        kinks = [] if slope == 0 else [-offset / slope, (1 - offset) / slope]
        return kinks, lambda x: np.clip(slope * x + offset, 0.0, 1.0), 4.0 * (1 + abs(slope) + abs(offset))
    if node.op == "Clip":
        low, high = _limits(node)
        kinks = [each for each in (low, high) if math.isfinite(each)]
        return kinks, lambda x: np.minimum(np.maximum(x, low), high), 0.0
    pick = np.maximum if node.op == "Max" else np.minimum
    constants = [np.asarray(each, np.float64) for each in node.constants.values()]
    if len(node.positions) != 1:
        raise node.refused("several of its inputs depend on the model's input")
    if not constants:
        return [], lambda x: x, 0.0
    constant = constants[0]
    for each in constants[1:]:
        constant = pick(constant, each)
    constant = constant[0] if constant.ndim > len(node.shape) else constant
    if node.shapes[0] != node.shape:
        raise node.refused("it broadcasts the value that depends on the model's input")
    return [constant], lambda x: pick(x, constant), 0.0


def _limits(node: Node) -> tuple[float, float]:
    found = []
    for at, (name, default) in enumerate((("min", -math.inf), ("max", math.inf))):
        value = node.constant(at + 1)
        found.append(float(node.attributes.get(name, default)) if value is None else float(np.reshape(value, ())))
    low, high = found
    if math.isnan(low) or math.isnan(high) or low > high:
        raise node.refused(f"its limits are {low} and {high}")
    return low, high


def _normal_density(x: Array) -> Array:
    found: Array = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return found


_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: Array) -> Array:
    found: Array = 0.5 * x * (1.0 + np.tanh(_TANH_SCALE * (x + _TANH_CUBE * x**3)))
    return found


def _gelu_tanh_derivative(x: Array) -> Array:
    wide = np.clip(x, -1e3, 1e3)
    inner = np.tanh(_TANH_SCALE * (wide + _TANH_CUBE * wide**3))
    slope = _TANH_SCALE * (1.0 + 3 * _TANH_CUBE * wide**2)
    found: Array = 0.5 * (1.0 + inner) + 0.5 * wide * (1.0 - inner * inner) * slope
    return found


def _silu_derivative(x: Array) -> Array:
    s = expit(x)
    found: Array = s * (1.0 + x * (1.0 - s))
    return found


def _hard_swish(x: Array) -> Array:
    return x * np.clip(x / 6 + 0.5, 0.0, 1.0)


def _hard_swish_derivative(x: Array) -> Array:
    return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, x / 3 + 0.5))


_BOUNDED, _UNBOUNDED = (32.0, 0.0), (32.0, 16.0)
_CURVES = {
    "Sigmoid": Curve(expit, lambda x: expit(x) * expit(-x), (0.0,), _BOUNDED),
    "Tanh": Curve(np.tanh, lambda x: 1.0 - np.tanh(x) ** 2, (0.0,), _BOUNDED),
    "Erf": Curve(erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(np.clip(x, -30, 30) ** 2)), (0.0,), _BOUNDED),
    "Gelu": Curve(
        lambda x: x * ndtr(x),
        lambda x: ndtr(x) + x * _normal_density(np.clip(x, -40, 40)),
        (-math.sqrt(2), math.sqrt(2)),
        _UNBOUNDED,
    ),
    # Roots of the second derivative, by bisection to the last bit.
    "GeluTanh": Curve(_gelu_tanh, _gelu_tanh_derivative, (-1.4185040087908284, 1.4185040087908284), (64.0, 32.0)),
    "Silu": Curve(lambda x: x * expit(x), _silu_derivative, (-2.3993572805154677, 2.3993572805154677), _UNBOUNDED),
    "HardSwish": Curve(_hard_swish, _hard_swish_derivative, (-3.0, 3.0), _UNBOUNDED),
    "Softsign": Curve(lambda x: x / (1.0 + np.abs(x)), lambda x: 1.0 / (1.0 + np.abs(x)) ** 2, (0.0,), _BOUNDED),
    "Softplus": Curve(lambda x: np.logaddexp(0.0, x), expit, (), _UNBOUNDED),
}


_SELU = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
"""Defaults of ONNX."""


def _exponential(node: Node) -> Curve:
    """Return gamma · alpha · (exp(x / width) - 1) for negative x, gamma · x for others: Elu, Selu and Celu."""
    defaults = _SELU if node.op == "Selu" else {"alpha": 1.0, "gamma": 1.0}
    alpha, gamma = (float(node.attributes.get(name, defaults[name])) for name in ("alpha", "gamma"))
    gamma = gamma if node.op == "Selu" else 1.0
    width = alpha if node.op == "Celu" else 1.0
    if alpha <= 0 or gamma <= 0:
        raise node.refused(f"its alpha is {alpha} and its gamma {gamma}")
    return Curve(
        lambda x: gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / width)),
        lambda x: gamma * np.where(x > 0, 1.0, alpha / width * np.exp(np.minimum(x, 0.0) / width)),
        (0.0,),
        (32.0 * gamma * (1.0 + alpha), 16.0 * gamma * (1.0 + alpha)),
    )


def _power(node: Node) -> Curve:
    exponent = node.required(1)
    power = float(exponent.reshape(())) if exponent.size == 1 and exponent.ndim <= len(node.shape) else 0.0
    if power not in (2.0, 3.0):
        raise node.refused("its exponent is not 2 or 3")
    return Curve(lambda x: x ** int(power), lambda x: power * x ** (int(power) - 1), (0.0,), (0.0, 0.0))


def curve_of(node: Node) -> Curve:
    """Return the function of a node."""
    if node.op == "Pow":
        return _power(node)
    if node.op in ("Elu", "Selu", "Celu"):
        return _exponential(node)
    if node.op == "Gelu" and node.attributes.get("approximate", "none") == "tanh":
        return _CURVES["GeluTanh"]
    return _CURVES[node.op]
