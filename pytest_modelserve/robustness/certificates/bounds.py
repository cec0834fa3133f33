"""Interval bounds (IBP) and backward linear bounds (CROWN) of a network over boxes of its input.

IBP: Gowal et al. 2018, arXiv:1810.12715. CROWN: Zhang et al. 2018, Efficient Neural Network Robustness Certification
with General Activation Functions, NeurIPS. Both bounds hold for the runtime's rounded results: base.py says how.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import Relaxation, dot_rows
from pytest_modelserve.robustness.certificates.interval_arithmetic import LARGEST, OWN_UNIT, Array, Box
from pytest_modelserve.robustness.certificates.network import Network

CHUNK_BYTES = 1 << 21
"""Bytes of the largest array of coefficients: one that fits into a cache takes half the time of 32 MB."""


@dataclass(slots=True, eq=False)
class Bounds:
    """Boxes of every value of the network for some rows, with the linear bounds that follow from them.

    Attributes:
        network: The network.
        boxes: Box of every value by name, (rows, *shape).
        errors: Radius of the rounding error of each node, by the name of its output.
        relaxations: Linear bounds of each node, by the name of its output.
        deadline: Time (`time.perf_counter`) after which boxes are not tightened further.
    """

    network: Network
    boxes: dict[str, Box]
    errors: dict[str, Array | float] = field(default_factory=dict)
    relaxations: dict[str, Relaxation] = field(default_factory=dict)
    deadline: float = math.inf

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.boxes[self.network.input].lower)


def interval_bounds(network: Network, box: Box, *, given: Mapping[str, Box] | None = None) -> Bounds:
    """Return IBP bounds of every value.

    Args:
        network: The network.
        box: Box of the input (rows, *shape).
        given: Boxes of any values that are known to hold, by name; they are intersected with the computed ones.
    """
    return _forward(network, box, given or {}, None, {})


def linear_bounds(
    network: Network,
    box: Box,
    *,
    given: Mapping[str, Box] | None = None,
    slopes: Mapping[str, Array] | None = None,
    deadline: float = math.inf,
) -> Bounds:
    """Return bounds of every value: IBP, tightened by CROWN where an operator is relaxed.

    Args:
        network: The network.
        box: Box of the input (rows, *shape).
        given: Boxes of any values that are known to hold, by name; they are intersected with the computed ones.
        slopes: Lower slopes of ReLUs (rows, *shape), by the name of their output.
        deadline: Time (`time.perf_counter`) after which boxes stay as wide as they are. Those of a large image take
            hours.
    """
    return _forward(network, box, given or {}, _tighten, slopes or {}, deadline)


def lower_bounds(bounds: Bounds, functions: Array, *, value: str | None = None) -> Array:
    """Return lower bounds (rows, functions) of linear functions of a value, by default the scores.

    The larger one of CROWN's bound and that over the box of the value.

    Args:
        bounds: Bounds with linear bounds of every node up to `value`.
        functions: Coefficients (rows or 1, functions, *shape of the value).
        value: Name of the value.
    """
    coefficients, constant = backward(bounds, functions, value=value)
    by_input = concretize(bounds.boxes[bounds.network.input], coefficients, constant)
    functions = np.broadcast_to(functions, (bounds.rows, *functions.shape[1:]))
    by_box = concretize(bounds.boxes[bounds.network.output if value is None else value], functions, np.zeros(()))
    return np.maximum(by_input, by_box)


@np.errstate(invalid="ignore", over="ignore")  # of infinite boxes, from which no bound follows
def backward(
    bounds: Bounds,
    functions: Array,
    *,
    value: str | None = None,
    multipliers: Mapping[str, Array] | None = None,
    record: Callable[[str, Array], None] | None = None,
) -> tuple[Array, Array]:
    """Return a linear function of the input that is a lower bound: coefficients and constants (rows, functions).

    Args:
        bounds: Bounds with linear bounds of every node up to `value`.
        functions: Coefficients (rows or 1, functions, *shape of the value).
        value: Name of the value, by default the scores.
        multipliers: Coefficients that are added to those of a value, (rows, functions or 1, *shape) by its name. The
            caller has to know that this only lowers the function: beta-CROWN's multipliers of split ReLUs do.
        record: Called with the name and the coefficients of every value on the way, before they pass its operator.
    """
    network = bounds.network
    start = network.output if value is None else value
    rows = bounds.rows
    functions = np.broadcast_to(functions, (rows, *functions.shape[1:]))
    pending: dict[str, Array] = {start: functions}
    constant = np.zeros(functions.shape[:2])
    for node in reversed(network.nodes):
        coefficients = pending.pop(node.output, None)
        if coefficients is None:
            continue
        if multipliers is not None and node.output in multipliers:
            coefficients = coefficients + multipliers[node.output]
        if record is not None:
            record(node.output, coefficients)
        error = bounds.errors[node.output]
        if np.any(error):
            constant = _subtract(constant, dot_rows(np.abs(coefficients), np.asarray(error)))
        parts, added = bounds.relaxations[node.output].backward(coefficients)
        constant = np.nextafter(constant + added, -np.inf)
        for name, part in zip(node.sources, parts, strict=True):
            pending[name] = pending[name] + part if name in pending else part
    result = pending.get(network.input)
    if result is None:
        result = np.zeros((*functions.shape[:2], *network.input_shape))
    return result, constant


@np.errstate(invalid="ignore", over="ignore")
def concretize(box: Box, coefficients: Array, constant: Array) -> Array:
    """Return the least values of linear functions over the box, rounded down."""
    center, radius = box.center, box.radius
    low = dot_rows(coefficients, center) - dot_rows(np.abs(coefficients), radius)
    size = math.prod(center.shape[1:])
    slack = dot_rows(np.abs(coefficients), box.magnitude) * (4 * (size + 16) * OWN_UNIT)
    return np.nextafter(_subtract(low, slack) + constant, -np.inf)


def _subtract(values: Array, amount: Array) -> Array:
    """Return values - amount, rounded down; sums of `amount` itself are rounded up."""
    return np.nextafter(values - amount * (1 + 1e-9), -np.inf)


_Tighten = Callable[[Bounds, str, NDArray[np.bool_]], None]


@np.errstate(invalid="ignore", over="ignore")
def _forward(
    network: Network,
    box: Box,
    given: Mapping[str, Box],
    tighten: _Tighten | None,
    slopes: Mapping[str, Array],
    deadline: float = math.inf,
) -> Bounds:
    bounds = Bounds(network, {network.input: _met(box, given.get(network.input))}, deadline=deadline)
    # Values that do not depend on each other, so that the intervals of what is computed from them are exact.
    independent, exact = {network.input}, {network.input}
    for node in network.nodes:
        operator = network.operators[node.output]
        boxes = [bounds.boxes[name] for name in node.sources]
        if len(node.sources) == 1 and node.sources[0] in independent:
            exact.add(node.output)
            if operator.keeps_independence:
                independent.add(node.output)
        if tighten is not None:
            for name, chosen in zip(node.sources, operator.undecided(boxes), strict=True):
                if chosen is not None and chosen.any() and name not in exact:
                    tighten(bounds, name, chosen)
            boxes = [bounds.boxes[name] for name in node.sources]
        error = operator.error(boxes) + operator.added_error
        found = operator.interval(boxes).widened(error)
        overflow = ~(found.magnitude < LARGEST.get(node.dtype, np.inf))
        if overflow.any():  # the runtime may return infinity or NaN, and no bound holds
            error = np.where(overflow, np.inf, error)
            found = Box(np.where(overflow, -np.inf, found.lower), np.where(overflow, np.inf, found.upper))
        bounds.errors[node.output] = error
        bounds.relaxations[node.output] = operator.relax(boxes, slopes.get(node.output))
        bounds.boxes[node.output] = _met(found, given.get(node.output))
    return bounds


def _met(box: Box, other: Box | None) -> Box:
    """Return the intersection; one that is empty stays empty, lower > upper."""
    if other is None:
        return box
    return Box(np.maximum(box.lower, other.lower), np.minimum(box.upper, other.upper))


def _tighten(bounds: Bounds, name: str, chosen: NDArray[np.bool_]) -> None:
    """Intersect the box of a value with CROWN's where `chosen`, (rows, *shape)."""
    box = bounds.boxes[name]
    rows, shape = len(box.lower), box.lower.shape[1:]
    size = math.prod(shape)
    flat = chosen.reshape(rows, size)
    counts = flat.sum(axis=1)
    most = int(counts.max())
    # The chosen values of each row, filled up with its first ones.
    order = np.argsort(~flat, axis=1, kind="stable")[:, :most]
    lower, upper = box.lower.reshape(rows, size).copy(), box.upper.reshape(rows, size).copy()
    at = np.arange(rows)[:, None]
    widest = max(math.prod(bounds.network.shapes[each]) for each in bounds.boxes)
    together = max(1, CHUNK_BYTES // (16 * rows * widest))
    for begin in range(0, most, together):
        if time.perf_counter() > bounds.deadline:
            break
        part = order[:, begin : begin + together]
        count = part.shape[1]
        functions = np.zeros((rows, 2 * count, size))
        functions[at, np.arange(count)[None, :], part] = 1.0
        functions[at, np.arange(count, 2 * count)[None, :], part] = -1.0
        found = lower_bounds(bounds, functions.reshape(rows, 2 * count, *shape), value=name)
        lower[at, part] = np.maximum(lower[at, part], found[:, :count])
        upper[at, part] = np.minimum(upper[at, part], -found[:, count:])
    bounds.boxes[name] = Box(lower.reshape(rows, *shape), upper.reshape(rows, *shape))
