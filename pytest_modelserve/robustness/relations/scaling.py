"""Answers that follow the scale of features in a known way, or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.features import Feature, as_features, columns_of, input_of
from pytest_modelserve.robustness.relations.rescaling import checked_factor, only_where, rescaled
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.relations.variants import compared_variants, farthest
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class Scaling:
    """See `scale_invariant` and `scale_equivariant`."""

    factor: float
    features: tuple[Feature, ...] | None
    degree: float
    decision: bool
    tolerance: Tolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"scale {'invariance' if self.degree == 0 else 'equivariance'}"

    @property
    def definition(self) -> str:
        """What holds."""
        which = "real inputs" if self.features is None else f"features {', '.join(map(str, self.features))}"
        if self.degree == 0:
            ends = f"change no {'decision' if self.decision else 'answer'}"
        else:
            power = "" if self.degree == 1 else f" to the power {self.degree:g}"
            ends = f"multiply every answer by {self.factor:g}{power}"
        return f"{which} times {self.factor:g} {ends}, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows have other answers than the scale of their features makes them."""
        scaled, fits = self._scaled(candidates, base)
        tolerance = self.tolerance
        for values in scaled.values():
            tolerance = tolerance.after_rewriting(values)
        words = f"with {'real inputs' if self.features is None else 'features'} times {self.factor:g}"
        if self.degree == 0:
            found = compared_variants(
                tolerance, self.output, self.decision, predictor, candidates, [scaled], base, words=[words]
            )
        else:
            by = self.factor**self.degree
            answers = chosen(predictor.predict(candidates), self.output)
            expected = {name: _times(name, array, by) for name, array in answers.items()}
            sizes = {name: size * abs(by) for name, size in predictor.magnitudes(base).items()}
            compared = apart(chosen(predictor.predict(scaled), self.output), expected, tolerance, sizes)
            found = farthest([compared], [words], f"as {by:g} times the answer")
        return only_where(fits, found)

    def _scaled(self, rows: Feed, base: Feed) -> tuple[Feed, NDArray[np.bool_]]:
        names = [input_of(rows, self.input)] if self.features is not None or self.input is not None else list(rows)
        names = [name for name in names if self.features is not None or kind_of(rows[name].dtype) == "real"]
        if not names:
            raise UsageError("the model has no real input to scale: name features of another one")
        fits = np.ones(len(next(iter(rows.values()))), np.bool_)
        for name in names:
            size = int(np.prod(rows[name].shape[1:]))
            columns = np.arange(size) if self.features is None else columns_of(rows[name], self.features, name)
            rows, here = rescaled(rows, base, name, columns, factor=self.factor)
            fits &= here
        return rows, fits


def scale_invariant(
    factor: float,
    features: Feature | Iterable[Feature] | None = None,
    *,
    decision: bool = False,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Scaling:
    """`features`, or all real inputs, times `factor` change no answer, or with `decision=True` no decision.

    Holds where a model normalises a row by itself (by its sum, its norm, its largest pixel); broken by a constant that
    is added to what is divided by, which should vanish, and by scaling with numbers of the training data. Without
    `rtol` and `atol` the tolerance is the room for rounding: `factor` rounds a feature by half a unit in its last
    place, a power of two not at all, so the units are those of the input's dtype where it is coarser than the output's.
    Rows whose features leave their dtype are not judged.
    """
    return Scaling(checked_factor(factor), _features(features), 0.0, decision, Tolerance.of(rtol, atol), input, output)


def scale_equivariant(
    factor: float,
    features: Feature | Iterable[Feature] | None = None,
    *,
    degree: float = 1.0,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Scaling:
    """`features`, or all real inputs, times `factor` multiply every answer by `factor` to the power `degree`.

    A sum of amounts in another currency is that sum in it (degree 1), an area grows with the square of lengths (2).
    Holds for models without constants that have a unit; broken by a bias, and by a threshold. Tolerance as in
    `scale_invariant`, relative to the answers as they are expected.
    """
    if not math.isfinite(degree) or degree == 0:
        raise UsageError(f"degree is a power other than 0, not {degree}; for no change see scale_invariant")
    if factor < 0 and degree != int(degree):
        raise UsageError(f"a factor below 0 has no power {degree:g}")
    return Scaling(
        checked_factor(factor), _features(features), float(degree), False, Tolerance.of(rtol, atol), input, output
    )


def _times(name: str, array: NDArray[Any], by: float) -> NDArray[Any]:
    if kind_of(array.dtype) != "real":
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no scale: name another one by output=")
    return (array.astype(np.float64) * by).astype(array.dtype)


def _features(features: Feature | Iterable[Feature] | None) -> tuple[Feature, ...] | None:
    return None if features is None else as_features(features)
