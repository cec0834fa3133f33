"""Is the model as accurate as it must be: by itself, and against the model it replaces?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.numerics import Decoding
from pytest_modelserve.parity.correctness import Answers, answers_of
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import accuracy_by_slice, check_slices, drop_by_slice
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import (
    binomial_bounds,
    noninferiority_power,
    paired_difference_bounds,
    rows_needed,
)

_ROWS_LISTED = 50
"""Row numbers kept in the details: enough to look at, few enough to travel."""


def measure_accuracy(
    predictor: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    min_value: float,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: str | None = None,
    decode: Decoding = "argmax",
    slices: Mapping[str, NDArray[Any]] | None = None,
) -> Evidence:
    """Evidence that the accuracy of `predictor` is at least `min_value`, a share from 0 to 1.

    `labels` has shape (n,). `decode` turns the scores of `output` (required where there are several) into labels.
    Bounds are exact (Clopper-Pearson). A row whose scores hold NaN counts as wrong and is told. `slices` maps a name
    to one value a row, shape (n,); accuracy by slice informs and is not judged.

    Assumes rows drawn independently from what the model will meet. Raises InputError for labels that do not fit or
    are all of one class, for zero rows, and UsageError for a share outside (0, 1).
    """
    if not 0 < min_value < 1:
        raise UsageError(f"min_value is a share between 0 and 1 (0.9, say), not {min_value}")
    check_error_rates(confidence=confidence, alpha=alpha)
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    answers = answers_of(predictor, inputs, labels, output=output, decode_as=decode)
    budget = Budget("at least", min_value)
    low_level, high_level = levels_for(budget, confidence=confidence, alpha=alpha)
    bounds = binomial_bounds(answers.right, n, low_level=low_level, high_level=high_level)
    accuracy = Quantity("accuracy", bounds.estimate, "share", Interval.of(bounds), budget)
    return Evidence(
        gate="accuracy",
        subject=predictor.subject,
        quantities=(accuracy,),
        n=n,
        n_unit="rows",
        method=Method("exact binomial bounds", "Clopper & Pearson 1934, Biometrika 26", "independent rows"),
        summary={
            Verdict.PASS: "at least as accurate as required",
            Verdict.FAIL: "less accurate than required",
            Verdict.INCONCLUSIVE: "accuracy cannot be told from its budget with these rows",
        }[budget.judge(bounds.estimate, Interval.of(bounds))],
        confidence=confidence,
        alpha=alpha,
        findings=(*answers.findings, *accuracy_by_slice(groups, answers.correct)),
        advice=""
        if accuracy.verdict is Verdict.PASS
        else "retrain, look at the wrong rows, or give more labelled rows",
        details={"wrong_rows": np.flatnonzero(~answers.correct)[:_ROWS_LISTED].tolist()},
        duration_s=time.perf_counter() - started,
    )


def measure_accuracy_parity(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    max_drop: float,
    confidence: float = 0.95,
    alpha: float = 0.001,
    output: str | None = None,
    decode: Decoding = "argmax",
    slices: Mapping[str, NDArray[Any]] | None = None,
) -> Evidence:
    """Evidence that `candidate` loses at most `max_drop` of the reference's accuracy (0.01 is one percentage point).

    Both answer the same rows, and only the rows on which one is right and the other wrong say anything: Tango's score
    interval for the difference of paired proportions. `labels`, `output`, `decode` and `slices` as in
    `measure_accuracy`. A row on which the candidate's scores hold NaN counts as wrong and is told.

    Assumes rows drawn independently from what the model will meet. The levels of a score interval are asymptotic: a
    model that sits exactly on its budget with about ten discordant rows passes with up to 7 % instead of 5 % and fails
    with up to 0.4 % instead of 0.1 % (see `paired_difference_bounds`).

    Raises InputError where the reference answers with NaN (it cannot judge), for labels that do not fit or are all of
    one class and for zero rows; UsageError for a `max_drop` outside (0, 1).
    """
    if not 0 < max_drop < 1:
        raise UsageError(f"max_drop is a share between 0 and 1 (0.01 is one percentage point), not {max_drop}")
    check_error_rates(confidence=confidence, alpha=alpha)
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    before = answers_of(reference, inputs, labels, output=output, decode_as=decode, may_be_nan=False)
    after = answers_of(candidate, inputs, labels, output=output, decode_as=decode)
    lost, gained = before.correct & ~after.correct, ~before.correct & after.correct
    budget = Budget("at most", max_drop)
    low_level, high_level = levels_for(budget, confidence=confidence, alpha=alpha)
    bounds = paired_difference_bounds(int(lost.sum()), int(gained.sum()), n, low_level=low_level, high_level=high_level)
    drop = Quantity("drop", bounds.estimate, "share difference", Interval.of(bounds), budget)
    assert drop.verdict is not None
    plan = _plan(int((lost | gained).sum()), n, max_drop=max_drop, confidence=confidence, alpha=alpha)
    return Evidence(
        gate="accuracy parity",
        subject=candidate.subject,
        reference=reference.subject,
        quantities=(
            drop,
            Quantity("reference", before.right / n, "share"),
            Quantity("candidate", after.right / n, "share"),
        ),
        n=n,
        n_unit="rows",
        method=Method(
            "Tango paired score",
            "Tango 1998, Statistics in Medicine 17:891-908",
            "independent rows; levels are asymptotic: a model exactly on its budget, with about ten rows changed, "
            "fails up to 4 times as often as alpha says and passes with up to 7 % instead of 5 %",
        ),
        summary={
            Verdict.PASS: "accuracy stays within its budget",
            Verdict.FAIL: f"{candidate.subject.variant or 'the candidate'} loses more accuracy than its budget",
            Verdict.INCONCLUSIVE: "the loss of accuracy cannot be told from its budget with these rows",
        }[drop.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=_parity_findings(before, after, lost, gained, groups, drop.verdict, plan),
        advice={
            Verdict.PASS: "",
            Verdict.FAIL: "look at the lost rows, keep the layers at fault in full precision, or retrain",
            Verdict.INCONCLUSIVE: f"give about {plan['rows_needed']:,} labelled rows, or a larger max_drop",
        }[drop.verdict],
        details={
            **plan,
            "lost_rows": np.flatnonzero(lost)[:_ROWS_LISTED].tolist(),
            "gained_rows": np.flatnonzero(gained)[:_ROWS_LISTED].tolist(),
        },
        duration_s=time.perf_counter() - started,
    )


def _plan(discordant: int, n: int, *, max_drop: float, confidence: float, alpha: float) -> dict[str, Any]:
    """What these rows, and how many rows, would do for a model that is truly equal to its reference.

    The unknown discordance is taken as (discordant + 1/2)/(n + 1), so that none seen does not mean none ever.
    """
    discordance = (discordant + 0.5) / (n + 1)
    shares = noninferiority_power(
        n, discordance=discordance, difference=0.0, margin=max_drop, confidence=confidence, alpha=alpha
    )
    return {
        "equal_model_inconclusive": shares.inconclusive,
        "rows_needed": rows_needed(discordance=discordance, margin=max_drop, confidence=confidence),
    }


def _parity_findings(
    before: Answers,
    after: Answers,
    lost: NDArray[np.bool_],
    gained: NDArray[np.bool_],
    groups: Mapping[str, NDArray[Any]],
    verdict: Verdict,
    plan: Mapping[str, Any],
) -> tuple[str, ...]:
    changed = int(lost.sum() + gained.sum())
    worst = drop_by_slice(groups, before.correct, after.correct)
    counts = f"{changed} rows changed correctness: {lost.sum()} lost, {gained.sum()} gained"
    findings = [*after.findings, f"{counts}; {worst}" if worst else counts]
    if verdict is Verdict.INCONCLUSIVE:
        chance = plan["equal_model_inconclusive"]
        findings.append(
            f"a model equal to its reference would be INCONCLUSIVE with these {len(lost)} rows in {chance:.0%} of "
            f"samples; with about {plan['rows_needed']:,} rows it passes 9 times in 10"
        )
    return tuple(findings)
