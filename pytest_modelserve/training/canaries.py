"""Canaries in a private training: rows with a gradient of full norm along a direction of their own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.training.privacy_accounting import NoisySteps
from pytest_modelserve.training.private_training import PrivacyPlan
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.train import TrainedModel
from pytest_modelserve.training.train_spec import TrainSpec, split_rows
from pytest_modelserve.training.training_loop import run_training

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_modelserve.training.train_spec import Batch

# Layers over which the gradient of a canary is spread: clipping that treats each alone lets through twice the norm.
_PARTS = 4
# Norm of a canary's gradient before the clipping, as a multiple of `max_grad_norm`.
_STRENGTH = 10.0
# Directions without any row, which show the noise alone.
_CONTROLS = 200
_NAME = "canary"
# Noise that comes again is looked for in all pairs of so many steps, by so many of its values.
_COMPARED_STEPS, _COMPARED_VALUES = 1000, 512
ONE_STEP, TWO_STEPS, TWO_STEPS_SUM = "one step", "the difference of two steps", "the sum of two steps"
_PARAMETERS, _NEIGHBORS = "the difference of two parameters", "the difference of neighboring values"


@dataclass(frozen=True, slots=True)
class NoiseSquares:
    """Sum of the squares of noise, in multiples of the largest clipped gradient of the step.

    Attributes:
        total: The sum.
        count: Number of values.
        choices: Number of such sums of which this is the least.
    """

    total: float
    count: int
    choices: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Mechanism:
    """Noise, clipping and sampling of a training, measured beside the canaries.

    Attributes:
        squares: The noise on each parameter, and where it would not show there: in one step, and in differences and
            sums that cancel noise that comes again. All have the same variance if the noise is independent.
        clipped_norm: The largest gradient of a canary after the clipping, in multiples of `max_grad_norm`.
        draws: How often the canaries among the rows were drawn, in all steps together.
        chances: Their number times the number of steps.
        scale: The gradient that the optimizer gets as a multiple of the sum over the expected rows, and its standard
            error.
    """

    squares: Mapping[str, NoiseSquares]
    clipped_norm: float
    draws: int
    chances: int
    scale: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class CanaryRun:
    """What the optimizer got along each canary in a training.

    Attributes:
        included: Whether each canary was among the training rows, (canaries,).
        gradients: The gradient along each canary, (steps, canaries), in multiples of `max_grad_norm`.
        controls: The same along directions without a row, (steps, controls).
        mechanism: What was measured; None if the private optimizer does not keep sums without noise, as those of opacus
            do, or if no step drew a canary.
    """

    included: NDArray[np.bool_]
    gradients: NDArray[np.float32]
    controls: NDArray[np.float32]
    mechanism: Mechanism | None


def train_with_canaries(trained: TrainedModel, steps: NoisySteps, *, canaries: int, seed: int) -> CanaryRun:
    """Train the source of `trained` again, with canaries among its rows, and return what the optimizer got.

    Each canary is among the training rows with probability 1/2. It has the inputs and labels of a training row, a
    zero gradient of the model, and a gradient along a parameter of its own, which is 10 times as long as
    `max_grad_norm` before it is clipped. The steps are those of the training: the same settings, optimizer, noise and
    probability of a row, with another seed. Early stopping is left out.

    Args:
        trained: The result of a private training by a TrainSpec.
        steps: The steps to take: noise and sampling of the training, and at most as many.
        canaries: Number of canaries.
        seed: Seed of the canaries and of the training.

    Raises:
        UsageError: The optimizer of a step did not get the gradients of the canaries.
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    spec = trained.source.fit
    assert isinstance(spec, TrainSpec)
    assert spec.privacy is not None
    generator = np.random.default_rng([seed, 0])
    included = generator.random(canaries) < 0.5
    rows = split_rows(spec, trained.source.data, trained.seed)
    copied = generator.choice(rows.training, int(included.sum()))
    name = next(each for each in (_NAME, f"_{_NAME}", f"__{_NAME}__") if each not in rows.arrays)
    data = {key: array[np.concatenate([rows.training, copied])] for key, array in rows.arrays.items()}
    data[name] = np.concatenate([np.zeros(len(rows.training), np.int64), np.flatnonzero(included) + 1])
    plan = PrivacyPlan(steps, len(rows.training))
    with reproducible(_seed(seed)):
        module = with_canaries(trained.source.build(), canaries + _CONTROLS, spec.privacy.max_grad_norm)
        observed = _Observed(module, plan.rows * steps.sample_rate, spec.privacy.max_grad_norm)
        handle = register_optimizer_step_pre_hook(observed.record)
        try:
            settings = _spec_with(spec, name, round(steps.steps * steps.sample_rate))
            run_training(module, settings, data, seed=_seed(seed), name=f"{trained.source.name}, audited", plan=plan)
        finally:
            handle.remove()
    return observed.result(included, steps.steps)


def _seed(seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"audit/{seed}".encode(), digest_size=4).digest())


def _spec_with(spec: TrainSpec, name: str, epochs: int) -> TrainSpec:
    """Return the settings for a module that also takes the array `name`."""
    assert spec.privacy is not None
    if isinstance(spec.inputs, dict):
        inputs: Any = {**spec.inputs, _PARAMETER: name}
    else:
        inputs = (*spec.input_names, name)
    return replace(
        spec,
        inputs=inputs,
        epochs=epochs,
        early_stopping=None,
        augmentation=None if spec.augmentation is None else _beside(spec.augmentation, name),
        privacy=replace(spec.privacy, noise_seed=None),
    )


def _beside(augmentation: Callable[..., Batch], name: str) -> Callable[..., Batch]:
    """Return the augmentation of all arrays but `name`."""

    def augmented(batch: Batch, generator: torch.Generator) -> Batch:
        others = {key: tensor for key, tensor in batch.items() if key != name}
        return {**augmentation(others, generator), name: batch[name]}

    return augmented


# Name of the parameter of `forward` that marks canaries, where inputs are given by name.
_PARAMETER = "__canary__"


def with_canaries(module: nn.Module, directions: int, max_grad_norm: float) -> nn.Module:
    """Return a module that also takes the number of the canary of each row, 0 for none, as the last input.

    Its outputs are those of `module`, without a gradient for canaries. They depend on one more parameter a direction,
    with a factor of zero in the forward pass and a constant one in the backward pass.
    """
    import torch
    from torch import nn
    from torch.utils import _pytree

    amplitude = _STRENGTH * max_grad_norm / math.sqrt(_PARTS)

    class Constant(torch.autograd.Function):
        """Zero, with a gradient that does not depend on the loss."""

        @staticmethod
        def forward(_: Any, values: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(values)

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            return torch.full_like(gradient, amplitude)

    layers = [nn.Linear(directions, 1, bias=False) for _ in range(_PARTS)]
    for layer in layers:
        nn.init.zeros_(layer.weight)

    class WithCanaries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.canaries = nn.ModuleList(layers)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            numbers = kwargs.pop(_PARAMETER) if _PARAMETER in kwargs else args[-1]
            outputs = self.module(*(args if kwargs else args[:-1]), **kwargs)
            codes = torch.nn.functional.one_hot(numbers, directions + 1)[:, 1:].to(layers[0].weight.dtype)
            zeros: Any = sum(Constant.apply(layer(codes)) for layer in layers)  # type: ignore[no-untyped-call]
            is_canary = numbers > 0

            def marked(output: Any) -> Any:
                if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                    return output
                if output.shape[:1] != numbers.shape:
                    return output
                shape = (-1,) + (1,) * (output.ndim - 1)
                return torch.where(is_canary.reshape(shape), output.detach(), output) + zeros.reshape(shape).to(
                    output.dtype
                )

            return _pytree.tree_map(marked, outputs)

    return WithCanaries()


class _Observed:
    """Gradients before each step of the optimizer, along the canaries and of all parameters without their noise."""

    def __init__(self, module: nn.Module, expected_rows: float, max_grad_norm: float) -> None:
        names = ((name.removeprefix("module."), each) for name, each in module.named_parameters())
        self._names = {id(each): name for name, each in names}
        self._canaries: list[Any] = [layer.weight for layer in module.canaries]  # type: ignore[union-attr]
        self._norm, self._rows = max_grad_norm, expected_rows
        self._steps: list[NDArray[np.float32]] = []
        self._squares: dict[str, NoiseSquares] = {}
        self._by_step: list[NoiseSquares] = []
        self._compared: list[NDArray[np.float32]] = []
        self._clipped = self._product = self._square = 0.0
        self._draws = 0
        self._is_measured = True

    def record(self, optimizer: Any, *_: Any) -> None:
        held = [each for group in optimizer.param_groups for each in group["params"]]
        if not {id(each) for each in self._canaries} <= {id(each) for each in held}:
            return
        if any(each.grad is None for each in self._canaries):
            raise UsageError("privacy: the optimizer of the training got no gradient of the canaries")
        noisy = self._along([each.grad for each in self._canaries]) * self._rows
        self._steps.append(noisy)
        sums = [getattr(each, "summed_grad", None) for each in self._canaries]
        if any(each is None for each in sums):
            self._is_measured = False
            return
        exact = self._along(sums)
        largest = float(np.abs(exact).max())
        if largest == 0:
            return  # no canary was drawn
        self._clipped = max(self._clipped, largest)
        self._draws += int((np.abs(exact) > largest / 2).sum())
        self._product += float(noisy @ exact)
        self._square += float(exact @ exact)
        before = dict(self._squares)
        for each in held:
            if getattr(each, "summed_grad", None) is not None and each.grad is not None:
                self._add(self._names.get(id(each), ""), self._noise_of(each, largest))
        added = [(new, before.get(name, NoiseSquares(0.0, 0))) for name, new in self._squares.items()]
        total, count = (sum(getattr(new, key) - getattr(old, key) for new, old in added) for key in ("total", "count"))
        self._by_step.append(NoiseSquares(total, count))
        first, second = (self._noise_of(each, largest) for each in self._canaries[:2])
        self._add(_PARAMETERS, (first - second) / math.sqrt(2))
        pairs = first[: len(first) // 2 * 2].reshape(-1, 2)
        self._add(_NEIGHBORS, (pairs[:, 0] - pairs[:, 1]) / math.sqrt(2))
        if len(self._compared) < _COMPARED_STEPS:
            self._compared.append(first[:_COMPARED_VALUES].numpy(force=True).astype(np.float32))

    def _noise_of(self, parameter: Any, largest: float) -> torch.Tensor:
        noise = parameter.grad * self._rows - parameter.summed_grad.reshape(parameter.grad.shape)
        flat: torch.Tensor = noise.detach().double().reshape(-1) / (self._norm * largest)
        return flat

    def _add(self, name: str, noise: torch.Tensor) -> None:
        before = self._squares.get(name, NoiseSquares(0.0, 0))
        total = before.total + float(noise.square().sum())
        self._squares[name] = NoiseSquares(total, before.count + noise.numel())

    def _along(self, parts: list[Any]) -> NDArray[np.float32]:
        """Return the projection on each direction in multiples of the longest gradient of a row."""
        total = sum(each.detach().reshape(-1) for each in parts) / (self._norm * math.sqrt(_PARTS))
        return np.asarray(total.numpy(force=True), np.float32)

    def result(self, included: NDArray[np.bool_], steps: int) -> CanaryRun:
        if len(self._steps) != steps:
            raise UsageError(
                f"privacy: the optimizer with the canaries took {len(self._steps)} steps, expected {steps}: the "
                "optimizer must hold all parameters of the module"
            )
        values, count = np.stack(self._steps), len(included)
        return CanaryRun(included, values[:, :count], values[:, count:], self._mechanism(included, values))

    def _mechanism(self, included: NDArray[np.bool_], values: NDArray[np.float32]) -> Mechanism | None:
        if not self._is_measured or not self._draws:
            return None
        error = float(values[:, len(included) :].std()) / math.sqrt(self._square)
        scale = self._product / self._square, error
        least = min(self._by_step, key=lambda each: each.total / each.count)
        squares = {
            **self._squares,
            ONE_STEP: NoiseSquares(least.total, least.count, len(self._by_step)),
            **_least_of_two_steps(np.stack(self._compared)),
        }
        return Mechanism(squares, self._clipped, self._draws, int(included.sum()) * len(values), scale)


def _least_of_two_steps(noise: NDArray[np.float32]) -> dict[str, NoiseSquares]:
    """Return the least sums of squares of differences and sums of two steps, over √2; `noise` is (steps, values)."""
    steps, values = noise.shape
    if steps < 2:
        return {}
    first, second = np.triu_indices(steps, 1)
    products = (noise @ noise.T)[first, second]
    own = (noise.astype(np.float64) ** 2).sum(axis=1)
    both = (own[first] + own[second]) / 2
    found = {TWO_STEPS: both - products, TWO_STEPS_SUM: both + products}
    return {name: NoiseSquares(max(float(each.min()), 0.0), values, len(first)) for name, each in found.items()}
