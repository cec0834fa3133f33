"""Values inside a model for which 256 steps between their least and their largest are too few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.compression.ranges import Range

if TYPE_CHECKING:
    import onnx

# A value that keeps no more levels than this although it has ten times as many numbers in it: scores behind a mask of
# -1e9 keep 2 for some thousand. In twelve sound families of models and two trained networks no value with 80 numbers
# keeps less than 96 levels; masks of 0 and 1 keep 2 for 2.
_LEVELS = 8
_NUMBERS = 10 * _LEVELS
# Enough to find that many numbers; all of an image's activations would take seconds to sort.
_LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class Coarse:
    """The value `name`, of the range `low` to `high`, which int8 gives steps of `step`."""

    name: str
    low: float
    high: float
    step: float

    def __str__(self) -> str:
        return f"{self.name!r} (from {self.low:.3g} to {self.high:.3g} in steps of {self.step:.2g})"


def coarse_values(
    quantised: onnx.ModelProto, ranges: Mapping[str, Range], values: Mapping[str, NDArray[np.float32]]
) -> Iterator[Coarse]:
    """Those of `values` that have many different numbers and, as `quantised` rounds them by `ranges`, 8 or fewer."""
    import onnx

    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in values:
            continue
        step, zero = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
        seen = values[node.input[0]]
        steps = np.rint(seen.astype(np.float64) / float(step))
        levels = np.unique(np.clip(steps, -128 - int(zero), 127 - int(zero)).astype(np.int16)).size
        if levels <= _LEVELS and np.unique(seen.reshape(-1)[:_LOOKED_AT]).size >= _NUMBERS:
            range_ = ranges[node.input[0]]
            yield Coarse(node.input[0], float(range_.low), float(range_.high), float(step))
