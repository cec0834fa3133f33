"""Answers that do not follow a feature at all, or a small change by little."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.features import (
    Feature,
    as_features,
    columns_of,
    input_of,
    with_columns,
)
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.relations.variants import compared_variants
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class InvariantTo:
    """See `invariant_to`."""

    features: tuple[Feature, ...]
    draws: int
    decision: bool
    tolerance: Tolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"invariance to {', '.join(map(str, self.features))}"

    @property
    def definition(self) -> str:
        """What holds."""
        what = "decision" if self.decision else "answer"
        return f"other values of features {_listed(self.features)} change no {what}, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise with the features of one of some base rows."""
        name = input_of(candidates, self.input)
        columns = columns_of(candidates[name], self.features, name)
        seen = base[name].reshape(len(base[name]), -1)[:, columns]
        others = _distinct(seen)
        if len(others) < 2:
            raise InputError(
                f"every base row has the same values in features {_listed(self.features)}: add rows that differ there"
            )
        others = others[np.unique(np.linspace(0, len(others) - 1, self.draws).astype(np.intp))]
        count = row_count(candidates)
        variants = [
            with_columns(candidates, name, columns, np.broadcast_to(values, (count, len(columns)))) for values in others
        ]
        return compared_variants(
            self.tolerance, self.output, self.decision, predictor, candidates, variants, base,
            words=[f"with features {_listed(self.features)} = {_listed(values)}" for values in others],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LocalStability:
    """See `local_stability`."""

    eps: float
    max_change: float | None
    draws: int
    input: str | None
    output: str | None
    name: str = "local stability"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        ends = "change no decision" if self.max_change is None else f"move no answer by more than {self.max_change:g}"
        return f"{self.draws} changes of every real input by {self.eps:g}, up or down, {ends}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows are answered otherwise, or by too much so, a step of `eps` away in one of some directions."""
        names = [name for name in candidates if kind_of(candidates[name].dtype) == "real"]
        if self.input is not None:
            names = [input_of(candidates, self.input)]
        if not names or any(kind_of(candidates[name].dtype) != "real" for name in names):
            raise UsageError("local stability is about real inputs, and the model has none of them")
        variants = [self._moved(candidates, names, draw) for draw in range(self.draws)]
        tolerance = Tolerance() if self.max_change is None else Tolerance(0.0, self.max_change)
        return compared_variants(
            tolerance, self.output, self.max_change is None, predictor, candidates, variants, base,
            words=[f"{self.eps:g} away (direction {draw})" for draw in range(self.draws)],
        )  # fmt: skip

    def _moved(self, rows: Feed, names: list[str], draw: int) -> Feed:
        """Direction 0 is up everywhere, 1 down everywhere, the others have drawn signs, the same for every row."""
        moved = dict(rows)
        for place, name in enumerate(names):
            array = rows[name]
            rng = np.random.default_rng([draw, place])
            signs = np.ones(array.shape[1:]) if draw < 2 else rng.choice([-1.0, 1.0], array.shape[1:])
            moved[name] = as_dtype(array.astype(np.float64) + (-1 if draw == 1 else 1) * self.eps * signs, array.dtype)
        return moved


def invariant_to(
    features: Feature | Iterable[Feature],
    *,
    decision: bool = False,
    draws: int = 4,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> InvariantTo:
    """Other values of `features` change no answer, or with `decision=True` no decision (arg-max, or label).

    The values are those of `draws` base rows, evenly spaced among the distinct ones and all features of one row at
    once, so that the columns of a one-hot category change together. For protected attributes; holds for a model that
    does not see them, and says nothing of what stands in for them. Without `rtol` and `atol` the tolerance is the room
    for rounding.
    """
    if draws < 2:
        raise UsageError(f"draws is a whole number of at least 2, not {draws}")
    return InvariantTo(as_features(features), draws, decision, Tolerance.of(rtol, atol), input, output)


def local_stability(
    eps: float,
    *,
    max_change: float | None = None,
    draws: int = 8,
    input: str | None = None,
    output: str | None = None,
) -> LocalStability:
    """No step of `eps` in every real input changes a decision, or with `max_change` moves an answer by more than that.

    All up, all down, and `draws` - 2 drawn combinations of signs, the same for every row. `eps` is in the units of the
    inputs. It is a probe and no attack: what it finds is unstable, what it passes may not be. Decisions between classes
    within rounding of each other are ties. Broken near every decision boundary: `like` rows that lie on one fail.
    """
    if not (np.isfinite(eps) and eps > 0):
        raise UsageError(f"eps is a positive number in the units of the inputs, not {eps}")
    if max_change is not None and not (np.isfinite(max_change) and max_change >= 0):
        raise UsageError(f"max_change is a number of at least 0, not {max_change}")
    if draws < 2:
        raise UsageError(f"draws is a whole number of at least 2, not {draws}")
    return LocalStability(float(eps), max_change, draws, input, output)


def _distinct(rows: NDArray[Any]) -> NDArray[Any]:
    _, first = np.unique(np.array([repr(row.tolist()) for row in rows]), return_index=True)
    return rows[np.sort(first)]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
