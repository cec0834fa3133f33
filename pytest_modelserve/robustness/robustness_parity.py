"""Robustness parity gate: the drop of robust accuracy from a reference to a candidate, on paired rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Evidence, Quantity, Verdict
from pytest_modelserve.metrics import Output
from pytest_modelserve.robustness.attacks.attack import Attack
from pytest_modelserve.robustness.attacks.attack_settings import AttackSettings, increasing_radii
from pytest_modelserve.robustness.attacks.attacked_rows import AttackedRows
from pytest_modelserve.robustness.attacks.threat_model import Allowed, Norm
from pytest_modelserve.robustness.relations.base import Features
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Column, Slices
    from pytest_modelserve.serving import Servable
    from pytest_modelserve.stats import Sampling

_ADVICE = {
    Verdict.FAIL: "keep the layers at fault in full precision, prune less, or compress a model trained on adversarial "
    "rows",
    Verdict.PASS: "",
}


def measure_robustness_parity(
    candidate: Servable,
    reference: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float,
    max_drop: float,
    norm: Norm = "linf",
    attacks: Sequence[Attack] | None = None,
    reference_attacks: Sequence[Attack] | None = None,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    immutable: Features = (),
    integer: Features = (),
    categories: Mapping[int | str, Sequence[float]] | None = None,
    dependent: Mapping[int | str, Callable[[Any], Any]] | None = None,
    allowed: Allowed | None = None,
    padding: int | None = None,
    image_shape: Sequence[int] | None = None,
    input_name: str | None = None,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    slices: Slices | Mapping[str, Column] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how much robust accuracy drops from a reference to a candidate, such as its int8 or pruned variant.

    Each model is attacked on its own, with the same attacks, queries and seed. Then the rows that were found for one
    are tried on the other, so that neither profits from a search that was unlucky for it: a row withstands for a model
    if that model is right on the row as it is, on what was found for it, and on what was found for the other. The drop
    is the difference of these paired proportions, with the bounds of accuracy parity (Tango). As both proportions are
    upper limits of robust accuracy, so is the drop one of what these attacks can tell apart.

    Args:
        candidate: The model to judge: whatever `ms.serve` takes.
        reference: The model that it replaces.
        inputs: As in `measure_robust_accuracy`; given to both models.
        labels: Class labels (n,).
        eps: Radius, in units of the unprocessed input.
        max_drop: Highest drop of robust accuracy that passes: 0.02 is two points.
        norm: "linf", "l2" or "edits".
        attacks: Attacks of both models; by default those of `measure_robust_accuracy`.
        reference_attacks: Attacks of the reference, where they are not those of the candidate: `ms.attacks.pgd` of a
            pruned model and of the original need a module each.
        low: Least value of the input: one, or one for each feature.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature; 0 for a feature that stays. One by default.
        immutable: Features that an attacker cannot change.
        integer: Features of whole numbers, in an input of floats.
        categories: Columns to all of their categories: an attacker may choose any of them.
        dependent: Features that follow from others, each with a function.
        allowed: Function of rows before and after (k, ...), or columns by name, that returns which changes keep the
            label, bool (k,).
        padding: For edits of codes (n, length): the code that fills a row at its end.
        image_shape: For flattened images: (height, width) or (channels, height, width).
        input_name: The input to attack; required where there are several.
        output: The output to read, by name or as `ms.Output`.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        slices: Names to columns: the evidence names the worst slice. `ms.Slices(..., max_drop=)` tests each slice.
        seed: Seed of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence: the drop, robust and clean accuracy of both models, and queries. The details list lost and gained
        rows.

    Raises:
        UsageError: As `measure_robust_accuracy`, and for several radii.
        InputError: As `measure_robust_accuracy`, and if neither model predicts any row right.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(400, 4)).astype(np.float32)
        >>> def model(x):
        ...     return np.stack([-x.sum(axis=1), x.sum(axis=1)], axis=1)
        >>> attacks = [ms.attacks.square(queries=50)]
        >>> found = ms.measure_robustness_parity(
        ...     model, model, rows, rows.sum(axis=1) > 0, eps=0.05, max_drop=0.02, low=-1, high=1, attacks=attacks
        ... )
        >>> found.verdict.name
        'PASS'
    """
    from pytest_modelserve.parity.accuracy.estimates import ErrorRates  # the parity gates load onnxruntime
    from pytest_modelserve.parity.accuracy.evaluation import Evaluation
    from pytest_modelserve.parity.accuracy.metrics import Accuracy, Rows

    radii = increasing_radii(eps)
    if len(radii) > 1:
        raise UsageError(f"eps must be one radius, got {len(radii)}: compare two models at one radius at a time")
    settings = AttackSettings(
        norm=norm,
        attacks=attacks,
        low=low,
        high=high,
        scale=scale,
        immutable=immutable,
        integer=integer,
        categories=categories,
        dependent=dependent,
        allowed=allowed,
        padding=padding,
        image_shape=image_shape,
        input_name=input_name,
        output=Output.of(output),
        seed=seed,
    )
    other = settings if reference_attacks is None else replace(settings, attacks=reference_attacks)
    data, given_labels = labeled_rows(inputs, labels)
    with open_models(candidate, reference, inputs=data) as (given, (new, old)):
        evaluation = Evaluation.of(
            "accuracy",
            given,
            given_labels,
            score_budget=("max_drop", max_drop),
            error_budget=("max_rise", None),
            rates=ErrorRates(confidence, alpha),
            output=output,
            sampling=sampling,
            slices=slices,
            data=data,
        )
        after, before = settings.attack(new, given, given_labels, radii), other.attack(old, given, given_labels, radii)
        if not (after.correct | before.correct).any():
            raise InputError(
                "labels: both models predict every row wrong without any change, so nothing was attacked; check that "
                "labels and inputs are in the same order, and that output= reads the right output"
            )
        kept = _withstanding(after, before), _withstanding(before, after)
    metric = Accuracy()
    metric.title = "robust accuracy"
    evaluation = replace(evaluation, metric=metric)
    rows, reference_rows = (Rows(mask, np.zeros(0, np.intp)) for mask in kept)
    evidence = evaluation.evidence(evaluation.estimate(rows, reference_rows), rows, new.subject, old.subject)
    weights = evaluation.units.weights
    clean = (
        Quantity(f"clean {name}", float(np.average(found.correct, weights=weights)), "proportion")
        for name, found in (("reference", before), ("candidate", after))
    )
    attacks_of = [", ".join(found.counts) for found in (after, before)]
    others = "" if attacks_of[0] == attacks_of[1] else f" (the reference by {attacks_of[1]})"
    attacked = f"each row attacked at {norm} distance {radii[0]:g} by {attacks_of[0]}{others}"
    whole = evidence.decisive is evidence.quantities[0]
    verdict = evidence.verdict
    assert verdict is not None
    return replace(
        evidence,
        quantities=(
            *evidence.quantities[:3],
            *clean,
            Quantity("queries", float(after.queries.sum() + before.queries.sum()), "count"),
            *evidence.quantities[3:],
        ),
        method=replace(
            evidence.method,
            name=f"{evidence.method.name}; {attacked}, and by what was found for the other model",
            assumptions=f"{evidence.method.assumptions}; other attacks may tell the models apart in other rows",
        ),
        findings=(*evidence.findings, *_findings(after, before, kept)),
        advice=_ADVICE.get(verdict, evidence.advice) if whole else evidence.advice,
        details={**evidence.details, "eps": radii[0], "norm": norm, "seed": seed},
    )


def _withstanding(model: AttackedRows, other: AttackedRows) -> NDArray[np.bool_]:
    """Return the rows (n,) that a model predicts right under its own attack, and as they were found for the other."""
    robust = model.robust(0)
    index = np.flatnonzero(robust & (other.attack >= 0))
    if index.size:
        found = other.adversarial[index]
        if found.dtype != model.adversarial.dtype:
            raise InputError(
                f"inputs have dtype {model.adversarial.dtype} for one model and {found.dtype} for the other: compare "
                "models of the same input"
            )
        robust[index[model.target.answers(index, found).fooled]] = False
    return robust


def _findings(
    after: AttackedRows, before: AttackedRows, kept: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> Iterator[str]:
    for name, found, rows in (("candidate", after, kept[0]), ("reference", before, kept[1])):
        own = int((found.correct & ~found.robust(0)).sum())
        transferred = int((found.robust(0) & ~rows).sum())
        yield f"{name}: {own:,} rows fooled by its own attack, {transferred:,} more by what was found for the other"
        yield from (f"{name}: {note}" for note in found.notes())
