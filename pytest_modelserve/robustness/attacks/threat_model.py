"""Threat model: the rows that an attacker may send instead of each given row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.attacks.edit_distance import edit_distances, texts_of
from pytest_modelserve.robustness.relations.base import Features, columns_of

Norm = Literal["linf", "l2", "edits"]
Allowed = Callable[[Any, Any], Any]
"""Rows before and after (k, ...), of a frame its columns by name → whether each change is allowed, bool (k,)."""
Dependent = Mapping[int | tuple[int, ...], Callable[[NDArray[Any]], Any]]
"""Column → function of the rows (k, ...) that returns its values (k,)."""

_MOST_WHOLE = 2**53
"""float64 holds all whole numbers up to this one."""
_SHRINK = 1 - 1e-12
"""Points of an L2 ball stay this far inside, because norms are rounded."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ThreatModel:
    """The admissible changes of rows: a ball around each row, the range of the input, and which features may change.

    "linf" allows a change of each feature by `eps`, "l2" an ellipsoid with the half-axes `eps`, "edits" that many edits
    of characters. Distances are exact in the dtype that is served: what `place` and `project` return has been rounded
    toward the base row.

    Args:
        base: The rows as they are, (n, ...), in the dtype that is served.
        norm: "linf", "l2" or "edits".
        eps: Radius in units of the input: one, or one for each feature (row shape); 0 for features that stay.
        low: Least value of the input, one or one for each feature; None for no limit.
        high: Greatest value of the input.
        immutable: Columns that stay as they are.
        integer: Columns of whole numbers, for an input of floats.
        categories: Columns to their categories: any of them is admissible, whatever `eps` is.
        dependent: Columns that follow from others, computed in this order after each change; `eps` and the range do
            not apply to them.
        allowed: Function of rows before and after (k, ...) that returns which changes are allowed, bool (k,).
        padding: For "edits" of codes (n, length): the code that fills a row at its end.

    Raises:
        UsageError: For an `eps` that is not positive or is larger than the range, and for `low` above `high`.
        InputError: For rows outside the range, with NaN in what may change, or with fractions in an integer column.
    """

    base: NDArray[Any]
    norm: Norm
    eps: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    immutable: Features = ()
    integer: Features = ()
    categories: Mapping[int | tuple[int, ...], Sequence[float]] = field(default_factory=dict)
    dependent: Dependent = field(default_factory=dict)
    allowed: Allowed | None = None
    padding: int | None = None

    category_values: dict[int, NDArray[np.float64]] = field(init=False, repr=False, default_factory=dict)
    """The categories of each flat place that has some, as the served dtype holds them."""
    _scale: NDArray[np.float64] = field(init=False, repr=False)
    _whole: NDArray[np.bool_] = field(init=False, repr=False)
    _computed: NDArray[np.intp] = field(init=False, repr=False)
    _limits: tuple[NDArray[np.float64], NDArray[np.float64]] = field(init=False, repr=False)
    _box: tuple[NDArray[Any], NDArray[Any]] = field(init=False, repr=False)
    _range: tuple[NDArray[Any], NDArray[Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise UsageError(unknown_choice("norm", self.norm, get_args(Norm)))
        if self.norm == "edits":
            self._check_edits()
            return
        self._check_numbers()
        scale = positive_values("eps", self.eps, self.shape).reshape(-1).copy()
        fixed = self._columns(self.immutable)
        computed = self._columns(tuple(self.dependent))
        categorical = self._columns(tuple(self.categories))
        roles = {"immutable": fixed, "dependent": computed, "categories": categorical}
        for (one, first), (other, second) in itertools.combinations(roles.items(), 2):
            if both := sorted(set(first.tolist()) & set(second.tolist())):
                raise UsageError(f"{one} and {other} both name feature {both[0]}: name it in one of them")
        scale[np.concatenate([fixed, computed, categorical])] = 0
        if not scale.any() and not categorical.size:
            raise UsageError("eps is 0 for every feature that may change: give a positive radius for one")
        whole = np.zeros(scale.size, np.bool_)
        whole[self._columns(self.integer)] = True
        whole |= self.base.dtype.kind in "iu"
        flat = self._flat(self.base)
        if self.base.dtype.kind == "f" and (np.trunc(flat[:, whole]) != flat[:, whole]).any():
            columns = np.flatnonzero(whole & (np.trunc(flat) != flat).any(axis=0)).tolist()
            raise InputError(f"integer= names columns whose rows hold fractions, {columns}: leave these columns out")
        if self.base.dtype.kind in "iu" and (np.abs(flat[:, scale > 0].astype(np.float64)) > _MOST_WHOLE).any():
            raise InputError(
                "inputs hold whole numbers beyond 2**53, whose changes are not exact: subtract an offset in front of "
                "the model, or name these columns in immutable="
            )
        self._check_finite(flat, np.union1d(np.flatnonzero(scale > 0), categorical))
        low, high = limits = self._checked_range(flat, computed)
        for column in self.categories:
            self.category_values[int(self._columns(column)[0])] = self._checked_categories(column, whole, low, high)
        self._set(scale=scale, whole=whole, computed=computed, limits=limits)
        self._set(
            box=self._bounds(flat, np.maximum(flat - scale, low), np.minimum(flat + scale, high)),
            range=self._bounds(flat, low, high),
        )
        if not categorical.size and (self._box[0] == self._box[1]).all():
            raise UsageError(
                f"eps={self.eps!r} changes no value of these inputs: the next {self.base.dtype} is farther away"
            )
        self._check_dependent()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, f"_{name}", value)

    # Shapes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self.base.shape[1:]

    @property
    def scale(self) -> NDArray[np.float64]:
        """The radius of each feature in one row's shape; 0 where it may not change continuously."""
        return self._scale.reshape(self.shape)

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which features may change within `eps`, in one row's shape."""
        return np.asarray(self.scale > 0)

    @property
    def changeable(self) -> NDArray[np.intp]:
        """The flat places of all features that may change, those of categories included."""
        return np.flatnonzero((self._scale > 0) | np.isin(np.arange(self._scale.size), list(self.category_values)))

    @property
    def widths(self) -> NDArray[np.float64]:
        """The width of the range of each feature, in one row's shape; inf where it has no limit."""
        low, high = self._limits
        return (high - low).reshape(self.shape)

    def _flat(self, rows: NDArray[Any]) -> NDArray[Any]:
        return rows.reshape(len(rows), int(np.prod(rows.shape[1:])))

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which features take whole numbers only, in one row's shape."""
        return self._whole.reshape(self.shape)

    # Rows

    def place(self, index: NDArray[np.intp], units: NDArray[np.float64]) -> NDArray[Any]:
        """Return the admissible rows nearest to `base[index] + eps * units`, with `units` (k, ...) in [-1, 1]."""
        units = units.reshape(len(index), *self.shape)
        if self.norm == "linf" and (np.abs(units) == 1).all():  # a corner: ten times as fast as projection
            low, high = (ends[index].reshape(units.shape) for ends in self._box)
            return self.complete(np.where(units > 0, high, low))
        return self.project(index, self.base[index].astype(np.float64) + units * self.scale)

    def project(self, index: NDArray[np.intp], rows: NDArray[Any], *, into_ball: bool = True) -> NDArray[Any]:
        """Return the admissible rows (k, ...) nearest to `rows` (k, ...) around the rows `index` (k,) of the base.

        The result has the dtype that is served, lies inside the ball and the range, and has its dependent features
        computed. Immutable features are those of the base, and so are categories that are not listed. A search from
        outside the ball moves rows `into_ball=False`, into the range alone.
        """
        base = self._flat(self.base)[index]
        wished = self._flat(np.asarray(rows, np.float64))
        fixed = self._scale == 0
        if into_ball and self.norm == "l2":
            wished = self._into_ball(base, wished)
        least, most = self._box if into_ball else self._range
        moved = np.where(fixed, base, np.clip(self._rounded(wished, base), least[index], most[index]))
        for place, values in self.category_values.items():
            moved[:, place] = np.where(np.isin(wished[:, place], values), wished[:, place], base[:, place])
        return self.complete(moved.astype(self.base.dtype, copy=False).reshape(len(index), *self.shape))

    def units(self, index: NDArray[np.intp], rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the changes of features within `eps`, (k, ...), as multiples of `eps`: the inverse of `place`."""
        change = rows.astype(np.float64) - self.base[index].astype(np.float64)
        return np.where(self.free, change / np.where(self.free, self.scale, 1), 0)

    def complete(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return `rows` (k, ...) with their dependent features computed."""
        if not self.dependent:
            return rows
        rows = np.array(rows)
        for column, function in self.dependent.items():
            values = called(f"dependent[{column!r}]", function, rows)
            if values.shape != (len(rows),):
                raise UsageError(
                    f"dependent[{column!r}] must return one value a row, shape ({len(rows)},); got {values.shape}"
                )
            self._flat(rows)[:, self._columns(column)[0]] = values
        return rows

    def distances(self, index: NDArray[np.intp], rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the distance (k,) of each row from its base row as a multiple of `eps`; inf for a forbidden change."""
        if self.norm == "edits":
            most = int(np.asarray(self.eps))
            return np.asarray(edit_distances(self.base[index], rows, padding=self.padding, most=most) / most)
        base, moved = self._flat(self.base)[index].astype(np.float64), self._flat(rows).astype(np.float64)
        change = np.where(_same(moved, base), 0, np.abs(moved - base))
        scale = self._scale
        for place, values in self.category_values.items():
            change[np.isin(moved[:, place], values), place] = 0
        change[:, self._computed] = 0
        parts = np.where(scale > 0, change / np.where(scale > 0, scale, 1), np.where(change == 0, 0, math.inf))
        return np.asarray(parts.max(axis=1) if self.norm == "linf" else np.sqrt((parts**2).sum(axis=1)))

    def admissible(self, index: NDArray[np.intp], rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether each row (k, ...), in the dtype that is served, may replace its base row, bool (k,)."""
        inside = self.distances(index, rows) <= 1
        if self.norm != "edits":
            flat = self._flat(rows)
            low, high = self._range[0][index], self._range[1][index]
            within = (flat >= low) & (flat <= high) | _same(flat, self._flat(self.base)[index])
            if self.base.dtype.kind == "f":
                within &= ~self._whole | (np.trunc(flat) == flat)
            within[:, self._computed] = True
            inside &= within.all(axis=1)
            if self.dependent and inside.any():
                inside &= _same(self._flat(self.complete(rows)), flat).all(axis=1)
        some = np.flatnonzero(inside)
        inside[some] = self.is_allowed(index[some], rows[some])
        return inside

    def is_allowed(self, index: NDArray[np.intp], rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return what `allowed` says of the rows (k, ...), bool (k,); True without such a function."""
        if self.allowed is None or not index.size:
            return np.ones(index.size, np.bool_)
        verdicts = called("allowed", self.allowed, self.base[index], rows)
        if verdicts.shape != index.shape or verdicts.dtype.kind != "b":
            raise UsageError(
                f"allowed must return one bool a row, shape ({index.size},); got {verdicts.dtype} of shape "
                f"{verdicts.shape}"
            )
        return verdicts

    # Arithmetic

    def _into_ball(self, base: NDArray[Any], wished: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = self._scale
        units = np.where(scale > 0, (wished - base) / np.where(scale > 0, scale, 1), 0)
        norms = np.sqrt((units**2).sum(axis=1, keepdims=True))
        units *= np.minimum(1, _SHRINK / np.maximum(norms, 1e-300))
        if self._whole.any():
            units = _nearest_whole(units, scale, self._whole)
        return np.asarray(base + units * scale)

    def _rounded(self, wished: NDArray[np.float64], base: NDArray[Any]) -> NDArray[Any]:
        """Return the values in the dtype that is served, those of an integer column whole, rounded toward the base."""
        exact = base.astype(np.float64)
        change = wished - exact
        values = np.where(self._whole, exact + np.trunc(change * (1 + 1e-9)), wished) if self._whole.any() else wished
        if self.base.dtype.kind in "iu":
            return _cast_whole(values, self.base.dtype)
        with np.errstate(over="ignore"):
            served: NDArray[Any] = values.astype(self.base.dtype)
        if self.norm == "l2":
            beyond = (np.abs(served - exact) > np.abs(change)) & ~self._whole
            served[beyond] = np.nextafter(served[beyond], base[beyond])
        return served

    def _bounds(
        self, base: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return limits (n, features) in the dtype that is served, rounded inward and never past the base."""
        whole = self._whole
        low, high = np.where(whole, np.ceil(low), low), np.where(whole, np.floor(high), high)
        dtype = self.base.dtype
        if dtype.kind in "iu":
            return np.minimum(_cast_whole(low, dtype), base), np.maximum(_cast_whole(high, dtype), base)
        ends = np.finfo(dtype)  # infinity is never admissible
        least, most = (np.clip(end, float(ends.min), float(ends.max)).astype(dtype) for end in (low, high))
        exact, scale = base.astype(np.float64), self._scale
        for _ in range(2):  # the cast, and then the difference in float64, may both round outward
            least = np.where((least < low) | (_outside(least, exact, low, scale)), np.nextafter(least, base), least)
            most = np.where((most > high) | (_outside(most, exact, high, scale)), np.nextafter(most, base), most)
        return np.minimum(least, base), np.maximum(most, base)

    def _columns(self, features: Features) -> NDArray[np.intp]:
        if not isinstance(features, (int, tuple)):
            features = tuple(features)
        return columns_of(self.base, features, "inputs") if features != () else np.zeros(0, np.intp)

    # Checks

    def _check_numbers(self) -> None:
        if self.base.dtype.kind not in "fiu":
            raise InputError(
                f"inputs must be integers or floats for norm={self.norm!r}, got {self.base.dtype}: cast them; for text "
                "use norm='edits'"
            )
        if self.padding is not None:
            raise UsageError("padding applies to norm='edits' only: remove it")

    def _check_finite(self, flat: NDArray[Any], changing: NDArray[np.intp]) -> None:
        """Raise InputError for infinity, and for NaN in a feature that may change."""
        rows = np.flatnonzero(np.isinf(flat).any(axis=1) | np.isnan(flat[:, changing]).any(axis=1))
        if rows.size:
            raise InputError(
                f"inputs hold NaN or infinity in {rows.size} rows, first in row {rows[0]}: leave these rows out, or "
                "name features with NaN in immutable="
            )

    def _checked_categories(
        self,
        column: int | tuple[int, ...],
        whole: NDArray[np.bool_],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        given, place = self.categories[column], int(self._columns(column)[0])
        values = np.asarray(given)
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise UsageError(f"categories[{column!r}] must be finite numbers, got {given!r}")
        if whole[place] and (np.trunc(values) != values).any():
            raise UsageError(f"categories[{column!r}] must be whole numbers, as the column is; got {given!r}")
        if ((values < low[place]) | (values > high[place])).any():
            raise UsageError(
                f"categories[{column!r}] must lie in the range from low={low[place]:g} to high={high[place]:g}, "
                f"got {given!r}"
            )
        return values.astype(self.base.dtype).astype(np.float64)

    def _check_edits(self) -> None:
        kind = self.base.dtype.kind
        if kind not in "iuOUT":
            raise InputError(f"inputs must be text, or codes of characters, for norm='edits'; got {self.base.dtype}")
        eps = np.asarray(self.eps)
        if eps.ndim or eps.dtype.kind not in "iuf" or not eps >= 1 or eps != np.trunc(eps):
            raise UsageError(f"eps must be a whole number of edits, at least 1, for norm='edits'; got {self.eps!r}")
        for name in ("low", "high", "immutable", "integer", "categories", "dependent"):
            given = getattr(self, name)
            if given is not None and not (isinstance(given, Sized) and len(given) == 0):
                raise UsageError(f"{name} does not apply to norm='edits': say which changes are allowed by allowed=")
        if kind in "iu" and (self.base.ndim != 2 or self.padding is None):
            raise UsageError(
                "padding= is missing: norm='edits' on codes (rows, length) needs the code that fills a row at its end"
            )
        if kind in "OUT" and any(not isinstance(text, str) for text in self.base.reshape(-1).tolist()):
            raise InputError("inputs must hold text in every row for norm='edits'")
        if kind in "OUT" and self.base.size != len(self.base):
            raise InputError(f"inputs must hold one text for each row for norm='edits', got shape {self.base.shape}")
        longest = max(map(len, texts_of(self.base, self.padding)), default=0)
        if eps > max(longest, 1):
            raise UsageError(
                f"eps={self.eps!r} is larger than the longest text ({longest} characters): every text would be "
                "admissible"
            )

    def _checked_range(
        self, flat: NDArray[Any], computed: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the range of the input (features,), infinite where there is no limit."""
        ends = []
        for name, given, without in (("low", self.low, -math.inf), ("high", self.high, math.inf)):
            end = feature_values(name, without if given is None else given, self.shape)
            if np.isnan(end).any():
                raise UsageError(f"{name} must not be NaN")
            ends.append(end.reshape(-1))
        low, high = ends
        if not (low < high).all():
            raise UsageError(f"low must be below high in every feature, got low={self.low!r}, high={self.high!r}")
        eps = positive_values("eps", self.eps, self.shape).reshape(-1)
        width = high - low
        ratios = width[eps > 0] / eps[eps > 0]
        if (ratios < 1).all() if self.norm == "linf" else (ratios**2).sum() < 1:
            raise UsageError(
                f"eps={self.eps!r} is larger than the range from low={self.low!r} to high={self.high!r}: every input "
                "would be admissible; eps has the unit of the unprocessed input"
            )
        outside = (flat < low) | (flat > high)
        outside[:, computed] = False
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise InputError(
                f"inputs hold {flat[row, column]} in row {row}, feature {column}, which is outside the range from low="
                f"{low[column]:g} to high={high[column]:g}: correct the range, or leave the row out"
            )
        return low, high

    def _check_dependent(self) -> None:
        if not self.dependent:
            return
        computed = self.complete(self.base)
        for column in self.dependent:
            place = self._columns(column)[0]
            given, found = (self._flat(rows)[:, place].astype(np.float64) for rows in (self.base, computed))
            other = np.flatnonzero(
                ~np.isclose(
                    given, found, rtol=1e-4, atol=1e-6 * (np.nanmax(np.abs(given), initial=0) or 1), equal_nan=True
                )
            )
            if other.size:
                row = int(other[0])
                raise InputError(
                    f"dependent[{column!r}] returns {found[row]:g} for row {row}, where the inputs hold "
                    f"{given[row]:g}: the function must reproduce the given rows"
                )


def feature_values(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an argument of one number, or of one for each feature, in the shape of a row."""
    try:
        return np.broadcast_to(np.asarray(given, np.float64), shape)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number, or one for each feature (shape {shape}), got {given!r}") from None


def positive_values(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a radius or its unit in the shape of a row; UsageError unless it is positive, and 0 for some features."""
    values = feature_values(name, given, shape)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise UsageError(f"{name} must be positive and finite, and 0 only for features that stay; got {given!r}")
    return values


def called(name: str, function: Callable[..., Any], *arguments: Any) -> NDArray[Any]:
    """Return what a function of the user returns, as an array; UsageError that names it if it raises."""
    try:
        return np.asarray(function(*arguments))
    except Exception as error:
        raise UsageError(f"{name} raised {type(error).__name__} for rows under attack: {error}") from error


def _same(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values are equal or both NaN."""
    return np.asarray((one == other) | ((one != one) & (other != other)))


def _nearest_whole(
    units: NDArray[np.float64], scale: NDArray[np.float64], whole: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return changes in an L2 ball (k, features), whole ones rounded to the nearest and the smallest left out.

    Rounding each toward 0 would lose most of them.
    """
    rounded = np.rint(units * scale) / np.where(scale > 0, scale, 1)
    parts = np.where(scale > 0, np.where(whole, rounded, units), 0.0)
    order = np.argsort(-np.abs(units), axis=1)
    inside = np.cumsum(np.take_along_axis(parts, order, axis=1) ** 2, axis=1) <= 1
    kept = np.empty_like(inside)
    np.put_along_axis(kept, order, inside, axis=1)
    return np.where(kept, parts, 0.0)


def _cast_whole(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values in a dtype of whole numbers, those beyond its range at its ends."""
    limits = np.iinfo(dtype)
    most = float(limits.max)
    if most > limits.max:  # 2**63 - 1 is no float64, and casting 2**63 returns the least number
        most = math.nextafter(most, 0)
    return np.clip(values, float(limits.min), most).astype(dtype)


def _outside(
    limit: NDArray[Any], base: NDArray[np.float64], wished: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return where a limit that comes from `eps` lies farther than `eps` from the base in float64."""
    change = np.abs(limit.astype(np.float64) - base)
    return np.asarray((np.abs(wished - base) <= scale * (1 + 1e-9)) & (change > scale))
