"""Arguments of the gates on robustness: the threat model, the attacks, and which input and output they concern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import Output, class_labels
from pytest_modelserve.robustness.attacks.attack import Attack
from pytest_modelserve.robustness.attacks.attacked_rows import AttackedRows, attack_rows
from pytest_modelserve.robustness.attacks.boundary import boundary
from pytest_modelserve.robustness.attacks.characters import characters
from pytest_modelserve.robustness.attacks.gradient import pgd
from pytest_modelserve.robustness.attacks.random_search import random_search
from pytest_modelserve.robustness.attacks.square import square
from pytest_modelserve.robustness.attacks.threat_model import Allowed, Norm, ThreatModel
from pytest_modelserve.robustness.batched_predictor import batched
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.relations.base import Features

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How a model is attacked; the fields are arguments of `measure_robust_accuracy`.

    Raises:
        UsageError: `attacks` is no list of attacks.
    """

    norm: Norm
    attacks: Sequence[Attack] | None
    low: float | Sequence[float] | None
    high: float | Sequence[float] | None
    scale: float | Sequence[float] | None
    immutable: Features
    integer: Features
    categories: Mapping[int | str, Sequence[float]] | None
    dependent: Mapping[int | str, Callable[[Any], Any]] | None
    allowed: Allowed | None
    padding: int | None
    image_shape: Sequence[int] | None
    input_name: str | None
    output: Output
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "attacks", _given_attacks(self.attacks))

    def attack(self, predictor: Predictor, inputs: Any, labels: Any, radii: Sequence[float]) -> AttackedRows:
        """Attack a served model at increasing radii.

        Raises:
            UsageError: For settings that do not fit the model.
            InputError: For inputs and labels that do not fit it or each other.
        """
        batch, feed = batched(predictor, inputs)
        if batch.batch_size == 0:
            raise InputError("inputs must have rows: the inputs of the model share no row axis")
        name = _attacked_input(feed, self.input_name)
        truth = class_labels(np.asarray(labels), what="labels")
        if len(truth) != row_count(feed):
            raise InputError(f"there are {len(truth)} labels for {row_count(feed)} rows of inputs")
        columns, others = _split_dependent(self.dependent or {}, feed, name)
        threats = [
            ThreatModel(
                base=feed[name],
                norm=self.norm,
                eps=radius if self.scale is None else radius * np.asarray(self.scale, np.float64),
                low=self.low,
                high=self.high,
                immutable=self.immutable,
                integer=self.integer,
                categories=_by_column(self.categories or {}),
                dependent=columns,
                allowed=self.allowed,
                padding=self.padding,
            )
            for radius in radii
        ]
        shape = None if self.image_shape is None else tuple(self.image_shape)
        return attack_rows(
            batch,
            feed,
            truth,
            input_name=name,
            output=self.output,
            threats=threats,
            attacks=lambda has_scores: (
                self.attacks
                or [
                    *self._by_gradients(predictor, feed, has_scores),
                    *_default_attacks(self.norm, has_scores, bool(self.categories), shape),
                ]
            ),
            seed=self.seed,
            dependent_inputs=others,
        )

    def _by_gradients(self, predictor: Predictor, feed: Feed, has_scores: bool) -> list[Attack]:
        """Return the default attack by gradients if the model is a torch module with one input of floats, else none."""
        module = getattr(predictor, "module", None)
        is_float = len(feed) == 1 and next(iter(feed.values())).dtype.kind == "f"
        read_by_argmax = self.output.name is None and self.output.decode in (None, "argmax")
        return [pgd(module)] if module is not None and has_scores and is_float and read_by_argmax else []


def increasing_radii(eps: float | Sequence[float]) -> list[float]:
    """Return the radii in increasing order; UsageError for anything but positive numbers that differ."""
    given: list[Any] = list(np.atleast_1d(np.asarray(eps, dtype=object)).tolist())
    if not given:
        raise UsageError("eps is empty: give one radius, or several in increasing order")
    for value in given:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise UsageError(
                f"eps must be positive and finite, in units of the unprocessed input; got {value!r} (a feature's "
                "radius is eps * scale)"
            )
    radii = sorted(map(float, given))
    if len(set(radii)) < len(radii):
        raise UsageError(f"eps must not repeat a radius, got {given}")
    return radii


def _default_attacks(
    norm: Norm, has_scores: bool, has_categories: bool, image_shape: tuple[int, ...] | None
) -> list[Attack]:
    if norm == "edits":
        return [characters()]
    if not has_scores:
        return [random_search(), boundary()] if has_categories else [boundary()]
    searches: list[Attack] = [random_search()] if has_categories else []
    return [*searches, square(image_shape=image_shape)]


def _given_attacks(attacks: Sequence[Attack] | None) -> list[Attack]:
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


def _by_column(categories: Mapping[int | str, Sequence[float]]) -> dict[int | tuple[int, ...], Sequence[float]]:
    """Return categories by number of column; a contract has only texts as keys."""
    for column, values in categories.items():
        if isinstance(column, str) and not column.isdigit():
            raise UsageError(f"categories must map numbers of columns to their categories, got {column!r}")
        if not len(values):
            raise UsageError(f"categories[{column!r}] is empty: give all categories of the column")
    return {int(column): values for column, values in categories.items()}


def _split_dependent(
    dependent: Mapping[int | str, Callable[[Any], Any]], feed: Feed, name: str
) -> tuple[dict[Any, Callable[[Any], Any]], dict[str, Callable[[Any], Any]]]:
    """Return the functions of columns of the attacked input, and those of other inputs."""
    columns: dict[Any, Callable[[Any], Any]] = {}
    others: dict[str, Callable[[Any], Any]] = {}
    for key, function in dependent.items():
        if not callable(function):
            raise UsageError(f"dependent[{key!r}] must be a function of rows, got {type(function).__name__}")
        if not isinstance(key, str):
            columns[key] = function
        elif key.isdigit() and key not in feed:  # a contract has no other keys
            columns[int(key)] = function
        elif key not in feed or key == name:
            raise UsageError(
                f"dependent: {unknown_choice('input', key, [each for each in feed if each != name])}; for a column of "
                f"the input {name!r} give its number"
            )
        else:
            others[key] = function
    return columns, others
