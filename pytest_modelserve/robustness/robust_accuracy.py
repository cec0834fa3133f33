"""Robust accuracy gate: the proportion of rows that stay right under attack, with exact bounds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import printable
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.metrics import Output
from pytest_modelserve.robustness.attacks.adversarial_rows import ADVERSARIAL_FOLDER
from pytest_modelserve.robustness.attacks.attack import Attack
from pytest_modelserve.robustness.attacks.attack_settings import AttackSettings, check_min_accuracy, increasing_radii
from pytest_modelserve.robustness.attacks.attacked_rows import AttackedRows
from pytest_modelserve.robustness.attacks.threat_model import Allowed, Norm
from pytest_modelserve.robustness.relations.base import Features
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.serving.substitution import is_replacing
from pytest_modelserve.settings import is_redacted
from pytest_modelserve.stats import Sampling

if TYPE_CHECKING:
    from pytest_modelserve.parity.accuracy.estimates import Estimate, Levels
    from pytest_modelserve.serving import Servable

_ROWS_LISTED = 50
_EXAMPLES = 3
_TEXT = 60
_PICTURE_SIDE = 32
"""Larger images are averaged to this side: a report holds the pixels in its details."""
_SUMMARIES = {
    Verdict.PASS: "these attacks found no more wrong rows than allowed; others may",
    Verdict.FAIL: "attacks found more wrong rows than allowed",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether as many withstand these attacks as required",
}


def measure_robust_accuracy(
    predictor: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float | Sequence[float],
    min_accuracy: float,
    norm: Norm = "linf",
    attacks: Sequence[Attack] | None = None,
    low: float | Sequence[float] | Mapping[str, float] | None = None,
    high: float | Sequence[float] | Mapping[str, float] | None = None,
    scale: float | Sequence[float] | Mapping[str, float] | None = None,
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
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the accuracy on the worst rows that attacks find within `eps` of the given rows.

    Every adversarial row is verified again through the served model: inside the ball in the dtype that is served,
    inside the range, and predicted wrong. A row is robust if it is right as it is and no attack fooled it. Attacks
    bound robust accuracy from above: FAIL shows wrong rows; PASS says that these attacks found no more within their
    queries, and claims nothing about others. Each row is attacked until it is fooled, and by the next attack if not.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; a sample of the
            rows that are served. The numeric columns of a frame are attacked together, and features may be named. A
            DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        eps: Radius, in units of the unprocessed input. Several radii draw accuracy over eps; the largest is judged.
        min_accuracy: Lowest robust accuracy that passes, between 0 and 1.
        norm: "linf" (each feature by eps), "l2" (Euclidean distance), or "edits" (of characters of a text).
        attacks: Attacks of `ms.attacks`. By default `square`, for a torch module with gradients also `pgd`, for columns
            with `categories` also `random_search`, for models of labels alone `boundary`, and for edits `characters`.
        low: Least value of the input: one, one for each feature, or a mapping of columns. Needed where values below it
            cannot occur.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature, such as standard deviations of the training data; 0 for a feature that
            stays, as for columns that a mapping leaves out. One by default.
        immutable: Features that an attacker cannot change.
        integer: Features of whole numbers, in an input of floats.
        categories: Columns to all of their categories: an attacker may choose any of them.
        dependent: Features that follow from others, each with a function: of a column, from the changed rows to its
            values (k,); of the name of another input, from all inputs by name to this input.
        allowed: Function of rows before and after (k, ...) that returns which changes keep the label, bool (k,); for a
            frame, of the columns by name before and after.
        padding: For edits of codes (n, length): the code that fills a row at its end.
        image_shape: For flattened images: (height, width) or (channels, height, width); `square` changes squares of
            it, and the report shows pictures.
        input_name: The input to attack; required where there are several, unless each has one value a row.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence: robust and clean accuracy, and queries. Rows that are wrong without any change count as wrong, and
        so do rows with NaN scores. Its details hold the path of the adversarial rows, for `ms.attacks.saved`.

    Raises:
        UsageError: For an eps that is not positive or is larger than the range, and attacks that do not fit.
        InputError: For NaN in what may change, labels that the model cannot predict, rows outside the range, and a
            model that raises for an admissible row; the message names the row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(300, 4)).astype(np.float32)
        >>> model = ms.serve(lambda x: np.stack([-x.sum(axis=1), x.sum(axis=1)], axis=1))
        >>> attacks = [ms.attacks.square(queries=50)]
        >>> found = ms.measure_robust_accuracy(
        ...     model, rows, rows.sum(axis=1) > 0, eps=0.01, min_accuracy=0.9, low=-1, high=1, attacks=attacks
        ... )
        >>> found.verdict.name
        'PASS'
    """
    from pytest_modelserve.parity.accuracy.estimates import ErrorRates  # the parity gates load onnxruntime
    from pytest_modelserve.parity.accuracy.metrics import Accuracy, Rows

    started = time.perf_counter()
    rates = ErrorRates(confidence, alpha)
    radii = increasing_radii(eps)
    check_min_accuracy(min_accuracy)
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
    data, given_labels = labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data) as (given, (served,)):
        found = settings.attack(served, given, given_labels, radii)
        units = Sampling.of(sampling).units(len(found.correct))
        findings, path = _saved(found, as_array=found.target.predictor.pass_array)
        robust, clean = (
            Accuracy().level(Rows(mask, np.zeros(0, np.intp)), units)
            for mask in (found.robust(len(radii) - 1), found.correct)
        )
        budget = Budget.of("min_accuracy", min_accuracy)
        levels = rates.levels(budget)
        curve = [
            Accuracy().level(Rows(found.robust(k), np.zeros(0, np.intp)), units).bounds(levels)
            for k in range(len(radii))
        ]
        decisive = _quantity("robust accuracy", robust, levels, budget)
    verdict = decisive.verdict
    assert verdict is not None
    plan = robust.plan(min_accuracy, rates)
    attacked = found.queries[found.correct]
    method = robust.method(levels)
    return Evidence(
        gate="robust accuracy",
        subject=served.subject,
        quantities=(
            decisive,
            _quantity("clean accuracy", clean, levels),
            Quantity("queries", float(found.queries.sum()), "count"),
            Quantity("median queries a row", float(np.median(attacked)) if attacked.size else 0.0, "count"),
        ),
        n=len(found.correct),
        n_unit="rows",
        method=Method(
            f"{method.name}; rows fooled by {', '.join(found.counts)} in {norm} distance {radii[-1]:g}",
            method.source,
            f"{method.assumptions}; robust accuracy is at most this, as other attacks may find more",
        ),
        summary=_summary(found, verdict),
        confidence=confidence,
        alpha=alpha,
        findings=(*_findings(found, radii), *findings),
        advice=_advice(found, verdict, None if plan is None else plan.rows, clean.value < min_accuracy),
        details={
            "rows_needed": None if plan is None else plan.rows,
            "eps": radii,
            "norm": norm,
            "seed": seed,
            "fooled_rows": found.fooled[:_ROWS_LISTED].tolist(),
            "wrong_rows": np.flatnonzero(~found.correct)[:_ROWS_LISTED].tolist(),
            "attacks": {name: asdict(count) for name, count in found.counts.items()},
            **path,
            "accuracy_over_eps": {
                "eps": radii,
                "clean": float(clean.value),
                "limit": min_accuracy,
                "series": [
                    {
                        "label": "attacked",
                        "value": [float(bounds.estimate) for bounds in curve],
                        "low": [float(bounds.low) for bounds in curve],
                        "high": [float(bounds.high) for bounds in curve],
                    }
                ],
            },
            "pictures": list(_pictures(found, settings.image_shape)),
        },
        duration_s=time.perf_counter() - started,
    )


def _quantity(name: str, estimate: Estimate, levels: Levels, budget: Budget | None = None) -> Quantity:
    bounds = estimate.bounds(levels)
    return Quantity(name, bounds.estimate, "proportion", Interval.of(bounds), budget)


def _summary(found: AttackedRows, verdict: Verdict) -> str:
    if not found.correct.any():
        return "every row is predicted wrong without any change, so nothing was attacked"
    return _SUMMARIES[verdict]


def _advice(found: AttackedRows, verdict: Verdict, rows: int | None, is_worse_unattacked: bool) -> str:
    if not found.correct.any():
        return "check that labels and inputs are in the same order, and that output= reads the right output"
    if verdict is Verdict.FAIL and is_worse_unattacked:
        return "clean accuracy is below min_accuracy already: train a better model, or lower min_accuracy"
    if verdict is Verdict.FAIL:
        return "train on adversarial rows, reject inputs outside what is expected, or lower eps to what can occur"
    if verdict is Verdict.INCONCLUSIVE:
        return "give more rows" + (f": about {rows:,} decide if these are typical" if rows else ", or another budget")
    return ""


def _findings(found: AttackedRows, radii: Sequence[float]) -> Iterator[str]:
    for name, count in found.counts.items():
        if count.attacked:
            yield (
                f"{name}: {count.fooled:,} of {count.attacked:,} rows fooled in {count.queries:,} queries, "
                f"{count.queries / count.attacked:,.1f} a row on average"
            )
    yield from found.notes()
    if len(radii) > 1:
        each = (f"{radius:g}: {100 * found.robust(k).mean():.1f}" for k, radius in enumerate(radii))
        yield f"accuracy in % by eps, 0: {100 * found.correct.mean():.1f}, {', '.join(each)}"
    if found.changes and not is_redacted(found.target.input_name or "input"):
        examples = [
            f"row {row}: {change}{_texts(found, row)}"
            for row, change in itertools.islice(found.changes.items(), _EXAMPLES)
        ]
        more = len(found.changes) - len(examples)
        yield f"fooled: {', '.join(examples)}{f', and {more:,} more' if more else ''}"


def _texts(found: AttackedRows, row: int) -> str:
    """Return the text of a row before and after; "" for numbers."""
    if found.adversarial.dtype.kind not in "OUT":
        return ""
    before, after = (f"{np.ravel(rows[row]).item()}" for rows in (found.target.rows, found.adversarial))
    return f" ({printable(before, _TEXT)!r} → {printable(after, _TEXT)!r})"


def _saved(found: AttackedRows, *, as_array: bool) -> tuple[list[str], dict[str, str]]:
    """Save the adversarial rows; return a finding and the path for the details, nothing where none was found."""
    if not found.changes or is_replacing():
        return [], {}
    predictor = found.target.predictor
    try:
        threat, attacks = found.target.threat, ", ".join(found.counts)
        eps = np.asarray(threat.eps).tolist()
        about = f"{threat.norm} {eps} {found.target.input_name} {attacks} {len(threat.base)}"
        rows = found.adversarial_rows(as_array=as_array)
        path = str(rows.save(ADVERSARIAL_FOLDER, subject=predictor.subject, about=about))
    except Exception as error:  # a disk's or a dtype's: the verdict stands without the file
        return [f"could not save the adversarial rows: {error}"], {}
    return [f"adversarial rows saved: replay with ms.attacks.saved({path!r}).fooled(model)"], {"adversarial_rows": path}


def _pictures(found: AttackedRows, image_shape: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """Yield the first rows before and after as images, for the report."""
    if is_redacted(found.target.input_name or "input"):
        return
    shape = tuple(image_shape or found.target.threat.shape)
    if len(shape) not in (2, 3) or found.adversarial.dtype.kind not in "fiu" or found.target.threat.norm == "edits":
        return
    for row, change in itertools.islice(found.changes.items(), _EXAMPLES):
        before, after = (_gray(rows[row].reshape(shape)) for rows in (found.target.rows, found.adversarial))
        least, most = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
        yield {
            "title": f"row {row}: {change}",
            "width": before.shape[1],
            "before": _shades(before, least, most),
            "after": _shades(after, least, most),
        }


def _gray(image: NDArray[Any]) -> NDArray[np.float64]:
    """Return an image (height, width) of at most 32 × 32 pixels."""
    values = image.astype(np.float64)
    if values.ndim == 3:
        values = values.mean(axis=2 if values.shape[2] <= 4 < values.shape[0] else 0)
    step = -(-max(values.shape) // _PICTURE_SIDE)
    height, width = (max(1, length // step) for length in values.shape)
    blocks = values[: height * step, : width * step].reshape(height, step, width, step)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _shades(image: NDArray[np.float64], least: float, most: float) -> str:
    """Return one hexadecimal digit for each pixel, 0 for the least value and f for the greatest."""
    levels = np.rint(15 * (image - least) / ((most - least) or 1)).astype(int)
    return "".join(f"{level:x}" for level in levels.reshape(-1).tolist())
