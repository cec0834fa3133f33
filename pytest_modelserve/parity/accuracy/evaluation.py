"""How high is a score of one predictor, or how large its error?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, Verdict
from pytest_modelserve.metrics import Column, Output, Slices, slice_figures
from pytest_modelserve.parity.accuracy.estimates import (
    ROWS_LISTED,
    ErrorRates,
    MeanLoss,
    Words,
    evidence_of,
    quantity_of,
    within,
)
from pytest_modelserve.parity.accuracy.metrics import (
    Answers,
    Estimate,
    Limit,
    Metric,
    Reading,
    Spec,
    answers_of,
    estimate_of,
    refuse_for,
)
from pytest_modelserve.parity.accuracy.slices import (
    SliceRules,
    verdicts_of,
)
from pytest_modelserve.serving.inputs import Inputs, count_rows
from pytest_modelserve.stats import (
    Bounds,
    Linearized,
    Sampling,
    SamplingUnits,
    binomial_bounds,
    noninferiority_power,
    paired_difference_bounds,
    proportion_rows_needed,
    root_of,
    rows_needed,
)

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor


def measure_level(predictor: Predictor, question: Question) -> Evidence:
    """Evidence that a score is at least `min_value`, or an error at most `max_value`; see `measure_accuracy`."""
    spec, limit, rates = question.spec, question.limit, question.rates
    _check_limit(question)
    started = time.perf_counter()
    estimate = estimate_of(spec, predictor, question.inputs, question.labels, question.reading)
    if estimate.broken:
        return evidence_of_unanswered(
            spec.title, predictor.subject, broken=estimate.broken, told=estimate.told, n=question.n, started=started
        )
    whole = _sample(estimate, question, np.ones(question.n, dtype=np.bool_), limit.value, rates)
    verdicts = verdicts_of(
        question.slices,
        lambda rows, value, rates: _quantity(_sample(estimate, question, rows, value, rates), question),
        n=question.n,
        limit=limit.value,
        rates=rates,
        needed=lambda value: whole.at(_inside(value, question), rates).rows_needed(),
    )
    return evidence_of(
        spec.title,
        predictor.subject,
        verdicts,
        n=question.n,
        method=whole.method(),
        rates=rates,
        words=_words(whole, question),
        findings=(*estimate.findings, *whole.findings(), *_worst(estimate, question)),
        details={"rows_needed": whole.rows_needed(), "blocks": whole.blocks, **_worst_rows(estimate)},
        started=started,
    )


def _check_limit(question: Question) -> None:
    spec, limit = question.spec, question.limit
    if limit.is_score and spec.name != "r2" and not 0 < limit.value < 1:
        raise UsageError(f"{limit.name} is a share between 0 and 1 (0.9, say), not {limit.value}")
    if spec.name == "r2" and limit.value >= 1:
        raise UsageError(f"{limit.name} is a share of variance below 1 (0.9, say), not {limit.value}")
    if not limit.is_score and not limit.value > 0:
        where = " in the units of the target" if spec.reads == "targets" else ""
        raise UsageError(f"{limit.name} is an error{where}, above 0, not {limit.value}")


def _inside(limit: float, question: Question) -> float:
    """The limit of the mean that is judged: a score with its sign turned, and for the RMSE the mean square."""
    if question.limit.is_score:
        return -limit
    return limit**2 if question.spec.name == "rmse" else limit


def _sample(
    estimate: Estimate, question: Question, rows: NDArray[np.bool_], limit: float, rates: ErrorRates
) -> MeanLoss:
    found = estimate.over(rows)
    return MeanLoss.of(
        found.negative() if question.limit.is_score else found,
        spec=question.spec,
        limit=_inside(limit, question),
        units=question.units.over(rows),
        rates=rates,
    )


def _quantity(sample: MeanLoss, question: Question) -> Quantity:
    """The mean in the units of the metric; a root moves both ends of an interval and keeps their levels."""
    spec, bounds, limit = question.spec, sample.bounds(), sample.limit
    if question.limit.is_score:
        bounds = within(bounds, low=-1.0, high=math.inf if spec.name == "r2" else 0.0)
        return quantity_of(spec.title, spec.unit, bounds, limit=limit, turned=True)
    low, high = in_units(max(bounds.low, 0.0), spec), in_units(bounds.high, spec)
    in_metric = Bounds(in_units(bounds.estimate, spec), low, high, bounds.low_level, bounds.high_level)
    return quantity_of(spec.title, spec.unit, in_metric, limit=in_units(limit, spec), turned=False)


def in_units(mean_loss: float, spec: Spec) -> float:
    """A mean loss in the units of the target: the root of a mean square for the RMSE, itself for the others."""
    return math.sqrt(mean_loss) if spec.name == "rmse" else mean_loss


def _worst(estimate: Estimate, question: Question) -> tuple[str, ...]:
    spec = question.spec
    of_extreme = min if question.limit.is_score else max
    figures = slice_figures(question.slices.parts, lambda rows: in_units(estimate.over(rows).value, spec))
    worst = of_extreme(figures, default=None)
    if worst is None:
        return ()
    told = f"{100 * worst.value:.1f} % of" if spec.unit == "proportion" else f"{worst.value:.3g} over"
    return (f"worst slice {worst.label}: {told} {worst.n} rows",)


def _worst_rows(estimate: Estimate) -> dict[str, list[int]]:
    if estimate.losses is None:
        return {}
    return {"worst_rows": np.argsort(-estimate.losses, kind="stable")[:ROWS_LISTED].tolist()}


def _words(sample: MeanLoss, question: Question) -> dict[Verdict, Words]:
    title, budget = question.spec.title, question.limit.name
    if not question.limit.is_score:
        return {
            Verdict.PASS: Words("the error is at most as large as allowed"),
            Verdict.FAIL: Words("the error is larger than allowed", "retrain, or look at the rows that are worst"),
            Verdict.INCONCLUSIVE: sample.undecided("the error cannot be told from its budget with these rows", budget),
        }
    return {
        Verdict.PASS: Words(f"{title} is at least as high as required"),
        Verdict.FAIL: Words(f"{title} is lower than required", "retrain, or look at the rows that are wrong"),
        Verdict.INCONCLUSIVE: sample.undecided(f"{title} cannot be told from its budget with these rows", budget),
    }


# What share of the rows that count does a predictor answer rightly?


_ASSUMED = {
    "recall": "independent rows; given the number of rows of the positive class",
    "precision": "independent rows; given the number of rows that are answered as positive",
}


def measure_share(predictor: Predictor, question: Question) -> Evidence:
    """Evidence that a share of right answers is at least `min_value`; see `measure_accuracy`."""
    min_value, rates, title = question.limit.value, question.rates, question.spec.title
    if not 0 < min_value < 1:
        raise UsageError(f"min_value is a share between 0 and 1 (0.9, say), not {min_value}")
    started = time.perf_counter()
    answers = answers_of(predictor, question)
    if answers.broken:
        return evidence_of_unanswered(
            title, predictor.subject, broken=answers.broken, told=answers.findings[0], n=question.n, started=started
        )
    if not answers.rows.size:
        raise InputError(
            f"{predictor.subject} answers the positive class in no row: precision is the share of those answers that "
            "are right, and has no value"
        )

    def judge(rows: NDArray[np.bool_], limit: float, rates: ErrorRates) -> Quantity:
        part = _counted(answers, rows)
        budget = Budget("at_least", limit)
        bounds = binomial_bounds(part.right, part.rows.size, **rates.levels(budget))
        return Quantity(title, bounds.estimate, "proportion", Interval.of(bounds), budget)

    def needed(limit: float) -> int | None:
        return proportion_rows_needed(
            answers.right / answers.rows.size, limit, confidence=rates.confidence, alpha=rates.alpha
        )

    slices = question.slices.counting(answers.counted(question.n))
    verdicts = verdicts_of(slices, judge, n=question.n, limit=min_value, rates=rates, needed=needed)
    worst = min(slice_figures(slices.parts, lambda rows: float(_counted(answers, rows).correct.mean())), default=None)
    advice = "retrain, look at the wrong rows, or give more labelled rows"
    return evidence_of(
        title,
        predictor.subject,
        verdicts,
        n=answers.rows.size,
        method=Method(
            "exact binomial bounds",
            "Clopper & Pearson 1934, Biometrika 26",
            _ASSUMED.get(question.spec.name, "independent rows"),
        ),
        rates=rates,
        words={
            Verdict.PASS: Words(f"at least as {'accurate' if title == 'accuracy' else f'high a {title}'} as required"),
            Verdict.FAIL: Words(
                f"{'less accurate' if title == 'accuracy' else f'a lower {title}'} than required", advice
            ),
            Verdict.INCONCLUSIVE: Words(f"{title} cannot be told from its budget with these rows", advice),
        },
        findings=(
            *answers.findings,
            *([f"worst slice {worst.label}: {100 * worst.value:.1f} % of {worst.n} rows"] if worst else ()),
        ),
        details={
            "rows_needed": needed(min_value),
            "wrong_rows": answers.rows[~answers.correct][:ROWS_LISTED].tolist(),
        },
        started=started,
    )


def _counted(answers: Answers, rows: NDArray[np.bool_]) -> Answers:
    part = answers.over(rows)
    if not part.rows.size:
        raise UsageError("none of its rows counts for this metric")
    return part


# How many right answers does a candidate lose against its reference on the same rows?


@dataclass(frozen=True, slots=True)
class _Change:
    """The answers of the reference (`before`) and of the candidate (`after`) to the same rows."""

    before: Answers
    after: Answers

    @property
    def n(self) -> int:
        return len(self.before.correct)

    @property
    def lost(self) -> NDArray[np.intp]:
        """The rows that only the reference answers rightly."""
        return self.before.rows[self.before.correct & ~self.after.correct]

    @property
    def gained(self) -> NDArray[np.intp]:
        """The rows that only the candidate answers rightly."""
        return self.before.rows[~self.before.correct & self.after.correct]

    def drop(self, max_drop: float, rates: ErrorRates) -> Quantity:
        """The drop, judged."""
        budget = Budget("at_most", max_drop)
        bounds = paired_difference_bounds(self.lost.size, self.gained.size, self.n, **rates.levels(budget))
        return Quantity("drop", bounds.estimate, "proportion_difference", Interval.of(bounds), budget)

    def over(self, rows: NDArray[np.bool_]) -> _Change:
        """The change over the rows that a mask over all rows picks out; UsageError where none of them counts."""
        part = _Change(self.before.over(rows), self.after.over(rows))
        if not part.n:
            raise UsageError("none of its rows is of the positive class")
        return part

    def accuracies(self) -> tuple[Quantity, Quantity]:
        """Both accuracies, for the reader."""
        before, after = (answers.right / self.n for answers in (self.before, self.after))
        return Quantity("reference", before, "proportion"), Quantity("candidate", after, "proportion")

    def counts(self, slices: SliceRules) -> str:
        """How many rows changed which way, and where accuracy dropped most."""
        lost, gained = self.lost.size, self.gained.size
        told = f"{lost + gained} rows changed correctness: {lost} lost, {gained} gained"
        worst = max(slice_figures(slices.parts, self._drop_over), default=None)
        return (
            f"{told}; worst slice {worst.label}: {100 * worst.value:.1f} points" if worst and worst.value > 0 else told
        )

    def _drop_over(self, rows: NDArray[np.bool_]) -> float:
        part = self.over(rows)
        return (part.before.right - part.after.right) / part.n


@dataclass(frozen=True, slots=True)
class _Plan:
    """What these rows, and how many rows, would do for a model that is truly equal to its reference."""

    n: int
    equal_model_inconclusive: float
    rows_needed: int

    @classmethod
    def of(cls, change: _Change, max_drop: float, rates: ErrorRates) -> _Plan:
        """The unknown share of changed rows is taken as (changed + 1/2)/(n + 1): none seen does not mean none ever."""
        discordance = (change.lost.size + change.gained.size + 0.5) / (change.n + 1)
        confidence = rates.confidence
        shares = noninferiority_power(
            change.n,
            discordance=discordance,
            difference=0.0,
            margin=max_drop,
            confidence=confidence,
            alpha=rates.alpha,
        )
        needed = rows_needed(discordance=discordance, margin=max_drop, confidence=confidence)
        return cls(change.n, shares.inconclusive, needed)

    def __str__(self) -> str:
        return (
            f"a model equal to its reference would be INCONCLUSIVE with these {self.n} rows in "
            f"{self.equal_model_inconclusive:.0%} of samples; with about {self.rows_needed:,} rows it passes 9 times "
            "in 10"
        )


def measure_drop(candidate: Predictor, reference: Predictor, question: Question) -> Evidence:
    """Evidence that the share of right answers drops by at most `max_drop`; see `measure_accuracy_parity`."""
    max_drop, rates = question.limit.value, question.rates
    if not 0 < max_drop < 1:
        raise UsageError(f"max_drop is a share between 0 and 1 (0.01 is one percentage point), not {max_drop}")
    started = time.perf_counter()
    change = _Change(answers_of(reference, question, may_be_nan=False), answers_of(candidate, question))
    plan = _Plan.of(change, max_drop, rates)
    slices = question.slices.counting(change.before.counted(question.n))
    verdicts = verdicts_of(
        slices,
        lambda rows, limit, rates: change.over(rows).drop(limit, rates),
        n=question.n,
        limit=max_drop,
        rates=rates,
        needed=lambda limit: _Plan.of(change, limit, rates).rows_needed,
    )
    undecided = verdicts.headline.verdict is Verdict.INCONCLUSIVE
    return evidence_of(
        f"{question.spec.title} parity",
        candidate.subject,
        verdicts,
        reference=reference.subject,
        context=change.accuracies(),
        n=change.n,
        method=_TANGO,
        rates=rates,
        words=_words_drop(candidate, plan, question.spec.title),
        findings=(*change.after.findings, change.counts(slices), *((str(plan),) if undecided else ())),
        details={
            "equal_model_inconclusive": plan.equal_model_inconclusive,
            "rows_needed": plan.rows_needed,
            "lost_rows": change.lost[:ROWS_LISTED].tolist(),
            "gained_rows": change.gained[:ROWS_LISTED].tolist(),
        },
        started=started,
    )


_TANGO = Method(
    "Tango paired score",
    "Tango 1998, Statistics in Medicine 17:891-908; exact unconditional limits where his err too often, Buehler 1957, "
    "JASA 52:482-493, and Berger & Boos 1994, JASA 89:1012-1016",
    "independent rows; a model exactly on its budget fails, and passes, at most 1.1 times as often as the levels say",
)


def _words_drop(candidate: Predictor, plan: _Plan, title: str) -> dict[Verdict, Words]:
    return {
        Verdict.PASS: Words(f"{title} stays within its budget"),
        Verdict.FAIL: Words(
            f"{candidate.subject.variant or 'the candidate'} loses more {title} than its budget",
            "look at the lost rows, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: Words(
            f"the loss of {title} cannot be told from its budget with these rows",
            f"give about {plan.rows_needed:,} labelled rows, or a larger max_drop",
        ),
    }


# How much lower is a score of a candidate than its reference's on the same rows, or how much larger its error?


@dataclass(frozen=True, slots=True)
class _Pair:
    """The estimates of the reference (`before`) and of the candidate (`after`) over the same rows."""

    before: Estimate
    after: Estimate
    question: Question

    def worsening(self, rows: NDArray[np.bool_]) -> Linearized:
        """By how much the candidate is worse over the rows of a mask (n,): a score's drop, an error's rise."""
        before, after = self.metric(self.before, rows), self.metric(self.after, rows)
        return before.minus(after) if self.question.limit.is_score else after.minus(before)

    def metric(self, estimate: Estimate, rows: NDArray[np.bool_]) -> Linearized:
        """The metric over the rows of a mask (n,), in the units of the target."""
        found = estimate.over(rows)
        return root_of(found) if self.question.spec.name == "rmse" else found

    def sample(self, rows: NDArray[np.bool_], limit: float, rates: ErrorRates) -> MeanLoss:
        """The worsening held against a limit."""
        question = self.question
        units = question.units.over(rows)
        return MeanLoss.of(self.worsening(rows), spec=question.spec, limit=limit, units=units, rates=rates)

    def quantity(self, sample: MeanLoss) -> Quantity:
        """The worsening, judged."""
        spec, bounds = self.question.spec, sample.bounds()
        if self.question.limit.is_score and spec.name != "r2":
            bounds = within(bounds, low=-1.0, high=1.0)
        name = "drop" if self.question.limit.is_score else "rise"
        return quantity_of(name, spec.difference_unit, bounds, limit=sample.limit, turned=False)

    def values(self) -> tuple[Quantity, Quantity]:
        """Both metrics, for the reader."""
        rows, unit = np.ones(self.question.n, dtype=np.bool_), self.question.spec.unit
        before, after = (self.metric(estimate, rows).value for estimate in (self.before, self.after))
        return Quantity("reference", before, unit), Quantity("candidate", after, unit)

    def counts(self) -> tuple[str, ...]:
        """In how many rows an error moved which way, and the slice that became worst."""
        told = []
        if self.before.losses is not None and self.after.losses is not None:
            rose, fell = (
                int((worse > better).sum())
                for worse, better in (
                    (self.after.losses, self.before.losses),
                    (self.before.losses, self.after.losses),
                )
            )
            told.append(f"the error rose in {rose} rows and fell in {fell}")
        worst = max(slice_figures(self.question.slices.parts, lambda rows: self.worsening(rows).value), default=None)
        if worst is not None and worst.value > 0:
            shares = self.question.spec.unit == "proportion"
            sign = "+" if not self.question.limit.is_score else ""
            figure = f"{100 * worst.value:.1f} points" if shares else f"{sign}{worst.value:.3g}"
            told.append(f"worst slice {worst.label}: {figure}")
        return ("; ".join(told),) if told else ()

    def worst_rows(self) -> dict[str, list[int]]:
        """The rows in which the error rose most, worst first."""
        if self.before.losses is None or self.after.losses is None:
            return {}
        worst = np.argsort(self.before.losses - self.after.losses, kind="stable")[:ROWS_LISTED]
        return {"worst_rows": [int(row) for row in worst if self.after.losses[row] > self.before.losses[row]]}


def measure_change(candidate: Predictor, reference: Predictor, question: Question) -> Evidence:
    """Evidence that a score drops, or an error rises, by at most its budget; see `measure_accuracy_parity`."""
    spec, limit, rates = question.spec, question.limit, question.rates
    if spec.unit == "proportion" and not -1 < limit.value < 1:
        raise UsageError(f"{limit.name} is a difference of two shares, above -1 and below 1, not {limit.value}")
    started = time.perf_counter()
    gate, inputs, labels, reading = f"{spec.title} parity", question.inputs, question.labels, question.reading
    before = estimate_of(spec, reference, inputs, labels, reading, may_be_broken=False)
    after = estimate_of(spec, candidate, inputs, labels, reading)
    if after.broken:
        return evidence_of_unanswered(
            gate,
            candidate.subject,
            broken=after.broken,
            told=after.told,
            n=question.n,
            started=started,
            reference=reference.subject,
        )
    pair = _Pair(before, after, question)
    whole = pair.sample(np.ones(question.n, dtype=np.bool_), limit.value, rates)
    verdicts = verdicts_of(
        question.slices,
        lambda rows, value, rates: pair.quantity(pair.sample(rows, value, rates)),
        n=question.n,
        limit=limit.value,
        rates=rates,
        needed=lambda value: whole.at(value, rates).rows_needed(),
    )
    return evidence_of(
        gate,
        candidate.subject,
        verdicts,
        reference=reference.subject,
        context=pair.values(),
        n=question.n,
        method=whole.method(),
        rates=rates,
        words=_words_change(candidate, whole, question),
        findings=(
            *after.findings,
            *whole.findings(),
            *pair.counts(),
            *_equal_model(whole, verdicts.headline),
        ),
        details={
            "equal_model_inconclusive": whole.power(0.0).inconclusive,
            "rows_needed": whole.rows_needed(),
            "blocks": whole.blocks,
            **pair.worst_rows(),
        },
        started=started,
    )


def _equal_model(sample: MeanLoss, headline: Quantity) -> tuple[str, ...]:
    """What INCONCLUSIVE would have been for a model that is truly equal, where such a model is inside the budget."""
    if headline.verdict is not Verdict.INCONCLUSIVE or sample.limit <= 0 or not sample.is_bounded:
        return ()
    n, chance, needed = sample.units.n, sample.power(0.0).inconclusive, sample.rows_needed(0.0)
    told = f"a model as good as its reference would be INCONCLUSIVE with these {n} rows in {chance:.0%} of samples"
    more = f"; with about {needed:,} rows it passes 9 times in 10" if needed is not None and needed > n else ""
    return (told + more,)


def _words_change(candidate: Predictor, sample: MeanLoss, question: Question) -> dict[Verdict, Words]:
    title, who = question.spec.title, candidate.subject.variant or "the candidate"
    if question.limit.is_score:
        return {
            Verdict.PASS: Words(f"{title} stays within its budget"),
            Verdict.FAIL: Words(
                f"{who} loses more {title} than its budget",
                "look at the rows that are lost, keep the layers at fault in full precision, or retrain",
            ),
            Verdict.INCONCLUSIVE: sample.undecided(
                f"the loss of {title} cannot be told from its budget with these rows", question.limit.name
            ),
        }
    return {
        Verdict.PASS: Words("the error stays within its budget"),
        Verdict.FAIL: Words(
            f"the error of {who} rises more than its budget",
            "look at the rows where it rose most, keep the layers at fault in full precision, or retrain",
        ),
        Verdict.INCONCLUSIVE: sample.undecided(
            "the rise of the error cannot be told from its budget with these rows", question.limit.name
        ),
    }


@dataclass(frozen=True, slots=True)
class Question:
    """A gate's arguments, checked against its metric."""

    spec: Spec
    limit: Limit
    rates: ErrorRates
    inputs: Inputs
    labels: NDArray[Any]
    reading: Reading
    units: SamplingUnits
    slices: SliceRules
    decodes: bool = False
    """Whether `decode=` was given."""

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.units.n

    @property
    def are_plain_rows(self) -> bool:
        """Whether every row counts once and for itself, so that exact methods for counts hold."""
        return self.units.are_rows and self.reading.weights is None


def question_of(
    metric: Metric,
    spec: Spec,
    limit: Limit,
    rates: ErrorRates,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    output: Output | str | None,
    sampling: Sampling | None,
    slices: Slices | Mapping[str, Column] | None,
) -> Question:
    """The question; UsageError for arguments that mean nothing to the metric or lack, InputError for data amiss."""
    read, sampled, divided = Output.of(output), sampling or Sampling(), Slices.of(slices)
    slice_limit = next((Limit(name, value, limit.is_score) for name, value in divided.budgets.items()), None)
    if slice_limit is not None:
        _check_slice_limit(slice_limit, spec, limit)
    refuse_for(
        metric,
        decode=read.decode is not None and not (spec.reads == "answers" or spec.reads == "anything"),
        scores=read.scores is not None and spec.reads != "probabilities",
        pos_label=read.pos_label is not None and not spec.has_positive_class,
        sample_weight=sampled.sample_weight is not None and spec.reads == "anything",
    )
    if spec.reads == "probabilities" and read.scores is None:
        raise UsageError(
            f"metric={metric!r} reads probabilities: give output=ms.Output(scores='logits') or "
            "output=ms.Output(scores='probabilities')"
        )
    n = count_rows(inputs)
    weights = sampled.weights(n)
    reading = Reading(read.name, read.decode or "argmax", read.scores, read.pos_label, weights)
    return Question(
        spec,
        limit,
        rates,
        inputs,
        labels,
        reading,
        sampled.units(n),
        SliceRules(divided.parts(inputs, n), slice_limit, divided.min_rows or 1),
        read.decode is not None,
    )


def _check_slice_limit(given: Limit, spec: Spec, limit: Limit) -> None:
    if given.name != limit.name:
        raise UsageError(f"Slices: {given.name}= does not go with {limit.name}=: give Slices(..., {limit.name}=)")
    bounded = given.is_score and spec.name != "r2"
    if not math.isfinite(given.value) or (bounded and not -1 < given.value < 1):
        raise UsageError(
            f"Slices: {given.name} is {'a share below 1' if bounded else 'a finite number'}, not {given.value}"
        )


def evidence_of_unanswered(
    gate: str,
    subject: Subject,
    *,
    broken: int,
    told: str,
    n: int,
    started: float,
    reference: Subject | None = None,
) -> Evidence:
    """The FAIL of a `subject` that left `broken` of `n` rows without an answer; `told` says which."""
    return Evidence(
        gate=gate,
        subject=subject,
        reference=reference,
        quantities=(Quantity("unanswered", broken, "count", budget=Budget("at_most", 0)),),
        n=n,
        n_unit="rows",
        method=Method("every row looked at"),
        summary="some rows are answered with NaN or infinities",
        findings=(told,),
        advice="find out where they come from: look at the first such row node by node, and impute what is missing",
        duration_s=time.perf_counter() - started,
    )
