"""What a comparison of two models' outputs found, as values and as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Scalar = float | int | bool | str
Shape = tuple[int | None, ...]
"""None where the batches of a stream have different lengths."""
Tolerance = float | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Place:
    """One element: its index and both values, as Python builtins."""

    index: tuple[int, ...]
    candidate: Scalar
    reference: Scalar


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A count of elements that disagree in kind, and the first of them in C order."""

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
    is the place of it, None where nothing differs; `beyond` counts the elements above 1.
    """

    name: str
    n: int
    candidate_dtype: str
    reference_dtype: str
    candidate_shape: Shape
    reference_shape: Shape
    compared: bool
    beyond: int = 0
    worst_multiple: float | None = None
    worst: Place | None = None
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    max_ulp: int | None = None
    nan: Disagreement | None = None
    inf: Disagreement | None = None

    @property
    def is_exact(self) -> bool:
        """Whether no tolerance applies, because neither side holds floating-point numbers."""
        return not (_is_real(self.candidate_dtype) or _is_real(self.reference_dtype))

    @property
    def structural_problems(self) -> tuple[str, ...]:
        """One sentence for each way in which the outputs differ in kind: dtype, shape, NaN, infinities."""
        found = []
        if self.candidate_dtype != self.reference_dtype:
            found.append(f"dtype is {self.candidate_dtype} where the reference has {self.reference_dtype}")
        if self.candidate_shape != self.reference_shape:
            found.append(f"shape is {self.candidate_shape} where the reference has {self.reference_shape}")
        elif not self.compared:
            found.append("text and numbers cannot be compared")
        if self.nan is not None:
            found.append(f"NaN in one and not in the other at {self._told(self.nan)}")
        if self.inf is not None:
            found.append(f"infinities differ at {self._told(self.inf)}")
        return tuple(f"output {self.name!r}: {sentence}" for sentence in found)

    def _told(self, found: Disagreement) -> str:
        return f"{found.count} of {self.n} elements, first at {self.told_place(found.first)}"

    def told_place(self, place: Place) -> str:
        """`[3, 1] (candidate 0.25, reference 0.2)`, each value with as many digits as its dtype tells apart."""
        candidate = _told_value(place.candidate, self.candidate_dtype)
        reference = _told_value(place.reference, self.reference_dtype)
        return f"{list(place.index)} (candidate {candidate}, reference {reference})"


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """Every output of two models: the ones both have in the reference's order, and the names only one of them has.

    A tolerance is one number, or one for each real output by name.
    """

    tensors: tuple[TensorComparison, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    rtol: Tolerance
    atol: Tolerance

    @property
    def n(self) -> int:
        """How many elements were compared."""
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
        told = (sentence for tensor in self.tensors for sentence in tensor.structural_problems)
        return (*missing, *unexpected, *told)

    @property
    def numeric_problems(self) -> tuple[str, ...]:
        """One sentence for each output with elements beyond their tolerance, worst place included."""
        return tuple(self._told(tensor) for tensor in self.tensors if tensor.beyond)

    @property
    def agrees(self) -> bool:
        """Whether the outputs have the same names, dtypes, shapes, NaN and infinities, and every error is tolerated."""
        return not self.structural_problems and not self.numeric_problems

    def _told(self, tensor: TensorComparison) -> str:
        assert tensor.worst is not None  # beyond > 0
        where = tensor.told_place(tensor.worst)
        if tensor.is_exact:
            how = f"differ and have to be equal, first at {where}"
        else:
            rtol, atol = (tolerance_of(tensor.name, given) for given in (self.rtol, self.atol))
            tolerance = f"rtol {rtol:g}, atol {atol:g}"
            how = f"are beyond {tolerance}; the worst is {tensor.worst_multiple:.3g} × its tolerance at {where}"
        return f"output {tensor.name!r}: {tensor.beyond} of {tensor.n} elements {how}"


def tolerance_of(name: str, given: Tolerance) -> float:
    """The tolerance of the output `name`; 0.0 for one that has none, as integers and text have none."""
    return given.get(name, 0.0) if isinstance(given, Mapping) else given


def _told_value(value: Scalar, dtype: str) -> str:
    if isinstance(value, float) and _is_real(dtype):
        rounded: Any = np.dtype(dtype).type(value)
        return str(rounded)
    return repr(value)


def _is_real(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
