"""Settings of a private training (DP-SGD), and the privacy that its steps spend."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import UsageError, require, unknown_choice

if TYPE_CHECKING:
    from torch.optim import Optimizer

    MakePrivateOptimizer = Callable[..., Optimizer]

ACCOUNTANTS = ("prv", "rdp")
# Relative error of an epsilon of the PRV accountant, and the least and largest error that it is asked for.
_RELATIVE_ERROR, _LEAST_ERROR, _LARGEST_ERROR = 0.002, 1e-5, 0.01
# The PRV accountant needs time and memory in proportion to epsilon; above this one the bound of RDP is returned.
_LARGEST_PRV = 50.0
# Orders of the Rényi accountant, those of dp-accounting: opacus' own end at 63, which is far too few for much noise.
_ORDERS = [*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024]
# A noise multiplier is found whose epsilon lies at most this fraction below the budget.
_TOLERANCE = 0.005
_LARGEST_NOISE = 1e4
# Epsilon falls with about this power of the noise. A bisection follows so many steps of a secant without success.
_USUAL_POWER, _MOST_SECANTS = 1.5, 6
_LEAST_SECRET = 2**64


@dataclass(frozen=True, slots=True)
class NoisySteps:
    """Steps of DP-SGD that are accounted for alike.

    Attributes:
        noise_multiplier: Standard deviation of the noise, as a multiple of the longest gradient of a row.
        sample_rate: Probability that a row is in a step.
        steps: Number of steps.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """The privacy that a finished training has spent on each of its training rows.

    Two data sets that differ by one added or removed row give the same weights up to a factor of `exp(epsilon)` in
    probability, except for events of probability `delta`.

    Attributes:
        epsilon: Upper bound of epsilon at `delta` over all of `history`.
        delta: Probability of events without that bound.
        rows: Training rows; held-out rows are not protected.
        max_grad_norm: Longest gradient of a row.
        accountant: "prv" or "rdp".
        history: The accounted steps, those of `PrivateTraining.spent` first.
        is_seed_secret: Whether the noise has a secret seed.
    """

    epsilon: float
    delta: float
    rows: int
    max_grad_norm: float
    accountant: str
    history: tuple[NoisySteps, ...]
    is_seed_secret: bool = False

    def __post_init__(self) -> None:
        # Mappings in a list, where they are read from JSON.
        history = (each if isinstance(each, NoisySteps) else NoisySteps(**each) for each in self.history)
        object.__setattr__(self, "history", tuple(history))

    def epsilon_at(self, delta: float) -> float:
        """Return the upper bound of epsilon at another `delta`."""
        return epsilon_of(self.history, delta, self.accountant)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateTraining:
    """Train with differential privacy (DP-SGD by opacus): `TrainSpec(privacy=PrivateTraining(...))`.

    Each step draws every row with probability `batch_size` / rows, scales the gradient of each row down to
    `max_grad_norm`, and adds Gaussian noise to the sum. Give `epsilon`, `noise_multiplier` or both: with `epsilon`
    alone the noise is chosen that spends it over all epochs; with both, a training that would spend more is refused.

    Args:
        delta: Probability of events without the bound, at most 1 / rows; much less is usual, such as 1e-5.
        max_grad_norm: Longest gradient of a row; longer ones are scaled down to it.
        epsilon: Largest epsilon at `delta`.
        noise_multiplier: Standard deviation of the noise as a multiple of `max_grad_norm`.
        accountant: "prv" (numerical composition, tight) or "rdp" (Rényi, looser and faster).
        spent: What earlier trainings spent on the same rows, if the weights start from theirs: `metrics.privacy`.
        noise_seed: Secret seed of sampling and noise, an integer of at least 64 bits, as of `secrets.randbits(128)`. It
            is not recorded. By default the seed of the training, which the lineage shows: results can be reproduced,
            and whoever knows it can subtract the noise.
        optimizer: Class or function in place of `opacus.optimizers.DPOptimizer`, with its arguments.

    Raises:
        UsageError: A value is out of range, or neither `epsilon` nor `noise_multiplier` is given.

    Example:
        >>> import pytest_modelserve as ms
        >>> privacy = ms.PrivateTraining(epsilon=2.0, delta=1e-5, max_grad_norm=1.0)
        >>> ms.TrainSpec(loss="cross_entropy", epochs=20, learning_rate=0.01, privacy=privacy).privacy.epsilon
        2.0
    """

    delta: float
    max_grad_norm: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    accountant: str = "prv"
    spent: PrivacySpent | None = None
    noise_seed: int | None = field(default=None, repr=False)
    optimizer: MakePrivateOptimizer | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", check_delta(self.delta))
        for name in ("max_grad_norm", "epsilon", "noise_multiplier"):
            value = getattr(self, name)
            if value is not None or name == "max_grad_norm":
                object.__setattr__(self, name, check_positive(name, value))
        if self.epsilon is None and self.noise_multiplier is None:
            raise UsageError("epsilon is missing: give the largest epsilon, or the noise with noise_multiplier")
        if self.accountant not in ACCOUNTANTS:
            raise UsageError(unknown_choice("accountant", self.accountant, ACCOUNTANTS))
        if self.spent is not None and not isinstance(self.spent, PrivacySpent):
            raise UsageError(
                "spent must be the metrics.privacy of a privately trained model; got "
                f"{'None' if self.spent is None else type(self.spent).__name__}"
            )
        if self.optimizer is not None and not callable(self.optimizer):
            raise UsageError(f"optimizer must be a class or a function; got {type(self.optimizer).__name__}")
        if self.noise_seed is not None and (
            isinstance(self.noise_seed, bool) or not isinstance(self.noise_seed, int) or self.noise_seed < _LEAST_SECRET
        ):
            raise UsageError(
                "noise_seed must be a secret integer of at least 64 bits, which nobody can guess: "
                "secrets.randbits(128) returns one"
            )

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON values, a secret seed as a digest."""
        spent = None if self.spent is None else [asdict(each) for each in self.spent.history]
        seed = None if self.noise_seed is None else hashlib.sha256(str(self.noise_seed).encode()).hexdigest()
        return {
            "delta": self.delta,
            "max_grad_norm": self.max_grad_norm,
            "epsilon": self.epsilon,
            "noise_multiplier": self.noise_multiplier,
            "accountant": self.accountant,
            "spent": spent,
            "noise_seed": seed,
            "optimizer": getattr(
                self.optimizer, "__qualname__", None if self.optimizer is None else repr(self.optimizer)
            ),
        }

    def plan(self, rows: int, steps_per_epoch: int, epochs: int) -> NoisySteps:
        """Return the steps of a training; the probability of a row is 1 / `steps_per_epoch`.

        Raises:
            UsageError: `epsilon` is spent already, or would be by these steps.
        """
        check_delta(self.delta, rows)
        rate, steps = 1.0 / steps_per_epoch, epochs * steps_per_epoch
        before = () if self.spent is None else self.spent.history
        if self.epsilon is None:
            assert self.noise_multiplier is not None
            return NoisySteps(self.noise_multiplier, rate, steps)
        used = epsilon_of(before, self.delta, self.accountant) if before else 0.0
        if used >= self.epsilon:
            raise UsageError(
                f"epsilon={self.epsilon:g} is spent already: earlier trainings on these rows spent {used:.3g} at "
                f"delta={self.delta:g}. Each further step spends more: allow a larger epsilon, or train on other rows"
            )
        if self.noise_multiplier is None:
            return NoisySteps(self._noise_multiplier(before, rate, steps), rate, steps)
        plan = NoisySteps(self.noise_multiplier, rate, steps)
        needed = epsilon_of((*before, plan), self.delta, self.accountant)
        if needed > self.epsilon:
            raise UsageError(
                f"epsilon={self.epsilon:g} would be spent before the end: {epochs} epochs with "
                f"noise_multiplier={self.noise_multiplier:g} spend {needed:.3g} at delta={self.delta:g}"
                f"{self._affordable(before, rate, steps_per_epoch, epochs)}"
            )
        return plan

    def _affordable(self, before: Sequence[NoisySteps], rate: float, steps_per_epoch: int, epochs: int) -> str:
        assert self.epsilon is not None
        assert self.noise_multiplier is not None
        low, high = 0, epochs
        while high - low > 1:
            middle = (low + high) // 2
            steps = NoisySteps(self.noise_multiplier, rate, middle * steps_per_epoch)
            is_within = epsilon_of((*before, steps), self.delta, self.accountant) <= self.epsilon
            low, high = (middle, high) if is_within else (low, middle)
        fewer = f"train at most {low} epochs, or " if low else ""
        return f": {fewer}leave noise_multiplier out, which then follows from epsilon"

    def _noise_multiplier(self, before: Sequence[NoisySteps], rate: float, steps: int) -> float:
        """Return the least noise, up to a tolerance, whose steps stay within `epsilon`."""
        assert self.epsilon is not None

        def epsilon(noise: float, accountant: str) -> float:
            return epsilon_of((*before, NoisySteps(noise, rate, steps)), self.delta, accountant)

        low, high = 0.2, 1.0
        while epsilon(high, "rdp") > self.epsilon:  # an upper bound of both accountants
            low, high = high, 2 * high
            if high > _LARGEST_NOISE:
                raise UsageError(
                    f"epsilon={self.epsilon:g} at delta={self.delta:g} is too small for {steps} steps: no noise "
                    "multiplier below 10,000 reaches it. Allow more, or train fewer epochs"
                )
        if self.accountant == "prv":
            low = low / 2
        reached = epsilon(high, self.accountant)
        # Epsilon is nearly a power of the noise: a secant of logarithms needs a third of the steps of a bisection.
        power, goal = _USUAL_POWER, self.epsilon * (1 - _TOLERANCE / 2)
        tries = 0
        while self.epsilon - reached > _TOLERANCE * self.epsilon and high / low > 1.0005:
            middle = high * (reached / goal) ** (1 / power)
            if not low < middle < high or tries >= _MOST_SECANTS:
                middle = math.sqrt(low * high)
            at_middle = epsilon(middle, self.accountant)
            if reached > 0 and reached < at_middle < math.inf:
                power = math.log(at_middle / reached) / math.log(high / middle)
            if at_middle <= self.epsilon:
                high, reached = middle, at_middle
            else:
                low = middle
            tries += 1
        return high


def check_delta(delta: Any, rows: int = 1) -> float:
    """Return `delta`; UsageError unless it is a number between 0 and 1, and at most 1 / `rows`."""
    if isinstance(delta, bool) or not isinstance(delta, (int, float, np.floating)) or not 0 < delta < 1:
        raise UsageError(f"delta must be a number between 0 and 1, far below 1 / rows; got {delta!r}")
    if delta * rows > 1:
        raise UsageError(
            f"delta={delta:g} is larger than 1 / {rows} training rows ({1 / rows:.2g}): a training that publishes a "
            "random row in full would have it. Use at most a tenth of that"
        )
    return float(delta)


def check_positive(name: str, value: Any) -> float:
    """Return `value`; UsageError unless it is a finite number above 0."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{name} must be a finite number above 0; got {value!r}")
    return float(value)


def epsilon_of(history: Sequence[NoisySteps], delta: float, accountant: str) -> float:
    """Return the upper bound of epsilon at `delta` of composed steps of the subsampled Gaussian mechanism.

    "rdp": Mironov, Talwar and Zhang (2019), with the conversion of Balle et al. (2020). "prv": Gopi, Lee and Wutschitz
    (2021), whose numerical error is added and at most 0.2 % of epsilon, or 1e-5.

    Raises:
        MissingDependencyError: opacus is not installed.
    """
    return _epsilon_of(tuple(history), delta, accountant) if history else 0.0


@functools.lru_cache(maxsize=128)
def _epsilon_of(history: tuple[NoisySteps, ...], delta: float, accountant: str) -> float:
    accountants = require("opacus.accountants", "the accounting of private training", extra="privacy")
    steps = [(each.noise_multiplier, each.sample_rate, each.steps) for each in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimal order at the end of the list
        rdp = accountants.RDPAccountant()
        rdp.history = steps
        found = float(rdp.get_epsilon(delta, alphas=_ORDERS))
        if accountant == "rdp" or found > _LARGEST_PRV:
            return found
        prv = accountants.PRVAccountant()
        prv.history = steps
        for _ in range(2):  # the bound of RDP may be far too high
            error = min(max(_RELATIVE_ERROR * found, _LEAST_ERROR), _LARGEST_ERROR)
            try:
                before, found = found, min(found, float(prv.get_epsilon(delta, eps_error=error)))
            except ValueError:  # float64 cannot tell so small a delta from 0: the bound of RDP holds
                return found
            if found > before / 2:
                break
        return found
