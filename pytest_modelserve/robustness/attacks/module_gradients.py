"""Gradients of a torch module by inputs before their preprocessing, and the points of a ball that follow them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Clip, Impute, Scale, Standardize
from pytest_modelserve.artifacts.transforms import Step
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.attacks.attack import Target

if TYPE_CHECKING:
    import torch

AttackLoss = Literal["cross_entropy", "dlr"]
Preprocess = Callable[[Any], Any] | Sequence[Step] | None
"""A function of a torch tensor, or the steps that `ms.compose` put before the model."""
_BATCH = 512
"""Rows of one forward and backward pass."""
_LEAST_GAP = 1e-12
_QUERY_INTERVAL = 9
"""Most gradient steps between two queries. An odd number: the points of a search often alternate between two."""
_MOST_WAITING = 0.25
"""Proportion of rows that wait for a query, from which on they get it."""
_SETTLED = 1e-3
"""A row that moves less than this, times eps, between two queries has reached a fixed point: a corner, say."""


class ModuleGradients:
    """A module with its preprocessing, as scores and gradients of numpy rows.

    The module is copied, in eval mode and without gradients of its weights; the caller's stays as it is. One column of
    scores is the logit of class 1. The loss of probabilities is computed from their logarithms.

    Args:
        module: A torch module of one input that returns scores (n, classes), or a TrainedModel.
        preprocess: Function of a tensor, or steps; applied to the rows before the module.
        loss: "cross_entropy", or "dlr", the difference of logits ratio of Croce & Hein 2020.
    """

    def __init__(self, module: Any, *, preprocess: Preprocess = None, loss: AttackLoss = "cross_entropy") -> None:
        self._module = module.module() if _is_trained(module) else copy.deepcopy(module)
        for parameter in self._module.parameters():
            if parameter.is_leaf:  # not so in a traced module
                parameter.requires_grad_(False)
        self._module.eval()
        if any(parameter.ndim == 4 for parameter in self._module.parameters()):
            import torch

            self._module.to(memory_format=torch.channels_last)  # 1.5 times as fast
        self._prepare = _as_function(preprocess)
        self._loss = loss
        self._are_probabilities = False
        parameter = next(self._module.parameters(), None)
        self._device = None if parameter is None else parameter.device
        self._dtype = None if parameter is None or not parameter.is_floating_point() else parameter.dtype

    def scores(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the module's scores (n, classes) of given rows; InputError for outputs of another form.

        Whether these are probabilities decides on the loss of later calls.
        """
        import torch

        self._are_probabilities = False
        with torch.no_grad():
            scores: NDArray[np.float64] = (
                torch.cat([self._logits(part) for part in _parts(self.tensor(rows))]).double().cpu().numpy()
            )
        self._are_probabilities = are_probabilities(scores)
        return scores

    def tensor(self, values: NDArray[Any]) -> torch.Tensor:
        """Return an array in the dtype and on the device of the module."""
        import torch

        dtype = self._dtype if self._dtype is not None else torch.float32
        return torch.from_numpy(np.array(values)).to(device=self._device, dtype=dtype)

    def columns(self, columns: NDArray[np.intp]) -> torch.Tensor:
        """Return column numbers as a tensor."""
        import torch

        return torch.from_numpy(columns.astype(np.int64)).to(device=self._device)

    def gradients(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return losses (k,) of rows (k, ...), whether the module is wrong, and multiples of their gradients (k, ...).

        `columns` (k,) are the true columns of the scores.
        """
        import torch

        if len(rows) > _BATCH:
            parts = [self.gradients(*part) for part in zip(_parts(rows), _parts(columns), strict=True)]
            losses, wrong, gradients = map(torch.cat, zip(*parts, strict=True))
            return losses, wrong, gradients
        x = rows.detach().requires_grad_()
        logits = self._logits(x)
        if not logits.requires_grad:
            raise UsageError(
                "module returns scores without gradients: leave torch.no_grad, detach and numpy out of it and of "
                "preprocess=, or attack by queries, with ms.attacks.square()"
            )
        losses, wrong, by_logits = self._losses(logits.detach(), columns)
        return losses, wrong, torch.autograd.grad(logits, x, by_logits)[0]

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        prepared = _called("preprocess", self._prepare, x)
        if not isinstance(prepared, torch.Tensor):
            raise UsageError(f"preprocess must return a tensor, got {type(prepared).__name__}")
        scores = _called("module", self._module, prepared)
        if isinstance(scores, dict) and len(scores) == 1:
            (scores,) = scores.values()
        if not isinstance(scores, torch.Tensor):
            raise InputError(
                f"module returns a {type(scores).__name__}: an attack by gradients needs one tensor of scores (rows, "
                "classes); wrap the module so that it returns these"
            )
        scores = scores.reshape(len(scores), 1) if scores.ndim == 1 else scores
        if scores.ndim != 2 or len(scores) != len(x):
            raise InputError(f"module returns shape {tuple(scores.shape)} for {len(x)} rows, expected (rows, classes)")
        if scores.shape[1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
        return scores.clamp_min(_LEAST_GAP).log() if self._are_probabilities else scores

    def _losses(self, logits: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return losses (k,), whether the label is not the highest (k,), and multiples of the gradients by the logits.

        For the cross entropy c the loss is log(exp(c) - 1).

        Both have gradients of one direction, but that of c is 0 where the probability of the label rounds to 1. Written
        out, these gradients take half the time of those of autograd.
        """
        import torch

        label = columns[:, None]
        own, others = logits.gather(1, label), logits.scatter(1, label, -float("inf"))
        most, other = others.max(dim=1, keepdim=True)
        wrong = ~(most < own)[:, 0]  # NaN is wrong
        if logits.shape[1] == 2:
            return (most - own)[:, 0], wrong, torch.ones_like(logits).scatter_(1, label, -1.0)
        if self._loss == "cross_entropy":
            weights = (others - most).exp()  # softmax of so few columns takes three times as long
            total = weights.sum(dim=1, keepdim=True)
            return (most + total.log() - own)[:, 0], wrong, weights.scatter_(1, label, -total)
        scores, ranked = logits.topk(3, dim=1)
        losses = (most - own) / (scores[:, :1] - scores[:, 2:]).clamp_min(_LEAST_GAP)
        places = torch.cat([other, label, ranked[:, :1], ranked[:, 2:]], 1)
        signs = torch.cat([torch.ones_like(own), -torch.ones_like(own), -losses, losses], 1)  # times first - third
        return losses[:, 0], wrong, torch.zeros_like(logits).scatter_add_(1, places, signs)


def _called(name: str, function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    try:
        return function(x)
    except Exception as error:
        raise UsageError(
            f"{name} of the attack raised {type(error).__name__} for rows of shape {tuple(x.shape)}: {error}"
        ) from error


@dataclass(slots=True, eq=False)
class Found:
    """One evaluation: losses and directions of the rows that go on, and their places before (None: all of them)."""

    losses: torch.Tensor
    direction: torch.Tensor
    kept: torch.Tensor | None


class Ball:
    """Points around rows under attack, as multiples of eps, in tensors.

    Args:
        target: The served model under attack.
        gradients: The module.
        columns: The true column of the scores of each row of the target, (n,).
        index: The rows under attack, (k,).
        units: Their changes divided by eps, (k, ...).
    """

    def __init__(
        self,
        target: Target,
        gradients: ModuleGradients,
        columns: NDArray[np.intp],
        index: NDArray[np.intp],
        units: NDArray[np.float64],
    ) -> None:
        self._target, self._gradients = target, gradients
        self.index = index
        threat, tensor = target.threat, gradients.tensor
        base = target.rows[index].astype(np.float64)
        ends = []
        for limit, without in ((threat.low, -np.inf), (threat.high, np.inf)):
            room = np.asarray(without if limit is None else limit, np.float64) - base
            with np.errstate(divide="ignore", invalid="ignore"):
                ends.append(np.where(threat.scale > 0, room / threat.scale, 0.0))
        self._is_l2 = threat.norm == "l2"
        # Rows of whole numbers, and dependent features, are those that the threat model places.
        self._is_placed = bool(threat.whole.any()) or bool(threat.dependent)
        self._base, self._columns = tensor(base), gradients.columns(columns[index])
        self._scale = tensor(threat.scale)
        self._low, self._high = tensor(np.clip(ends[0], -1, 0)), tensor(np.clip(ends[1], 0, 1))
        self.units = self._best_units = self.projected(tensor(units))
        self._last_units = self.units.new_full((), float("inf")).expand_as(self.units)  # none yet: all rows move
        self._best_losses = self.units.new_full((), -float("inf")).expand(len(index))
        self._evaluations = 0

    def evaluate(self, *, is_last: bool = False) -> Found:
        """Compute losses and gradients; after a few evaluations, query the served model for the best points of these.

        Then the rows that fool it are dropped, and those that have no queries left or no longer move.
        """
        if self._is_placed:
            rows = self._gradients.tensor(self._candidates(self.index, self.units))
        else:
            rows = self._base.addcmul(self.units, self._scale)
        losses, wrong, gradient = self._gradients.gradients(rows, self._columns)
        better = wrong & ~(losses <= self._best_losses)
        self._best_losses = losses.where(better, self._best_losses)
        self._best_units = self.units.where(wide(better, self.units), self._best_units)
        self._evaluations += 1
        waiting = self._best_losses != -float("inf")
        kept = None
        is_due = is_last or self._evaluations % _QUERY_INTERVAL == 0
        if is_due or int(waiting.sum()) > _MOST_WAITING * len(waiting):
            kept = self._query(waiting)
            losses, gradient = losses.index_select(0, kept), gradient.index_select(0, kept)
        if self._is_l2:
            gradient = gradient * self._scale
            return Found(losses, (gradient / _norms(gradient)).nan_to_num(0.0), kept)
        return Found(losses, gradient.sign(), kept)

    def _query(self, waiting: torch.Tensor) -> torch.Tensor:
        """Query the served model for the best points of rows (k,); drop rows, and return the places of the others."""
        kept = (self.units - self._last_units).abs().flatten(1).amax(1) > _SETTLED
        if waiting.any():
            index = self.index[waiting.cpu().numpy()]
            self._target.query(index, self._candidates(index, self._best_units[waiting]))
            open_rows = ~self._target.fooled[self.index] & (self._target.left(self.index) > 0)
            kept &= kept.new_tensor(open_rows)
        self._last_units = self.units
        self._best_losses = self._best_losses.new_full((), -float("inf")).expand(len(kept))
        places = kept.nonzero()[:, 0]
        if len(places) < len(kept):
            self.index = self.index[places.cpu().numpy()]
            for name in ("units", "_last_units", "_best_units", "_best_losses", "_base", "_columns", "_low", "_high"):
                setattr(self, name, getattr(self, name).index_select(0, places))
        return places

    def projected(self, units: torch.Tensor) -> torch.Tensor:
        """Return the points of the ball, then of the range, nearest to `units`."""
        if self._is_l2:
            units = units / _norms(units).clamp_min(1.0)
        return units.clamp(self._low, self._high)

    def _candidates(self, index: NDArray[np.intp], units: torch.Tensor) -> NDArray[Any]:
        """Return admissible rows in the dtype that is served."""
        return self._target.threat.place(index, units.double().cpu().numpy())


def _parts(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows[begin : begin + _BATCH] for begin in range(0, len(rows), _BATCH)]


def check_settings(module: Any, preprocess: Preprocess, loss: AttackLoss) -> None:
    """Raise UsageError for anything but a module, a preprocessing with gradients and a known loss."""
    import torch

    if loss not in get_args(AttackLoss):
        raise UsageError(unknown_choice("loss", loss, get_args(AttackLoss)))
    if not isinstance(module, torch.nn.Module) and not _is_trained(module):
        raise UsageError(
            f"module must be a torch module or a TrainedModel, got {type(module).__name__}: a served file has no "
            "gradients; attack it by queries, with ms.attacks.square()"
        )
    _as_function(preprocess)


def are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Return whether the scores (n, classes) of each row are probabilities."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def _is_trained(module: Any) -> bool:
    """Return True for a TrainedModel, whose `module()` is a new one."""
    return hasattr(module, "subject") and callable(getattr(module, "module", None))


def _as_function(preprocess: Preprocess) -> Callable[[torch.Tensor], torch.Tensor]:
    if preprocess is None:
        return lambda x: x
    if isinstance(preprocess, Sequence):
        functions = [_step_function(step) for step in preprocess]

        def apply(x: torch.Tensor) -> torch.Tensor:
            for function in functions:
                x = function(x)
            return x

        return apply
    if callable(preprocess):
        return preprocess
    raise UsageError(
        f"preprocess must be a function of a tensor or a list of steps (ms.Scale, ms.Standardize, ms.Clip, ms.Impute), "
        f"got {type(preprocess).__name__}"
    )


def _step_function(step: Step) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a preprocessing step as a differentiable function."""
    import torch

    def numbers(value: Any, axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
        exact = torch.tensor(value, dtype=torch.float64)

        @functools.cache
        def along(dtype: torch.dtype, device: torch.device, ndim: int) -> torch.Tensor:
            sides = [-1 if place == axis % ndim else 1 for place in range(ndim)] if exact.ndim else []
            return exact.to(device, dtype).reshape(sides)

        return lambda x: along(x.dtype, x.device, x.ndim)

    if isinstance(step, Scale):
        return lambda x: x * step.factor + step.offset
    if isinstance(step, Standardize):
        mean, std = numbers(step.mean, step.axis), numbers(step.std, step.axis)
        return lambda x: (x - mean(x)) / std(x)
    if isinstance(step, Clip):
        return lambda x: x.clamp(step.low, step.high)
    if isinstance(step, Impute):
        values = numbers(step.values, step.axis)
        return lambda x: torch.where(x.isnan(), values(x), x)
    raise UsageError(
        f"preprocess has {type(step).__name__}, which has no gradient here: pass a function of a tensor that "
        "does the same"
    )


def _norms(units: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm of each row (k, 1, ...), at least a tiny number."""
    return wide(units.flatten(1).norm(dim=1).clamp_min(1e-30), units)


def wide(values: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Return one value a row (k,) in a form that broadcasts against `units` (k, ...)."""
    return values.reshape(-1, *[1] * (units.ndim - 1))
