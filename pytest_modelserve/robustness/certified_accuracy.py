"""Certified accuracy gate: the proportion of rows whose label no input within a distance can change."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict
from pytest_modelserve.metrics import Output, class_labels, decode
from pytest_modelserve.robustness.attacks.attack import Attack
from pytest_modelserve.robustness.attacks.attack_settings import (
    check_min_accuracy,
    given_attacks,
    increasing_radii,
)
from pytest_modelserve.robustness.attacks.attacked_rows import attack_rows
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel, positive_values
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched
from pytest_modelserve.robustness.certificates.certified_rows import certify_radii, counts, question_of
from pytest_modelserve.robustness.certificates.network import Network
from pytest_modelserve.robustness.certificates.randomized_smoothing import smoothed_radii
from pytest_modelserve.robustness.relations.base import Features
from pytest_modelserve.serving.inputs import check_time_limit, select_output
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Sampling

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Artifact
    from pytest_modelserve.parity.accuracy.estimates import Estimate
    from pytest_modelserve.serving import Predictor, Servable

CertificateMethod = Literal["interval", "linear", "branch", "smoothing"]

_ROWS_LISTED = 50
_SMOOTHING_SHARE = 0.1
"""Part of the error rate of PASS that the certificates of randomized smoothing take."""
_CROWN = "Zhang et al. 2018, NeurIPS"
_METHODS = {
    "interval": ("CROWN over interval boxes", _CROWN),
    "linear": ("CROWN", _CROWN),
    "branch": ("CROWN, then branch and bound", f"{_CROWN}; Wang et al. 2021, NeurIPS"),
}
_NO_MODEL = "every row is predicted wrong without any change, so nothing was certified"
_SUMMARIES = {
    Verdict.PASS: "no input within the distance changes the label of as many rows as required",
    Verdict.FAIL: "inputs within the distance have another label for more rows than allowed",
    Verdict.INCONCLUSIVE: "the certificates do not decide whether as many rows are robust as required",
}


def measure_certified_accuracy(
    predictor: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    eps: float | Sequence[float],
    min_accuracy: float,
    method: CertificateMethod = "branch",
    attacks: Sequence[Attack] | None = None,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    immutable: Features = (),
    integer: Features = (),
    time_limit_s: float = 10.0,
    sigma: float | None = None,
    samples: int = 1000,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure the proportion of rows whose label is right and certified within `eps`.

    A certified row keeps its label for every admissible input: no attack can break it. Bounds are computed on the ONNX
    graph that is served, composed steps included, and hold for its rounded arithmetic. A row without a certificate may
    still be robust: certified accuracy bounds robust accuracy from below, and the rows that are wrong, or for which an
    input with another label was found, bound it from above. The interval covers both.

    PASS: the lower bound of certified accuracy is at least `min_accuracy`. FAIL: so many rows are wrong, or have a
    confirmed counterexample, that robust accuracy is below it. INCONCLUSIVE: neither; the evidence says whether more
    time or more rows would decide.

    Args:
        predictor: The model: an ONNX file, its artifact, or a predictor that serves one. For method="smoothing"
            whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of one input; a sample of the rows that are
            served. A DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        eps: Radius of each feature (L∞), in units of the unprocessed input; for method="smoothing" that of the
            Euclidean distance (L2). Several radii draw accuracy over eps; the largest is judged.
        min_accuracy: Lowest accuracy that passes, between 0 and 1.
        method: "interval" (linear bounds over interval boxes), "linear" (CROWN; inner boxes by linear bounds, too),
            "branch" (both, then branch and bound), or "smoothing" (a vote under Gaussian noise, with any predictor).
        attacks: Attacks of `ms.attacks` for the rows without a certificate, whose counterexamples count like those of
            branch and bound. None by default.
        low: Least value of the input: one, or one for each feature. Inputs below it are not admissible.
        high: Greatest value of the input.
        scale: Unit of `eps` for each feature, such as standard deviations of the training data; 0 for a feature that
            stays. One by default.
        immutable: Features that stay.
        integer: Features of whole numbers, in an input of floats.
        time_limit_s: Seconds for bounds; with several radii half of them for the largest. Rows that they do not reach
            have no certificate, and the evidence says so.
        sigma: Standard deviation of the noise, for method="smoothing".
        samples: Noisy copies of each row, for method="smoothing".
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the noise and of the attacks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence: certified accuracy, clean accuracy, the accuracy left by confirmed counterexamples ("attacked
        accuracy"), and the number of open rows, which have neither a certificate nor a counterexample.

    Raises:
        UsageError: For an eps that is not positive or is larger than the range, and a model without a graph.
        ArtifactError: For an operator without bounds, by node and name; control flow; labels without scores.
        InputError: For NaN in the inputs, labels that the model cannot predict, and rows outside the range.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1))
        >>> rows = np.random.default_rng(0).uniform(-1, 1, size=(100, 1))
        >>> found = ms.measure_certified_accuracy(
        ...     model, rows, rows[:, 0] > 0, eps=0.1, min_accuracy=0.6, method="smoothing", sigma=0.1
        ... )
        >>> found.verdict.name
        'PASS'
    """
    from pytest_modelserve.parity.accuracy.estimates import ErrorRates  # the parity gates load onnxruntime
    from pytest_modelserve.parity.accuracy.metrics import Accuracy, Rows

    started = time.perf_counter()
    rates = ErrorRates(confidence, alpha)
    admissible = {"low": low, "high": high, "scale": scale, "immutable": immutable, "integer": integer}
    _check_method(method, sigma=sigma, attacks=attacks, **admissible)
    check_time_limit("time_limit_s", time_limit_s)
    radii = increasing_radii(eps)
    check_min_accuracy(min_accuracy)
    read = Output.of(output)
    data, given_labels = labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data) as (given, (served,)):
        rows = _RowsOfModel.of(served, given, given_labels, read)
        units = Sampling.of(sampling).units(len(rows.truth))
        if method == "smoothing":
            assert sigma is not None
            share = _SMOOTHING_SHARE * (1 - confidence)
            found = _smoothed(rows, radii, sigma=sigma, samples=samples, seed=seed, alpha=share)
            rates = ErrorRates(confidence + share, alpha)
        else:
            unit = 1.0 if scale is None else positive_values("scale", scale, rows.inputs.shape[1:])
            limits: dict[str, Any] = {"low": low, "high": high, "immutable": immutable, "integer": integer}
            threats = [ThreatModel(base=rows.inputs, norm="linf", eps=each * unit, **limits) for each in radii]
            found = _bounded(rows, _artifact_of(served), threats, method=method, time_limit_s=time_limit_s)
            if attacks is not None:
                found = _attacked(rows, threats, found, given_attacks(attacks), seed=seed)
    budget = Budget.of("min_accuracy", min_accuracy)
    levels = rates.levels(budget)

    def estimate(mask: NDArray[np.bool_]) -> Estimate:
        return Accuracy().level(Rows(mask, np.zeros(0, np.intp)), units)

    curve = [
        (estimate(certified).bounds(levels), estimate(possible).bounds(levels))
        for certified, possible in zip(found.certified, found.possible, strict=True)
    ]
    certified, (below, above) = found.certified[-1], curve[-1]
    interval = Interval(below.low, above.high, low_level=levels["low_level"], high_level=levels["high_level"])
    decisive = Quantity("certified accuracy", float(below.estimate), "proportion", interval, budget)
    clean = estimate(found.correct)
    verdict = decisive.verdict
    assert verdict is not None
    plan = estimate(certified).plan(min_accuracy, rates)
    open_ = found.possible[-1] & ~certified
    about = clean.method(levels)
    clean_bounds = clean.bounds(levels)
    return Evidence(
        gate="certified accuracy",
        subject=served.subject,
        quantities=(
            decisive,
            Quantity("clean accuracy", float(clean_bounds.estimate), "proportion", Interval.of(clean_bounds)),
            Quantity("attacked accuracy", float(above.estimate), "proportion", Interval.of(above)),
            Quantity("open rows", float(open_.sum()), "count"),
        ),
        n=len(certified),
        n_unit="rows",
        method=Method(
            f"{about.name}; {found.method} in {found.norm} distance {radii[-1]:g}",
            f"{about.source}; {found.source}",
            f"{about.assumptions}; {found.assumptions}",
        ),
        summary=_SUMMARIES[verdict] if found.correct.any() else _NO_MODEL,
        confidence=confidence,
        alpha=alpha,
        findings=(*found.findings, *_findings(found, radii)),
        advice=_advice(found, verdict, float(below.estimate), min_accuracy, None if plan is None else plan.rows),
        details={
            "rows_needed": None if plan is None else plan.rows,
            "eps": radii,
            "norm": found.norm,
            "certificate": method,
            "wrong_rows": np.flatnonzero(~found.correct)[:_ROWS_LISTED].tolist(),
            "broken_rows": np.flatnonzero(found.correct & ~found.possible[-1])[:_ROWS_LISTED].tolist(),
            "open_rows": np.flatnonzero(open_)[:_ROWS_LISTED].tolist(),
            "seconds": found.seconds,
            "accuracy_over_eps": {
                "eps": radii,
                "clean": float(clean_bounds.estimate),
                "limit": min_accuracy,
                "series": [
                    {
                        "label": label,
                        "value": [float(each[at].estimate) for each in curve],
                        "low": [float(each[at].low) for each in curve],
                        "high": [float(each[at].high) for each in curve],
                    }
                    for at, label in enumerate(("certified", "attacked"))
                ],
            },
        },
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _RowsOfModel:
    """The rows in the dtype that is served, their labels, and the predictor that decides what is right."""

    predictor: Predictor
    batch: BatchedPredictor
    name: str
    inputs: NDArray[Any]
    truth: NDArray[Any]
    read: Output
    output: str
    correct: NDArray[np.bool_]

    @classmethod
    def of(cls, served: Predictor, given: Any, labels: Any, read: Output) -> _RowsOfModel:
        batch, feed = batched(served, given)
        if batch.batch_size == 0:
            raise InputError("inputs must have rows: the inputs of the model share no row axis")
        if len(feed) != 1:
            raise UsageError(
                f"inputs has {len(feed)} inputs ({', '.join(feed)}), and certificates need a model with one: fix the "
                "others as constants of the graph"
            )
        ((name, rows),) = feed.items()
        truth = class_labels(np.asarray(labels), what="labels")
        if truth.shape != (len(rows),):
            raise InputError(f"labels has shape {truth.shape} for {len(rows)} rows of inputs")
        if not len(rows):
            raise InputError("inputs must have at least one row")
        output, correct = _correct(served, batch, {name: rows}, truth, read)
        return cls(served, batch, name, rows, truth, read, output, correct)

    def is_wrong(self, inputs: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for which inputs (m, ...) the served model does not return the label of their row (m,)."""
        return ~_correct(self.predictor, self.batch, {self.name: inputs}, self.truth[rows], self.read)[1]


def _correct(
    served: Predictor, batch: BatchedPredictor, feed: dict[str, NDArray[Any]], truth: NDArray[Any], read: Output
) -> tuple[str, NDArray[np.bool_]]:
    """Return the name of the output, and which rows get their label; rows with NaN do not."""
    name, scores = select_output(served, batch.predict(feed), read.name, reads_labels=True)
    decoded = decode(scores, read.decode)
    if (decoded.labels.dtype.kind == "U") != (truth.dtype.kind == "U"):
        raise InputError(f"labels are {truth.dtype}, and the predictions are {decoded.labels.dtype}")
    same: NDArray[np.bool_] = (decoded.labels == truth) & ~decoded.invalid
    return name, same


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """For each radius, in increasing order: the rows that are certified, and those that are not shown to break."""

    correct: NDArray[np.bool_]
    certified: list[NDArray[np.bool_]]
    possible: list[NDArray[np.bool_]]
    norm: str
    method: str
    source: str
    assumptions: str
    findings: tuple[str, ...] = ()
    ended: bool = False
    seconds: float = 0.0


def _bounded(
    rows: _RowsOfModel, artifact: Artifact, threats: Sequence[ThreatModel], *, method: Any, time_limit_s: float
) -> _Found:
    """Certify by bounds on the graph."""
    started = time.monotonic()
    network = Network.of(artifact, rows.inputs, output=rows.output)
    found = certify_radii(
        network, threats, question_of(network, rows.truth, _decoding(rows)), rows.correct,
        method=method, time_limit_s=time_limit_s, is_wrong=rows.is_wrong,
    )  # fmt: skip
    findings = [f"certified: {counts(found.stages)}"] if found.stages else []
    if found.ended:
        findings.append(
            f"time_limit_s={time_limit_s:g} ended before all rows were decided: certified accuracy is the bound so far"
        )
    return _Found(
        correct=rows.correct,
        certified=found.certified,
        possible=found.possible,
        norm="linf",
        method=_METHODS[method][0],
        source=_METHODS[method][1],
        assumptions="rounding errors of onnxruntime within Higham's bounds, on the CPU",
        findings=tuple(findings),
        ended=found.ended,
        seconds=time.monotonic() - started,
    )


def _attacked(
    rows: _RowsOfModel, threats: Sequence[ThreatModel], found: _Found, attacks: Sequence[Attack], *, seed: int
) -> _Found:
    """Attack the rows that are right and not certified at the largest radius."""
    open_ = np.flatnonzero(rows.correct & ~found.certified[-1])
    if not open_.size:
        return found
    inputs = rows.inputs[open_]
    result = attack_rows(
        rows.batch,
        {rows.name: inputs},
        rows.truth[open_],
        input_name=rows.name,
        output=rows.read,
        threats=[replace(threat, base=inputs) for threat in threats],
        attacks=lambda _has_scores: list(attacks),
        seed=seed,
        dependent_inputs={},
    )
    possible = []
    for level, mask in enumerate(found.possible):
        broken = open_[~result.robust(level)]
        assert not found.certified[level][broken].any(), "an attack broke a certificate"
        holds = mask.copy()
        holds[broken] = False
        possible.append(holds)
    fooled = ", ".join(f"{name} {count.fooled} of {count.attacked}" for name, count in result.counts.items())
    return replace(found, possible=possible, findings=(*found.findings, f"rows without a certificate fooled: {fooled}"))


def _smoothed(
    rows: _RowsOfModel, radii: Sequence[float], *, sigma: float, samples: int, seed: int, alpha: float
) -> _Found:
    started = time.monotonic()
    found = smoothed_radii(
        rows.predictor, rows.inputs, rows.truth, sigma=sigma, samples=samples, seed=seed, alpha=alpha, output=rows.read
    )
    possible = found.high > 0.5
    return _Found(
        correct=found.low > 0.5,
        certified=[found.certified(radius) for radius in radii],
        possible=[possible for _ in radii],
        norm="l2",
        method=f"randomized smoothing, {samples} copies with sigma {sigma:g}",
        source="Cohen, Rosenfeld & Kolter 2019, ICML",
        assumptions="the certificates are those of the vote under noise, not of one call of the model",
        findings=(f"{int(found.abstained.sum())} rows abstain: {samples} copies do not decide their vote",),
        seconds=time.monotonic() - started,
    )


def _decoding(rows: _RowsOfModel) -> Any:
    """Return how the output becomes labels; `decode` reads integers and text of one value a row as labels."""
    if rows.read.decode is not None:
        return rows.read.decode
    probe = rows.batch.predict({rows.name: rows.inputs[:1]})[rows.output]
    is_column = probe.ndim == 1 or probe.shape[1:] == (1,)
    return "labels" if is_column and probe.dtype.kind in "iubUOT" else "argmax"


def _artifact_of(served: Predictor) -> Artifact:
    from pytest_modelserve.artifacts.artifact import as_artifact

    try:
        return as_artifact(served)
    except UsageError as error:
        raise UsageError(
            f"predictor must be an ONNX file or serve one, got {served.subject}: bounds need its graph. Export the "
            "model, or certify it by queries: method='smoothing'"
        ) from error


def _check_method(method: str, *, sigma: float | None, **others: Any) -> None:
    if method not in get_args(CertificateMethod):
        raise UsageError(unknown_choice("method", method, get_args(CertificateMethod)))
    if method != "smoothing":
        if sigma is not None:
            raise UsageError("sigma is the noise of method='smoothing': remove it, or choose that method")
        return
    if sigma is None:
        raise UsageError("sigma= is missing: method='smoothing' needs the standard deviation of its noise")
    for name, value in others.items():
        if value is not None and value != ():
            raise UsageError(f"{name} does not apply to method='smoothing', which certifies a ball: remove it")


def _findings(found: _Found, radii: Sequence[float]) -> Iterator[str]:
    if wrong := int((~found.correct).sum()):
        yield f"{wrong:,} rows are wrong without any change"
    broken = int((found.correct & ~found.possible[-1]).sum())
    if broken:
        yield f"{broken:,} rows have an input within eps={radii[-1]:g} that the served model labels otherwise"
    if len(radii) > 1:
        each = (f"{radius:g}: {100 * mask.mean():.1f}" for radius, mask in zip(radii, found.certified, strict=True))
        yield f"certified accuracy in % by eps: {', '.join(each)}"


def _advice(found: _Found, verdict: Verdict, value: float, limit: float, rows: int | None) -> str:
    if not found.correct.any():
        return "check that labels and inputs are in the same order, and that output= reads the right output"
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "train on adversarial rows or with certified bounds, or lower eps to what can occur"
    if value >= limit:
        return "give more rows" + (f": about {rows:,} decide if these are typical" if rows else "")
    if found.ended:
        return "raise time_limit_s: rows are open because the time ended"
    if found.norm == "l2":
        return "raise samples, or train the model with noise of sigma"
    return "choose method='branch', lower eps, or attack the open rows (ms.assert_robust): their bounds are too loose"
