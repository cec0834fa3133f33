"""The comparisons of many batches as one, for outputs that are never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.comparison import Disagreement, OutputComparison, Place, Shape, TensorComparison

T = TypeVar("T")


def join_comparisons(parts: Iterable[tuple[int, OutputComparison]]) -> OutputComparison:
    """One comparison of all batches: counts added, the largest errors kept, places told by row of the whole.

    `parts` are pairs of a batch's number of rows and its comparison, all under the same tolerances, taken one by one.
    A place counts from the first row of the first batch where the output has a row for each row of its batch, and from
    the batch's own first element elsewhere. Of equal errors the earliest is kept. An output that one batch lacks, or
    that differs there in dtype or shape, is missing or different as a whole. InputError for no parts.
    """
    whole: OutputComparison | None = None
    before = 0
    for rows, part in parts:
        counted = replace(part, tensors=tuple(_counted_from(before, rows, tensor) for tensor in part.tensors))
        whole = counted if whole is None else _joined(whole, counted)
        before += rows
    if whole is None:
        raise InputError("there are no batches to compare")
    return whole


def _counted_from(before: int, rows: int, tensor: TensorComparison) -> TensorComparison:
    """`tensor` with its places as rows of the whole."""
    if not before or tensor.reference_shape[:1] != (rows,):
        return tensor

    def moved(place: Place) -> Place:
        return replace(place, index=(place.index[0] + before, *place.index[1:]))

    def first_moved(found: Disagreement | None) -> Disagreement | None:
        return None if found is None else replace(found, first=moved(found.first))

    return replace(
        tensor,
        worst=None if tensor.worst is None else moved(tensor.worst),
        nan=first_moved(tensor.nan),
        inf=first_moved(tensor.inf),
    )


def _joined(earlier: OutputComparison, later: OutputComparison) -> OutputComparison:
    tensors = {tensor.name: tensor for tensor in earlier.tensors}
    for tensor in later.tensors:
        tensors[tensor.name] = _both(tensors[tensor.name], tensor) if tensor.name in tensors else tensor
    return replace(
        earlier,
        tensors=tuple(tensors.values()),
        missing=tuple(dict.fromkeys((*earlier.missing, *later.missing))),
        unexpected=tuple(dict.fromkeys((*earlier.unexpected, *later.unexpected))),
    )


def _both(earlier: TensorComparison, later: TensorComparison) -> TensorComparison:
    dtypes = later if earlier.candidate_dtype == earlier.reference_dtype else earlier
    differs = next((part for part in (earlier, later) if part.candidate_shape != part.reference_shape), None)
    shape = _joined_shape(earlier.reference_shape, later.reference_shape)
    later_is_worse = (later.worst_multiple or 0.0) > (earlier.worst_multiple or 0.0)
    return TensorComparison(
        name=earlier.name,
        n=earlier.n + later.n,
        candidate_dtype=dtypes.candidate_dtype,
        reference_dtype=dtypes.reference_dtype,
        candidate_shape=shape if differs is None else differs.candidate_shape,
        reference_shape=shape if differs is None else differs.reference_shape,
        compared=earlier.compared and later.compared,
        beyond=earlier.beyond + later.beyond,
        worst_multiple=_largest(earlier.worst_multiple, later.worst_multiple),
        worst=later.worst if later_is_worse else earlier.worst,
        max_abs_error=_largest(earlier.max_abs_error, later.max_abs_error),
        max_rel_error=_largest(earlier.max_rel_error, later.max_rel_error),
        max_ulp=_merged(max, earlier.max_ulp, later.max_ulp),
        nan=_counted_together(earlier.nan, later.nan),
        inf=_counted_together(earlier.inf, later.inf),
    )


def _joined_shape(earlier: Shape, later: Shape) -> Shape:
    if len(earlier) != len(later):
        return (None,) * max(len(earlier), len(later))
    if not earlier:
        return ()
    first = None if earlier[0] is None or later[0] is None else earlier[0] + later[0]
    return (first, *(a if a == b else None for a, b in zip(earlier[1:], later[1:], strict=True)))


def _counted_together(earlier: Disagreement | None, later: Disagreement | None) -> Disagreement | None:
    return _merged(lambda a, b: Disagreement(a.count + b.count, a.first), earlier, later)


def _largest(earlier: float | None, later: float | None) -> float | None:
    return _merged(max, earlier, later)


def _merged(both: Callable[[T, T], T], earlier: T | None, later: T | None) -> T | None:
    """What `both` makes of two values, or the one there is."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return both(earlier, later)
