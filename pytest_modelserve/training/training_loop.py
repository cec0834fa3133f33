"""The training loop of a TrainSpec: seeded steps, early stopping, checkpoints, and the metrics of the run."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, TrainingError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.training.checkpoint import CheckpointFile
from pytest_modelserve.training.loss import TrainingLoss, make_loss
from pytest_modelserve.training.privacy_accounting import PrivacySpent
from pytest_modelserve.training.private_training import PrivacyPlan, PrivateSteps, check_independent_rows
from pytest_modelserve.training.seeds import derived_seed, seed_generators
from pytest_modelserve.training.train_spec import TrainingRows, TrainSpec, split_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_modelserve.training.privacy_accounting import PrivateTraining
    from pytest_modelserve.training.train_spec import Batch


_log = logging.getLogger(__name__)

Shared = TypeVar("Shared")


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """Metrics of a finished training.

    Attributes:
        losses: Mean loss over the rows of each epoch, while the weights changed.
        held_out_losses: Mean loss on the held-out rows after each epoch; empty without early stopping.
        best_epoch: Epoch whose weights were kept, from 1: the last one without early stopping.
        seconds: Duration, without the time between a kill and its resumption.
        processes: Number of processes that trained.
        privacy: What a private training has spent. Its losses are those of training rows without noise: they stay on
            this machine, and an exported artifact does not have them.
    """

    losses: tuple[float, ...]
    held_out_losses: tuple[float, ...]
    best_epoch: int
    seconds: float
    processes: int = 1
    privacy: PrivacySpent | None = None

    def __post_init__(self) -> None:
        # Lists and mappings, where they are read from JSON.
        if isinstance(self.privacy, Mapping):
            object.__setattr__(self, "privacy", PrivacySpent(**self.privacy))
        object.__setattr__(self, "losses", tuple(self.losses))
        object.__setattr__(self, "held_out_losses", tuple(self.held_out_losses))

    @property
    def epochs(self) -> int:
        """Epochs run."""
        return len(self.losses)

    def __str__(self) -> str:
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        text = f"{epochs} in {self.seconds:.1f} s, loss {self.losses[0]:.4g} → {self.losses[-1]:.4g}"
        if self.held_out_losses:
            text += f", held out {self.held_out_losses[self.best_epoch - 1]:.4g} in the best epoch {self.best_epoch}"
        if self.privacy is not None:
            text += f", epsilon {self.privacy.epsilon:.3g} at delta {self.privacy.delta:g}"
        return text if self.processes == 1 else f"{text}, {self.processes} processes"


class Group:
    """The processes that train together; this one alone."""

    rank = 0
    size = 1
    # Rank among the processes of this host.
    local_rank = 0

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum over the processes of each value."""
        return values

    def share(self, value: Shared) -> Shared:
        """Return `value` of the process with rank 0."""
        return value

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return `module` with the gradients of its loss averaged over the processes."""
        return module

    def beat(self, step: int, loss: float) -> None:
        """Show the others that this process makes progress."""


def run_training(
    module: nn.Module,
    spec: TrainSpec,
    data: Mapping[str, NDArray[Any]],
    *,
    seed: int,
    name: str = "the module",
    loss: TrainingLoss | None = None,
    checkpoint: CheckpointFile | None = None,
    group: Group | None = None,
    plan: PrivacyPlan | None = None,
) -> TrainingMetrics:
    """Train `module` in place from the weights that it has, and return the metrics.

    All random generators start anew in every step, from the seed, the step and the rank, so that a training that is
    resumed from a checkpoint goes on to the same bits. Call it within `reproducible(seed)`.

    Args:
        module: The module, also one that was trained before (fine-tuning).
        spec: The settings.
        data: Arrays by name, with one row a sample. They are not changed.
        seed: Seed of the order of the rows and of everything random.
        name: Name of the model in messages.
        loss: The loss, in place of that of `spec`; `FunctionLoss(function)` makes one of a
            `function(module, batch)`.
        checkpoint: Where the state is kept; the training continues from what is there.
        group: The processes that train together.
        plan: The steps of a private training, in place of those that follow from `spec` and the number of rows.

    Raises:
        TrainingError: The loss or the weights are no longer finite.
        InputError: The data do not suit the settings.
        UsageError: The settings do not suit the module, or a privacy budget is spent.
    """
    rows = split_rows(spec, data, seed)
    if spec.privacy is not None and plan is None:
        count = len(rows.training)
        plan = PrivacyPlan(spec.privacy.plan(count, _steps_per_epoch(spec, rows), spec.epochs), count)
    run = _Run(module, spec, rows, seed, name, loss or make_loss(spec), checkpoint, group or Group(), plan)
    try:
        return run.run()
    finally:
        if run.private is not None:
            run.private.close()


def count_steps(spec: TrainSpec, data: Mapping[str, NDArray[Any]], seed: int) -> int:
    """Return the steps of a training without early stopping."""
    return spec.epochs * _steps_per_epoch(spec, split_rows(spec, data, seed))


def _steps_per_epoch(spec: TrainSpec, rows: TrainingRows) -> int:
    return math.ceil(len(rows.training) / spec.batch_size)


@dataclass(slots=True)
class _Run:
    module: nn.Module
    spec: TrainSpec
    rows: TrainingRows
    seed: int
    name: str
    loss_function: TrainingLoss
    checkpoint: CheckpointFile | None
    group: Group
    plan: PrivacyPlan | None = None
    private: PrivateSteps | None = field(init=False, default=None)
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    step: int = 0
    losses: list[float] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    # Total loss and weight of the epoch so far, and the mean loss of the last step.
    loss: float = 0.0
    weight: float = 0.0
    last_loss: float = math.nan
    best_weights: dict[str, Any] | None = None
    seconds: float = 0.0

    def run(self) -> TrainingMetrics:
        self.module.to(_device(self.spec.device, self.group.local_rank))
        self.optimizer = self.spec.make_optimizer(self.module)
        self.schedule = self.spec.make_schedule(self.optimizer, self.steps)
        if self.spec.privacy is not None:
            self._make_private(self.spec.privacy)
        self._restore()
        began = time.perf_counter() - self.seconds
        wrapped = self.group.wrap(_total_loss(self.module, self.loss_function))
        self.module.train()
        batches: list[NDArray[np.int64]] = []
        remaining = range(self.step, self.steps)
        for step in progress(remaining, f"training {self.name}", note=self._progress_note):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0 and self._is_stalled():
                break
            if self.private is not None:
                rows = self.rows.training[self.private.sample(len(self.rows.training), step)]
            else:
                if position == 0 or not batches:
                    batches = np.array_split(self._order(epoch), self.steps_per_epoch)
                rows = batches[position]
            seed_generators(derived_seed(self.seed, step, self.group.rank), self.spec.device)
            self._take_step(wrapped, rows)
            if position == self.steps_per_epoch - 1:
                self._end_epoch()
            self.seconds = time.perf_counter() - began
            if self.checkpoint is not None and self.group.rank == 0 and self.checkpoint.is_due():
                self._check_finite()
                self.checkpoint.save(self._state())
        if self.best_weights is not None:
            self.module.load_state_dict(self.best_weights)
        self.module.to("cpu")
        self.seconds = time.perf_counter() - began
        losses, held_out = tuple(self.losses), tuple(self.held_out_losses)
        spent = None if self.private is None else self.private.spent()
        return TrainingMetrics(losses, held_out, self._best_epoch(), self.seconds, self.group.size, spent)

    def _make_private(self, settings: PrivateTraining) -> None:
        assert self.plan is not None
        if self.group.size > 1:
            raise UsageError(f"privacy needs one process; got {self.group.size}")
        self.private = PrivateSteps(self.module, settings, self.plan, self.optimizer, self.seed)
        self.optimizer = self.private.optimizer
        batch = self.rows.batch(self.rows.training[:4])
        self.module.train()
        check_independent_rows(
            self.module,
            self.loss_function,
            self._moved(batch),
            self._augmented if self.spec.augmentation is not None else None,
        )

    @property
    def steps_per_epoch(self) -> int:
        return _steps_per_epoch(self.spec, self.rows) if self.plan is None else self.plan.steps_per_epoch

    @property
    def steps(self) -> int:
        return self.spec.epochs * self.steps_per_epoch

    def _order(self, epoch: int) -> NDArray[np.int64]:
        import torch

        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        order: NDArray[np.int64] = torch.randperm(len(self.rows.training), generator=generator).numpy()
        return self.rows.training[order]

    def _take_step(self, wrapped: nn.Module, rows: NDArray[np.int64]) -> None:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        if self.private is not None and not len(rows):  # drawn now and then
            self.private.update(None, 0, self.step)
            self._end_step(0.0, 0.0)
            return
        batch = self._augmented(self.rows.batch(rows))
        weight = self.loss_function.weight(batch)
        if weight <= 0 and self.private is None:
            raise InputError(
                f"training {self.name!r}: no row of {self._where(self.step + 1)} counts, as all its labels "
                "are ignored or have weight 0"
            )
        total = wrapped(self._part(batch))
        if not total.requires_grad:
            raise UsageError(f"training {self.name!r}: the loss depends on no parameter that requires a gradient")
        if self.group.rank >= len(rows):
            total = total * 0.0  # of a row that stands in for none
        self.group.beat(self.step, self.last_loss)
        (sum_,) = self.group.sum(float(total.detach()))
        self.last_loss = sum_ / weight if weight > 0 else self.last_loss
        if not math.isfinite(sum_):
            self._stop(f"the loss is {sum_ / max(weight, 1.0)} in {self._where(self.step + 1)}")
        if self.private is not None:
            self.private.update(total, len(rows), self.step)
            self._end_step(sum_, weight)
            return
        # The group averages gradients, and those of totals have to be added.
        (total * (self.group.size / weight)).backward()
        if self.spec.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.spec.max_grad_norm)
        self.optimizer.step()
        self._end_step(sum_, weight)

    def _end_step(self, sum_: float, weight: float) -> None:
        self.step += 1
        self.schedule.step()
        self.loss += sum_
        self.weight += weight
        self.group.beat(self.step, self.last_loss)

    def _augmented(self, batch: Batch) -> Batch:
        import torch

        if self.spec.augmentation is None:
            return batch
        rows = {name: len(tensor) for name, tensor in batch.items()}
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "augmentation", self.step))
        changed = self.spec.augmentation(batch, generator)
        found = changed if isinstance(changed, dict) else {}
        sizes = {name: len(tensor) for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
        if sizes != rows or found.keys() != rows.keys():
            got = {name: type(value).__name__ for name, value in found.items()} if len(sizes) < len(found) else sizes
            raise UsageError(
                "augmentation must return a mapping of tensors with the names and numbers of rows that it got, "
                f"{rows}; got {got or type(changed).__name__}"
            )
        return found

    def _part(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch, on its device; the first row where there are fewer than processes."""
        import torch

        if self.group.size == 1:
            return self._moved(batch)
        parts = {name: torch.tensor_split(tensor, self.group.size)[self.group.rank] for name, tensor in batch.items()}
        return self._moved({name: part if len(part) else batch[name][:1] for name, part in parts.items()})

    def _moved(self, batch: Batch) -> Batch:
        device = _device(self.spec.device, self.group.local_rank)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _end_epoch(self) -> None:
        self.losses.append(self.loss / self.weight if self.weight else self.last_loss)
        self.loss = self.weight = 0.0
        stopping = self.spec.early_stopping
        if stopping is None:
            return
        held_out = self._held_out_loss()
        if not math.isfinite(held_out):
            self._stop(f"the loss on the held-out rows is {held_out} after {self._where(self.step)}")
        self.held_out_losses.append(held_out)
        if self._best_epoch() == len(self.held_out_losses):
            self.best_weights = {
                name: value.detach().clone() if hasattr(value, "detach") else copy.deepcopy(value)
                for name, value in self.module.state_dict().items()
            }

    def _held_out_loss(self) -> float:
        import torch

        self.module.eval()
        count = math.ceil(len(self.rows.held_out) / self.spec.batch_size)
        total = weight = 0.0
        with torch.no_grad():
            for number, rows in enumerate(np.array_split(self.rows.held_out, count)):
                if number % self.group.size == self.group.rank:
                    batch = self.rows.batch(rows)
                    loss = self.loss_function.total(self.module, self._moved(batch))
                    total += float(loss)
                    weight += self.loss_function.weight(batch)
                self.group.beat(self.step, self.last_loss)  # as often in all processes
        self.module.train()
        total, weight = self.group.sum(total, weight)
        return total / weight if weight else math.nan

    def _best_epoch(self) -> int:
        stopping = self.spec.early_stopping
        if stopping is None:
            return len(self.losses)
        best, lowest = 0, math.inf
        for epoch, loss in enumerate(self.held_out_losses, start=1):
            if loss < lowest - (stopping.min_improvement if best else 0.0):
                best, lowest = epoch, loss
        return best

    def _is_stalled(self) -> bool:
        stopping = self.spec.early_stopping
        return stopping is not None and len(self.held_out_losses) - self._best_epoch() >= stopping.patience

    def _state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            **({} if self.private is None else {"privacy": self.private.state()}),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def _restore(self) -> None:
        loaded = self.checkpoint.load() if self.checkpoint is not None and self.group.rank == 0 else None
        state = self.group.share(loaded)
        if state is None:
            return
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for name in _COUNTERS:
            setattr(self, name, state[name])
        if self.private is not None:
            self.private.restore(state["privacy"], self.step)
        _log.info("training %s continues after step %d of %d", self.name, self.step, self.steps)

    def _check_finite(self) -> None:
        for name, tensor in self.module.state_dict().items():
            if hasattr(tensor, "isfinite") and not bool(tensor.isfinite().all()):
                raise self._error(f"{name!r} has values that are NaN or infinite after {self._where(self.step)}")

    def _stop(self, what: str) -> NoReturn:
        """Raise TrainingError in all processes; only rank 0 knows which checkpoint there is."""
        if self.checkpoint is not None:
            self.checkpoint.saved_step = self.group.share(self.checkpoint.saved_step)
        raise self._error(what)

    def _error(self, what: str) -> TrainingError:
        kept = "There is no checkpoint yet"
        if self.checkpoint is not None and self.checkpoint.saved_step is not None:
            kept = f"The last good checkpoint is {self.checkpoint.path}, after step {self.checkpoint.saved_step}"
        return TrainingError(
            f"training {self.name!r}: {what}: lower the learning rate, set max_grad_norm, or look for NaN in the data. "
            f"{kept}"
        )

    def _where(self, step: int) -> str:
        epoch = (step - 1) // self.steps_per_epoch + 1
        return f"step {step} of {self.steps} (epoch {epoch} of {self.spec.epochs})"

    def _progress_note(self) -> str:
        epoch = min(self.step // self.steps_per_epoch + 1, self.spec.epochs)
        return f"epoch {epoch}/{self.spec.epochs}, loss {self.last_loss:.4g}"


# Attributes of _Run that a checkpoint keeps as they are.
_COUNTERS = ("step", "losses", "held_out_losses", "loss", "weight", "last_loss", "best_weights", "seconds")


def _total_loss(module: nn.Module, loss_function: TrainingLoss) -> nn.Module:
    """Return a module from a batch to its total loss: what a group wraps, as a loss may use `module` in any way."""
    from torch import nn

    class TotalLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: Batch) -> torch.Tensor:
            return loss_function.total(self.module, batch)

    return TotalLoss()


def _device(name: str, local_rank: int) -> torch.device:
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"device='cuda' needs one GPU for each process; torch sees {torch.cuda.device_count()} on this host"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it deterministic algorithms are refused
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
