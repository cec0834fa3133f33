"""Gate on answers under load: every answer equals that to the same request alone."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Verdict, worst_verdict
from pytest_modelserve.load.generator import Answer, LoadSettings, answer_alone, requests_of, run_load
from pytest_modelserve.load.latency_under_load import check_proportion, failed_quantity, figures_of
from pytest_modelserve.load.load_run import LoadRun, quantile_of
from pytest_modelserve.load.schedule import Schedule, check_clients, plan_schedule
from pytest_modelserve.metrics.elementwise import kind_of
from pytest_modelserve.metrics.tolerance import OutputDifferences, RoundingTolerance, output_differences
from pytest_modelserve.performance.batches import Batches
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, Predictor, Servable
from pytest_modelserve.serving.inputs import check_positive
from pytest_modelserve.serving.serve import open_models

_CLIENTS = 16
# Requests with inputs of their own; each is sent alone before the load.
_MOST_DISTINCT = 2_000
# Sent alone twice, to see whether the model answers alike.
_REPEATED = 50
# Wrong answers that are kept, and compared with the answers to all other requests: 50 · 2,000 take seconds.
_MOST_KEPT = 50
_MOST_SHOWN = 5
_CONFIDENCE = 0.95


def measure_outputs_under_load(
    predictor: Servable,
    inputs: Batches | Any,
    *,
    clients: int | None = None,
    rate_qps: float | None = None,
    requests: int = 2_000,
    rtol: float | None = None,
    atol: float | None = None,
    max_failed: float = 0.0,
    rows_per_request: int = 1,
    time_limit_s: float = 60.0,
    timeout_s: float = 30.0,
) -> Evidence:
    """Measure whether every answer under load equals the answer to the same request alone.

    Finds a server that mixes up requests which are in flight together, returns a stale answer, or computes something
    else in a batch. Each request is sent alone first, and some twice. Under load, an answer must equal the one alone to
    the bit, or within a tolerance, as a server that makes batches of requests may round differently: 256 machine
    epsilons of the output's largest magnitude, or `atol + rtol * |alone|`. Names, shapes and dtypes must be equal.

    A wrong answer that belongs to another request is named with that request. Requests with equal answers cannot be
    told apart: give rows that the model answers differently.

    Args:
        predictor: The model: whatever `ms.serve` takes, if it can be called from several threads.
        inputs: Rows, which are sent in turn, or a list of batches, of which each is one request. At most 2,000
            different requests are sent.
        clients: Number of requests in flight (default: 16, unless `rate_qps` is given).
        rate_qps: Requests per second of Poisson arrivals, in place of `clients`.
        requests: Number of requests under load. A fault of one request in 1,000 is missed by 2,000 of them in 13 % of
            runs, and by 5,000 in 0.7 %.
        rtol: Relative tolerance. Give it with `atol`, or neither.
        atol: Absolute tolerance, in the output's units.
        max_failed: The largest proportion of requests without an answer.
        rows_per_request: Number of rows of a request.
        time_limit_s: No request is sent later under load, in seconds.
        timeout_s: The load ends this long after the last request was due.

    Returns:
        Evidence with the proportion of wrong answers, of failed requests, and the most requests in flight.

    Raises:
        UsageError: Invalid settings; or the predictor takes one request at a time, so that nothing can be mixed.
        InputError: All requests have the same answer; or the model answers a request differently when it is sent
            alone again.
        ModelServeError: A request sent alone was not answered.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> rows = np.arange(32, dtype=np.float32).reshape(8, 4)
        >>> ms.measure_outputs_under_load(model, rows, requests=100).value
        0.0
    """
    check_proportion("max_failed", max_failed)
    check_positive("time_limit_s", time_limit_s, "seconds")
    if isinstance(requests, bool) or not isinstance(requests, int) or requests < 1:
        raise UsageError(f"requests must be a whole number of at least 1; got {requests!r}")
    if clients is not None and rate_qps is not None:
        raise UsageError("clients and rate_qps are two kinds of load: give one of them")
    schedule = _schedule(clients, rate_qps, requests, time_limit_s)
    settings = LoadSettings(0.0, timeout_s=timeout_s)
    tolerance = RoundingTolerance.of(rtol, atol)
    with open_models(predictor, inputs=inputs) as (given, (served,)):
        if not served.is_thread_safe:
            raise UsageError(
                f"{served.subject} takes one request at a time ({served.transport}), so that no answers can be mixed: "
                "serve the ONNX file or the endpoint"
            )
        began = time.perf_counter()
        distinct = requests_of(given, rows_per_request)[: min(_MOST_DISTINCT, requests)]
        comparison = Comparison(answers_alone(served, distinct, timeout_s), tolerance)
        comparison.check_repeatable(answers_alone(served, distinct[:_REPEATED], timeout_s))
        run = run_load(predictor, served, distinct, schedule, settings, check=comparison.check, is_timed=False)
        return _evidence(served, run, comparison, requests, max_failed, time.perf_counter() - began)


def _schedule(clients: int | None, rate_qps: float | None, requests: int, time_limit_s: float) -> Schedule:
    if rate_qps is None:
        count = check_clients(_CLIENTS if clients is None else clients)
        if count < 2:
            raise UsageError("clients must be at least 2: a request that is alone cannot be mixed with another")
        return Schedule(f"{count} clients", time_limit_s, clients=count, limit=requests)
    check_positive("rate_qps", rate_qps, "requests per second")
    duration_s = min(requests / rate_qps, time_limit_s)
    return plan_schedule(rate_qps=rate_qps, duration_s=duration_s)


def answers_alone(predictor: Predictor, requests: Sequence[Inputs], timeout_s: float) -> list[Answer]:
    """Return the answers to requests that are sent one after the other; ModelServeError for the first without one."""
    found: list[Answer] = []
    for number, request in enumerate(progress(requests, "single requests")):
        try:
            found.append(answer_alone(predictor, request, timeout_s))
        except Exception as error:
            raise ModelServeError(
                f"request {number}, sent alone, was not answered: {type(error).__name__}: {error}"
            ) from error
    return found


@dataclass(frozen=True, slots=True, eq=False)
class WrongAnswer:
    """The answer to a request that differs from the one alone; `found` is None if it was not kept."""

    index: int
    found: Answer | None


@dataclass(slots=True, eq=False)
class Comparison:
    """The answers alone, by request, and the answers under load that differ from them."""

    alone: Sequence[Answer]
    tolerance: RoundingTolerance
    wrong: list[WrongAnswer] = field(default_factory=list)
    rounded: int = 0
    largest: float = 0.0
    _magnitudes: Mapping[str, float] = field(init=False)
    _by_digest: dict[bytes, list[int]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._magnitudes = {
            name: max(_magnitude(answer[name]) for answer in self.alone if name in answer) for name in self.alone[0]
        }
        for number, answer in enumerate(self.alone):
            self._by_digest.setdefault(_digest(answer), []).append(number)
        if len(self._by_digest) < 2:
            raise InputError(
                f"all {len(self.alone)} requests have the same answer, so that mixed answers cannot be told apart: "
                "give rows that the model answers differently"
            )

    @property
    def alike(self) -> int:
        """The number of requests whose answer another request has, too."""
        return sum(len(numbers) for numbers in self._by_digest.values() if len(numbers) > 1)

    def check_repeatable(self, again: Sequence[Answer]) -> None:
        """Raise InputError if an answer alone differs from the first one."""
        for number, answer in enumerate(again):
            excess = self._excess(answer, self.alone[number])
            if excess > 1:
                raise InputError(
                    f"request {number} has another answer when it is sent alone again ({excess:.3g} times the "
                    "tolerance): answers of a model that is not deterministic cannot be compared; seed it, or give "
                    "rtol and atol"
                )

    def check(self, index: int, answer: Answer) -> None:
        """Compare the answer to a request under load."""
        alone = self.alone[index % len(self.alone)]
        if _is_equal(answer, alone):
            return
        excess = self._excess(answer, alone)
        with self._lock:
            self.largest = max(self.largest, excess)
            if excess <= 1:
                self.rounded += 1
            else:
                self.wrong.append(WrongAnswer(index, answer if len(self.wrong) < _MOST_KEPT else None))

    def owner(self, found: Answer, number: int) -> int | None:
        """Return the request whose answer alone `found` is; None for that of request `number` or of none."""
        exact = self._by_digest.get(_digest(found))
        if exact is not None:
            return exact[0]
        excesses = [self._excess(found, alone) for alone in self.alone]
        best = int(np.argmin(excesses))
        return best if excesses[best] <= 1 and best != number else None

    def describe(self, wrong: WrongAnswer) -> str:
        """Return how an answer that belongs to no other request differs from the one alone."""
        alone = self.alone[wrong.index % len(self.alone)]
        if wrong.found is None or (other := _other_form(wrong.found, alone)):
            return "differs" if wrong.found is None else other
        return self._differences(wrong.found, alone).sentence(0, "under load", "alone")

    def _excess(self, found: Answer, alone: Answer) -> float:
        return np.inf if _other_form(found, alone) else float(self._differences(found, alone).excess[0])

    def _differences(self, found: Answer, alone: Answer) -> OutputDifferences:
        one = {name: array[np.newaxis] for name, array in found.items()}
        other = {name: array[np.newaxis] for name, array in alone.items()}
        return output_differences(one, other, self.tolerance, self._magnitudes)


def _magnitude(array: NDArray[Any]) -> float:
    if kind_of(array.dtype) != "real":
        return 0.0
    values = np.abs(array.astype(np.float64))
    return float(values[np.isfinite(values)].max(initial=0.0))


def _digest(answer: Answer) -> bytes:
    parts = (
        f"{name}{array.shape}{array.dtype}".encode()
        + (repr(array.tolist()).encode() if array.dtype.kind in "OT" else array.tobytes())
        for name, array in answer.items()
    )
    return hashlib.sha256(b"|".join(parts)).digest()


def _is_equal(found: Answer, alone: Answer) -> bool:
    if found.keys() != alone.keys():
        return False
    return all(found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in alone.items())


def _other_form(found: Answer, alone: Answer) -> str:
    """Return how names, dtypes or shapes differ; "" if they do not."""
    if found.keys() != alone.keys():
        return f"has the outputs {', '.join(map(repr, found))} instead of {', '.join(map(repr, alone))}"
    for name, array in alone.items():
        if (form := _form(found[name])) != _form(array):
            return f"output {name!r} is {form} instead of {_form(array)}"
    return ""


def _form(array: NDArray[Any]) -> str:
    return f"{array.dtype.name} {list(array.shape)}"


def _evidence(
    served: Predictor, run: LoadRun, comparison: Comparison, requests: int, max_failed: float, duration_s: float
) -> Evidence:
    answered, wrong = int(run.answered.sum()), len(comparison.wrong)
    if not len(run):
        raise UsageError("no request was sent under load: give a longer time_limit_s")
    share = wrong / answered if answered else 0.0
    in_flight = run.most_in_flight
    # Without an answer to compare, or with requests that were alone, nothing is known.
    is_unknown = not wrong and (in_flight < 2 or not answered)
    quantities = (
        Quantity(
            "wrong answers",
            share,
            "proportion",
            Interval(0.0, 1.0, _CONFIDENCE, _CONFIDENCE) if is_unknown else None,
            Budget("at_most", 0.0),
        ),
        failed_quantity(run.failed, len(run), max_failed),
        Quantity("most in flight", in_flight, "count"),
        Quantity("largest difference", comparison.largest, "tolerance"),
    )
    verdict = worst_verdict(quantities)
    unseen = 1 - (1 - _CONFIDENCE) ** (1 / answered) if answered else 1.0
    return Evidence(
        gate="outputs under load",
        subject=served.subject,
        quantities=quantities,
        n=answered,
        n_unit="answers",
        method=Method(
            f"each answer against the same request alone, {comparison.tolerance}",
            assumptions="the rate of wrong answers that would have shown is that of independent ones",
        ),
        summary=_summary(verdict, wrong, answered, run.schedule.name, unseen),
        findings=(
            *_wrong_findings(run, comparison),
            *run.failure_findings(),
            *_limits(run, comparison, requests),
        ),
        advice=_ADVICE.get(verdict, "") if wrong or verdict is Verdict.INCONCLUSIVE else "",
        details={
            "load": run.schedule.name,
            **figures_of(run, 0.95),
            "wrong_answers": wrong,
            "rounded_answers": comparison.rounded,
            "different_requests": len(comparison.alone),
            "wrong_rate_that_would_have_shown": unseen,
            "service_p95_ms": quantile_of(run.service_ms, 0.95),
        },
        duration_s=duration_s,
    )


def _summary(verdict: Verdict, wrong: int, answered: int, load: str, unseen: float) -> str:
    if wrong:
        return f"{wrong:,} of {answered:,} answers under a load of {load} differ from those to the same requests alone"
    if verdict is Verdict.FAIL:
        return f"requests under a load of {load} were not answered"
    if verdict is Verdict.INCONCLUSIVE:
        return "no two requests were in flight at the same time, so that nothing could be mixed"
    return (
        f"all {answered:,} answers under a load of {load} equal those alone; wrong ones at a rate above "
        f"{100 * unseen:.2g} % would have shown with probability {_CONFIDENCE:.0%}"
    )


_ADVICE = {
    Verdict.FAIL: "send the named requests together until it happens again; look at batches and shared buffers",
    Verdict.INCONCLUSIVE: "give more clients=, or larger requests",
}


def _limits(run: LoadRun, comparison: Comparison, requests: int) -> list[str]:
    found = []
    if len(run) < requests:
        found.append(f"{len(run):,} of {requests:,} requests were sent within time_limit_s")
    if comparison.alike:
        found.append(
            f"{comparison.alike:,} of {len(comparison.alone):,} requests have the answer of another one: mixed answers "
            "among these cannot be seen"
        )
    if comparison.rounded:
        found.append(f"{comparison.rounded:,} answers differ by rounding, within the tolerance")
    return found


def _wrong_findings(run: LoadRun, comparison: Comparison) -> list[str]:
    """Return one sentence for each of the first wrong answers: whose answer it is, or how it differs."""
    mixed = MixedAnswers(run, comparison)
    found: list[str] = []
    named: set[int] = set()
    for wrong in sorted(comparison.wrong, key=lambda each: each.index):
        if len(found) == _MOST_SHOWN:
            found.append(f"and {len(comparison.wrong) - len(named):,} more wrong answers")
            break
        if wrong.index in named:
            continue
        sentence, others = mixed.describe(wrong)
        named |= {wrong.index, *others}
        found.append(sentence)
    if len(comparison.wrong) > 1:
        kept = [each for each in comparison.wrong if each.found is not None]
        owned = sum(mixed.owner(each) is not None for each in kept)
        first = "the first " if len(kept) < len(comparison.wrong) else ""
        found.append(f"{owned} of {first}{len(kept)} wrong answers are those of another request")
    return found


class MixedAnswers:
    """The requests to which wrong answers belong: those that were in flight at the same time, if there are any."""

    def __init__(self, run: LoadRun, comparison: Comparison) -> None:
        self._run, self._comparison = run, comparison
        self._place = {int(index): place for place, index in enumerate(run.index)}
        self._wrong = {each.index: each for each in comparison.wrong}
        self._owners: dict[int, int | None] = {}

    def owner(self, wrong: WrongAnswer) -> int | None:
        """Return the number of the distinct request whose answer it is; None if it is that of no other."""
        if wrong.index not in self._owners:
            number = wrong.index % len(self._comparison.alone)
            self._owners[wrong.index] = None if wrong.found is None else self._comparison.owner(wrong.found, number)
        return self._owners[wrong.index]

    def describe(self, wrong: WrongAnswer) -> tuple[str, tuple[int, ...]]:
        """Return the sentence on a wrong answer, and the other requests that it is about."""
        count, index = len(self._comparison.alone), wrong.index
        row = f"request {index:,} (inputs {index % count})"
        owner = self.owner(wrong)
        if owner is None:
            return f"{row}: {self._comparison.describe(wrong)}", ()
        other = self._in_flight_with(index, owner)
        if other is None:
            return f"{row} got the answer to inputs {owner}, which was not in flight: a stale answer", ()
        whose = f"request {other:,} (inputs {owner})"
        mate = self._wrong.get(other)
        if mate is not None and self.owner(mate) == index % count:
            return f"{row} and {whose} were in flight together and got each other's answers", (other,)
        return f"the answer of {whose} was given to {row}, while both were in flight", ()

    def _in_flight_with(self, index: int, owner: int) -> int | None:
        """Return the request with the inputs `owner` that overlapped request `index` in time, or None."""
        run, place = self._run, self._place[index]
        same = run.index % len(self._comparison.alone) == owner
        ends = np.where(np.isnan(run.ended_s), np.inf, run.ended_s)
        overlaps = same & (run.sent_s <= run.ended_s[place]) & (ends >= run.sent_s[place])
        overlaps[place] = False
        if not overlaps.any():
            return None
        near = np.where(overlaps, np.abs(run.sent_s - run.sent_s[place]), np.inf)
        return int(run.index[int(np.argmin(near))])
