"""Outputs of a model as columns of data: predicted class, confidence, entropy, probabilities, alerts."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import Output, class_labels
from pytest_modelserve.metrics.losses import SUM_TOLERANCE, class_probabilities
from pytest_modelserve.monitoring.profile import ReferenceProfile
from pytest_modelserve.serving.inputs import as_one_batch, select_output
from pytest_modelserve.serving.serve import Servable, open_models

Kind = Literal["probabilities", "labels", "values"]
Rows = NDArray[np.bool_]
MAX_PROBABILITIES = 20
"""With more classes, the probability of each is no column; the class, its confidence and the entropy remain."""
_ALERT = "alert at {!r}"
_ALERT_NAME = re.compile(r"alert at (\S+)")


def output_columns(
    outputs: Servable,
    *,
    inputs: Any = None,
    kind: Kind | None = None,
    alert_at: float | None = None,
    output: Output | str | None = None,
) -> dict[str, NDArray[Any]]:
    """Return outputs of a model as columns for `reference_profile`, with which `assert_results_healthy` compares.

    Probabilities have "class" (the most probable one) and "confidence" (its probability). Two classes have
    "probability" (of class 1); more have "entropy" in nats and, up to 20 classes, "probability[0]", … Labels have
    "class", numbers "value".

    Args:
        outputs: Ready outputs, or a model: whatever `ms.serve` takes. Probabilities are (n, classes), or (n,) for class
            1 of two.
        inputs: The rows that a model predicts; leave it out for ready outputs.
        kind: "probabilities", "labels" or "values" (numbers, as of a regression). Default: "probabilities" for
            floating-point numbers, otherwise "labels".
        alert_at: The operating threshold: adds a column of alerts, where the probability of class 1, or of the
            `pos_label` of `output`, is at least this.
        output: The output to read, by name or as `ms.Output`; `scores="logits"` for logits.

    Returns:
        The columns by name, each with one value a row.

    Raises:
        InputError: Outputs that are not finite, and probabilities that are negative or do not add up to 1.
        UsageError: An unknown kind, or a threshold that does not apply.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> columns = ms.output_columns(np.array([0.9, 0.2]), alert_at=0.8)
        >>> {name: values.tolist() for name, values in columns.items() if name != "confidence"}
        {'class': ['class 1', 'class 0'], 'probability': [0.9, 0.2], 'alert at 0.8': [True, False]}
    """
    read = Output.of(output)
    _, values = read_output(outputs, inputs, read, reads_labels=kind == "labels")
    found = Columns.of(values, read, kind=kind or _default_kind(values), alert_at=alert_at)
    if found.invalid.any():
        raise InputError(f"{found.describe_invalid()}: a reference needs valid outputs in every row")
    return found.columns


def read_output(
    outputs: Servable, inputs: Any, output: Output, *, reads_labels: bool = False
) -> tuple[Subject, NDArray[Any]]:
    """Return the subject and one output of ready outputs or of a model that predicts `inputs`, (n, ...)."""
    opened: AbstractContextManager[Any] = open_models(outputs, inputs=as_one_batch(inputs), ready=True)
    with opened as (batch, (model,)):
        _, values = select_output(model, model.predict(batch), output.name, reads_labels=reads_labels)
        return model.subject, np.asarray(values)


def read_probabilities(values: NDArray[Any], output: Output) -> NDArray[np.float64]:
    """Return the probabilities of the classes (n, classes); InputError for anything else and for NaN."""
    probabilities = class_probabilities(values, output.scores or "probabilities")
    bad = np.flatnonzero(np.isnan(probabilities).any(axis=1))
    if bad.size:
        raise InputError(f"outputs hold NaN in {bad.size} of {len(values)} rows, first in row {bad[0]}: leave them out")
    return probabilities


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the valid rows of outputs, and which rows (n,) are invalid, and why."""

    columns: dict[str, NDArray[Any]]
    invalid: Rows
    reason: str = ""

    @classmethod
    def of(cls, values: NDArray[Any], output: Output, *, kind: Kind, alert_at: float | None) -> Columns:
        """Return the columns of one output (n, ...)."""
        if kind not in get_args(Kind):
            raise UsageError(unknown_choice("kind", kind, get_args(Kind)))
        if alert_at is not None and (kind != "probabilities" or not 0 < alert_at < 1):
            raise UsageError(f"alert_at must be a threshold of probabilities between 0 and 1; got {alert_at}")
        return _READERS[kind](values, output, alert_at)

    def describe_invalid(self) -> str:
        """Return the sentence on the invalid rows."""
        rows = np.flatnonzero(self.invalid)
        return f"outputs are {self.reason} in {rows.size:,} of {self.invalid.size:,} rows, first in row {rows[0]}"


def kind_of(profile: ReferenceProfile) -> Kind:
    """Return the kind of the outputs that a profile was made of; UsageError for a profile of something else."""
    if "confidence" in profile.names:
        return "probabilities"
    if profile.names == ("class",):
        return "labels"
    if all(name.partition("[")[0] == "value" for name in profile.names):
        return "values"
    raise UsageError(
        f"profile {profile.name!r} is not one of outputs: its columns are "
        f"{', '.join(map(repr, profile.names[:5]))}; make it with reference_profile(ms.output_columns(outputs))"
    )


def threshold_of(profile: ReferenceProfile) -> tuple[str, float] | None:
    """Return the name and the threshold of a profile's column of alerts."""
    found = filter(None, map(_ALERT_NAME.fullmatch, profile.names))
    return next(((match[0], float(match[1])) for match in found), None)


def _default_kind(values: NDArray[Any]) -> Kind:
    return "probabilities" if values.dtype.kind == "f" else "labels"


def _label_columns(values: NDArray[Any], _: Output, __: float | None) -> Columns:
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    invalid: Rows = np.asarray(np.isnan(flat)) if flat.dtype.kind == "f" else np.zeros(len(flat), np.bool_)
    return Columns({"class": _class_names(class_labels(flat[~invalid], what="outputs"))}, invalid, "NaN")


def _class_names(labels: NDArray[Any]) -> NDArray[np.str_]:
    """Return "class 3" for label 3, so that no name is taken for a number."""
    values, places = np.unique(labels, return_inverse=True)
    return np.char.add("class ", values.astype(np.str_))[places]


def _value_columns(values: NDArray[Any], _: Output, __: float | None) -> Columns:
    if values.dtype.kind not in "fiu" or values.ndim == 0:
        raise InputError(f"kind='values' needs numbers of shape (rows,) or (rows, d); got {values.dtype}")
    numbers = values.reshape(len(values), -1).astype(np.float64)
    invalid: Rows = np.asarray(~np.isfinite(numbers).all(axis=1))
    kept = numbers[~invalid]
    return Columns({"value": kept[:, 0] if kept.shape[1] == 1 else kept}, invalid, "NaN or infinite")


def _probability_columns(values: NDArray[Any], output: Output, alert_at: float | None) -> Columns:
    kind = output.scores or "probabilities"
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise InputError(
            "outputs must be probabilities (rows, classes), or (rows,) for class 1 of two; got shape "
            f"{values.shape} of {values.dtype}: for labels or numbers use output_columns(..., kind=)"
        )
    numbers = values.astype(np.float64).reshape(len(values), -1)
    invalid: Rows = np.asarray(~np.isfinite(numbers).all(axis=1))
    reason = "NaN or infinite"
    if kind == "probabilities":
        outside = ((numbers < 0) | (numbers > 1)).any(axis=1)
        if numbers.shape[1] > 1:
            outside |= np.abs(numbers.sum(axis=1) - 1) > SUM_TOLERANCE
        if (outside & ~invalid).any():
            reason = "no probabilities (from 0 to 1, with a sum of 1)" + " or NaN" * bool(invalid.any())
        invalid |= outside
    if invalid.all():
        return Columns({}, invalid, reason)
    probabilities = class_probabilities(values[~invalid], kind)
    classes, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    columns: dict[str, NDArray[Any]] = {"class": _class_names(classes), "confidence": confidence}
    if probabilities.shape[1] == 2:  # the entropy is a function of the confidence then
        columns["probability"] = probabilities[:, 1]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            columns["entropy"] = -np.where(probabilities > 0, probabilities * np.log(probabilities), 0).sum(axis=1)
        if probabilities.shape[1] <= MAX_PROBABILITIES:
            columns["probability"] = probabilities
    if alert_at is not None:
        columns[_ALERT.format(float(alert_at))] = (
            probabilities[:, _positive(output, probabilities.shape[1])] >= alert_at
        )
    return Columns(columns, invalid, reason)


def _positive(output: Output, classes: int) -> int:
    """Return the column of the positive class."""
    if output.pos_label is None and classes == 2:
        return 1
    if not isinstance(output.pos_label, int) or not 0 <= output.pos_label < classes:
        raise UsageError(
            f"alert_at needs the column of the positive class, 0 to {classes - 1}: give output=ms.Output(pos_label=); "
            f"got {output.pos_label!r}"
        )
    return output.pos_label


_READERS: dict[Kind, Callable[[NDArray[Any], Output, float | None], Columns]] = {
    "probabilities": _probability_columns,
    "labels": _label_columns,
    "values": _value_columns,
}
