"""Attacks by the gradients of a torch module, transferred to the served model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics.classification import class_labels
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.attack import Attack, Target, margins_of
from pytest_modelserve.robustness.attacks.module_gradients import (
    AttackLoss,
    Ball,
    Found,
    ModuleGradients,
    Preprocess,
    are_probabilities,
    check_settings,
    wide,
)

if TYPE_CHECKING:
    import torch

_MOST_OTHER_LABELS = 0.1
"""The largest proportion of rows in which module and served model may disagree: int8 changes a percent or two."""
_MOST_OTHER_MARGINS = 0.5
"""The largest relative difference of their margins. int8 changes 2 to 10 %; a missing preprocessing several times."""
_UNDERFLOW = 80.0
"""Margins of logarithms of float32 probabilities are cut here: smaller probabilities than e^-87 are 0."""

_ROWS_CHECKED = 100
"""Rows whose gradients are looked at before the search."""

_MOMENTUM = 0.75
_INCREASES = 0.75
"""Constants of APGD: the weight of the new step, and the proportion of steps that must increase the loss."""


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Base class of attacks that follow the gradient of a torch module.

    Rows and `eps` are those before preprocessing; the gradient goes through `preprocess`. A row that the module
    predicts wrong is sent to the served model within a few steps, at its point of the highest loss since the last time.
    It counts only if that is fooled, too; otherwise the search goes on.
    """

    module: Any = field(kw_only=False)
    _: KW_ONLY
    steps: int = 40
    restarts: int = 1
    loss: AttackLoss = "cross_entropy"
    preprocess: Preprocess = None
    classes: Sequence[Any] | None = None
    surrogate: bool = False

    changes_categories: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("steps")
        self._check_count("restarts")
        check_settings(self.module, self.preprocess, self.loss)

    def run(self, target: Target, rng: np.random.Generator) -> None:
        gradients = ModuleGradients(self.module, preprocess=self.preprocess, loss=self.loss)
        columns = self._columns(target, gradients)
        for _ in progress(range(self.restarts), f"{self.name} restarts"):
            index = target.active()
            if not index.size:
                return
            self.search(Ball(target, gradients, columns, index, _random_units(target, index, rng)))

    @abstractmethod
    def search(self, ball: Ball) -> None:
        """Search from one random start of each row."""

    def _columns(self, target: Target, gradients: ModuleGradients) -> NDArray[np.intp]:
        """Return the column of each label in the module's scores; check that module and served model agree."""
        open_rows = target.active()
        if not open_rows.size:
            return np.zeros(len(target.labels), np.intp)
        scores = gradients.scores(target.rows[open_rows])
        if not np.isfinite(scores).all():
            raise InputError(f"module of {self.name} returns NaN or infinite scores for the given rows: fix the module")
        columns = self._columns_of(target, scores.shape[1])
        self._check_same_model(target, open_rows, columns[open_rows], scores)
        self._check_gradients(target, gradients, columns, open_rows[:_ROWS_CHECKED])
        return columns

    def _check_gradients(
        self, target: Target, gradients: ModuleGradients, columns: NDArray[np.intp], index: NDArray[np.intp]
    ) -> None:
        """Raise UsageError if most rows have no gradient: then nothing is searched."""
        _, _, found = gradients.gradients(gradients.tensor(target.rows[index]), gradients.columns(columns[index]))
        without = int((found.flatten(1) == 0).all(dim=1).sum())
        if 2 * without > index.size:
            raise UsageError(
                f"module of {self.name} has a gradient of 0 in {without} of {index.size} rows, as after rounding, and "
                "for probabilities that round to 1: return logits, or attack by queries, with ms.attacks.square()"
            )

    def _columns_of(self, target: Target, count: int) -> NDArray[np.intp]:
        if self.classes is None:
            columns = target.classes
            if columns is None and target.labels.dtype.kind in "iu":
                columns = target.labels.astype(np.intp)
            if columns is None:
                raise UsageError(
                    f"classes of {self.name} is missing: labels are text, so pass the label of each of the module's "
                    f"{count} columns, classes=[...]"
                )
        else:
            known = class_labels(np.asarray(self.classes), what="classes").tolist()
            if len(known) != count:
                raise UsageError(f"classes of {self.name} has {len(known)} labels; the module returns {count} columns")
            numbers = {label: column for column, label in enumerate(known)}
            unknown = [label for label in np.unique(target.labels).tolist() if label not in numbers]
            if unknown:
                raise UsageError(f"classes of {self.name} lacks the label {unknown[0]!r}: it has {known}")
            columns = np.array([numbers[label] for label in target.labels.tolist()], np.intp)
        if columns.min() < 0 or columns.max() >= count:
            raise InputError(
                f"labels hold {columns.max() if columns.max() >= count else columns.min()}, and the module has {count} "
                f"columns: labels must be from 0 to {count - 1}, or pass classes=[...]"
            )
        return columns

    def _check_same_model(
        self,
        target: Target,
        index: NDArray[np.intp],
        columns: NDArray[np.intp],
        scores: NDArray[np.float64],
    ) -> None:
        """Raise UsageError if the module does not compute what is served: then its gradients prove nothing.

        `index` are the rows that the served model predicts right.
        """
        if self.surrogate:
            return
        advice = (
            "pass preprocess= with the steps of the served file, the module with the served weights, or surrogate=True "
            "for a transfer between two models"
        )
        other = np.count_nonzero(scores.argmax(axis=1) != columns)
        if other > max(2, _MOST_OTHER_LABELS * len(index)):
            raise UsageError(
                f"module of {self.name} predicts another label than the served model for {other} of {len(index)} rows "
                f"that this predicts right: {advice}"
            )
        served = target.scores(index)
        if served is None or served.shape != scores.shape:
            return
        probable = [are_probabilities(each) for each in (served, scores)]
        logits = [
            np.log(np.maximum(each, 1e-45)) if is_one else each
            for each, is_one in zip((served, scores), probable, strict=True)
        ]
        expected, found = (margins_of(each, columns) for each in logits)
        if any(probable):
            expected, found = (np.clip(each, -_UNDERFLOW, _UNDERFLOW) for each in (expected, found))
        difference = np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-300)
        if difference > _MOST_OTHER_MARGINS:
            ratio = float(np.median(np.abs(found)) / max(float(np.median(np.abs(expected))), 1e-300))
            raise UsageError(
                f"module of {self.name} does not reproduce the served model: its margins (score of the label less the "
                f"highest other) are {ratio:.3g} times as large: {advice}"
            )


@dataclass(frozen=True, kw_only=True)
class pgd(GradientAttack):
    """Projected gradient descent with random restarts, all steps of one size.

    Each step goes along the sign of the gradient (L∞) or along the gradient (L2) and back into the ball and the range.
    Source: Madry et al. 2018, ICLR.

    Args:
        module: A torch module that returns scores (n, classes), or a TrainedModel.
        steps: Gradient steps of each start.
        restarts: Random starts of each row that is not fooled yet.
        step_size: Size of a step as a proportion of eps (default: 2.5 / steps, at least 0.02).
        loss: "cross_entropy" or "dlr".
        preprocess: What the served file does before the module: steps of `ms.compose`, or a function of a tensor.
        classes: The labels of the module's columns, where labels are text.
        surrogate: Whether the module may be another model than the served one.
        queries: Largest number of served predictions of each row.

    Raises:
        UsageError: Invalid settings; from the gate, a module that does not reproduce the served model.

    Example:
        >>> import numpy as np, torch
        >>> import pytest_modelserve as ms
        >>> module = torch.nn.Linear(2, 2)
        >>> ms.attacks.pgd(module, steps=20, restarts=3).restarts
        3
    """

    step_size: float | None = None
    name: ClassVar[str] = "PGD"
    source: ClassVar[str] = "Madry et al. 2018, ICLR"

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.step_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 < size <= 2):
            raise UsageError(f"step_size of {self.name} must be above 0 and at most 2 (times eps), got {size!r}")

    def search(self, ball: Ball) -> None:
        size = max(2.5 / self.steps, 0.02) if self.step_size is None else self.step_size
        for step in range(self.steps + 1):
            found = ball.evaluate(is_last=step == self.steps)
            if not ball.index.size:
                return
            ball.units = ball.projected(ball.units + size * found.direction)


@dataclass(frozen=True, kw_only=True)
class apgd(GradientAttack):
    """Projected gradient descent with momentum and a step size that halves where the loss stops to grow.

    At checkpoints that come closer to each other, a row whose loss rose in less than 75 % of the steps, or whose step
    and best loss stayed as they were, continues from its best point with half the step. There is no step size to tune.
    Source: Croce & Hein 2020, ICML, algorithm 1, with its constants; momentum starts anew after each halving.

    Args:
        module: A torch module that returns scores (n, classes), or a TrainedModel.
        steps: Gradient steps of each start.
        restarts: Random starts of each row that is not fooled yet.
        loss: "dlr", the difference of logits ratio, or "cross_entropy". For two classes "dlr" is their margin.
        preprocess: What the served file does before the module: steps of `ms.compose`, or a function of a tensor.
        classes: The labels of the module's columns, where labels are text.
        surrogate: Whether the module may be another model than the served one.
        queries: Largest number of served predictions of each row.

    Raises:
        UsageError: Invalid settings; from the gate, a module that does not reproduce the served model.

    Example:
        >>> import torch
        >>> import pytest_modelserve as ms
        >>> ms.attacks.apgd(torch.nn.Linear(2, 2)).loss
        'dlr'
    """

    loss: AttackLoss = "dlr"
    name: ClassVar[str] = "APGD"
    source: ClassVar[str] = "Croce & Hein 2020, ICML"

    def search(self, ball: Ball) -> None:
        start = ball.evaluate()
        if not ball.index.size:
            return
        state = _Progress.of(ball, start)
        checkpoints = _checkpoints(self.steps)
        last = 0
        for step in range(1, self.steps + 1):
            ahead = ball.projected(ball.units + state.sizes * state.direction)
            weight = 1.0 if step == 1 else _MOMENTUM
            moved = ball.units + weight * (ahead - ball.units) + (1 - weight) * (ball.units - state.previous)
            state.previous = ball.units
            ball.units = ball.projected(moved)
            found = ball.evaluate(is_last=step == self.steps)
            state.keep(found.kept)
            if not ball.index.size:
                return
            state.record(ball, found)
            if step in checkpoints:
                state.halve(ball, step - last)
                last = step


@dataclass(slots=True, eq=False)
class _Progress:
    """Step sizes, best points and counts of increases of rows under APGD."""

    sizes: torch.Tensor
    direction: torch.Tensor
    previous: torch.Tensor
    losses: torch.Tensor
    best_losses: torch.Tensor
    best_units: torch.Tensor
    best_direction: torch.Tensor
    increases: torch.Tensor
    is_fresh: torch.Tensor
    checked_losses: torch.Tensor

    @classmethod
    def of(cls, ball: Ball, start: Found) -> _Progress:
        nothing = start.losses * 0
        return cls(
            sizes=wide(nothing + 2.0, ball.units),
            direction=start.direction,
            previous=ball.units,
            losses=start.losses,
            best_losses=start.losses,
            best_units=ball.units,
            best_direction=start.direction,
            increases=nothing,
            is_fresh=nothing == 0,
            checked_losses=start.losses,
        )

    def keep(self, kept: torch.Tensor | None) -> None:
        """Drop the rows that are decided."""
        if kept is not None:
            for name in self.__slots__:
                setattr(self, name, getattr(self, name).index_select(0, kept))

    def record(self, ball: Ball, found: Found) -> None:
        """Count increases, and store the best points."""
        self.increases = self.increases + (found.losses > self.losses)
        self.losses, self.direction = found.losses, found.direction
        better = found.losses > self.best_losses
        along = wide(better, ball.units)
        self.best_losses = found.losses.where(better, self.best_losses)
        self.best_units = ball.units.where(along, self.best_units)
        self.best_direction = found.direction.where(along, self.best_direction)

    def halve(self, ball: Ball, steps: int) -> None:
        """Halve the step of the rows that make no progress, and return them to their best points."""
        stuck = self.increases < _INCREASES * steps
        stuck |= self.is_fresh & (self.best_losses <= self.checked_losses)
        along = wide(stuck, ball.units)
        self.sizes = (self.sizes / 2).where(along, self.sizes)
        ball.units = self.best_units.where(along, ball.units)
        self.previous = self.best_units.where(along, self.previous)
        self.direction = self.best_direction.where(along, self.direction)
        self.losses = self.best_losses.where(stuck, self.losses)
        self.is_fresh, self.checked_losses = ~stuck, self.best_losses
        self.increases = self.increases * 0


def _checkpoints(steps: int) -> frozenset[int]:
    """Return the steps after which step sizes are judged: 22 %, then intervals shorter by 3 points, at least 6."""
    places, gap = [0.0, 0.22], 0.22
    while places[-1] < 1:
        gap = max(gap - 0.03, 0.06)
        places.append(places[-1] + gap)
    return frozenset(int(np.ceil(place * steps)) for place in places[1:] if place <= 1)


def _random_units(target: Target, index: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return random points (k, ...) of the unit ball of the threat model."""
    shape = (index.size, *target.threat.shape)
    if target.threat.norm == "linf":
        return rng.uniform(-1, 1, shape)
    points = np.where(target.threat.free, rng.normal(size=shape), 0.0).reshape(index.size, -1)
    radius = rng.uniform(size=(index.size, 1)) ** (1 / max(1, int(target.threat.free.sum())))
    return np.asarray(radius * points / np.linalg.norm(points, axis=1, keepdims=True)).reshape(shape)
