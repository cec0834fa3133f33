"""What share of the rows does a predictor answer rightly?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.numerics import Decoding
from pytest_modelserve.parity.correctness import answers_of
from pytest_modelserve.parity.judging import ROWS_LISTED, ErrorRates, Words, evidence_of
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import Slices, check_slices, lowest_slice
from pytest_modelserve.serving import Predictor
from pytest_modelserve.stats import binomial_bounds


def measure_share(
    predictor: Predictor,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    min_value: float,
    rates: ErrorRates,
    output: str | None,
    decode: Decoding,
    slices: Slices | None,
) -> Evidence:
    """Evidence that the share of right answers is at least `min_value`; see `measure_accuracy`."""
    if not 0 < min_value < 1:
        raise UsageError(f"min_value is a share between 0 and 1 (0.9, say), not {min_value}")
    started = time.perf_counter()
    n = rows_of(inputs)
    groups = check_slices(slices, n)
    answers = answers_of(predictor, inputs, labels, output=output, decode_as=decode)
    budget = Budget("at least", min_value)
    bounds = binomial_bounds(answers.right, n, **rates.levels(budget))
    worst = lowest_slice(groups, lambda rows: float(answers.correct[rows].mean()))
    advice = "retrain, look at the wrong rows, or give more labelled rows"
    return evidence_of(
        "accuracy",
        predictor.subject,
        Quantity("accuracy", bounds.estimate, "share", Interval.of(bounds), budget),
        n=n,
        method=Method("exact binomial bounds", "Clopper & Pearson 1934, Biometrika 26", "independent rows"),
        rates=rates,
        words={
            Verdict.PASS: Words("at least as accurate as required"),
            Verdict.FAIL: Words("less accurate than required", advice),
            Verdict.INCONCLUSIVE: Words("accuracy cannot be told from its budget with these rows", advice),
        },
        findings=(
            *answers.findings,
            *([f"worst slice {worst.label}: {100 * worst.value:.1f} % of {worst.n} rows"] if worst else ()),
        ),
        details={"wrong_rows": np.flatnonzero(~answers.correct)[:ROWS_LISTED].tolist()},
        started=started,
    )
