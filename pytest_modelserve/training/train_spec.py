"""Settings of a training: loss, optimizer, schedule, and what happens to each batch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, check_call, unknown_choice
from pytest_modelserve.training.privacy_accounting import PrivateTraining, check_delta

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    # The arrays of some rows, by their names in the data of the source.
    Batch = dict[str, torch.Tensor]
    LossFunction = Callable[[Any, Any], torch.Tensor]
    MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], Optimizer]
    MakeSchedule = Callable[[Optimizer, int], LRScheduler]
    Augmentation = Callable[[Batch, torch.Generator], Batch]

LOSSES = ("cross_entropy", "nll", "binary_cross_entropy", "mse", "mae", "huber", "poisson_nll")
# Losses of classes, which can weight them.
WEIGHTED = ("cross_entropy", "nll", "binary_cross_entropy")
OPTIMIZERS = ("adam", "adamw", "sgd", "sgd-momentum", "rmsprop")
# Part of all steps in which the rate rises from 0, and the factor of the rate at the fraction of the other steps done.
SCHEDULES: dict[str, tuple[float, Callable[[float], float]]] = {
    "constant": (0.0, lambda _: 1.0),
    "linear": (0.0, lambda done: 1.0 - done),
    "cosine": (0.0, lambda done: 0.5 * (1.0 + math.cos(math.pi * done))),
    "warmup-linear": (0.05, lambda done: 1.0 - done),
    "warmup-cosine": (0.05, lambda done: 0.5 * (1.0 + math.cos(math.pi * done))),
}
DEVICES = ("cpu", "cuda")
# Label that torch's losses of classes leave out.
IGNORED = -100
# Settings that may be functions, with their arguments.
_FUNCTIONS = {
    "loss": ("outputs", "labels"),
    "optimizer": ("parameters",),
    "schedule": ("optimizer", "steps"),
    "augmentation": ("batch", "generator"),
}
_RATE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """Stop when the loss on held-out rows no longer falls, and keep the weights of the best epoch.

    Args:
        patience: Epochs without a new lowest loss after which the training stops, at least 1.
        held_out: Rows that are not trained on: a proportion, drawn from the seed, or the name of a boolean array in the
            data of the source that is True for them.
        min_improvement: How far the loss must fall below the lowest one to count.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.EarlyStopping(patience=5, held_out=0.1)
        EarlyStopping(patience=5, held_out=0.1, min_improvement=0.0)
    """

    patience: int
    held_out: float | str = 0.2
    min_improvement: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", _count("patience", self.patience))
        if not isinstance(self.held_out, str):
            range_ = "between 0 and 1, or the name of a boolean array"
            object.__setattr__(
                self, "held_out", _number("held_out", self.held_out, range_, lambda value: 0 < value < 1)
            )
        least = _number("min_improvement", self.min_improvement, "of at least 0", lambda value: value >= 0)
        object.__setattr__(self, "min_improvement", least)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Settings of a training, in place of a function: `ModelSource(fit=TrainSpec(...))`.

    Args:
        loss: Name of a loss, or `loss(outputs, labels)` that returns its mean over the rows; `outputs` is what the
            module returns. By name: "cross_entropy" (logits), "nll" (log-probabilities), "binary_cross_entropy"
            (logits), "mse", "mae", "huber" and "poisson_nll" (log-rates).
        epochs: Passes over the rows.
        batch_size: Rows of a step, over all processes; the last step of an epoch may have fewer.
        optimizer: "adam", "adamw", "sgd", "sgd-momentum" (0.9, Nesterov), "rmsprop", or a function from the parameters
            to an optimizer.
        learning_rate: Rate at the peak of the schedule (default: 0.001, or that of an optimizer from a function).
        schedule: "constant", "linear" or "cosine" (to 0 after the last step), "warmup-linear" or "warmup-cosine" (the
            same after rising over 5 % of the steps), or a function from the optimizer and the number of steps to a
            scheduler, whose `step` is called after every step.
        label_smoothing: Proportion of a label's probability that is spread over all classes, for "cross_entropy".
        class_weights: A weight for each class, in a loss of classes; for "binary_cross_entropy" of 0 and of 1.
        max_grad_norm: Longest gradient of a step; a longer one is scaled down to it.
        early_stopping: When to stop before `epochs`.
        augmentation: `augmentation(batch, generator)` returns a changed batch. The batch has the tensors of the data by
            name; random choices must come from `generator`, which starts anew in every step.
        inputs: Names in the data of the module's inputs: one, several by position, or by the names of `forward`'s
            parameters.
        labels: Name in the data of the labels, several names for a loss function that takes a tuple, or None for one
            that takes None.
        output: Name of the output that a loss given by name reads, if the module returns several.
        device: "cpu", or "cuda" with one GPU for each process.
        privacy: Train with differential privacy: `PrivateTraining(epsilon=, delta=, max_grad_norm=)`. The gradient of
            each row is then clipped, `batch_size` is the expected number of rows of a step, and one process trains.

    Raises:
        UsageError: An unknown name, a value out of range, or an option that the loss does not have.

    Example:
        >>> import pytest_modelserve as ms
        >>> spec = ms.TrainSpec(loss="cross_entropy", epochs=30, learning_rate=2e-3, schedule="cosine")
        >>> spec.describe()["schedule"]
        'cosine'
    """

    loss: str | LossFunction
    epochs: int
    batch_size: int = 64
    optimizer: str | MakeOptimizer = "adam"
    learning_rate: float | None = None
    schedule: str | MakeSchedule = "constant"
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    max_grad_norm: float | None = None
    early_stopping: EarlyStopping | None = None
    augmentation: Augmentation | None = None
    inputs: str | Sequence[str] | Mapping[str, str] = "x"
    labels: str | Sequence[str] | None = "y"
    output: str | None = None
    device: str = "cpu"
    privacy: PrivateTraining | None = None

    def __post_init__(self) -> None:
        _check_choice("loss", self.loss, LOSSES)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        if isinstance(self.loss, type):
            raise UsageError(
                f"loss must be a function; got the class {self.loss.__name__}: pass {self.loss.__name__}()"
            )
        if getattr(self.loss, "reduction", "mean") == "sum":
            raise UsageError("loss must return the mean over the rows; got one with reduction='sum'")
        for name, arguments in _FUNCTIONS.items():
            if callable(getattr(self, name)):
                check_call(name, getattr(self, name), *arguments)
        if self.device not in DEVICES:
            raise UsageError(f"device must be 'cpu' or 'cuda'; got {self.device!r}")
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name), "above 0", lambda value: value > 0))
        smoothing = _number(
            "label_smoothing", self.label_smoothing, "from 0 to less than 1", lambda value: 0 <= value < 1
        )
        object.__setattr__(self, "label_smoothing", smoothing)
        if self.label_smoothing and self.loss != "cross_entropy":
            raise UsageError(f"label_smoothing needs loss='cross_entropy'; got {_shown(self.loss)!r}")
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", self._checked_weights(self.class_weights))
        if self.early_stopping is not None and not isinstance(self.early_stopping, EarlyStopping):
            raise UsageError(f"early_stopping must be ms.EarlyStopping(...); got {type(self.early_stopping).__name__}")
        if self.privacy is not None and not isinstance(self.privacy, PrivateTraining):
            raise UsageError(f"privacy must be ms.PrivateTraining(...); got {type(self.privacy).__name__}")
        if self.privacy is not None and self.max_grad_norm is not None:
            raise UsageError(
                "max_grad_norm of a private training is that of a row: give it to PrivateTraining(max_grad_norm=) only"
            )
        if self.augmentation is not None and not callable(self.augmentation):
            raise UsageError(f"augmentation must be a function; got {type(self.augmentation).__name__}")
        self._check_names()

    def _checked_weights(self, given: Sequence[float]) -> tuple[float, ...]:
        if self.loss not in WEIGHTED:
            raise UsageError(
                f"class_weights needs a loss of classes ({', '.join(WEIGHTED)}); got {_shown(self.loss)!r}: weight the "
                "classes in your function"
            )
        weights = np.asarray(given)
        is_row = weights.ndim == 1 and weights.dtype.kind in "fiu" and bool(weights.any())
        if not is_row or not (np.isfinite(weights) & (weights >= 0)).all():
            raise UsageError(f"class_weights must be finite numbers of at least 0, one for each class; got {given!r}")
        if self.loss == "binary_cross_entropy" and len(weights) != 2:
            raise UsageError(
                f"class_weights of binary_cross_entropy are two, of label 0 and of label 1; got {len(weights)}"
            )
        return tuple(float(weight) for weight in weights)

    def _check_names(self) -> None:
        if isinstance(self.inputs, Mapping):
            object.__setattr__(self, "inputs", dict(self.inputs))
        elif isinstance(self.inputs, Sequence) and not isinstance(self.inputs, str):
            object.__setattr__(self, "inputs", tuple(self.inputs))
        if isinstance(self.labels, Sequence) and not isinstance(self.labels, str):
            object.__setattr__(self, "labels", tuple(self.labels))
        for what, given in (("inputs", self.inputs), ("labels", self.labels or ())):
            names = given.values() if isinstance(given, Mapping) else (given,) if isinstance(given, str) else given
            if not isinstance(given, (str, tuple, dict)) or not all(isinstance(name, str) for name in names):
                raise UsageError(f"{what} must be names of arrays of the data; got {given!r}")
        if not self.input_names:
            raise UsageError("inputs must name at least one array of the data; got none")
        if isinstance(self.loss, str) and not isinstance(self.labels, str):
            raise UsageError(f"labels of loss={self.loss!r} must be one name of the data; got {self.labels!r}")
        if self.output is not None and not isinstance(self.loss, str):
            raise UsageError("output applies to a loss given by name; your function gets all outputs of the module")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the data that the module gets."""
        if isinstance(self.inputs, str):
            return (self.inputs,)
        return tuple(self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the data that the loss gets."""
        if self.labels is None:
            return ()
        return (self.labels,) if isinstance(self.labels, str) else tuple(self.labels)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON values; a function is given by its name."""
        shown: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, EarlyStopping):
                value = {each.name: getattr(value, each.name) for each in fields(value)}
            elif isinstance(value, PrivateTraining):
                value = value.describe()
            elif callable(value):
                value = _shown(value)
            shown[field.name] = list(value) if isinstance(value, tuple) else value
        return shown

    def functions(self) -> dict[str, Any]:
        """Return the settings that are functions."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.privacy is not None:
            values["privacy optimizer"] = self.privacy.optimizer
        return {name: value for name, value in values.items() if callable(value)}

    def make_optimizer(self, module: torch.nn.Module) -> Optimizer:
        """Return the optimizer of the parameters of `module` that require gradients.

        Raises:
            UsageError: No parameter requires a gradient, or the function returns no optimizer.
        """
        from torch import optim

        parameters = [each for each in module.parameters() if each.requires_grad]
        if not parameters:
            raise UsageError(f"{type(module).__name__} has no parameter that requires a gradient: nothing to train")
        if isinstance(self.optimizer, str):
            rate = _RATE if self.learning_rate is None else self.learning_rate
            makers: dict[str, Callable[..., Optimizer]] = {
                "adam": optim.Adam,
                "adamw": optim.AdamW,
                "sgd": optim.SGD,
                "sgd-momentum": functools.partial(optim.SGD, momentum=0.9, nesterov=True),
                "rmsprop": optim.RMSprop,
            }
            return makers[self.optimizer](parameters, lr=rate)
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, optim.Optimizer):
            raise UsageError(f"optimizer must return a torch optimizer; got {type(optimizer).__name__}")
        known = {id(each) for each in parameters}
        if not any(id(each) in known for group in optimizer.param_groups for each in group["params"]):
            raise UsageError("optimizer must train the parameters that it gets; it has none of them")
        _check_step("optimizer", optimizer)
        if self.learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
        return optimizer

    def make_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler of the learning rate over `steps` steps."""
        from torch.optim.lr_scheduler import LambdaLR, LRScheduler

        if not isinstance(self.schedule, str):
            made = self.schedule(optimizer, steps)
            if not isinstance(made, LRScheduler):
                raise UsageError(f"schedule must return a torch scheduler; got {type(made).__name__}")
            _check_step("schedule", made)
            return made
        proportion, factor = SCHEDULES[self.schedule]
        warmup = math.ceil(proportion * steps)

        def factor_at(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return factor((step - warmup) / max(1, steps - warmup))

        return LambdaLR(optimizer, factor_at)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The data of a training, split into rows to train on and held-out rows."""

    arrays: Mapping[str, NDArray[Any]]
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return copies of some rows as tensors."""
        import torch

        parts = {name: array[rows] for name, array in self.arrays.items()}
        return {
            name: torch.from_numpy(np.ascontiguousarray(part, part.dtype.newbyteorder("=")))
            for name, part in parts.items()
        }


def split_rows(spec: TrainSpec, data: Mapping[str, NDArray[Any]], seed: int) -> TrainingRows:
    """Return the rows of `data` as `spec` names and splits them.

    Raises:
        InputError: A name is missing in the data, an array has another number of rows or no numbers, or a part of the
            split is empty.
        UsageError: `delta` of a private training is larger than 1 / rows.
    """
    stopping = spec.early_stopping
    mask_name = stopping.held_out if stopping and isinstance(stopping.held_out, str) else None
    needed = {"inputs": spec.input_names, "labels": spec.label_names, "held_out": (mask_name,) if mask_name else ()}
    for role, names in needed.items():
        for name in names:
            if name not in data:
                raise InputError(f"{role}: {unknown_choice('name in the data', name, data)}")
    count = len(data[spec.input_names[0]])
    for name, array in data.items():
        if array.ndim == 0 or len(array) != count:
            found = f"{len(array)} rows" if array.ndim else "no rows"
            raise InputError(
                f"data: {name!r} has {found}, {spec.input_names[0]!r} has {count}: a TrainSpec needs the same rows in "
                "every array; bind other values to your functions with functools.partial"
            )
        if array.dtype.kind not in "fiubc":
            what = "use integer codes of the classes" if name in spec.label_names else "encode it as numbers"
            raise InputError(f"data: {name!r} has dtype {array.dtype}, which torch cannot take: {what}")
    training, held_out = np.arange(count), np.arange(0)
    if stopping is not None:
        is_held_out = _held_out_mask(stopping, data, count, seed)
        training, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        if not len(training) or not len(held_out):
            raise InputError(
                f"held_out={stopping.held_out!r} leaves {len(training)} of {count} rows to train on and "
                f"{len(held_out)} held out: both need at least one"
            )
    for what, rows in (("", training), ("held-out ", held_out)):
        if spec.loss in WEIGHTED[:2] and len(rows) and (data[spec.label_names[0]][rows] == IGNORED).all():
            raise InputError(
                f"labels: {spec.label_names[0]!r} is {IGNORED} in all {len(rows)} {what}rows, which marks labels to "
                "leave out: give at least one row with a label"
            )
    if spec.privacy is not None:
        check_delta(spec.privacy.delta, len(training))
    return TrainingRows({name: array for name, array in data.items() if name != mask_name}, training, held_out)


def _held_out_mask(stopping: EarlyStopping, data: Mapping[str, NDArray[Any]], count: int, seed: int) -> NDArray[Any]:
    if isinstance(stopping.held_out, str):
        mask = data[stopping.held_out]
        if mask.dtype != np.bool_ or mask.ndim != 1:
            raise InputError(
                f"held_out: {stopping.held_out!r} must be a boolean array (rows,); got {mask.dtype}{list(mask.shape)}"
            )
        return mask
    drawn = np.random.default_rng(seed).permutation(count)[: round(stopping.held_out * count)]
    return np.isin(np.arange(count), drawn)


def _shown(value: object) -> str:
    if isinstance(value, functools.partial):
        settings = ", ".join(f"{name}={setting!r}" for name, setting in value.keywords.items())
        return f"{_shown(value.func)}({settings})"
    return value if isinstance(value, str) else getattr(value, "__qualname__", type(value).__qualname__)


def _check_step(what: str, made: Any) -> None:
    """Raise UsageError for an optimizer or scheduler whose `step` needs an argument: a closure, or a metric."""
    parameters = inspect.signature(type(made).step).parameters.values()
    needed = [each.name for each in parameters if each.name != "self" and each.default is each.empty]
    if needed:
        raise UsageError(
            f"{what}: step() of {type(made).__name__} needs {needed[0]!r}, which a TrainSpec does not have: choose "
            f"another {what}, or train by a function"
        )


def _check_choice(what: str, given: object, names: Iterable[str]) -> None:
    if not callable(given) and given is not None and not isinstance(given, str):
        raise UsageError(
            f"{what} must be one of {', '.join(map(repr, names))}, or a function; got {type(given).__name__}"
        )
    if not callable(given) and given not in list(names):
        raise UsageError(f"{unknown_choice(what, given, names)}, or a function")


def _count(what: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
        raise UsageError(f"{what} must be an integer of at least 1; got {given!r}")
    return int(given)


def _number(what: str, given: Any, range_: str, is_in: Callable[[float], bool]) -> float:
    is_number = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not is_number or not math.isfinite(given) or not is_in(given):
        got = repr(given) if isinstance(given, (str, int, float)) or given is None else type(given).__name__
        raise UsageError(f"{what} must be a finite number {range_}; got {got}")
    return float(given)
