"""Rounding tolerances: the table of multiples of machine epsilon, and how two outputs are compared with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics.channels import KNOWN_VALUES, ChannelValues, by_channel, channel_scale
from pytest_modelserve.metrics.comparison import Outputs, check_tolerances
from pytest_modelserve.metrics.elementwise import dtype_name, kind_of, machine_epsilon

Feed = dict[str, NDArray[Any]]

# The table of rounding tolerances. `*_EPSILONS` are multiples of the machine epsilon of an output's dtype, relative to
# the scale of an element's channels (`channel_scale`); `*_SQNR_DB` bound the signal-to-quantization-noise ratio where
# precision is lower.

# Output parity without given tolerances, if reruns agree to the bit: eight operators in a row that each round by one
# epsilon in either model.
OUTPUT_PARITY_EPSILONS = 16
# Output parity: multiple of the observed difference between reruns. The candidate's rounding is a third draw, on more
# elements than the reruns had: of normal errors, the largest of 10**7 is 1.6 times the largest of 1,000, and that of a
# difference of two draws is 1.4 times that of one. The rest is reserve.
RERUN_FACTOR = 4.0

# Relations. Summing n products in another order moves a result by about sqrt(n) epsilons (Higham and Mary 2019, "A new
# approach to probabilistic rounding error analysis"): 256 allow for sums of 65,536 terms.
RELATION_EPSILONS = 256

# Divergence analysis. One kernel run twice gives the same bits; another memory layout or padding may change the last.
SAME_KERNEL_EPSILONS = 16
# Another order of summation over a few thousand terms, or one operator written as several.
OTHER_KERNEL_EPSILONS = 128
# What such differences may grow to on their way through a whole graph.
WHOLE_GRAPH_EPSILONS = 2048
# Weights that were computed again, by constant folding for example, differ in their last bits.
RECOMPUTED_WEIGHT_EPSILONS = 4
# What the field asks of a whole model; a single operator loses less unless it is broken.
MIN_SQNR_DB = {"float16": 55.0, "int8": 25.0, "int4": 18.0}

# Export. The sums of the exported model are rounded in another order than torch's. On eight families of models, from
# an MLP to a Transformer, the largest difference was 2 epsilons of the largest value. 256 leave a reserve for deep
# models and are a thousandth of what reduced precision does.
EXPORT_EPSILONS = 256
# Export, outputs that rounding decides: the inputs are moved by this many epsilons. A sum of n products is off by about
# sqrt(n): 16 stand for layers of a few hundred.
EXPORT_INPUT_EPSILONS = 16
# Multiple of what the outputs then move by: 16 · 16 is again 256.
EXPORT_MOVE_FACTOR = 16
# Export, outputs that long sums decide: RERUN_FACTOR times the module's own rounding error, but at most this proportion
# of the largest value on a row of zeros or padding. Instance normalization of a constant map of 256 x 256, in which
# onnxruntime and torch differ most, moves by 0.0006.
EXPORT_EDGE_ROW_PROPORTION = 0.01

# Graph optimization: onnxsim's own check_rtol and check_atol; the latter is relative to an output's largest value here,
# so that it means the same for outputs of any size.
GRAPH_OPTIMIZATION_RTOL = 1e-4
GRAPH_OPTIMIZATION_ATOL = 1e-5

# Quantization to int8, outputs on calibration data; at 10 dB the error is a third of the signal. Over twelve families
# of models and two trained networks, with every calibration method, sound models kept at least 25 dB of what
# `RowSignalQuality` measures, and those whose attention or inputs were rounded away less than 4.
MIN_QUANTIZED_SQNR_DB = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedTolerance:
    """Tolerance of one output from reruns: an error of `relative * (scale + |reference|)` is rounding.

    `scale` holds the largest finite magnitudes, of the output and of each channel. `differences` are the largest
    differences of each rerun from the outputs, in their own units, and `relative` is the tolerance by channel, relative
    to its scale: 4 times the largest difference, and at least `steps`, `OUTPUT_PARITY_EPSILONS` epsilons.
    """

    output: str
    dtype: str
    scale: ChannelValues
    differences: Mapping[str, float]
    steps: float
    relative: ChannelValues

    @property
    def observed(self) -> float:
        """The largest difference of any rerun, relative to the output's scale; 0.0 where nothing differs."""
        largest = max(self.differences.values(), default=0.0)
        return largest / self.scale.largest if largest else 0.0

    @property
    def is_rounding(self) -> bool:
        """Whether at least half of the dtype's digits are equal in all runs; larger differences are not rounding."""
        return self.observed <= math.sqrt(machine_epsilon(self.dtype))

    def rtol(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return the relative part for an output of `shape`, as an array that broadcasts to it."""
        return self.relative.for_shape(shape)

    def atol(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Return the absolute part for an output of `shape`, as an array that broadcasts to it."""
        return self.rtol(shape) * self.scale.for_shape(shape)


def calibrate_tolerances(outputs: Outputs, reruns: Mapping[str, Outputs]) -> tuple[CalibratedTolerance, ...]:
    """Return the tolerance of each real output from the same model's outputs in named `reruns`.

    Elements that are not finite in one of the two are ignored. InputError where a rerun has another shape.
    """
    return tuple(
        _calibrated(name, array, {how: _difference(how, name, again[name], array) for how, again in reruns.items()})
        for name, array in outputs.items()
        if kind_of(array.dtype) == "real"
    )


def _calibrated(name: str, array: NDArray[Any], differences: Mapping[str, NDArray[np.float64]]) -> CalibratedTolerance:
    scale = channel_scale(array)
    epsilon = machine_epsilon(array.dtype.name)
    steps = OUTPUT_PARITY_EPSILONS * epsilon
    errors = np.max(list(differences.values()), axis=0) if differences else np.zeros(array.shape)
    rounding = rounding_by_channel(errors, scale, epsilon)
    ratio = rounding.largest / scale.largest if rounding.largest else 0.0
    axes = {axis: np.maximum(found / scale.axes[axis], steps) for axis, found in rounding.axes.items()}
    return CalibratedTolerance(
        output=name,
        dtype=dtype_name(array.dtype),
        scale=scale,
        differences={how: float(error.max(initial=0.0)) for how, error in differences.items()},
        steps=steps,
        relative=ChannelValues(max(ratio, steps, *(float(found.max()) for found in axes.values())), axes),
    )


def rounding_by_channel(errors: NDArray[np.float64], scale: ChannelValues, epsilon: float) -> ChannelValues:
    """Return the tolerance that observed rounding `errors` of an output justify, for the output and by channel.

    It is `RERUN_FACTOR` times the largest error. The error of a channel can be small by chance, so that each is also
    allowed the relative error of the others: the median, or the largest where there are less than 16 values a channel,
    up to half of the digits.
    """
    largest = RERUN_FACTOR * float(errors.max(initial=0.0))
    axes = {}
    for axis, own in scale.axes.items():
        if axis >= errors.ndim or errors.shape[axis] != len(own) or not errors.size:
            continue
        found = by_channel(errors, axis).max(axis=1)
        relative = found / own
        values = errors.size // len(own)
        usual = RERUN_FACTOR * float(np.median(relative) if values >= KNOWN_VALUES else relative.max())
        allowed = min(usual, math.sqrt(epsilon)) * own
        axes[axis] = np.minimum(np.maximum(RERUN_FACTOR * found, allowed), largest)
    return ChannelValues(largest, axes)


def _difference(how: str, name: str, again: NDArray[Any], array: NDArray[Any]) -> NDArray[np.float64]:
    if again.shape != array.shape:
        raise InputError(f"output {name!r} has shape {again.shape} {how} and {array.shape} else: no rounding does that")
    first, second = again.astype(np.float64), array.astype(np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    with np.errstate(invalid="ignore"):
        return np.where(both, np.abs(first - second), 0.0)


@dataclass(frozen=True, slots=True)
class RoundingTolerance:
    """Tolerance of a relation: `steps` epsilons of the largest magnitude, or `atol + rtol * |expected|` if given.

    The magnitude is the larger of that of the output over the base rows and of the row itself, as a value near zero may
    be the difference of large ones. Integers, booleans and text must be equal. `input_epsilon` is the machine epsilon
    of inputs that were rewritten and so rounded, if it is coarser than that of the output.
    """

    rtol: float | None = None
    atol: float | None = None
    steps: float = RELATION_EPSILONS
    input_epsilon: float = 0.0

    @classmethod
    def of(cls, rtol: float | None, atol: float | None) -> RoundingTolerance:
        """Return the given tolerances, by default that of rounding; UsageError for only one or a negative one."""
        if rtol is None and atol is None:
            return cls()
        if rtol is None or atol is None:
            raise UsageError("rtol and atol require each other: give both, or neither for rounding alone")
        check_tolerances(rtol, atol)
        return cls(rtol, atol)

    def after_rewriting(self, values: NDArray[Any]) -> RoundingTolerance:
        """Return the tolerance for outputs of rows whose `values` were recomputed in their dtype."""
        if kind_of(values.dtype) != "real":
            return self
        return replace(self, input_epsilon=max(self.input_epsilon, machine_epsilon(values.dtype.name)))

    def __str__(self) -> str:
        if self.rtol is None:
            return f"{self.steps:g} units in the last place of the output's largest magnitude"
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def absolute(self, expected: NDArray[Any], magnitude: float) -> NDArray[np.float64]:
        """Return the absolute tolerance, broadcastable to `expected` (n, ...) of real numbers."""
        size = np.abs(expected.astype(np.float64))
        size = np.where(np.isfinite(size), size, 0)
        if self.rtol is not None and self.atol is not None:
            return np.asarray(self.atol + self.rtol * size)
        row = size.reshape(len(size), -1).max(axis=1, initial=0.0)
        scale = np.maximum(row, magnitude).reshape(-1, *[1] * (expected.ndim - 1))
        tiny = float(np.finfo(np.float32).tiny)  # a tolerance of 0 for an output that is zero everywhere would give NaN
        return np.asarray(self.steps * max(machine_epsilon(expected.dtype.name), self.input_epsilon) * scale + tiny)


@dataclass(frozen=True, slots=True, eq=False)
class OutputDifferences:
    """Differences of two outputs: `excess` (n,) is the largest multiple of the tolerance in each row."""

    excess: NDArray[np.float64]
    found: Mapping[str, NDArray[Any]]
    expected: Mapping[str, NDArray[Any]]
    multiples: Mapping[str, NDArray[np.float64]]

    def sentence(self, row: int, found: str, expected: str) -> str:
        """Describe the largest difference of a row: "output 'y'[1] is 0.25 in the batch and 0.5 alone"."""
        name = max(self.multiples, key=lambda key: float(self.multiples[key][row].max(initial=0.0)))
        of_row = self.multiples[name][row]
        index = tuple(int(i) for i in np.unravel_index(int(of_row.argmax()), of_row.shape)) if of_row.ndim else ()
        place = f"[{', '.join(map(str, index))}]" if index else ""
        here, there = self.found[name][row][index], self.expected[name][row][index]
        return f"output {name!r}{place} is {here!s} {found} and {there!s} {expected}"


def output_differences(
    found: Feed, expected: Feed, tolerance: RoundingTolerance, magnitudes: Mapping[str, float]
) -> OutputDifferences:
    """Return the differences of `found` and `expected`, both (n, ...) by name, as multiples of the tolerance.

    NaN and a number, different infinities and different shapes have infinite multiples; NaN equals NaN.
    """
    multiples = {
        name: _multiples(found[name], array, tolerance, magnitudes.get(name, 0.0)) for name, array in expected.items()
    }
    rows = [array.reshape(len(array), -1).max(axis=1, initial=0.0) for array in multiples.values()]
    return OutputDifferences(np.max(rows, axis=0), found, expected, multiples)


def _multiples(
    found: NDArray[Any], expected: NDArray[Any], tolerance: RoundingTolerance, magnitude: float
) -> NDArray[np.float64]:
    if found.shape != expected.shape:
        return np.full(expected.shape, np.inf)
    if kind_of(expected.dtype) != "real":
        return np.where(found == expected, 0.0, np.inf)
    here, there = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):  # rtol and atol may both be 0
        distance = np.abs(here - there) / tolerance.absolute(expected, magnitude)
    same = (here == there) | (np.isnan(here) & np.isnan(there))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def decision_differences(
    found: NDArray[Any], expected: NDArray[Any], tolerance: RoundingTolerance, magnitude: float
) -> NDArray[np.float64]:
    """Return by how much the decision of each row differs, (n,), as a multiple of the tolerance.

    The decision is the argmax of scores (n, classes), or the output itself if it is one integer, boolean or text a row.
    Two classes within the tolerance of each other are a tie and do not differ.
    """
    if kind_of(expected.dtype) != "real":
        same = (found == expected).reshape(len(expected), -1).all(axis=1)
        return np.where(same, 0.0, np.inf)
    if expected.ndim != 2 or expected.shape[1] < 2:
        raise UsageError(
            f"output must be scores (rows, classes) or one label a row, got shape {list(expected.shape)} of "
            f"{expected.dtype.name}: choose another one by output="
        )
    rows = np.arange(len(expected))
    before, after = np.argmax(expected, axis=1), np.argmax(found, axis=1)
    here, there = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        margin = np.minimum(there[rows, before] - there[rows, after], here[rows, after] - here[rows, before])
        excess = margin / tolerance.absolute(expected, magnitude).max(axis=1)
    return np.where(before == after, 0.0, np.where(np.isnan(excess), np.inf, excess))
