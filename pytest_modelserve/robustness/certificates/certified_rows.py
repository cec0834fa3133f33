"""Rows whose predicted class no input within a box can change, certified from the cheapest bounds to the tightest."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.metrics.classification import Decoding
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel
from pytest_modelserve.robustness.certificates.bounds import Bounds, interval_bounds, linear_bounds, lower_bounds
from pytest_modelserve.robustness.certificates.branch_and_bound import decide
from pytest_modelserve.robustness.certificates.interval_arithmetic import Array, Box, unit_roundoff
from pytest_modelserve.robustness.certificates.network import Network

Method = Literal["interval", "linear", "branch"]
Confirm = Callable[[NDArray[Any], NDArray[np.int64]], NDArray[np.bool_]]

_CHUNK_BYTES = 4 << 20
_MOST_BYTES = 64 << 20
_TIGHT_ROWS = 32
"""Rows of one chunk whose inner boxes are tightened."""
_TIE = 128
"""Units of roundoff by which scores must differ so that rounded probabilities differ, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """Functions of the scores that are all positive where a row has its label.

    Attributes:
        functions: Coefficients (rows, functions, classes).
        offsets: Constants (rows, functions).
    """

    functions: Array
    offsets: Array

    def rows(self, chosen: NDArray[np.int64]) -> Question:
        """Return those of some rows."""
        return Question(self.functions[chosen], self.offsets[chosen])


@dataclass(slots=True, eq=False)
class CertifiedRows:
    """What is known of each row over its box.

    Attributes:
        lower: Lower bounds (rows,) of the margin of the label: the row is certified where it is positive; -inf where
            the time ended before.
        counterexamples: An input of the box with another label, confirmed by the served model, by number of row.
        stages: Rows that each kind of bounds certified.
        seconds: Time spent.
        ended: Whether the time ended before all rows were bounded.
    """

    lower: Array
    counterexamples: dict[int, NDArray[Any]]
    stages: dict[str, int]
    seconds: float = 0.0
    ended: bool = False

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Rows with a certificate."""
        return self.lower > 0


def question_of(network: Network, labels: NDArray[Any], decode: Decoding | None) -> Question:
    """Return the functions of the scores that are positive where the prediction is the label.

    Args:
        network: The network.
        labels: Labels (rows,), integers or text.
        decode: How the output becomes labels.

    Raises:
        ArtifactError: Scores of a form that no margin is defined for.
        UsageError: A decoding by a function.
        InputError: Labels that the model cannot predict.
    """
    if callable(decode):
        raise UsageError("output.decode is a function, which has no bounds: use 'argmax', 'threshold' or 'labels'")
    shape = network.output_shape
    size = math.prod(shape)
    if decode == "threshold":
        if size != 1:
            raise ArtifactError(f"artifact's output has shape {shape} for one row, and decode='threshold' needs one")
        check_labels(labels, np.array([0, 1]))
        sign = np.where(labels == 1, 1.0, -1.0)
        return Question(sign.reshape(-1, 1, *[1] * len(shape)), -0.5 * sign[:, None])
    if len(shape) != 1 or size < 2:
        raise ArtifactError(
            f"artifact's scores have shape {shape} for one row, and certificates need one score for each class, of at "
            "least two (or output=ms.Output(decode='threshold'))"
        )
    if network.classes is None and decode == "labels" and "ArgMax" not in network.head:
        raise ArtifactError(
            "artifact returns labels that are computed without ArgMax, so that there are no scores to bound: choose "
            "the output with scores by output=, or attack by queries (ms.assert_robust)"
        )
    classes = np.arange(size) if network.classes is None else network.classes
    if len(classes) != size:
        raise ArtifactError(f"artifact has {size} scores and {len(classes)} labels")
    check_labels(labels, classes)
    found = np.array([int(np.flatnonzero(classes == label)[0]) for label in labels], np.int64)
    rows = len(labels)
    others = np.array([[each for each in range(size) if each != label] for label in range(size)])[found]
    functions = np.zeros((rows, size - 1, size))
    functions[np.arange(rows)[:, None], np.arange(size - 1)[None, :], others] = -1.0
    functions[np.arange(rows), :, found] = 1.0
    return Question(functions, np.zeros((rows, size - 1)))


def check_labels(labels: NDArray[Any], classes: NDArray[Any]) -> None:
    """Raise InputError for labels that are none of the classes."""
    if (labels.dtype.kind in "US") != (np.asarray(classes).dtype.kind in "USO"):
        raise InputError(f"labels are {labels.dtype}, and the model's classes are {classes[:5].tolist()}")
    unknown = ~np.isin(labels, classes.astype(labels.dtype) if labels.dtype.kind == "U" else classes)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        shown = ", ".join(map(str, classes[:12].tolist())) + ", …" * (len(classes) > 12)
        raise InputError(
            f"labels hold {labels[row].item()!r} in row {row}, and in {int(unknown.sum())} rows a label that the model "
            f"never predicts; its classes are {shown}"
        )


def certify_rows(
    network: Network,
    box: Box,
    question: Question,
    *,
    method: Method,
    time_limit_s: float,
    confirm: Confirm,
    description: str = "certificates",
) -> CertifiedRows:
    """Certify rows over their boxes.

    Three stages, each for the rows that the one before left open: linear bounds over interval boxes of the inner
    values; linear bounds over inner boxes that are tightened by linear bounds, too; branch and bound.

    Args:
        network: The network.
        box: Box of the input (rows, *shape).
        question: What must be positive.
        method: The last stage: "interval" (the first one), "linear" (the second one), "branch".
        time_limit_s: Seconds after which no chunk of rows starts.
        confirm: Function of inputs (m, *shape) and row numbers (m,) that returns which are counterexamples.
        description: Text of the progress bar.

    Returns:
        The rows. Rows that the time did not reach have a lower bound of -inf, or that of an earlier stage.
    """
    started = time.perf_counter()
    rows = len(box.lower)
    found = CertifiedRows(np.full(rows, -np.inf), {}, {})
    ties = np.full(rows, np.inf)
    size = max(math.prod(node.shape) for node in network.nodes) if network.nodes else 1
    functions = question.functions.shape[1]
    per_chunk = max(1, _CHUNK_BYTES // (8 * size * functions))
    stages: list[tuple[str, int]] = [("interval", per_chunk)]
    if method != "interval":
        stages.append(("linear", min(per_chunk, _TIGHT_ROWS)))
    for stage, most in stages:
        open_ = np.flatnonzero(~(found.lower > 0))
        most = max(1, min(most, -(-len(open_) // _threads())))
        chunks = [open_[at : at + most] for at in range(0, len(open_), most)]

        def bound(chosen: NDArray[np.int64], stage: str = stage) -> NDArray[np.int64] | None:
            if time.perf_counter() - started > time_limit_s:
                return None
            if stage == "linear":
                bounds = linear_bounds(network, box.rows(chosen), deadline=started + time_limit_s)
            else:
                bounds = interval_bounds(network, box.rows(chosen))
            ties[chosen] = np.fmin(ties[chosen], _ties(network, bounds))
            together = max(1, _MOST_BYTES // (8 * size * len(chosen)))
            lower = np.full(len(chosen), np.inf)
            for begin in range(0, functions, together):  # a thousand classes of large images at once are gigabytes
                part = slice(begin, begin + together)
                margins = lower_bounds(bounds, question.functions[chosen, part]) + question.offsets[chosen, part]
                lower = np.minimum(lower, margins.min(axis=1))
            found.lower[chosen] = np.fmax(found.lower[chosen], np.nextafter(lower - ties[chosen], -np.inf))
            return chosen

        with ThreadPoolExecutor(_threads()) as pool:
            done = list(progress(pool.map(bound, chunks), f"{description}: {stage} bounds", total=len(chunks)))
        over = time.perf_counter() - started > time_limit_s
        found.ended |= any(each is None for each in done) or (over and stage == "linear" and not found.certified.all())
        found.stages[stage] = int((found.lower[open_] > 0).sum())
    open_ = np.flatnonzero(~(found.lower > 0))
    left = time_limit_s - (time.perf_counter() - started)
    if method == "branch" and open_.size and left > 0:
        decided = decide(
            network,
            box.rows(open_),
            question.rows(open_).functions,
            offsets=question.rows(open_).offsets - ties[open_, None],
            confirm=lambda inputs, which: confirm(inputs, open_[which]),
            time_limit_s=left,
        )
        found.lower[open_] = np.fmax(found.lower[open_], decided.lower)
        found.counterexamples.update({int(open_[row]): each for row, each in decided.counterexamples.items()})
        found.stages["branch"] = int(decided.certified.sum())
        found.ended |= bool(decided.undecided.any())
    elif method == "branch" and open_.size:
        found.ended = True
    found.seconds = time.perf_counter() - started
    return found


@dataclass(slots=True, eq=False)
class CertifiedRadii:
    """What is known of each row at several radii, in increasing order.

    Attributes:
        certified: By radius, the rows (rows,) with a certificate.
        possible: By radius, the rows (rows,) that are not shown to break.
        stages: Rows that each kind of bounds certified at the largest radius.
        ended: Whether the time ended before all rows were bounded.
    """

    certified: list[NDArray[np.bool_]]
    possible: list[NDArray[np.bool_]]
    stages: Mapping[str, int]
    ended: bool


def certify_radii(
    network: Network,
    threats: Sequence[ThreatModel],
    question: Question,
    correct: NDArray[np.bool_],
    *,
    method: Method,
    time_limit_s: float,
    is_wrong: Confirm,
) -> CertifiedRadii:
    """Certify the `correct` rows at increasing radii: the largest first, as its certificates hold for the others.

    `is_wrong` tells for inputs and their rows which ones the served model does not give their label.
    """
    started = time.monotonic()
    certified = [np.zeros_like(correct) for _ in threats]
    possible = [correct.copy() for _ in threats]
    stages: Mapping[str, int] = {}
    ended = False
    for number in reversed(range(len(threats))):
        threat = threats[number]
        if number + 1 < len(threats):
            certified[number] |= certified[number + 1]
        open_ = np.flatnonzero(correct & ~certified[number])
        left = max(0.0, time_limit_s - (time.monotonic() - started))

        def confirm(
            inputs: NDArray[Any], which: NDArray[np.int64], open_: Any = open_, threat: ThreatModel = threat
        ) -> NDArray[np.bool_]:
            return threat.admissible(open_[which], inputs) & is_wrong(inputs, open_[which])

        result = certify_rows(
            network,
            box_of(threat).rows(open_),
            question.rows(open_),
            method=method,
            time_limit_s=left / 2 if number else left,
            confirm=confirm,
            description=f"certificates at eps={threat.scale.max():g}",
        )
        certified[number][open_] = result.certified
        # An input within a smaller radius is within the larger ones, too.
        for mask in possible[number:]:
            mask[open_[list(result.counterexamples)]] = False
        stages = stages or result.stages
        ended |= result.ended
    return CertifiedRadii(certified, possible, stages, ended)


def box_of(threat: ThreatModel) -> Box:
    """Return the box of all admissible inputs of each row, (n, ...), rounded outward."""
    everything = np.arange(len(threat.base))
    ends = []
    exact = threat.base.astype(np.float64)
    for sign, limit in ((-1.0, threat.low), (1.0, threat.high)):
        served = threat.place(everything, np.full(threat.base.shape, sign)).astype(np.float64)
        if threat.base.dtype.kind in "iu":
            ends.append(served)
            continue
        # `place` rounds inward. Admissible distances are rounded, too: 1e-9 is more than their rounding.
        wide = exact + sign * threat.scale * (1 + 1e-9)
        if limit is not None:
            inside = np.broadcast_to(np.asarray(limit, np.float64), threat.shape)
            wide = np.minimum(wide, inside) if sign > 0 else np.maximum(wide, inside)
        wide = np.maximum(wide, served) if sign > 0 else np.minimum(wide, served)
        ends.append(np.where(threat.free, wide, exact))
    return Box(ends[0], ends[1])


def _ties(network: Network, bounds: Bounds) -> Array:
    """Return by how much scores must differ (rows,) so that they still do after Softmax, whose results are rounded."""
    scores = bounds.boxes[network.output].magnitude
    if not {"Softmax", "LogSoftmax"}.intersection(network.head):
        return np.zeros(len(scores))
    dtypes = [network.dtypes[network.output], *(["float32"] if "Cast" in network.head else [])]
    unit = _TIE * max(map(unit_roundoff, dtypes))
    return np.asarray(unit * (1.0 + scores.reshape(len(scores), -1).max(axis=1)))


def _threads() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


_STAGES = {
    "interval": "by linear bounds over interval boxes",
    "linear": "by linear bounds over tightened boxes",
    "branch": "by branch and bound",
}


def counts(stages: Mapping[str, int]) -> str:
    """Return how many rows each stage certified, as text."""
    return ", ".join(f"{count} {_STAGES[stage]}" for stage, count in stages.items())
