"""Elementwise functions: boxes, and two lines that hold over a box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.certificates.base import Lines, Node, Operator, Relaxation
from pytest_modelserve.robustness.certificates.intervals import Array, Box, own_error, up


class Relu(Operator):
    """Relu: exact for both signs, else the chord above and a line through 0 below (Zhang et al. 2018).

    The lower slope of a neuron of both signs is 1 where the chord's slope is above one half, and 0 elsewhere; `slopes`
    replace it by any slopes between 0 and 1.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.only_variable(0)

    def interval(self, boxes: Sequence[Box]) -> Box:
        """Return the maximum with 0."""
        return Box(np.maximum(boxes[0].lower, 0.0), np.maximum(boxes[0].upper, 0.0))

    def undecided(self, boxes: Sequence[Box]) -> Sequence[NDArray[np.bool_] | None]:
        """Return where both signs are possible."""
        return [(boxes[0].lower < 0.0) & (boxes[0].upper > 0.0)]

    def relax(self, boxes: Sequence[Box], slopes: Array | None = None) -> Relaxation:
        """Return the lines of Zhang et al."""
        lower, upper = boxes[0].lower, boxes[0].upper
        both = (lower < 0.0) & (upper > 0.0)
        chord = np.divide(upper, upper - lower, out=np.zeros_like(upper), where=both)
        on = (lower >= 0.0).astype(np.float64)
        offset = up(-chord * lower * (1 + 1e-15))
        below = (chord > 0.5).astype(np.float64) if slopes is None else np.clip(slopes, 0.0, 1.0)
        return Lines(np.where(both, below, on), None, np.where(both, chord, on), np.where(both, offset, 0.0))

    def error(self, boxes: Sequence[Box]) -> Array | float:
        """Return our own error: the runtime computes a maximum exactly."""
        return own_error(boxes[0].magnitude, self.node.size)
