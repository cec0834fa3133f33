"""Steps of a private training: sampled rows, clipped gradients of rows, and noise, by opacus."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError, require
from pytest_modelserve.training.privacy_accounting import NoisySteps, PrivacySpent, PrivateTraining, epsilon_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import nn
    from torch.optim import Optimizer

    from pytest_modelserve.training.loss import TrainingLoss
    from pytest_modelserve.training.train_spec import Batch

# Rows whose losses are added to check that a row's loss does not depend on other rows, and the tolerated difference.
_CHECKED_ROWS = 4
_TOLERANCE = 1e-3
_RECURRENT = {"LSTM": "DPLSTM", "GRU": "DPGRU", "RNN": "DPRNN"}


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """The steps that a private training takes, and the training rows, of which `rows` x `sample_rate` are expected."""

    steps: NoisySteps
    rows: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which a row is expected once."""
        return round(1 / self.steps.sample_rate)


class PrivateSteps:
    """Draws the rows of each step and updates the weights by clipped gradients with noise.

    Each step seeds its sampling and its noise anew, from the seed and its number, so that a resumed training goes on to
    the same bits.
    """

    def __init__(
        self, module: nn.Module, settings: PrivateTraining, plan: PrivacyPlan, optimizer: Optimizer, seed: int
    ) -> None:
        check_layers(module)
        import torch
        from opacus.grad_sample import GradSampleHooks
        from opacus.optimizers import DPOptimizer

        if isinstance(optimizer, DPOptimizer):
            raise UsageError(
                f"optimizer must return a torch optimizer without privacy; got {type(optimizer).__name__}: privacy= "
                "wraps it. Give a class of your own to PrivateTraining(optimizer=)"
            )
        self.settings, self.plan = settings, plan
        self.accounted = 0
        self._module = module
        self._seed = seed if settings.noise_seed is None else settings.noise_seed
        self._parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self._generator = torch.Generator(next(iter(self._parameters.values())).device)
        self.optimizer: Optimizer = (settings.optimizer or DPOptimizer)(
            optimizer,
            noise_multiplier=plan.steps.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            expected_batch_size=plan.rows * plan.steps.sample_rate,
            loss_reduction="mean",
            generator=self._generator,
        )
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer of PrivateTraining must return an optimizer; got {type(self.optimizer).__name__}"
            )
        with _layer_errors():
            self._hooks = GradSampleHooks(module, loss_reduction="sum", strict=False)

    def sample(self, count: int, step: int) -> NDArray[np.int64]:
        """Return the numbers of the rows of a step: each of `count` rows with probability `sample_rate`."""
        import torch
        from opacus.utils.uniform_sampler import UniformWithReplacementSampler

        generator = torch.Generator().manual_seed(self._derived("sampling", step))
        rate = self.plan.steps.sample_rate
        sampler = UniformWithReplacementSampler(num_samples=count, sample_rate=rate, generator=generator, steps=1)
        return np.asarray(next(iter(sampler)), np.int64)

    def update(self, total: torch.Tensor | None, rows: int, step: int) -> None:
        """Take one step for a total loss over `rows` rows, None for no row; account for it."""
        if total is not None:
            with _layer_errors(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about hooks on a module whose inputs need no gradient
                total.backward()  # type: ignore[no-untyped-call]
        for name, parameter in self._parameters.items():
            found = getattr(parameter, "grad_sample", None)
            if found is None:  # of a step without rows, or of a layer without a part in the loss
                parameter.grad_sample = parameter.new_zeros((rows, *parameter.shape))  # type: ignore[attr-defined]
            elif (count := sum(map(len, found)) if isinstance(found, list) else len(found)) != rows:
                raise UsageError(
                    f"privacy: parameter {name!r} has {count} gradients for {rows} rows, so that they are not those of "
                    "rows: keep the rows along the first axis of what each layer gets"
                )
        self._generator.manual_seed(self._derived("noise", step))
        self.optimizer.step()
        self.accounted += 1

    def spent(self) -> PrivacySpent:
        """Return the privacy that all planned steps spend.

        Those that early stopping leaves out are counted, because their number depends on the rows.
        """
        settings = self.settings
        history = (*(() if settings.spent is None else settings.spent.history), self.plan.steps)
        return PrivacySpent(
            epsilon=epsilon_of(history, settings.delta, settings.accountant),
            delta=settings.delta,
            rows=self.plan.rows,
            max_grad_norm=settings.max_grad_norm,
            accountant=settings.accountant,
            history=history,
            is_seed_secret=settings.noise_seed is not None,
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the steps that were accounted for."""
        return {**asdict(self.plan.steps), "steps": self.accounted, "rows": self.plan.rows}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Continue from a state; UsageError for another number of steps, noise or sampling than planned."""
        planned = {**self.state(), "steps": step}
        if state != planned:
            raise UsageError(
                f"the checkpoint accounts for other private steps: {state}, expected {planned}. Its budget is spent "
                "otherwise than planned: delete the file to train from the beginning"
            )
        self.accounted = step

    def close(self) -> None:
        """Remove what opacus added to the module."""
        self._hooks.remove_hooks()
        for parameter in self._module.parameters():
            for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)

    def _derived(self, what: str, step: int) -> int:
        text = f"{self._seed}/{what}/{step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def check_layers(module: nn.Module) -> None:
    """Raise UsageError for a layer that cannot be trained privately; the message says what to use instead.

    Raises:
        MissingDependencyError: opacus is not installed.
    """
    require("opacus", "private training", extra="privacy")
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    found = []
    for path, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, _InstanceNorm):
            advice = "with track_running_stats=False" if layer.track_running_stats else ""
        elif isinstance(layer, _BatchNorm):
            groups = next((n for n in (8, 4, 2) if layer.num_features % n == 0), 1)
            advice = f"use GroupNorm({groups}, {layer.num_features}) or LayerNorm: it mixes the rows of a batch"
        elif isinstance(layer, nn.MultiheadAttention):
            advice = "use opacus.layers.DPMultiheadAttention, which takes the same arguments and weights"
        elif isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
            advice = f"use opacus.layers.{_RECURRENT[kind]}" if kind in _RECURRENT else "use one of opacus.layers"
        else:
            advice = ""
        if advice:
            found.append(f"{kind} {path!r}: {advice}" if path else f"{kind}: {advice}")
    if found:
        layers = "1 layer has" if len(found) == 1 else f"{len(found)} layers have"
        raise UsageError(f"privacy: {layers} no private gradients of rows. {'; '.join(found)}")


def check_independent_rows(
    module: nn.Module,
    loss: TrainingLoss,
    batch: Batch,
    augment: Callable[[Batch], Batch] | None,
) -> None:
    """Raise UsageError if a row's loss depends on other rows, or if the module collects statistics of rows.

    Clipping bounds the influence of a row only without both. It is checked on a few rows.
    """
    import torch

    batch = {name: tensor[:_CHECKED_ROWS] for name, tensor in batch.items()}
    rows = len(next(iter(batch.values())))
    if augment is not None:
        _check_augmentation(augment, batch)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    singles = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(rows)]
    with torch.no_grad():
        loss.total(module, batch)
        for name, buffer in module.named_buffers():
            if name in buffers and not torch.equal(buffer, buffers[name]):
                raise UsageError(
                    f"privacy: the buffer {name!r} changes in a forward pass, without clipping and noise: statistics "
                    "of rows must not be part of the module"
                )
        is_random = any("drop" in type(each).__name__.lower() for each in module.modules())
        module.train(not is_random)
        together = float(loss.total(module, batch))
        alone = [float(loss.total(module, single)) for single in singles]
        module.train()
    if not abs(together - sum(alone)) <= _TOLERANCE * max(sum(map(abs, alone)), 1e-6):
        raise UsageError(
            f"privacy: the total loss of {rows} rows is {together:.6g}, and their losses add up to {sum(alone):.6g} if "
            "each is computed alone: a row's gradient depends on other rows, so that clipping does not bound its "
            "influence. Use a loss that is the mean over the rows, and layers that do not mix rows"
        )


def _check_augmentation(augment: Callable[[Batch], Batch], batch: Batch) -> None:
    """Raise UsageError if the first row of a batch changes what the augmentation makes of the others."""
    import torch

    other = {name: tensor.clone() for name, tensor in batch.items()}
    for tensor in other.values():
        tensor[0] = tensor[-1] if len(tensor) > 1 else tensor[0]
    first, second = augment({name: tensor.clone() for name, tensor in batch.items()}), augment(other)
    for name, tensor in first.items():
        if not torch.equal(torch.nan_to_num(tensor[1:]), torch.nan_to_num(second[name][1:])):
            raise UsageError(
                f"privacy: augmentation makes other values of {name!r} of a row if another row of the batch changes: "
                "a row's influence is then not bounded. Change each row by itself"
            )


@contextmanager
def _layer_errors() -> Iterator[None]:
    """Turn what opacus raises where it has no gradients of rows into a UsageError."""
    try:
        yield
    except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
        if not any("opacus" in frame for frame in _files(error)):
            raise
        raise UsageError(
            f"privacy: opacus cannot compute the gradients of rows of this module: {str(error).splitlines()[0]}. Use "
            "layers of torch.nn or opacus.layers with the rows along the first axis"
        ) from error


def _files(error: BaseException) -> list[str]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return found
