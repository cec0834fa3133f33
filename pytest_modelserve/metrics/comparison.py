"""Comparison of two models' outputs: names, dtypes, shapes, NaN, infinities, and values within a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics.channels import add_counts, describe_channels, narrowest
from pytest_modelserve.metrics.elementwise import (
    Bound,
    dtype_name,
    exact_differences,
    has_ulps,
    kind_of,
    real_differences,
)

Scalar = float | int | bool | str
# None where the batches of a stream have different lengths.
Shape = tuple[int | None, ...]
Tolerance = float | Mapping[str, Bound]
"""One number, or by output one number or an array that broadcasts to the output."""


@dataclass(frozen=True, slots=True)
class Place:
    """One element: its index and both values, as Python builtins."""

    index: tuple[int, ...]
    candidate: Scalar
    reference: Scalar


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A number of elements that differ in kind, and the first of them in C order."""

    count: int
    first: Place


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """One output of both models, compared element by element; `n` counts the elements of the reference.

    The maxima cover the pairs in which both values are finite, are 0.0 where nothing differs (n = 0 included: look at
    `n`), and are None where they have no meaning: nothing was compared because the shapes differ or one side holds text
    (`compared` is False), text has no errors, and `max_ulp` exists for bfloat16, float16, float32 and float64 only. The
    one denominator is the reference. `worst_multiple` is the largest error as a multiple of its tolerance
    `atol + rtol * |reference|`; integers, booleans and text have no tolerance, so that it is 0.0 or infinite. `worst`
    is the place of it, None where nothing differs; `rtol` and `atol` are its tolerance. `beyond` counts the elements
    above 1, and `beyond_by` those of each channel: axis to index to count.
    """

    name: str
    n: int
    candidate_dtype: str
    reference_dtype: str
    candidate_shape: Shape
    reference_shape: Shape
    compared: bool
    beyond: int = 0
    beyond_by: Mapping[int, Mapping[int, int]] = field(default_factory=dict, hash=False)
    worst_multiple: float | None = None
    worst: Place | None = None
    rtol: float = 0.0
    atol: float = 0.0
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    max_ulp: int | None = None
    nan: Disagreement | None = None
    inf: Disagreement | None = None
    equal_nan: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether no tolerance applies, as neither side holds floating-point numbers."""
        return not (_is_real(self.candidate_dtype) or _is_real(self.reference_dtype))

    @property
    def channels(self) -> str:
        """The channels of all elements beyond their tolerance: "channel 4 of axis 1"; "" if every channel has some."""
        found = narrowest(self.beyond_by, self.reference_shape)
        return "" if found is None else describe_channels(*found)

    @property
    def numeric_problem(self) -> str:
        """A sentence on the elements beyond their tolerance, with the worst of them; "" if there are none."""
        if not self.beyond or self.worst is None:
            return ""
        where = self.format_place(self.worst)
        if self.is_exact:
            how = f"differ but must be equal, first at {where}"
        else:
            tolerance = f"rtol {self.rtol:g}, atol {self.atol:g}"
            how = f"are beyond {tolerance}; the worst is {self.worst_multiple:.3g} × its tolerance at {where}"
        output = " ".join(filter(None, (f"output {self.name!r}", self.channels)))
        return f"{output}: {self.beyond} of {self.n} elements {how}"

    @property
    def structural_problems(self) -> tuple[str, ...]:
        """One sentence for each difference of dtype, shape, NaN or infinities."""
        found = []
        if self.candidate_dtype != self.reference_dtype:
            found.append(f"dtype is {self.candidate_dtype} where the reference has {self.reference_dtype}")
        if self.candidate_shape != self.reference_shape:
            found.append(f"shape is {self.candidate_shape} where the reference has {self.reference_shape}")
        elif not self.compared:
            found.append("text and numbers cannot be compared")
        if self.nan is not None:
            where = "in only one of the two, at" if self.equal_nan else "not allowed, found at"
            found.append(f"NaN {where} {self._describe(self.nan)}")
        if self.inf is not None:
            found.append(f"infinities differ at {self._describe(self.inf)}")
        return tuple(f"output {self.name!r}: {sentence}" for sentence in found)

    def _describe(self, found: Disagreement) -> str:
        return f"{found.count} of {self.n} elements, first at {self.format_place(found.first)}"

    def format_place(self, place: Place) -> str:
        """Return `[3, 1] (candidate 0.25, reference 0.2)`, each value with the digits of its dtype."""
        candidate = _format_value(place.candidate, self.candidate_dtype)
        reference = _format_value(place.reference, self.reference_dtype)
        return f"{list(place.index)} (candidate {candidate}, reference {reference})"


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Comparison of all outputs: those of both models in the reference's order, and the names that only one has."""

    tensors: tuple[TensorComparison, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def n(self) -> int:
        """The number of elements that were compared."""
        return sum(tensor.n for tensor in self.tensors if tensor.compared)

    @property
    def worst_multiple(self) -> float:
        """The largest error of any output as a multiple of its tolerance; 0.0 where nothing was compared."""
        return max((tensor.worst_multiple or 0.0 for tensor in self.tensors), default=0.0)

    @property
    def structural_problems(self) -> tuple[str, ...]:
        """One sentence for each missing or unexpected output and each difference in dtype, shape, NaN or infinities."""
        missing = (f"output {name!r} is missing from the candidate" for name in self.missing)
        unexpected = (f"output {name!r} is unknown to the reference" for name in self.unexpected)
        differing = (sentence for tensor in self.tensors for sentence in tensor.structural_problems)
        return (*missing, *unexpected, *differing)

    @property
    def numeric_problems(self) -> tuple[str, ...]:
        """One sentence for each output with elements beyond their tolerance, with the worst element."""
        return tuple(tensor.numeric_problem for tensor in self.tensors if tensor.beyond)

    @property
    def agrees(self) -> bool:
        """Whether names, dtypes, shapes, NaN and infinities are equal and every error is within its tolerance."""
        return not self.structural_problems and not self.numeric_problems


def tolerance_of(name: str, given: Tolerance) -> Bound:
    """Return the tolerance of the output `name`; 0.0 for one that has none, such as integers and text."""
    return given.get(name, 0.0) if isinstance(given, Mapping) else given


def _format_value(value: Scalar, dtype: str) -> str:
    if isinstance(value, float) and _is_real(dtype):
        rounded: Any = np.dtype(dtype).type(value)
        return str(rounded)
    return repr(value)


def _is_real(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


Outputs = Mapping[str, NDArray[Any]]


def compare_outputs(
    candidate: Outputs, reference: Outputs, *, rtol: Tolerance, atol: Tolerance, equal_nan: bool = True
) -> OutputComparison:
    """Compare all outputs element by element, and list the names that only one model has.

    A floating-point element is within tolerance when |candidate - reference| <= atol + rtol * |reference|, where either
    is one number or a mapping that has, for every real output of the reference, one number or an array that broadcasts
    to the output; integers, booleans and strings have to be equal. NaN agrees with NaN unless `equal_nan` is False, an
    infinity with the same infinity; every other pair with one of them is counted separately and not part of a maximum.
    A different dtype or shape is a structural problem; values of different dtypes are still compared, as float64. The
    arrays are read in chunks: the extra memory stays below 4 MB.

    The dtypes of ml_dtypes are numbers: bfloat16, float8, int4. UsageError for a tolerance that is negative or not
    finite; InputError for a reference without outputs, anything but arrays, and dtypes that are neither numbers nor
    text (complex, bytes, records, other objects).
    """
    check_tolerances(rtol, atol)
    if not reference:
        raise InputError("the reference has no outputs to compare")
    for side, outputs in (("candidate", candidate), ("reference", reference)):
        for name, array in outputs.items():
            _check_comparable(side, name, array)
    return OutputComparison(
        tensors=tuple(
            _compare(name, candidate[name], array, tolerance_of(name, rtol), tolerance_of(name, atol), equal_nan)
            for name, array in reference.items()
            if name in candidate
        ),
        missing=tuple(name for name in reference if name not in candidate),
        unexpected=tuple(name for name in candidate if name not in reference),
    )


def check_tolerances(rtol: Tolerance, atol: Tolerance) -> None:
    """Raise UsageError for a tolerance that is negative or not finite."""
    for name, given in (("rtol", rtol), ("atol", atol)):
        for value in given.values() if isinstance(given, Mapping) else (given,):
            is_number = np.asarray(value).dtype.kind in "fiu"
            if not (is_number and np.isfinite(value).all() and np.min(value) >= 0):
                raise UsageError(f"{name} must be a finite number of at least 0, got {value}")


def pair_outputs(
    candidate: Outputs, reference: Outputs, aliases: Mapping[str, str] = MappingProxyType({})
) -> dict[str, NDArray[Any]]:
    """Return the candidate's outputs under the names by which they are compared.

    If each model has a single output, the candidate's takes the reference's name, as the tensor of a torch module has
    none. Otherwise `aliases` map names of the candidate to the reference's. The keys of a map under such a name are
    left out: an estimator returns only its values.
    """
    if len(candidate) == len(reference) == 1:
        return dict(zip(reference, candidate.values(), strict=True))
    renamed = {name: aliases[name] for name in candidate if name not in reference and aliases.get(name) in reference}
    keys = {f"{name}.keys" for name in renamed}
    return {renamed.get(name, name): array for name, array in candidate.items() if name not in keys}


def align_values(candidate: Outputs, reference: Outputs) -> tuple[Outputs, Outputs]:
    """Return both models' outputs in the wider dtype of each pair, and the candidate's in the reference's shape.

    A shape differs only by axes of length 1. What cannot be aligned is returned as it is.
    """
    aligned, expected = dict(candidate), dict(reference)
    for name, like in reference.items():
        array = aligned.get(name)
        if array is None:
            continue
        if array.shape != like.shape and [n for n in array.shape if n != 1] == [n for n in like.shape if n != 1]:
            array = array.reshape(like.shape)
        if array.dtype.kind in "biuf" and like.dtype.kind in "biuf":
            wider = np.result_type(array, like)
            array, expected[name] = array.astype(wider), like.astype(wider)
        aligned[name] = array
    return aligned, expected


def _check_comparable(side: str, name: str, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{side} output {name!r} is not an array but {type(array).__name__}")
    if array.dtype.kind == "O":
        for item in array.flat:
            if not isinstance(item, str):
                raise InputError(
                    f"{side} output {name!r} holds Python objects ({type(item).__name__}); numbers, booleans and "
                    "strings can be compared"
                )
    elif kind_of(array.dtype) is None:
        raise InputError(
            f"{side} output {name!r} has dtype {array.dtype}; numbers, booleans and strings can be compared"
        )


def _compare(
    name: str, candidate: NDArray[Any], reference: NDArray[Any], rtol: Bound, atol: Bound, equal_nan: bool
) -> TensorComparison:
    is_text = kind_of(reference.dtype) == "text"
    result = TensorComparison(
        name=name,
        n=reference.size,
        candidate_dtype=dtype_name(candidate.dtype),
        reference_dtype=dtype_name(reference.dtype),
        candidate_shape=candidate.shape,
        reference_shape=reference.shape,
        equal_nan=equal_nan,
        compared=candidate.shape == reference.shape and (kind_of(candidate.dtype) == "text") == is_text,
    )
    if not result.compared:
        return result
    if result.is_exact:
        found = exact_differences(candidate, reference)
    else:
        found = real_differences(candidate, reference, rtol=rtol, atol=atol, equal_nan=equal_nan)
    worst = _place(found.worst, candidate, reference)
    return replace(
        result,
        beyond=found.beyond,
        beyond_by=found.beyond_by,
        worst_multiple=found.max_multiple,
        worst=worst,
        rtol=_bound_at(worst, rtol, reference),
        atol=_bound_at(worst, atol, reference),
        max_abs_error=None if is_text else found.max_abs,
        max_rel_error=None if is_text else found.max_rel,
        max_ulp=found.max_ulp if has_ulps(candidate.dtype, reference.dtype) else None,
        nan=_disagreement(found.nan_differ, found.nan_first, candidate, reference),
        inf=_disagreement(found.inf_differ, found.inf_first, candidate, reference),
    )


def _disagreement(
    count: int, first: int | None, candidate: NDArray[Any], reference: NDArray[Any]
) -> Disagreement | None:
    place = _place(first, candidate, reference)
    return None if place is None else Disagreement(count, place)


def _place(flat: int | None, candidate: NDArray[Any], reference: NDArray[Any]) -> Place | None:
    if flat is None:
        return None
    index = tuple(int(i) for i in np.unravel_index(flat, reference.shape))
    return Place(index, candidate=_scalar(candidate[index]), reference=_scalar(reference[index]))


def _bound_at(place: Place | None, bound: Bound, reference: NDArray[Any]) -> float:
    """Return the tolerance of the element at `place`."""
    if place is None:
        return 0.0
    return float(np.broadcast_to(bound, reference.shape)[place.index])


def _scalar(element: Any) -> Scalar:
    value: Scalar = element.item() if isinstance(element, np.generic) else element
    return value


T = TypeVar("T")


def join_comparisons(parts: Iterable[tuple[int, OutputComparison]]) -> OutputComparison:
    """Merge the comparisons of all batches: counts are added, and the largest errors kept.

    `parts` are pairs of a batch's number of rows and its comparison under the same tolerances, consumed one by one. The
    index of an element counts rows over all batches where the output has one row for each row of its batch, and within
    its batch otherwise. Of equal errors the earliest is kept. An output that is missing or different in one batch is
    missing or different in all. InputError for no parts.
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
    """Return `tensor` with indices over all batches."""
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
    worse = later if (later.worst_multiple or 0.0) > (earlier.worst_multiple or 0.0) else earlier
    return TensorComparison(
        name=earlier.name,
        n=earlier.n + later.n,
        candidate_dtype=dtypes.candidate_dtype,
        reference_dtype=dtypes.reference_dtype,
        candidate_shape=shape if differs is None else differs.candidate_shape,
        reference_shape=shape if differs is None else differs.reference_shape,
        compared=earlier.compared and later.compared,
        beyond=earlier.beyond + later.beyond,
        beyond_by=add_counts(earlier.beyond_by, later.beyond_by),
        worst_multiple=_largest(earlier.worst_multiple, later.worst_multiple),
        worst=worse.worst,
        rtol=worse.rtol,
        atol=worse.atol,
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
    """Return `both` of two values, or the only one."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return both(earlier, later)
