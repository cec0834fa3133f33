"""Two models' outputs held against each other: the same names, dtypes, shapes, NaN, and nearly the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.numerics.comparison import (
    Disagreement,
    OutputComparison,
    Place,
    Scalar,
    TensorComparison,
    Tolerance,
    tolerance_of,
)
from pytest_modelserve.numerics.dtypes import dtype_name, kind_of
from pytest_modelserve.numerics.elementwise import exact_differences, real_differences
from pytest_modelserve.numerics.ulp import share_ulps

Outputs = Mapping[str, NDArray[Any]]


def compare_outputs(candidate: Outputs, reference: Outputs, *, rtol: Tolerance, atol: Tolerance) -> OutputComparison:
    """Every output that both have, compared element by element, and the names that only one has.

    A floating-point element is within tolerance when |candidate - reference| <= atol + rtol * |reference|, where either
    is one number or a mapping that has one for every real output of the reference; integers, booleans and strings have
    to be equal. NaN agrees with NaN, an infinity with the same infinity; every other pair with one of them is counted
    and told on its own, never folded into a maximum. A different dtype or shape is told as well; values of different
    dtypes are still compared, as float64. The arrays are read in chunks: the extra memory stays below 4 MB.

    Raises UsageError for a tolerance that is negative or not finite, InputError for no outputs at all, something
    other than an array, and dtypes that have no order and no text (complex, bytes, records, other objects). The
    numbers of ml_dtypes are numbers: bfloat16, float8, int4.
    """
    check_tolerances(rtol, atol)
    for side, outputs in (("candidate", candidate), ("reference", reference)):
        if not outputs:
            raise InputError(f"the {side} has no outputs to compare")
        for name, array in outputs.items():
            _check_comparable(side, name, array)
    return OutputComparison(
        tensors=tuple(
            _compare(name, candidate[name], array, tolerance_of(name, rtol), tolerance_of(name, atol))
            for name, array in reference.items()
            if name in candidate
        ),
        missing=tuple(name for name in reference if name not in candidate),
        unexpected=tuple(name for name in candidate if name not in reference),
        rtol=rtol,
        atol=atol,
    )


def check_tolerances(rtol: Tolerance, atol: Tolerance) -> None:
    """UsageError for a tolerance that is negative or not finite."""
    for name, given in (("rtol", rtol), ("atol", atol)):
        for value in given.values() if isinstance(given, Mapping) else (given,):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is a finite number of at least 0, not {value}")


def pair_outputs(candidate: Outputs, reference: Outputs) -> dict[str, NDArray[Any]]:
    """The candidate's outputs under the names by which they are compared.

    Where each side has exactly one output they belong together whatever they are called, because a torch module's one
    tensor has no name of its own: the candidate's takes the reference's name. Otherwise names are left as they are.
    """
    if len(candidate) == len(reference) == 1:
        return dict(zip(reference, candidate.values(), strict=True))
    return dict(candidate)


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


def _compare(name: str, candidate: NDArray[Any], reference: NDArray[Any], rtol: float, atol: float) -> TensorComparison:
    is_text = kind_of(reference.dtype) == "text"
    result = TensorComparison(
        name=name,
        n=reference.size,
        candidate_dtype=dtype_name(candidate.dtype),
        reference_dtype=dtype_name(reference.dtype),
        candidate_shape=candidate.shape,
        reference_shape=reference.shape,
        compared=candidate.shape == reference.shape and (kind_of(candidate.dtype) == "text") == is_text,
    )
    if not result.compared:
        return result
    if result.is_exact:
        found = exact_differences(candidate, reference)
    else:
        found = real_differences(candidate, reference, rtol=rtol, atol=atol)
    return replace(
        result,
        beyond=found.beyond,
        worst_multiple=found.max_multiple,
        worst=_place(found.worst, candidate, reference),
        max_abs_error=None if is_text else found.max_abs,
        max_rel_error=None if is_text else found.max_rel,
        max_ulp=found.max_ulp if share_ulps(candidate.dtype, reference.dtype) else None,
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


def _scalar(element: Any) -> Scalar:
    value: Scalar = element.item() if isinstance(element, np.generic) else element
    return value
