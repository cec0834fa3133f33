"""Gradients of a torch module with respect to inputs before their preprocessing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Clip, Impute, Scale, Standardize
from pytest_modelserve.artifacts.transforms import Step
from pytest_modelserve.errors import InputError, UsageError, unknown_choice

if TYPE_CHECKING:
    import torch

AttackLoss = Literal["cross_entropy", "dlr"]
Preprocess = Callable[[Any], Any] | Sequence[Step] | None
"""A function of a torch tensor, or the steps that `ms.compose` put before the model."""
_BATCH = 512
"""Rows of one forward and backward pass."""
_LEAST_GAP = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Losses (k,) of rows, their gradients by the input (k, ...), and whether the module's label is another one."""

    losses: NDArray[np.float64]
    by_input: NDArray[np.float64]
    wrong: NDArray[np.bool_]


class ModuleGradients:
    """A module with its preprocessing, as scores and gradients of numpy rows.

    The module is copied, in eval mode and without gradients of its weights; the caller's stays as it is. One column of
    scores is the logit of class 1. The loss of probabilities is computed from their logarithms.

    Args:
        module: A torch module of one input that returns scores (n, classes), or a TrainedModel.
        preprocess: Function of a tensor, or steps; applied to the rows before the module.
        loss: "cross_entropy", or "dlr", the difference of logits ratio of Croce & Hein 2020, which does not saturate.

    Raises:
        UsageError: `module` is no torch module, or `preprocess` or `loss` is unknown.
    """

    def __init__(self, module: Any, *, preprocess: Preprocess = None, loss: AttackLoss = "cross_entropy") -> None:
        check_settings(module, preprocess, loss)
        self._module = module.module() if _is_trained(module) else copy.deepcopy(module)
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        self._module.eval()
        self._prepare = _as_function(preprocess)
        self._loss = loss
        self._are_probabilities = False
        parameter = next(self._module.parameters(), None)
        self._device = None if parameter is None else parameter.device
        self._dtype = None if parameter is None or not parameter.is_floating_point() else parameter.dtype

    def scores(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return the module's scores (n, classes) in float64; InputError for outputs of another form."""
        import torch

        with torch.no_grad():
            parts = [self._logits(self._tensor(part)).double().cpu().numpy() for part in _parts(rows)]
        return np.concatenate(parts)

    def read_scores(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return `scores` of rows, and decide by them whether the module returns probabilities."""
        self._are_probabilities = False
        scores = self.scores(rows)
        sums = scores.sum(axis=1)
        self._are_probabilities = bool((scores >= 0).all() and np.allclose(sums, 1, atol=1e-4))
        return scores

    def gradients(self, rows: NDArray[Any], columns: NDArray[np.intp]) -> Gradients:
        """Return losses and gradients of rows (k, ...) with their true columns of the scores (k,)."""
        import torch

        parts = []
        for part, true in zip(_parts(rows), _parts(columns), strict=True):
            x = self._tensor(part).requires_grad_()
            logits = self._logits(x)
            truth = torch.from_numpy(true.astype(np.int64)).to(logits.device)
            others, own = _apart(logits, truth)
            losses = self._losses(logits, truth, others, own)
            gradient = torch.autograd.grad(losses.sum(), x)[0]
            parts.append(
                (
                    losses.detach().double().cpu().numpy(),
                    gradient.double().cpu().numpy(),
                    (others >= own).cpu().numpy(),
                )
            )
        values, by_input, wrong = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Gradients(values, np.nan_to_num(by_input, posinf=0.0, neginf=0.0), wrong)

    def _tensor(self, rows: NDArray[Any]) -> torch.Tensor:
        import torch

        dtype = self._dtype if self._dtype is not None else torch.float32
        return torch.from_numpy(np.array(rows)).to(device=self._device, dtype=dtype)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        prepared = self._prepare(x)
        if not isinstance(prepared, torch.Tensor):
            raise UsageError(f"preprocess must return a tensor, got {type(prepared).__name__}")
        scores = self._module(prepared)
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

    def _losses(
        self, logits: torch.Tensor, truth: torch.Tensor, others: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        import torch

        if self._loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        if logits.shape[1] < 3:
            return others - own
        first, _, third = logits.topk(3, dim=1).values.unbind(dim=1)
        return (others - own) / (first - third).clamp_min(_LEAST_GAP)


def _apart(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest score of another class, and that of the true one, (k,) each."""
    own = logits.gather(1, truth[:, None])[:, 0]
    others = logits.scatter(1, truth[:, None], -float("inf")).amax(dim=1)
    return others, own


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


def _is_trained(module: Any) -> bool:
    """Return True for a TrainedModel, whose `module()` is a new one."""
    return hasattr(module, "subject") and callable(getattr(module, "module", None))


def _parts(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return [rows[begin : begin + _BATCH] for begin in range(0, len(rows), _BATCH)]


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

    def along(value: Any, axis: int, x: torch.Tensor) -> torch.Tensor:
        numbers = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        return (
            numbers if numbers.ndim == 0 else numbers.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
        )

    if isinstance(step, Scale):
        return lambda x: x * step.factor + step.offset
    if isinstance(step, Standardize):
        return lambda x: (x - along(step.mean, step.axis, x)) / along(step.std, step.axis, x)
    if isinstance(step, Clip):
        return lambda x: x.clamp(step.low, step.high)
    if isinstance(step, Impute):
        return lambda x: torch.where(x.isnan(), along(step.values, step.axis, x), x)
    raise UsageError(
        f"preprocess has {type(step).__name__}, which has no gradient here: pass a function of a tensor that "
        "does the same"
    )
