"""Tests whether two tensors differ by more than rounding or a lower precision explains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.metrics import TensorComparison, compare_outputs, signal_to_quantization_noise_db
from pytest_modelserve.metrics.comparison import Scalar
from pytest_modelserve.metrics.tolerance import MIN_SQNR_DB, SAME_KERNEL_EPSILONS
from pytest_modelserve.parity.divergence.computation_graph import Graph

# Attention masks are the lowest number of a type, or -inf: the exact value does not matter.
_MASK = 1e30
_MASK_IN_HALF = 6e4
_MASK_RATIO = 1e6

Precision = Literal["same", "float16", "int8", "int4"]
_FOUR_BITS = ("int4", "uint4")
_QUANTIZING = ("ConvInteger", "DequantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "QuantizeLinear")


@dataclass(frozen=True, slots=True)
class Deviation:
    """The worst element of a tensor beyond its tolerance; without `index` the whole tensor differs.

    `problem` describes a difference in kind (shape, dtype, NaN). `sqnr_db` is the signal-to-quantization-noise ratio
    where a lower precision is allowed, `multiple` the error as a multiple of the tolerance.
    """

    index: tuple[int, ...] | None
    candidate: Scalar | None
    reference: Scalar | None
    problem: str = ""
    sqnr_db: float | None = None
    multiple: float = math.inf


def find_deviation(
    candidate: NDArray[Any], reference: NDArray[Any], precision: Precision, *, steps: float
) -> Deviation | None:
    """Return where `candidate` differs by more than rounding or `precision` explains, None if nowhere.

    In the same precision each element may be off by `steps` machine epsilons of the coarser dtype, relative to its own
    value plus the `scale` of `reference`. Elements without a fraction must be equal, except for one step of an 8-bit
    tensor if `steps` allow for another kernel. In a lower precision the tensor's signal-to-quantization-noise ratio
    must reach the floor. NaN and infinities must be where `reference` has them; in a lower precision there must be no
    new ones, and masks must stay the lowest number or infinite.
    """
    is_float = candidate.dtype.kind == reference.dtype.kind == "f"
    if precision != "same" and is_float and candidate.shape == reference.shape:
        return _excess_noise(candidate, reference, MIN_SQNR_DB[precision])
    tensor = _compare(candidate, reference, steps)
    problem = "; ".join(_problems(tensor, allow_dtype=precision != "same"))
    if problem:
        kind = tensor.nan or tensor.inf
        place = tensor.worst if kind is None else kind.first
        if place is None:
            return Deviation(None, None, None, problem)
        return Deviation(place.index, place.candidate, place.reference, problem)
    if not tensor.beyond or tensor.worst is None:
        return None
    if _is_one_step(candidate, reference) and steps > SAME_KERNEL_EPSILONS:
        return None
    worst = tensor.worst
    return Deviation(worst.index, worst.candidate, worst.reference, multiple=tensor.worst_multiple or math.inf)


def precision_of(candidate: Graph, reference: Graph) -> Precision:
    """Return the precision that `candidate` was converted to: "same" if both or neither were converted."""
    ours, theirs = _graph_precision(candidate), _graph_precision(reference)
    return "same" if ours == theirs or ours == "same" else ours


def error_in_steps(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest error of an element in the steps of `find_deviation`; 0.0 if none can be counted."""
    if candidate.shape != reference.shape or candidate.dtype.kind != "f" or reference.dtype.kind != "f":
        return 0.0
    return _compare(candidate, reference, 1).worst_multiple or 0.0


def scale(reference: NDArray[Any]) -> float:
    """Return the largest magnitude in `reference` without masks: values a million times above the lower quartile.

    An attention score of 0.3 would vanish next to one to which -1e9 was added.
    """
    sizes = np.abs(reference[np.isfinite(reference) & (reference != 0)]).astype(np.float64)
    if not sizes.size:
        return 0.0
    quartile = float(np.partition(sizes, sizes.size // 4)[sizes.size // 4])
    return float(sizes[sizes <= _MASK_RATIO * quartile].max(initial=0.0))


def largest(array: NDArray[Any]) -> float:
    """Return the largest finite magnitude, 0.0 if there is none."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def epsilon(*arrays: NDArray[Any]) -> float:
    """Return the machine epsilon of the coarsest floating dtype among `arrays`, 0.0 if none is floating."""
    return max((float(np.finfo(array.dtype).eps) for array in arrays if array.dtype.kind == "f"), default=0.0)


def _compare(candidate: NDArray[Any], reference: NDArray[Any], steps: float) -> TensorComparison:
    rtol = atol = 0.0
    if candidate.dtype.kind == reference.dtype.kind == "f":
        rtol = steps * epsilon(candidate, reference)
        # The smallest normal number: below it a runtime may flush to zero.
        atol = rtol * scale(reference) + float(np.finfo(np.float32).tiny)
    (tensor,) = compare_outputs({"": candidate}, {"": reference}, rtol=rtol, atol=atol).tensors
    return tensor


def _problems(tensor: TensorComparison, *, allow_dtype: bool) -> Iterator[str]:
    if tensor.candidate_dtype != tensor.reference_dtype and not allow_dtype:
        yield f"dtype is {tensor.candidate_dtype} where the reference has {tensor.reference_dtype}"
    if tensor.candidate_shape != tensor.reference_shape:
        yield f"shape is {list(tensor.candidate_shape)} where the reference has {list(tensor.reference_shape)}"
    if tensor.nan is not None:
        yield f"NaN in only one of the two, at {tensor.nan.count} of {tensor.n} elements"
    if tensor.inf is not None:
        yield f"infinities differ at {tensor.inf.count} of {tensor.n} elements"


def _is_one_step(candidate: NDArray[Any], reference: NDArray[Any]) -> bool:
    is_small = all(array.dtype.kind in "iu" and array.dtype.itemsize == 1 for array in (candidate, reference))
    return is_small and int(np.abs(candidate.astype(np.int16) - reference.astype(np.int16)).max(initial=0)) <= 1


def _excess_noise(candidate: NDArray[Any], reference: NDArray[Any], floor_db: float) -> Deviation | None:
    ours, theirs = candidate.astype(np.float64), reference.astype(np.float64)
    is_mask = np.abs(theirs) >= _MASK
    masked = is_mask & (np.abs(ours) >= _MASK_IN_HALF) & (np.sign(ours) == np.sign(theirs))
    broken = ~np.isfinite(ours) & np.isfinite(theirs) & ~masked
    lost = is_mask & ~masked
    if broken.any() or lost.any():
        index = tuple(int(i) for i in np.argwhere(broken if broken.any() else lost)[0])
        return Deviation(index, float(ours[index]), float(theirs[index]), _describe_broken(ours, broken, lost))
    counted = np.isfinite(ours) & np.isfinite(theirs) & ~masked
    if not counted.any():
        return None
    ratio = signal_to_quantization_noise_db(ours[counted], theirs[counted])
    if ratio >= floor_db:
        return None
    error = np.where(counted, np.abs(np.where(counted, ours, 0) - np.where(counted, theirs, 0)), 0)
    index = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    multiple = 10 ** ((floor_db - ratio) / 20)
    return Deviation(index, float(ours[index]), float(theirs[index]), sqnr_db=ratio, multiple=multiple)


def _describe_broken(candidate: NDArray[Any], broken: NDArray[np.bool_], lost: NDArray[np.bool_]) -> str:
    if not broken.any():
        return f"a mask or infinity of the reference is lost, {int(lost.sum())} of {lost.size} elements"
    kind = "NaN" if np.isnan(candidate[broken][0]) else "infinity"
    return f"{kind} where the reference is finite, {int(broken.sum())} of {broken.size} elements"


def _graph_precision(graph: Graph) -> Precision:
    operators = {node.op_type for node in graph.nodes}
    if "MatMulNBits" in operators or any(array.dtype.name in _FOUR_BITS for array in graph.constants.values()):
        return "int4"
    if any(op in _QUANTIZING or op.startswith(("QLinear", "DynamicQuantize")) for op in operators):
        return "int8"
    floats = [array for array in graph.constants.values() if array.dtype.kind == "f"]
    halves = sum(array.size for array in floats if array.dtype == np.float16)
    return "float16" if 2 * halves > sum(array.size for array in floats) else "same"
