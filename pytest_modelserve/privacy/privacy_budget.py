"""The privacy budget gate: the accounting of a private training, and an audit of it with canaries."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaincinv

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict, check_error_rates
from pytest_modelserve.privacy.labeled_rows import row_numbers
from pytest_modelserve.stats import binomial_bounds
from pytest_modelserve.stats.intervals import check_count
from pytest_modelserve.stats.privacy_audit import (
    AuditDesign,
    audit_design,
    audited_epsilon,
    count_correct,
    inclusion_scores,
)
from pytest_modelserve.training.canaries import (
    ONE_STEP,
    TWO_STEPS,
    TWO_STEPS_SUM,
    Mechanism,
    train_with_canaries,
)
from pytest_modelserve.training.privacy_accounting import (
    NoisySteps,
    PrivacySpent,
    check_delta,
    check_positive,
    epsilon_of,
)
from pytest_modelserve.training.train import ModelSource, TrainedModel
from pytest_modelserve.training.train_spec import TrainSpec, split_rows

_CANARIES = (1000, 2000, 4000)
_FEWEST_CANARIES, _MOST_CANARIES = 100, 10_000
# The claim is tested at the delta that an audit can refute best: smaller ones count less against the guesses.
_DELTA_FACTORS = (1.0, 0.1, 0.01)
# A canary's gradient has full norm after the clipping, up to rounding.
_FULL_NORM = 0.99
_LEAST_NOISE = 1e-3
# An optimizer that scales gradients otherwise than opacus is one whose noise cannot be told.
_SCALE_ERRORS, _SCALE_ROUNDING = 4.0, 0.01

# Guesses alone pass a training only if they would find noise of a quarter with this probability.
_ENOUGH_POWER = 0.9

# Steps whose noise is measured, where it is not that of all.
_STEPS_OF = {ONE_STEP: 1, TWO_STEPS: 2, TWO_STEPS_SUM: 2}


def measure_privacy_budget(
    trained: TrainedModel,
    *,
    max_epsilon: float,
    delta: float,
    canaries: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the epsilon that a private training spent by its accounting, and audit the accounting.

    The accounting composes all steps of the training, with those of `PrivateTraining.spent`. It holds if the steps are
    what it assumes. The audit tests that: it trains again by the same settings and code, with canaries among the rows,
    each included by a fair coin. A canary has a gradient of full norm in a direction of its own, and the audit guesses
    from the gradients that the optimizer gets which ones were included. Too many correct guesses refute the claimed
    epsilon: noise that is too small, clipping that is off, or steps that draw more rows than accounted for. Guesses
    cannot refute a large epsilon. Where the optimizer keeps the sums without noise, as those of opacus do, the audit
    also measures the noise of each parameter, the longest clipped gradient and the sampling, and gives their epsilon.
    Otherwise guesses alone decide: PASS needs guesses that would find noise of a quarter with probability 0.9, and its
    summary says that the steps were not measured.

    The audit does not cover what happens outside of the gradients, such as statistics of rows in the inputs, held-out
    rows, or a seed that is known.

    Args:
        trained: Result of `train` for a `TrainSpec` with `privacy=`.
        max_epsilon: Largest permitted epsilon at `delta`.
        delta: Probability of events without that bound, at most 1 / rows.
        canaries: Number of canaries, from 100 to 10,000 (default: as many of 1,000, 2,000 and 4,000 as find noise of a
            quarter with probability 0.99).
        epochs: Epochs of the audit (default: those of the training). The claim for fewer epochs is smaller.
        seed: Seed of the audit.
        confidence: Confidence of the interval's upper end, which is that of the accounting.
        alpha: Probability at most of FAIL by the audit if the claim is true.

    Returns:
        The evidence. FAIL: the accounted epsilon is above `max_epsilon`, or the audit refutes the claim. An audit can
        refute a claim but not confirm it: `details["audit"]` and the findings say what it would have found.

    Raises:
        UsageError: The training was not private, `delta` is larger than 1 / rows, or a value is out of range.
        MissingDependencyError: opacus is not installed.

    Source: Abadi et al. (2016), "Deep learning with differential privacy"; Gopi, Lee and Wutschitz (2021), "Numerical
    composition of differential privacy"; Nasr et al. (2023), "Tight auditing of differentially private machine
    learning"; Steinke, Nasr and Jagielski (2023), "Privacy auditing with one (1) training run".

    Example:
        >>> measure_privacy_budget(trained, max_epsilon=2.0, delta=1e-5).verdict.name  # doctest: +SKIP
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    spent = _spent(trained)
    budget = Budget.of("max_epsilon", check_positive("max_epsilon", max_epsilon))
    delta = check_delta(delta, spent.rows)
    if canaries is not None and not _FEWEST_CANARIES <= check_count("canaries", canaries) <= _MOST_CANARIES:
        raise UsageError(f"canaries must be at least {_FEWEST_CANARIES} and at most {_MOST_CANARIES:,}; got {canaries}")
    if epochs is not None:
        check_count("epochs", epochs, minimum=1)
    check_count("seed", seed)
    accounted = spent.epsilon_at(delta)
    audit = _audit(trained, spent, delta, canaries, epochs, seed, alpha)
    quantities = (
        Quantity("epsilon accounted", accounted, "", budget=budget),
        *audit.quantities(delta, confidence=confidence, alpha=alpha),
        Quantity("delta", delta, ""),
    )
    return Evidence(
        gate="privacy budget",
        subject=trained.subject,
        quantities=quantities,
        n=audit.design.guesses,
        n_unit="guesses",
        method=Method(
            f"{spent.accountant.upper()} accountant; audit in one run with white-box gradient canaries",
            "Gopi, Lee and Wutschitz (2021); Steinke, Nasr and Jagielski (2023)",
            "data sets that differ by one added or removed training row; held-out rows are not protected"
            + ("" if spent.is_seed_secret else "; the seed of the training is not known to others"),
        ),
        summary=_summary(
            max((q.verdict for q in quantities if q.verdict), key=lambda verdict: verdict.severity), audit
        ),
        confidence=confidence,
        alpha=alpha,
        findings=tuple(_findings(spent, audit, _copies(trained))),
        advice=_advice(accounted, max_epsilon, audit),
        details={
            "epsilon": accounted,
            "delta": delta,
            "history": [asdict(each) for each in spent.history],
            "accountant": spent.accountant,
            "max_grad_norm": spent.max_grad_norm,
            "rows": spent.rows,
            "audit": audit.as_json(),
        },
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Bounds of the noise, the clipping and the sampling in the audit, and the epsilon that they spend."""

    parameter: str
    noise: float
    noise_high: float
    rate: float
    rate_low: float
    clipped_norm: float
    claimed: float
    epsilon: float
    epsilon_low: float

    @property
    def is_refuted(self) -> bool:
        return self.epsilon_low > self.claimed


@dataclass(frozen=True, slots=True)
class _Audit:
    design: AuditDesign
    steps: NoisySteps
    correct: int
    low: float
    median: float
    noise: float
    measured: _Measured | None
    unmeasured: str = ""
    may_be_scaled: bool = False

    @property
    def is_refuted_by_guesses(self) -> bool:
        return self.correct >= self.design.needed

    @property
    def checks_too_little(self) -> bool:
        """Whether guesses alone judge the steps, and miss noise of a quarter too often, or noise looks too small."""
        too_few = self.may_be_scaled or self.design.power < _ENOUGH_POWER
        return self.measured is None and not self.is_refuted_by_guesses and too_few

    @property
    def is_clipped_otherwise(self) -> bool:
        return self.measured is not None and self.measured.clipped_norm < _FULL_NORM

    @property
    def is_refuted_by_steps(self) -> bool:
        return self.measured is not None and self.measured.is_refuted

    def quantities(self, delta: float, *, confidence: float, alpha: float) -> list[Quantity]:
        """Return epsilon by the guesses, and by noise, clipping and sampling if they were measured."""
        levels = (1 - alpha / 2, confidence)
        claim = Budget("at_most", self.design.epsilon, f"claimed at delta {self.design.delta:g}")
        interval = _one_sided(self.low, claim.limit, levels, is_refuted=self.is_refuted_by_guesses)
        if self.checks_too_little:
            interval = replace(interval, high=math.inf)
        found = [Quantity("epsilon audited", self.median, "", interval, claim)]
        if self.measured is not None:
            claim = Budget("at_most", self.measured.claimed, f"claimed at delta {delta:g}")
            low = self.measured.epsilon_low
            interval = _one_sided(low, claim.limit, levels, is_refuted=self.is_refuted_by_steps)
            if self.is_clipped_otherwise and not self.is_refuted_by_steps:
                interval = replace(interval, high=math.inf)
            found.append(Quantity("epsilon measured", self.measured.epsilon, "", interval, claim))
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "canaries": self.design.canaries,
            "guesses": self.design.guesses,
            "correct": self.correct,
            "correct_that_refute": self.design.needed if self.design.needed <= self.design.guesses else None,
            "delta": self.design.delta,
            "claimed_epsilon": self.design.epsilon,
            "epsilon_low": self.low,
            "ceiling": self.design.ceiling,
            "power_against_a_quarter_of_the_noise": self.design.power,
            "measured": None if self.measured is None else asdict(self.measured),
        }


def _one_sided(low: float, claim: float, levels: tuple[float, float], *, is_refuted: bool) -> Interval:
    """Return the interval from the lower bound to the claim, which is proven unless it is refuted."""
    if is_refuted:
        return Interval(max(low, math.nextafter(claim, math.inf)), math.inf, *levels)
    return Interval(min(low, claim), claim, *levels)


def _spent(trained: object) -> PrivacySpent:
    if not isinstance(trained, TrainedModel):
        hint = ": pass ms.train(source)" if isinstance(trained, ModelSource) else ""
        raise UsageError(
            f"trained must be a TrainedModel, whose training is audited; got {type(trained).__name__}{hint}"
        )
    if not isinstance(trained.source.fit, TrainSpec):
        raise UsageError(
            f"trained: {trained.source.name!r} was trained by a function, whose steps are not known. Train by "
            "ms.TrainSpec(..., privacy=ms.PrivateTraining(...))"
        )
    if trained.metrics is None or trained.metrics.privacy is None:
        raise UsageError(
            f"trained: {trained.source.name!r} was trained without privacy, so that its epsilon is infinite. Train by "
            "ms.TrainSpec(..., privacy=ms.PrivateTraining(...))"
        )
    return trained.metrics.privacy


def _audit(
    trained: TrainedModel,
    spent: PrivacySpent,
    delta: float,
    canaries: int | None,
    epochs: int | None,
    seed: int,
    alpha: float,
) -> _Audit:
    """Plan the audit from the claims alone, run it, count the correct guesses, and measure the steps.

    The guesses have half of `alpha`, noise and sampling a quarter each.
    """
    last = spent.history[-1]
    steps = last.steps if epochs is None else min(last.steps, epochs * round(1 / last.sample_rate))
    claimed = NoisySteps(last.noise_multiplier, last.sample_rate, steps)
    claims = {delta * factor: epsilon_of([claimed], delta * factor, spent.accountant) for factor in _DELTA_FACTORS}
    design = audit_design(
        claims,
        _CANARIES if canaries is None else (canaries,),
        noise=claimed.noise_multiplier,
        sample_rate=claimed.sample_rate,
        steps=steps,
        error_rate=alpha / 2,
    )
    run = train_with_canaries(trained, claimed, canaries=design.canaries, seed=seed)
    noise = float(run.controls.std())
    gradients = run.gradients.astype(np.float64)
    scores = inclusion_scores(gradients, noise=max(noise, _LEAST_NOISE), sample_rate=claimed.sample_rate)
    correct = count_correct(scores, run.included, design.guesses)
    measured: _Measured | None = None
    unmeasured, may_be_scaled = "the private optimizer keeps no sums without noise", False
    if run.mechanism is not None:
        found = functools.partial(
            _measure_steps, claimed=claimed, epsilon=claims[delta], delta=delta, accountant=spent.accountant,
            error_rate=alpha / 4,
        )  # fmt: skip
        measured, unmeasured, may_be_scaled = _unless_scaled(run.mechanism, noise / claimed.noise_multiplier, found)
    return _Audit(
        design=design,
        steps=claimed,
        correct=correct,
        low=_bound(design, correct, alpha / 2),
        median=_bound(design, correct, 0.499),
        noise=noise,
        measured=measured,
        unmeasured=unmeasured,
        may_be_scaled=may_be_scaled,
    )


def _unless_scaled(
    mechanism: Mechanism, noise_ratio: float, measure: Callable[[Mechanism], _Measured]
) -> tuple[_Measured | None, str, bool]:
    """Return what is measured, or why it is not: because of the scale of the gradients; and whether that is not known.

    Gradients that are scaled together with the noise spend no other epsilon, so that their noise refutes no claim.
    """
    scale, error = mechanism.scale
    tolerance = _SCALE_ERRORS * error + _SCALE_ROUNDING
    if abs(scale - 1) > tolerance:
        return None, f"the private optimizer scales gradients by {scale:.2g}", False
    measured = measure(mechanism)
    if measured.is_refuted and noise_ratio > 0 and abs(scale - noise_ratio) <= tolerance:
        squares = {name: replace(each, total=each.total / noise_ratio**2) for name, each in mechanism.squares.items()}
        if not measure(replace(mechanism, squares=squares)).is_refuted:
            ratio = f"{noise_ratio:.2g} times"
            return None, f"noise is {ratio} as accounted for, and so may be gradients: too few canaries to tell", True
    return measured, "", False


def _measure_steps(
    mechanism: Mechanism, claimed: NoisySteps, epsilon: float, delta: float, accountant: str, error_rate: float
) -> _Measured:
    """Return the epsilon of the parameter with the least noise, by the accountant of the claim."""
    share = error_rate / len(mechanism.squares)
    highs = {
        name: math.sqrt(each.total / (2 * float(gammaincinv(each.count / 2, share / each.choices))))
        for name, each in mechanism.squares.items()
    }
    # The least of many sums is reported only if it refutes the claim.
    told = [
        name for name, each in mechanism.squares.items() if each.choices == 1 or highs[name] < claimed.noise_multiplier
    ]
    name = min(told, key=highs.__getitem__)
    of_steps = min(_STEPS_OF.get(name, claimed.steps), claimed.steps)
    rate = mechanism.draws / mechanism.chances
    rate_low = binomial_bounds(mechanism.draws, mechanism.chances, low_level=1 - error_rate, high_level=0.95).low

    def spent(noise: float, rate: float) -> float:
        if noise < _LEAST_NOISE:
            return math.inf
        steps = [NoisySteps(noise, rate, of_steps)]
        if of_steps < claimed.steps:
            steps.append(NoisySteps(claimed.noise_multiplier, rate, claimed.steps - of_steps))
        return epsilon_of(steps, delta, accountant)

    noise = math.sqrt(mechanism.squares[name].total / mechanism.squares[name].count)
    # Bounds inside of which the claim lies are the claim: only what is refuted changes epsilon.
    low = spent(min(highs[name], claimed.noise_multiplier), max(rate_low, claimed.sample_rate))
    is_as_claimed = highs[name] >= claimed.noise_multiplier and rate_low <= claimed.sample_rate
    return _Measured(
        parameter=name,
        noise=noise,
        noise_high=highs[name],
        rate=rate,
        rate_low=rate_low,
        clipped_norm=mechanism.clipped_norm,
        claimed=epsilon,
        epsilon=spent(noise, rate),
        epsilon_low=min(spent(highs[name], rate_low), epsilon) if is_as_claimed else low,
    )


def _bound(design: AuditDesign, correct: int, error_rate: float) -> float:
    return audited_epsilon(design.canaries, design.guesses, correct, delta=design.delta, error_rate=error_rate)


def _copies(trained: TrainedModel) -> int:
    """Return how often the most frequent training row occurs."""
    spec = trained.source.fit
    assert isinstance(spec, TrainSpec)
    rows = split_rows(spec, trained.source.data, trained.seed)
    (numbers,) = row_numbers({name: array[rows.training] for name, array in rows.arrays.items()})
    return int(np.bincount(numbers).max())


def _summary(verdict: Verdict, audit: _Audit) -> str:
    if verdict is Verdict.FAIL:
        return "the training spends more privacy than its budget"
    if audit.checks_too_little:
        return "the steps of the training could not be measured, and guesses about so few canaries miss faults of them"
    if verdict is Verdict.INCONCLUSIVE:
        return "the gradients of rows are not clipped as accounted for, so that the audit cannot judge it"
    if audit.measured is None:
        return (
            "the training spends no more privacy than its budget, and guesses do not refute that; noise, clipping and "
            "sampling of its steps were not measured"
        )
    return "the training spends no more privacy than its budget, and its audit does not refute that"


def _findings(spent: PrivacySpent, audit: _Audit, copies: int) -> list[str]:
    design = audit.design
    found = [
        f"guesses: {audit.correct} of {design.guesses}, about {design.canaries} canaries, are right; "
        + (
            f"{design.needed} right ones would refute epsilon {design.epsilon:.3g} at delta {design.delta:g}"
            if design.needed <= design.guesses
            else f"no number of them would refute epsilon {design.epsilon:.3g} at delta {design.delta:g}"
        )
    ]
    if not audit.is_refuted_by_guesses:
        quarter = f"a quarter of the noise is found with probability {design.power:.2f}; "
        found.append(
            f"what these canaries cannot refute: {quarter if design.needed <= design.guesses else ''}"
            f"if all guesses were right, they would show an epsilon of {design.ceiling:.3g}"
        )
    if audit.measured is None:
        found.append(f"noise, clipping and sampling were not measured: {audit.unmeasured}")
    else:
        steps = audit.measured
        found.append(
            f"steps: noise {steps.noise:.3g} times the longest gradient of a row"
            + (
                f" ({'in' if steps.parameter in _STEPS_OF else 'on'} {steps.parameter})"
                if steps.noise_high < audit.steps.noise_multiplier
                else ""
            )
            + f", accounted for {audit.steps.noise_multiplier:.3g}; a row in {100 * steps.rate:.3g} % of the steps, "
            f"accounted for {100 * audit.steps.sample_rate:.3g} %; gradient of a row up to "
            f"{steps.clipped_norm:.3g} × max_grad_norm"
        )
        if audit.is_clipped_otherwise:
            found.append(
                f"canaries have a gradient of {steps.clipped_norm:.2g} times max_grad_norm after the clipping, not of "
                "full norm: the guesses find less, and if rows are clipped together, no row's influence is bounded"
            )
    if copies > 1:
        found.append(f"up to {copies} training rows are equal: epsilon is that of one row, not of whoever gave several")
    if not spent.is_seed_secret:
        found.append(
            "noise_seed is not secret: whoever knows the seed of the training, which the lineage shows, can subtract "
            "the noise"
        )
    return found


def _advice(accounted: float, max_epsilon: float, audit: _Audit) -> str:
    advice = []
    if audit.is_refuted_by_guesses or audit.is_refuted_by_steps:
        advice.append(
            "the steps are not those that are accounted for: check PrivateTraining(optimizer=), and changes to opacus"
        )
    elif audit.is_clipped_otherwise:
        advice.append("clip the gradient of each row alone to max_grad_norm: check PrivateTraining(optimizer=)")
    elif audit.checks_too_little:
        more = "give more canaries, or " if audit.design.canaries < _MOST_CANARIES else ""
        advice.append(
            f"{more}derive PrivateTraining(optimizer=) from opacus.optimizers.DPOptimizer with its own scale of "
            "gradients, whose steps can be measured"
        )
    if accounted > max_epsilon:
        advice.append(f"train with PrivateTraining(epsilon={max_epsilon:g}), or fewer epochs")
    return "; ".join(advice)
