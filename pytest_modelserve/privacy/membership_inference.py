"""Gate on membership inference: how many rows of the training an attacker finds at a low false positive rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
)
from pytest_modelserve.metrics import Output
from pytest_modelserve.privacy.membership_attacks import (
    LIRA,
    REFERENCE,
    THRESHOLD,
    MembershipAttack,
    ServedTarget,
    SourceTarget,
    Target,
)
from pytest_modelserve.stats import Bounds, auc_of, delta_method_bounds
from pytest_modelserve.stats.roc_bounds import true_positive_rate_bounds
from pytest_modelserve.training import ModelSource, TrainedModel
from pytest_modelserve.training.seeds import check_seed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from pytest_modelserve.serving import Servable
    from pytest_modelserve.serving.inputs import Inputs

Floats = NDArray[np.float64]
_FEWEST = 10
"""Non-members that an attack may take for members, at least: 10 / at_fpr non-members."""
_NAMED, _LISTED, _DRAWN = 5, 50, 40
_FACTORS = (2, 3, 5, 10, 20, 50, 100)


def measure_membership_leak(
    model: Servable | ModelSource | TrainedModel,
    members: Inputs | tuple[Inputs, ArrayLike] | None,
    non_members: Inputs | tuple[Inputs, ArrayLike],
    *,
    max_tpr: float,
    at_fpr: float = 0.01,
    label_column: str | None = None,
    reference_models: Servable | Sequence[Servable] | None = None,
    shadows: int = 16,
    deploy: Callable[[TrainedModel], Servable] | None = None,
    output: Output | str | None = None,
    seed: int = 0,
    processes: int | None = None,
    time_limit_s: float = 3600.0,
    store: Store | None = None,
    confidence: float = 0.95,
    alpha: float = 0.01,
) -> Evidence:
    """Measure the proportion of training rows that an attack finds at a small false positive rate.

    Of a source, or a model trained from one, shadow models are trained on other parts of members and non-members, each
    row in equally many of them. Their log odds of a row's label say how the model answers if it has seen the row
    and if it has not; the attack is the likelihood ratio (LiRA). Each shadow model is an entry of the store, so that a
    run that was killed continues. Of a served model the attacks are the log odds alone (threshold), and their
    difference from models that were trained on other rows (`reference_models`). The strongest attack counts.

    FAIL means that the lower bound of the true positive rate is above `max_tpr`. PASS means that the upper bound of
    these attacks is within it; others may find more. The threshold attack alone misses what is memorized, so that it
    cannot PASS.

    Args:
        model: A `ModelSource`, a `TrainedModel`, or whatever `ms.serve` takes.
        members: Rows of the training: a pair (inputs, labels), or a mapping, a frame or a file with a column of labels.
            Of a source, rows of its data by name; None for all.
        non_members: Rows of the same distribution that the training has not seen, in the same form; at least
            10 / `at_fpr`. Of a source, with all names of its data.
        max_tpr: Highest true positive rate that passes, at least `at_fpr`, which guessing reaches.
        at_fpr: False positive rate at which the attack is judged.
        label_column: Name of the labels in members and non-members. Default: that of a TrainSpec.
        reference_models: For a served model: models of the same kind that were trained on neither members nor
            non-members. Several make a stronger attack. If their log odds do not go with those of the model, there is
            no PASS.
        shadows: Number of shadow models of a source, at least 4; fewer make a weaker attack.
        deploy: Function from a `TrainedModel` to what is served, such as an artifact that `ms.compose` made with steps
            after the model. The model and its shadow models are attacked as it serves them.
        output: The output to read, by name or as `ms.Output`; `scores` says whether it holds logits or probabilities.
        seed: Seed of the trainings and of the rows of each shadow model.
        processes: Processes that train shadow models (default: one a core).
        time_limit_s: Longest training of one shadow model in seconds, where several processes train.
        store: Where trained models are kept (default: the pipeline's store).
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL, over several attacks by Bonferroni; 0.01, because the bound is conservative: exactly
            at its budget a model FAILs in at most 0.2 % of simulated samples.

    Returns:
        The evidence; `details["members_at_risk"]` numbers the members with the highest scores.

    Raises:
        UsageError: Arguments are out of range, missing, or do not go together.
        InputError: Members and non-members overlap or differ in distribution; labels do not fit; outputs are labels
            only, or NaN, or logits are infinite.
        TrainingError: A shadow model diverges, or its process ends.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> rows, labels = rng.normal(size=(3000, 2)), rng.integers(0, 2, 3000)
        >>> seen = {row.tobytes() for row in rows[:1000]}
        >>> def memory(x):  # answers with the label where it has seen the row
        ...     known = np.array([row.tobytes() in seen for row in x])
        ...     return np.stack([1 - known * 0.9, known * 0.9], axis=1)
        >>> train, other = (rows[:1000], np.ones(1000, int)), (rows[1000:], np.ones(2000, int))
        >>> ms.measure_membership_leak(ms.serve(memory), train, other, max_tpr=0.05).verdict.name
        'FAIL'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    _check_rates(max_tpr, at_fpr)
    check_seed(seed)
    chosen = Output.of(output)
    if isinstance(model, (ModelSource, TrainedModel)):
        if reference_models is not None:
            raise UsageError("reference_models is for a served model; of a source shadow models are trained: remove it")
        target: Target = SourceTarget.of(
            model, members, non_members, label_column, chosen, deploy, shadows, seed, processes, time_limit_s, store
        )
    else:
        if deploy is not None:
            raise UsageError("deploy is for a ModelSource or a TrainedModel; the model is served already: remove it")
        target = ServedTarget.of(model, members, non_members, label_column, chosen, reference_models)
    target.check(seed)
    n, needed = target.non_members, math.ceil(_FEWEST / at_fpr - 1e-9)
    if n < needed:
        return _too_few(target, needed, at_fpr, started)
    attacks = target.attack()
    results = [_Result.of(attack, at_fpr, level=1 - alpha / len(attacks), confidence=confidence) for attack in attacks]
    return _evidence(target, results, max_tpr, at_fpr, confidence=confidence, alpha=alpha, started=started)


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    """An attack with the bounds of its true positive rate."""

    attack: MembershipAttack
    bounds: Bounds
    allowed: int

    @classmethod
    def of(
        cls, attack: MembershipAttack, at_fpr: float, *, level: float, confidence: float, factor: int = 1
    ) -> _Result:
        """Return the result; with a `factor` as if there were that many times the rows."""
        ours, others = (np.repeat(scores, factor) for scores in (attack.members, attack.non_members))
        bounds = true_positive_rate_bounds(
            ours, others, false_positive_rate=at_fpr, low_level=level, high_level=confidence
        )
        return cls(attack, bounds, math.floor(at_fpr * len(others) * (1 + 1e-12)))

    @property
    def threshold(self) -> float:
        """The threshold of the estimate."""
        return float(np.sort(self.attack.non_members)[::-1][self.allowed])

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which members (m,) score above the threshold of the estimate."""
        return np.asarray(self.attack.members > self.threshold)


def _check_rates(max_tpr: float, at_fpr: float) -> None:
    if not 0 < at_fpr < 0.5:
        raise UsageError(f"at_fpr must be above 0 and below 0.5, such as 0.01; got {at_fpr}")
    if not at_fpr <= max_tpr < 1:
        raise UsageError(
            f"max_tpr must be at least at_fpr ({at_fpr:g}), which guessing reaches, and below 1; got {max_tpr}"
        )


def _too_few(target: Target, needed: int, at_fpr: float, started: float) -> Evidence:
    """Return the evidence for fewer non-members than a false positive rate can be judged with: nothing was attacked."""
    n = target.non_members
    return Evidence(
        gate="membership leak",
        subject=target.subject,
        quantities=(
            Quantity(
                "non-members",
                n,
                "count",
                Interval(n, math.inf, 0.95, 0.95),
                Budget("at_least", needed, f"10 / at_fpr={at_fpr:g}"),
            ),
        ),
        n=n,
        n_unit="non-members",
        method=Method("number of rows", "", "no attack was run"),
        summary=f"too few non-members for a false positive rate of {100 * at_fpr:g} %",
        findings=(f"no attack was run: {n:,} non-members let it take {n * at_fpr:.1f} of them for members",),
        advice=f"give {needed - n:,} more non-members, {needed:,} in all, or a larger at_fpr",
        duration_s=time.perf_counter() - started,
    )


def _evidence(
    target: Target,
    results: Sequence[_Result],
    max_tpr: float,
    at_fpr: float,
    *,
    confidence: float,
    alpha: float,
    started: float,
) -> Evidence:
    budget = Budget.of("max_tpr", max_tpr)
    strongest = max(results, key=lambda result: (result.bounds.low, result.bounds.estimate))
    level = 1 - alpha / len(results)
    interval = Interval(strongest.bounds.low, max(_high(results), strongest.bounds.estimate), level, confidence)
    quantity = Quantity(f"TPR at {100 * at_fpr:g} % FPR", strongest.bounds.estimate, "proportion", interval, budget)
    verdict = quantity.verdict
    assert verdict is not None
    attack = strongest.attack
    areas = {result.attack.name: _area(result.attack, level, confidence) for result in results}
    risk = _at_risk(strongest)
    return Evidence(
        gate="membership leak",
        subject=target.subject,
        quantities=(quantity, Quantity("AUC", areas[attack.name].estimate, "", Interval.of(areas[attack.name]))),
        n=target.members + target.non_members,
        n_unit="rows",
        method=_method([result.attack.name for result in results]),
        summary=_summary(verdict, results, at_fpr),
        confidence=confidence,
        alpha=alpha,
        findings=tuple(_findings(strongest, results, risk)),
        advice=_advice(verdict, results, budget, at_fpr, level=level, confidence=confidence),
        details={
            "at_fpr": at_fpr,
            "members": target.members,
            "non_members": target.non_members,
            "members_at_risk": risk,
            "attacks": [
                {
                    "attack": result.attack.name,
                    "about": result.attack.about,
                    "tpr": round(result.bounds.estimate, 5),
                    "low": round(result.bounds.low, 5),
                    "auc": round(areas[result.attack.name].estimate, 5),
                }
                for result in results
            ],
            "attack_roc": {"at_fpr": at_fpr, "limit": max_tpr, "curves": [_curve(each.attack) for each in results]},
        },
        duration_s=time.perf_counter() - started,
    )


def _high(results: Sequence[_Result]) -> float:
    """Return the upper bound of all attacks; 1 if none of them is calibrated."""
    return max(result.bounds.high for result in results) if _is_calibrated(results) else 1.0


def _is_calibrated(results: Sequence[_Result]) -> bool:
    return any(result.attack.is_calibrated for result in results)


def _area(attack: MembershipAttack, level: float, confidence: float) -> Bounds:
    """Return the area under the attack's ROC curve."""
    scores = np.concatenate([attack.members, attack.non_members])
    area = auc_of(scores, np.arange(len(scores)) < len(attack.members))
    bounds = delta_method_bounds(
        area.value + area.influence, largest=area.largest, low_level=level, high_level=confidence
    )
    return Bounds(
        area.value,
        max(0.0, min(bounds.low, area.value)),
        min(1.0, max(bounds.high, area.value)),
        low_level=level,
        high_level=confidence,
    )


def _at_risk(result: _Result) -> list[int]:
    """Return the numbers of the members that the attack finds, the surest first."""
    order = np.argsort(-result.attack.members, kind="stable")
    return [int(row) for row in order[result.found[order]][:_LISTED]]


def _curve(attack: MembershipAttack) -> dict[str, Any]:
    """Return the ROC curve at false positive rates that are evenly spaced on a logarithmic axis."""
    others = np.sort(attack.non_members)[::-1]
    steps = np.unique(np.geomspace(1, len(others) - 1, _DRAWN).round().astype(int))
    ours = np.sort(attack.members)
    found = len(ours) - np.searchsorted(ours, others[steps], side="right")
    return {
        "label": attack.name,
        "false_positive_rate": (steps / len(others)).round(6).tolist(),
        "true_positive_rate": (found / len(ours)).round(6).tolist(),
    }


def _method(attacks: Sequence[str]) -> Method:
    sources = {
        LIRA: "Carlini et al. 2022, IEEE Symposium on Security and Privacy, 1897-1914",
        REFERENCE: "Watson et al. 2022, International Conference on Learning Representations",
        THRESHOLD: "Yeom et al. 2018, IEEE Computer Security Foundations Symposium, 268-282",
    }
    paid = f", the strongest of {len(attacks)} attacks by Bonferroni" if len(attacks) > 1 else ""
    return Method(
        f"{' and '.join(attacks)} attack, order statistic and Clopper-Pearson{paid}",
        "; ".join((*(sources[name] for name in attacks), "Clopper & Pearson 1934, Biometrika 26:404-413")),
        "independent rows of one distribution; what these attacks find, not what others might",
    )


def _summary(verdict: Verdict, results: Sequence[_Result], at_fpr: float) -> str:
    names = " and ".join(result.attack.name for result in results)
    if verdict is Verdict.FAIL:
        return "members of the training can be told from other rows"
    if verdict is Verdict.PASS:
        return f"the {names} attack stays within its budget at {100 * at_fpr:g} % false positives; others may find more"
    if not _is_calibrated(results):
        if len(results) > 1:
            return "the reference models do not show how hard a row is: their answers do not go with the model's"
        return "the threshold attack alone finds little, and it misses what is memorized"
    return f"not enough rows to decide whether the {names} attack exceeds its budget"


def _findings(strongest: _Result, results: Sequence[_Result], risk: Sequence[int]) -> list[str]:
    attack = strongest.attack
    about = f" ({attack.about})" if attack.about else ""
    lines = [
        f"{attack.name}{about}: {int(strongest.found.sum()):,} of {len(attack.members):,} members score above all but "
        f"{strongest.allowed:,} of {len(attack.non_members):,} non-members"
    ]
    lines += [
        f"{other.attack.name}{f' ({other.attack.about})' if other.attack.about else ''}: "
        f"{100 * other.bounds.estimate:.1f} %"
        for other in results
        if other is not strongest
    ]
    if risk:
        rows = ", ".join(map(str, risk[:_NAMED]))
        lines.append(f"members most at risk, by number: {rows}{', …' if len(risk) > _NAMED else ''}")
    return lines


def _advice(
    verdict: Verdict, results: Sequence[_Result], budget: Budget, at_fpr: float, *, level: float, confidence: float
) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "check the labels of the rows at risk, train for fewer epochs, regularize more, or train privately"
    if not _is_calibrated(results):
        if len(results) > 1:
            return "give reference models of the same task, with classes in the same order, or the ModelSource"
        return "pass the ModelSource or the TrainedModel, or reference_models= trained on other rows"
    if budget.limit <= at_fpr:
        return (
            f"give max_tpr above at_fpr={at_fpr:g}: a model that gives nothing away has that rate, and no number of "
            "rows shows it to be below"
        )
    for factor in _FACTORS:
        scaled = [
            _Result.of(each.attack, at_fpr, level=level, confidence=confidence, factor=factor) for each in results
        ]
        low = max(each.bounds.low for each in scaled)
        high = _high(scaled)
        if low > budget.limit or high <= budget.limit:
            sizes = [factor * len(scores) for scores in (results[0].attack.members, results[0].attack.non_members)]
            rows = f"{sizes[0]:,} members and {sizes[1]:,} non-members"
            return f"give about {factor} times the rows ({rows}), or a larger max_tpr"
    ties = max(float((each.attack.members == each.threshold).mean()) for each in results)
    if ties > budget.limit:
        return (
            f"attack the model with more decimals, or give another max_tpr: {100 * ties:.1f} % of the members score as "
            "the threshold, because answers are rounded or saturated, and no number of rows decides about them"
        )
    return f"give another max_tpr: the rate is so close to it that {_FACTORS[-1]} times the rows would not decide"
