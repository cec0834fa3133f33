"""Arguments of the gates on robustness: the threat model, the attacks, and which input and output they concern."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import Output, class_labels
from pytest_modelserve.robustness.attacks.attack import Attack
from pytest_modelserve.robustness.attacks.attacked_rows import AttackedRows, attack_rows
from pytest_modelserve.robustness.attacks.boundary import boundary
from pytest_modelserve.robustness.attacks.characters import characters
from pytest_modelserve.robustness.attacks.feature_table import TABLE, FeatureTable, is_table, served_feed
from pytest_modelserve.robustness.attacks.gradient import pgd
from pytest_modelserve.robustness.attacks.random_search import random_search
from pytest_modelserve.robustness.attacks.square import checked_image_shape, square
from pytest_modelserve.robustness.attacks.threat_model import Allowed, Norm, ThreatModel, positive_values
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.relations.base import Features

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor


PerFeature = float | Sequence[float] | Mapping[str, float]
"""One number, one for each feature, or one for some columns by name."""


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How a model is attacked; the fields are arguments of `measure_robust_accuracy`.

    Raises:
        UsageError: `attacks` is no list of attacks, `seed` no whole number, or another argument no mapping.
    """

    norm: Norm
    attacks: Sequence[Attack] | None
    low: PerFeature | None
    high: PerFeature | None
    scale: PerFeature | None
    immutable: Features | Sequence[str]
    integer: Features | Sequence[str]
    categories: Mapping[int | str, Sequence[float]] | None
    dependent: Mapping[int | str, Callable[[Any], Any]] | None
    allowed: Allowed | None
    padding: int | None
    image_shape: Sequence[int] | None
    input_name: str | None
    output: Output
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", given_attacks(self.attacks))
        for name, values in (("categories", "all of their categories"), ("dependent", "functions")):
            if not isinstance(getattr(self, name) or {}, Mapping):
                raise UsageError(f"{name} must be a mapping of columns to {values}, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or self.seed < 0:
            raise UsageError(f"seed must be a whole number of at least 0, got {self.seed!r}")

    def attack(self, predictor: Predictor, inputs: Any, labels: Any, radii: Sequence[float]) -> AttackedRows:
        """Attack a served model at increasing radii.

        Raises:
            UsageError: For settings that do not fit the model.
            InputError: For inputs and labels that do not fit it or each other.
        """
        batch, feed = batched(predictor, inputs)
        if batch.batch_size == 0:
            raise InputError("inputs must have rows: the inputs of the model share no row axis")
        if row_count(feed) == 0:
            raise InputError("inputs are empty: at least one row is needed")
        names: list[str] = []
        whole: list[int] = []
        if self.input_name is None and is_table(feed, by_name=isinstance(inputs, Mapping)):
            batch = FeatureTable(batch, feed)
            self._check_numeric([column for column in batch.order if column not in batch.names])
            feed, names, whole = batch.join(feed), batch.names, batch.whole
        name = _attacked_input(feed, TABLE if names else self.input_name)
        truth = class_labels(np.asarray(labels), what="labels")
        if len(truth) != row_count(feed):
            raise InputError(f"there are {len(truth)} labels for {row_count(feed)} rows of inputs")
        columns, others = _split_dependent(self.dependent or {}, feed, name, batch)
        shape = feed[name].shape[1:]
        low, high, scale = (
            _per_feature(argument, getattr(self, argument), names, shape, without)
            for argument, without in (("low", -math.inf), ("high", math.inf), ("scale", 0.0))
        )
        units = 1.0 if scale is None else positive_values("scale", scale, shape)
        threats = [
            ThreatModel(
                base=feed[name],
                norm=self.norm,
                eps=radius * units,
                low=low,
                high=high,
                immutable=_columns("immutable", self.immutable, names),
                integer=[*_columns("integer", self.integer, names), *whole],
                categories=_by_column(self.categories or {}, names),
                dependent=columns,
                allowed=_by_columns(self.allowed, names) if self.allowed is not None and names else self.allowed,
                padding=self.padding,
            )
            for radius in radii
        ]
        if self.image_shape is not None:
            checked_image_shape("image_shape", self.image_shape, shape)
        return attack_rows(
            batch,
            feed,
            truth,
            input_name=name,
            output=self.output,
            threats=threats,
            attacks=lambda has_scores: [
                replace(attack, image_shape=tuple(self.image_shape))
                if self.image_shape is not None and isinstance(attack, square) and attack.image_shape is None
                else attack
                for attack in self.attacks or self._default_attacks(predictor, feed, has_scores, is_table=bool(names))
            ],
            seed=self.seed,
            dependent_inputs=others,
        )

    def _check_numeric(self, others: Sequence[str]) -> None:
        """Raise UsageError for settings of the columns that are not numbers."""
        for argument in ("low", "high", "scale", "immutable", "integer", "categories"):
            given = getattr(self, argument)
            columns = given if isinstance(given, (Mapping, list, tuple)) else (given,)
            for column in columns:
                if isinstance(column, str) and column in others:
                    raise UsageError(
                        f"{argument} names the column {column!r}, which holds no numbers: text and bools are not "
                        "attacked and stay as they are; leave it out, or serve a model that takes it as codes"
                    )

    def _default_attacks(self, predictor: Predictor, feed: Feed, has_scores: bool, *, is_table: bool) -> list[Attack]:
        if self.norm == "edits":
            return [characters()]
        searches: list[Attack] = [random_search()] if self.categories else []
        if not has_scores:
            return [*searches, boundary()]
        module = getattr(predictor, "module", None)
        is_float = len(feed) == 1 and next(iter(feed.values())).dtype.kind == "f"
        read_by_argmax = self.output.name is None and self.output.decode in (None, "argmax")
        if module is not None and is_float and read_by_argmax and not is_table:
            searches.insert(0, _own_gradients(module))
        return [*searches, square()]


class _own_gradients(pgd):
    """PGD on the served module, which may have no gradients: integers, rounding, detach."""

    is_optional = True


def increasing_radii(eps: float | Sequence[float]) -> list[float]:
    """Return the radii in increasing order; UsageError for anything but positive numbers that differ."""
    given: list[Any] = list(np.atleast_1d(np.asarray(eps, dtype=object)).tolist())
    if not given:
        raise UsageError("eps is empty: give one radius, or several in increasing order")
    for value in given:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise UsageError(
                f"eps must be positive and finite, in units of the unprocessed input; got {value!r} (a feature's "
                "radius is eps * scale)"
            )
    radii = sorted(map(float, given))
    if len(set(radii)) < len(radii):
        raise UsageError(f"eps must not repeat a radius, got {given}")
    return radii


def check_min_accuracy(min_accuracy: object) -> None:
    """Raise UsageError unless the budget is a number between 0 and 1."""
    if not isinstance(min_accuracy, Real) or not 0 < float(min_accuracy) < 1:
        raise UsageError(f"min_accuracy must be a proportion between 0 and 1 (0.8, say), got {min_accuracy}")


def given_attacks(attacks: Sequence[Attack] | None) -> list[Attack]:
    """Return the attacks of an argument, [] for None; UsageError for anything but a list of attacks."""
    if attacks is None:
        return []
    if isinstance(attacks, (str, Attack)):
        raise UsageError(f"attacks must be a list, got {type(attacks).__name__}: pass attacks=[ms.attacks.square()]")
    if not attacks:
        raise UsageError("attacks is empty: give at least one, such as ms.attacks.square(), or leave it out")
    for attack in attacks:
        if not isinstance(attack, Attack):
            name = getattr(attack, "__name__", repr(attack))
            raise UsageError(
                f"attacks holds {name}, which is no attack: pass objects such as ms.attacks.square(queries=500)"
            )
    return list(attacks)


def _attacked_input(feed: Feed, input_name: str | None) -> str:
    if input_name is None:
        if len(feed) > 1:
            raise UsageError(f"input_name= is missing: the model has {len(feed)} inputs, {', '.join(feed)}")
        return next(iter(feed))
    if input_name not in feed:
        raise UsageError(unknown_choice("input_name", input_name, feed))
    return input_name


def _column(argument: str, column: object, names: Sequence[str]) -> Any:
    """Return the number of a column that is given by name; texts of digits are numbers, as keys of a contract."""
    if not isinstance(column, str):
        return column
    if column in names:
        return names.index(column)
    if column.isdigit():
        return int(column)
    if not names:
        raise UsageError(f"{argument} names the column {column!r}: the input is an array, so give its number")
    raise UsageError(f"{argument}: {unknown_choice('column', column, names)}")


def _columns(argument: str, given: Features | Sequence[str], names: Sequence[str]) -> list[Any]:
    columns: Any = (given,) if isinstance(given, (int, str)) else given
    return [_column(argument, column, names) for column in columns]


def _by_column(
    categories: Mapping[int | str, Sequence[float]], names: Sequence[str]
) -> dict[int | tuple[int, ...], Sequence[float]]:
    """Return categories by number of column."""
    for column, values in categories.items():
        if not np.size(values) or np.ndim(values) != 1:
            raise UsageError(f"categories[{column!r}] must be a list of all categories of the column, got {values!r}")
    return {_column("categories", column, names): values for column, values in categories.items()}


def _per_feature(
    argument: str, given: PerFeature | None, names: Sequence[str], shape: tuple[int, ...], without: float
) -> float | Sequence[float] | None:
    """Return one number or one for each feature; columns that a mapping does not name get `without`."""
    if not isinstance(given, Mapping):
        return given
    if len(shape) != 1:
        raise UsageError(f"{argument} by column needs rows of columns, not of shape {shape}: give one for each feature")
    values = [without] * shape[0]
    for column, value in given.items():
        number = _column(argument, column, names)
        if not 0 <= number < shape[0]:
            raise UsageError(f"{argument} names the column {column!r}: the rows have {shape[0]}")
        values[number] = value
    return values


def _split_dependent(
    dependent: Mapping[int | str, Callable[[Any], Any]], feed: Feed, name: str, predictor: BatchedPredictor
) -> tuple[dict[Any, Callable[[Any], Any]], dict[str, Callable[[Any], Any]]]:
    """Return the functions of columns of the attacked input, and those of other inputs."""
    columns: dict[Any, Callable[[Any], Any]] = {}
    others: dict[str, Callable[[Any], Any]] = {}
    for key, function in dependent.items():
        if not callable(function):
            raise UsageError(f"dependent[{key!r}] must be a function of rows, got {type(function).__name__}")
        if isinstance(predictor, FeatureTable) and key in predictor.names:
            columns[predictor.names.index(str(key))] = _by_columns(function, predictor.names)
        elif not isinstance(key, str):
            columns[key] = function
        elif key.isdigit() and key not in feed:  # a contract has no other keys
            columns[int(key)] = function
        elif key not in feed or key == name:
            raise UsageError(
                f"dependent: {unknown_choice('input', key, [each for each in feed if each != name])}; for a column of "
                f"the input {name!r} give its number"
            )
        else:
            others[key] = _of_inputs(function, predictor)
    return columns, others


def _by_columns(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of tables from one of their columns by name."""
    return lambda *tables: function(*(dict(zip(names, table.T, strict=True)) for table in tables))


def _of_inputs(function: Callable[[Any], Any], predictor: BatchedPredictor) -> Callable[[Any], Any]:
    """Return a function of the attacked feed from one of the inputs as the model takes them."""
    return lambda feed: function(served_feed(predictor, feed))
