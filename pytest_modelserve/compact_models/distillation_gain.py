"""The gain in accuracy of distilled students over the same students without a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from pytest_modelserve.errors import InputError, UsageError, first_line
from pytest_modelserve.evidence import Evidence, Interval, Method, Quantity
from pytest_modelserve.serving.serve import as_predictor
from pytest_modelserve.stats import Bounds, mean_bounds, paired_difference_bounds
from pytest_modelserve.training.derived_model import DerivedModel
from pytest_modelserve.training.train import TrainedModel
from pytest_modelserve.training.train_spec import TrainSpec


def measure_gain(
    pairs: Sequence[tuple[DerivedModel, TrainedModel]],
    taught: NDArray[np.bool_],
    held_out: tuple[Any, Any],
    spec: TrainSpec,
    confidence: float,
) -> Evidence:
    """Return the gain in accuracy on the held-out rows over the controls, with its interval.

    `taught` says for each row whether the teacher is right.
    """
    hits = np.array([[is_correct(model, held_out, spec) for model in pair] for pair in pairs], np.float64)
    differences = hits[:, 0] - hits[:, 1]  # (seeds, rows)
    bounds, method = _gain_bounds(differences, confidence)
    interval = Interval(bounds.low, bounds.high, confidence, confidence)
    shown = f"gain {100 * bounds.estimate:.2f} points [{100 * bounds.low:.2f}, {100 * bounds.high:.2f}]"
    verdict = (
        "distillation helps" if bounds.low > 0 else "distillation harms" if bounds.high < 0 else "no gain is shown"
    )
    (student, control) = pairs[0]
    return Evidence(
        gate="distillation gain",
        subject=student.subject,
        reference=control.subject,
        quantities=(
            Quantity("gain", bounds.estimate, "proportion_difference", interval),
            Quantity("accuracy", float(hits[:, 0].mean()), "proportion"),
            Quantity("accuracy of the control", float(hits[:, 1].mean()), "proportion"),
            Quantity("accuracy of the teacher", float(taught.mean()), "proportion"),
        ),
        n=len(taught),
        n_unit="rows",
        method=method,
        summary=f"{shown}: {verdict}",
        confidence=confidence,
        details={
            "gain_by_seed": {str(pair[0].seed): float(row.mean()) for pair, row in zip(pairs, differences, strict=True)}
        },
    )


def is_correct(model: Any, held_out: tuple[Any, Any], spec: TrainSpec) -> NDArray[np.bool_]:
    """Return for each held-out row whether the class with the largest logit is its label."""
    if not isinstance(held_out, (tuple, list)) or len(held_out) != 2:
        raise UsageError("held_out must be a pair of inputs and labels")
    labels = np.asarray(held_out[1])
    if not labels.size:
        raise InputError("held_out has no rows: leave it out, or give rows that neither model was trained on")
    with as_predictor(model) as predictor:
        try:
            outputs = predictor.predict(held_out[0])
        except (RuntimeError, TypeError, IndexError) as error:
            raise InputError(f"held_out: {predictor.subject} fails on the inputs: {first_line(error)}") from error
    logits = outputs[spec.output] if spec.output in outputs else next(iter(outputs.values()))
    found: NDArray[Any] = logits.argmax(axis=1)
    if found.shape != labels.shape:
        raise InputError(f"held_out: labels have shape {list(labels.shape)}, expected {list(found.shape)}")
    if labels.dtype.kind not in "iub":
        raise InputError(f"held_out: labels must be integers; got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(
            f"held_out: labels must be classes from 0 to {logits.shape[1] - 1}; got values from {labels.min()} to "
            f"{labels.max()}"
        )
    return np.asarray(found == labels)


def _gain_bounds(differences: NDArray[np.float64], confidence: float) -> tuple[Bounds, Method]:
    """Return the mean of `differences` (seeds, rows) of −1, 0 and 1 with its bounds.

    For one seed the interval covers the choice of the rows: it is about these two models. For several it also covers
    the choice of the seeds, with the sum of both variances, which is at least that of the mean of a crossed design.
    """
    if len(differences) == 1:
        lost, gained = int((differences < 0).sum()), int((differences > 0).sum())
        drop = paired_difference_bounds(lost, gained, differences.size, low_level=confidence, high_level=confidence)
        bounds = Bounds(0.0 - drop.estimate, 0.0 - drop.high, 0.0 - drop.low, confidence, confidence)
        return bounds, Method("Tango paired score", "Tango 1998", "independent rows; about these two trained models")
    means = differences.mean(axis=1)
    by_row = mean_bounds(differences.mean(axis=0), low_level=confidence, high_level=confidence)
    # Student's t: with a few seeds a correction for skewness would be a guess.
    by_seed = float(stdtrit(len(means) - 1, confidence)) * float(means.std(ddof=1)) / math.sqrt(len(means))
    mean = by_row.estimate
    low, high = math.hypot(mean - by_row.low, by_seed), math.hypot(by_row.high - mean, by_seed)
    bounds = Bounds(mean, mean - low, mean + high, confidence, confidence)
    return bounds, Method("Student t over rows and over seeds", "Owen 2007", "independent rows; random seeds")
