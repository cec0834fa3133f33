"""Branch and bound: split boxes until linear bounds, or a counterexample, decide every row within a time budget.

A subproblem is a row, one function of the scores that must stay positive, and splits: half of an input's range, or one
side of a value inside the network, such as a sign of a ReLU's input. A split value has bounds that hold on that side,
and a multiplier as in beta-CROWN (Wang et al. 2021, arXiv:2103.06624). Multipliers, and the lower slopes of ReLUs (Xu
et al. 2020, arXiv:2011.13824), are improved by gradient ascent; any of them give a valid bound. Where few inputs vary,
their ranges are split instead, and all bounds are computed anew.

Counterexamples are corners at which a linear bound is least. They count only if the caller's check, which asks the
served model, confirms them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import LinearOperator, Lines
from pytest_modelserve.robustness.certificates.bounds import (
    Bounds,
    backward,
    concretize,
    interval_bounds,
    linear_bounds,
)
from pytest_modelserve.robustness.certificates.interval_arithmetic import Array, Box
from pytest_modelserve.robustness.certificates.network import Network

_FEW_INPUTS = 6
"""Up to so many inputs that vary, their ranges are split instead of values inside the network."""
_STEPS = 20
_RATE, _DECAY = 0.1, 0.97
_BATCH_BYTES = 8 << 20
"""Bytes of all values of the network for one batch of subproblems."""
_MOST_IN_BATCH = 512
_ROOT_ROWS = 16
"""Rows that are bounded together as a whole."""
_AT_ZERO = ("Relu", "LeakyRelu", "PRelu")
"""Operators with a kink at 0, where their input is split."""

_SLOPED = ("Relu", "LeakyRelu")
"""Operators with a lower slope to choose."""

Confirm = Callable[[NDArray[Any], NDArray[np.int64]], NDArray[np.bool_]]
_Moments = dict[tuple[str, str], tuple[Array, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """What branch and bound found for each row.

    Attributes:
        lower: Lower bound (rows,) of the least function of each row over its box. A positive one is a certificate.
        counterexamples: A row of the box that the check confirmed, by the number of its row.
    """

    lower: Array
    counterexamples: Mapping[int, NDArray[Any]]

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Rows (rows,) with a certificate."""
        return self.lower > 0

    @property
    def undecided(self) -> NDArray[np.bool_]:
        """Rows (rows,) with neither a certificate nor a counterexample."""
        found = ~self.certified
        found[list(self.counterexamples)] = False
        return found


def decide(
    network: Network,
    box: Box,
    functions: Array,
    *,
    confirm: Confirm,
    time_limit_s: float,
    offsets: Array | float = 0.0,
) -> Decisions:
    """Decide for each row whether all functions of its scores are positive over its box.

    Args:
        network: The network.
        box: Box of the input (rows, *shape).
        functions: Coefficients of the scores (rows, functions, *shape of the scores).
        confirm: A function of inputs (m, *shape) and the numbers of the rows (m,) in whose boxes they lie. It returns
            which of them are counterexamples by the served model.
        time_limit_s: Seconds after which no further batch of subproblems starts.
        offsets: Constants (rows, functions) that are added to the functions.

    Returns:
        The decisions. A row with a counterexample is not bounded further.
    """
    search = _Search(network, box, functions, offsets, confirm, time.perf_counter() + time_limit_s)
    search.run()
    return search.decisions()


@dataclass(frozen=True, slots=True)
class _Split:
    """One side of a value: at most (`side` -1) or at least (1) `point`."""

    name: str
    at: int
    point: float
    side: int


@dataclass(slots=True, eq=False)
class _Subproblem:
    row: int
    function: int
    bound: float
    splits: tuple[_Split, ...] = ()
    multipliers: tuple[float, ...] = ()


@dataclass(slots=True, eq=False)
class _Batch:
    """Subproblems with their bounds, slopes of ReLUs, and multipliers, signs and points of split values, by name."""

    subproblems: list[_Subproblem]
    bounds: Bounds
    functions: Array
    offsets: Array
    slopes: dict[str, Array]
    multipliers: dict[str, Array]
    signs: dict[str, Array]
    points: dict[str, Array]
    lower: Array = field(default_factory=lambda: np.zeros(0))
    corners: Array = field(default_factory=lambda: np.zeros(0))
    coefficients: dict[str, Array] = field(default_factory=dict)


class _Search:
    """The open subproblems of all rows, and what is known of each row."""

    def __init__(
        self, network: Network, box: Box, functions: Array, offsets: Array | float, confirm: Confirm, deadline: float
    ) -> None:
        self.network, self.box, self.functions = network, box, functions
        rows, count = functions.shape[:2]
        self.offsets = np.broadcast_to(np.asarray(offsets, np.float64), (rows, count))
        self.confirm, self.deadline = confirm, deadline
        self.relus = {node.sources[0]: node.output for node in network.nodes if node.op in _SLOPED}
        self.relus.pop(network.input, None)
        self.closed = np.full((rows, count), np.inf)  # the least bound of closed subproblems
        self.counterexamples: dict[int, NDArray[Any]] = {}
        self.subproblems = np.zeros(rows, np.int64)
        self.open: dict[int, list[_Subproblem]] = {}
        width = (box.upper > box.lower).reshape(rows, -1).sum(axis=1)
        self.by_inputs = bool(rows) and int(width.max()) <= _FEW_INPUTS
        size = sum(math.prod(shape) for shape in network.shapes.values())
        self.most = int(np.clip(_BATCH_BYTES // (8 * size), 8, _MOST_IN_BATCH))
        names = {network.input}
        for node in network.nodes:
            if not (self.by_inputs or isinstance(network.operators[node.output], LinearOperator)):
                names.update(node.sources)
        shapes = {name: (rows, *network.shapes[name]) for name in names}
        # Boxes of values that splits tighten, of every row as a whole.
        self.known = {name: Box(np.empty(shape), np.empty(shape)) for name, shape in shapes.items()}

    def run(self) -> None:
        """Bound every row as a whole, then split until all is decided or the time is over."""
        rows = len(self.functions)
        if not rows:
            return
        lower = np.full(self.closed.shape, -np.inf)
        for at in range(0, rows, _ROOT_ROWS):
            chosen = np.arange(at, min(at + _ROOT_ROWS, rows))
            # Without time left, rows keep their interval boxes, and none of their subproblems is bounded.
            bounds = linear_bounds(self.network, self.box.rows(chosen), deadline=self.deadline)
            for name, box in self.known.items():
                box.lower[chosen], box.upper[chosen] = bounds.boxes[name].lower, bounds.boxes[name].upper
            coefficients, constant = backward(bounds, self.functions[chosen])
            lower[chosen] = _least(bounds, self.functions[chosen], self.offsets[chosen], coefficients, constant)
            worst = coefficients[np.arange(len(chosen)), np.argmin(lower[chosen], axis=1)]
            box = bounds.boxes[self.network.input]
            corners = np.where(worst > 0, box.lower, box.upper)
            left = lower[chosen].min(axis=1) <= 0
            self._attack(corners[left], chosen[left])
        self.subproblems += 1
        self.closed = np.where(lower > 0, lower, np.inf)
        for row, function in np.argwhere(lower <= 0):
            if row not in self.counterexamples:
                found = _Subproblem(int(row), int(function), float(lower[row, function]))
                self.open.setdefault(int(row), []).append(found)
        while self.open and time.perf_counter() < self.deadline:
            self._expand(self._take())

    def decisions(self) -> Decisions:
        """Return what is known."""
        lower = self.closed.min(axis=1) if self.closed.size else np.zeros(len(self.closed))
        for row, subproblems in self.open.items():
            lower[row] = min(lower[row], *(each.bound for each in subproblems))
        for row in self.counterexamples:
            lower[row] = -np.inf
        return Decisions(lower, self.counterexamples)

    def _take(self) -> list[_Subproblem]:
        """Return the next batch: rows with the least work so far first, of each those with the least bounds."""
        batch: list[_Subproblem] = []
        for row in sorted(self.open, key=lambda each: (self.subproblems[each], each)):
            subproblems = self.open[row]
            subproblems.sort(key=lambda each: -each.bound)
            while subproblems and len(batch) < self.most:
                batch.append(subproblems.pop())
            if not subproblems:
                del self.open[row]
            if len(batch) >= self.most:
                break
        return batch

    def _expand(self, subproblems: list[_Subproblem]) -> None:
        """Bound a batch, check its corners, and split what stays open."""
        for each in subproblems:
            self.subproblems[each.row] += 1
        batch = self._bounded(subproblems)
        if batch is None:
            return
        rows = np.array([each.row for each in batch.subproblems], np.int64)
        self._attack(batch.corners, rows)
        splits = self._choose(batch)
        for at, each in enumerate(batch.subproblems):
            bound = max(float(batch.lower[at]), each.bound)
            if each.row in self.counterexamples:
                continue
            if bound > 0 or not splits[at]:
                self.closed[each.row, each.function] = min(self.closed[each.row, each.function], bound)
                continue
            values = tuple(
                float(batch.multipliers[split.name][at].flat[split.at]) if split.name in batch.multipliers else 0.0
                for split in each.splits
            )
            for split in splits[at]:
                child = _Subproblem(each.row, each.function, bound, (*each.splits, split), (*values, 0.0))
                self.open.setdefault(each.row, []).append(child)
        for row in self.counterexamples:
            self.open.pop(row, None)

    def _bounded(self, subproblems: list[_Subproblem]) -> _Batch | None:
        """Return the bounds of those subproblems that are not empty; empty ones are closed. None if all are."""
        rows = np.array([each.row for each in subproblems])
        given, split = self._given(subproblems, rows)
        if self.by_inputs:
            bounds = linear_bounds(self.network, self.box.rows(rows), given=given, deadline=self.deadline)
        else:
            bounds = interval_bounds(self.network, self.box.rows(rows), given=given)
        empty, boxes = np.zeros(len(rows), bool), bounds.boxes
        for box in boxes.values():
            empty |= (box.lower > box.upper).reshape(len(rows), -1).any(axis=1)
        if empty.any():
            kept = np.flatnonzero(~empty)
            return self._bounded([subproblems[at] for at in kept]) if len(kept) else None
        function = np.array([each.function for each in subproblems])
        batch = _Batch(
            subproblems=subproblems,
            bounds=bounds,
            functions=self.functions[rows, function][:, None],
            offsets=self.offsets[rows, function],
            slopes={relu: _default_slopes(boxes[source]) for source, relu in self.relus.items()},
            multipliers={name: values[0] for name, values in split.items()},
            signs={name: values[1] for name, values in split.items()},
            points={name: values[2] for name, values in split.items()},
        )
        self._improve(batch)
        return batch

    def _given(
        self, subproblems: Sequence[_Subproblem], rows: NDArray[np.int64]
    ) -> tuple[dict[str, Box], dict[str, Array]]:
        """Return boxes that hold by the root's bounds and the splits, and multipliers, signs and points of the splits.

        Of several splits of one value the last has a multiplier; splits of the input need none.
        """
        given = {name: box.rows(rows) for name, box in self.known.items()}
        found: dict[str, Array] = {}
        for at, each in enumerate(subproblems):
            for split, multiplier in zip(each.splits, each.multipliers, strict=True):
                box = given[split.name]
                if split.side > 0:
                    box.lower[at].flat[split.at] = max(box.lower[at].flat[split.at], split.point)
                else:
                    box.upper[at].flat[split.at] = min(box.upper[at].flat[split.at], split.point)
                if split.name != self.network.input:
                    values = found.setdefault(split.name, np.zeros((3, *box.lower.shape)))
                    values.reshape(3, len(rows), -1)[:, at, split.at] = multiplier, split.side, split.point
        return given, found

    def _improve(self, batch: _Batch) -> None:
        """Raise the lower bounds by gradient ascent on slopes and multipliers (Adam)."""
        best: dict[Any, Array] = {}
        moments: _Moments = {}
        for step in range(_STEPS + 1):
            self._bound(batch)
            found: dict[Any, Array] = {"lower": batch.lower, "corners": batch.corners}
            found |= {("coefficients", name): values for name, values in batch.coefficients.items()}
            found |= {("multipliers", name): values for name, values in batch.multipliers.items()}
            if best:
                higher = batch.lower > best["lower"]
                found = {
                    key: np.where(higher.reshape(-1, *[1] * (values.ndim - 1)), values, best[key])
                    for key, values in found.items()
                }
            best = found
            is_last = step == _STEPS or not (self.relus or batch.signs)
            if is_last or (best["lower"] > 0).all() or time.perf_counter() > self.deadline:
                break
            values = self._values_at(batch)
            for source, relu in self.relus.items():
                coefficients = batch.coefficients.get(relu)
                if coefficients is None:
                    continue
                gradient = np.maximum(coefficients, 0.0) * values[source]
                batch.slopes[relu] = np.clip(
                    batch.slopes[relu] + _adam(moments, ("slope", source), gradient, step), 0.0, 1.0
                )
            for name, signs in batch.signs.items():
                gradient = -signs * (values[name] - batch.points[name])
                moved = batch.multipliers[name] + 0.5 * _adam(moments, ("multiplier", name), gradient, step)
                batch.multipliers[name] = np.maximum(moved, 0.0) * (signs != 0)
        batch.lower, batch.corners = best["lower"], best["corners"]
        batch.coefficients = {name: best["coefficients", name] for name in batch.coefficients}
        batch.multipliers = {name: best["multipliers", name] for name in batch.multipliers}

    def _bound(self, batch: _Batch) -> None:
        """Compute the lower bounds of a batch for its slopes and multipliers."""
        bounds, network = batch.bounds, self.network
        for source, relu in self.relus.items():
            bounds.relaxations[relu] = network.operators[relu].relax([bounds.boxes[source]], batch.slopes[relu])
        # On the side where s (h - p) >= 0 the term -m s (h - p), m >= 0, is never positive.
        added = {name: -(values * batch.signs[name])[:, None] for name, values in batch.multipliers.items()}
        shift = np.zeros(len(batch.offsets))
        for name, values in added.items():
            terms = (-values[:, 0] * batch.points[name]).reshape(len(values), -1)
            shift += terms.sum(axis=1) - 1e-12 * np.abs(terms).sum(axis=1)
        recorded: dict[str, Array] = {}
        coefficients, constant = backward(
            bounds, batch.functions, multipliers=added, record=lambda name, each: recorded.update({name: each[:, 0]})
        )
        box = bounds.boxes[network.input]
        offsets = batch.offsets[:, None]
        batch.lower = _least(bounds, batch.functions, offsets, coefficients, constant + shift[:, None])[:, 0]
        recorded[network.input] = coefficients[:, 0]
        batch.corners = np.where(coefficients[:, 0] > 0, box.lower, box.upper)
        batch.coefficients = recorded

    def _values_at(self, batch: _Batch) -> dict[str, Array]:
        """Return the values at the corners along the lines that the bound took: its gradient (envelope theorem)."""
        values = {self.network.input: batch.corners}
        for node in self.network.nodes:
            operator = self.network.operators[node.output]
            inputs = [values[name] for name in node.sources]
            lines = batch.bounds.relaxations[node.output]
            if isinstance(operator, LinearOperator):
                found = operator.forward(*inputs) + operator.bias
            elif isinstance(lines, Lines) and node.output in batch.coefficients:
                found = lines.along(inputs[0], batch.coefficients[node.output] >= 0)
            else:
                found = operator.interval([Box(each, each) for each in inputs]).lower
            values[node.output] = np.broadcast_to(found, (len(batch.corners), *node.shape))
        return values

    def _attack(self, corners: Array, owners: NDArray[np.int64]) -> None:
        """Ask the caller's check about corners of the boxes of rows."""
        still = np.array([row not in self.counterexamples for row in owners], bool)
        if not still.any():
            return
        owners = owners[still]
        found = self.box.rows(owners).inside(corners[still], self.network.input_dtype)
        confirmed = self.confirm(found, owners)
        for at in np.flatnonzero(confirmed):
            self.counterexamples.setdefault(int(owners[at]), found[at])

    def _choose(self, batch: _Batch) -> list[tuple[_Split, ...]]:
        """Return for each subproblem the two sides of the value whose split promises most; none if nothing is left."""
        count = len(batch.subproblems)
        network, bounds = self.network, batch.bounds
        names, scores, points = [], [], []
        if not self.by_inputs:
            for node in network.nodes:
                sources = [bounds.boxes[name] for name in node.sources]
                undecided = network.operators[node.output].undecided(sources)
                for name, box, chosen in zip(node.sources, sources, undecided, strict=True):
                    if chosen is None or name == network.input or not chosen.any():
                        continue
                    gain = _gain(bounds.relaxations[node.output], node.output, name, box, batch.coefficients)
                    point = np.zeros_like(box.lower) if node.op in _AT_ZERO else box.center
                    names.append(name)
                    scores.append(np.where(chosen, gain, -1.0).reshape(count, -1))
                    points.append(point.reshape(count, -1))
        if not names or np.concatenate(scores, axis=1).max(axis=1).min() < 0:
            box = bounds.boxes[network.input]
            width = box.upper - box.lower
            gain = np.where(width > 0, np.abs(batch.coefficients[network.input]) * width + 1e-12 * width, -1.0)
            scale = 1.0 if self.by_inputs else 1e-9  # only where no value inside is left
            names.append(network.input)
            scores.append(np.where(gain > 0, gain * scale, -1.0).reshape(count, -1))
            points.append(box.center.reshape(count, -1))
        ends = np.cumsum([each.shape[1] for each in scores])
        all_scores = np.concatenate(scores, axis=1)
        picked = all_scores.argmax(axis=1)
        splits: list[tuple[_Split, ...]] = []
        for at, pick in enumerate(picked):
            which = int(np.searchsorted(ends, pick, side="right"))
            local = int(pick - (ends[which] - scores[which].shape[1]))
            middle = float(points[which][at, local])
            sides = () if all_scores[at, pick] < 0 else (-1, 1)
            splits.append(tuple(_Split(names[which], local, middle, side) for side in sides))
        return splits


def _least(bounds: Bounds, functions: Array, offsets: Array, coefficients: Array, constant: Array) -> Array:
    """Return lower bounds of functions of the scores: by the input's box or by that of the scores; -inf for NaN."""
    network = bounds.network
    by_input = concretize(bounds.boxes[network.input], coefficients, constant + offsets)
    by_scores = concretize(bounds.boxes[network.output], functions, offsets)
    lower = np.fmax(by_input, by_scores)
    return np.nextafter(np.where(np.isnan(lower), -np.inf, lower), -np.inf)


def _default_slopes(box: Box) -> Array:
    return (box.upper > -box.lower).astype(np.float64)


def _gain(lines: Any, output: str, name: str, box: Box, coefficients: Mapping[str, Array]) -> Array:
    """Return an estimate of how far a split of each value raises the bound: coefficient times gap between the lines."""
    if isinstance(lines, Lines) and output in coefficients:
        center = box.center
        gap = lines.along(center, np.zeros(center.shape, bool)) - lines.along(center, np.ones(center.shape, bool))
        slope = coefficients[output]
        return np.maximum(-slope, 0.0) * gap + 1e-3 * np.abs(slope) * gap
    return np.abs(coefficients.get(name, np.zeros_like(box.lower))) * (box.upper - box.lower) * 0.1


def _adam(moments: _Moments, key: tuple[str, str], gradient: Array, step: int) -> Array:
    """Return the step of Adam (Kingma & Ba 2015) upward."""
    first, second = moments.get(key, (np.zeros_like(gradient), np.zeros_like(gradient)))
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    moments[key] = first, second
    unbiased = np.sqrt(second / (1 - 0.999 ** (step + 1)))
    return _RATE * _DECAY**step * (first / (1 - 0.9 ** (step + 1))) / (unbiased + 1e-12)
