"""Conformance gate: a server of the Open Inference Protocol refuses invalid requests, and serves on."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.errors import EndpointError, ModelServeError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Verdict
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.bad_requests import BAD_REQUESTS, BadRequest, Request
from pytest_modelserve.serving.endpoint import Endpoint, EndpointPredictor
from pytest_modelserve.serving.http_client import HttpAnswer
from pytest_modelserve.serving.inputs import Feed, as_batch, check_positive, checked_feed, slice_rows
from pytest_modelserve.serving.open_inference import OpenInferenceClient

if TYPE_CHECKING:
    from pytest_modelserve.serving import Servable

CONNECTIONS = 32
SITUATIONS = (f"{CONNECTIONS} requests at once", f"beside {CONNECTIONS} unfinished requests")
_GONE = "the next valid request has no answer"
_SUMMARIES = {
    "failing requests": "invalid requests are not refused, or not survived",
    "open files": "files stay open",
    "memory growth": "memory grows",
}
_ROUNDS = 3
# A server that lets as many requests wait will let the others wait as well.
_MOST_LATE = 5
# How long a server has to close the connections of the last requests.
_SETTLE_S = 2.0
_PAUSE_S = 0.2
_MIB = 1 << 20
_MOST_SHOWN = 10


def measure_conformance(
    endpoint: Servable,
    inputs: Any = None,
    *,
    accepted: Collection[str] = (),
    pid: int | None = None,
    max_memory_mib: float | None = None,
) -> Evidence:
    """Measure whether a server of the Open Inference Protocol (REST) refuses invalid requests and keeps serving.

    About 45 requests are spoiled, each in one way: JSON, names, shapes, types, values, paths, headers, lengths. Each
    must get a status of 400 to 499 with a reason, within `timeout_s` of the endpoint, and the valid request that
    follows the answer it had at first. Where bytes cannot be told apart as requests, the server may close the
    connection instead; an empty batch may have outputs without rows. Valid requests must also be answered 32 at once,
    and beside 32 that never end. No more is sent once the server is gone, or has let five requests wait. The verdict,
    PASS or FAIL, is about these requests; nothing is estimated.

    Do not run it against a server in use: a server that does not conform may stop.

    Args:
        endpoint: The URL of the model, an `ms.Endpoint`, or a predictor that serves one.
        inputs: A valid input, of which the first row is sent; by default ones (texts: "a") after the signature.
        accepted: Names of requests whose failure is known: they are sent and reported, and do not count.
        pid: The process of the server on this host. All requests are then sent three times; its open files must not
            grow, and its memory not by more than `max_memory_mib`, from the end of the first time on.
        max_memory_mib: The largest growth of memory allowed, in MiB; without it growth is a measurement.

    Returns:
        Evidence with the number of requests that failed, each with what happened; with `pid` the growth of open files
        and of memory.

    Raises:
        UsageError: The endpoint has another protocol; an unknown name in `accepted`; `max_memory_mib` without `pid`.
        EndpointError: The valid request is not answered to begin with.

    Example:
        `ms.assert_conformant("http://127.0.0.1:8080/v2/models/digits", accepted=["an input twice"])` fails unless the
        server refuses every other request of the table.
    """
    names = [*(each.name for each in BAD_REQUESTS), *SITUATIONS]
    for name in [accepted] if isinstance(accepted, str) else accepted:
        if name not in names:
            raise UsageError(unknown_choice("request in accepted", name, names))
    if max_memory_mib is not None and pid is None:
        raise UsageError("max_memory_mib needs pid, the number of the server's process on this host")
    began = time.perf_counter()
    if max_memory_mib is not None:
        check_positive("max_memory_mib", max_memory_mib, "MiB")
    process = None if pid is None else _Process(pid)
    known = {accepted} if isinstance(accepted, str) else {*accepted}
    with _served(endpoint) as predictor:
        server = _Server(predictor, inputs)
        outcomes = server.outcomes()
        quantities = [_failures(outcomes, known)]
        if process is not None and _is_complete(outcomes):
            before = process.settled()
            for _ in range(_ROUNDS - 1):
                server.outcomes()
            files, memory = (now - then for now, then in zip(process.settled(), before, strict=True))
            budget = None if max_memory_mib is None else Budget.of("max_memory_mib", max_memory_mib, unit=_MIB)
            quantities.append(Quantity("open files", files, "count", budget=Budget("at_most", 0)))
            quantities.append(Quantity("memory growth", memory, "bytes", budget=budget))
        return _evidence(predictor, outcomes, known, quantities, time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one request: its status if there was an answer, and what was wrong, "" for nothing.

    `is_late` says that there was no answer in time.
    """

    name: str
    status: int | None
    problem: str
    seconds: float
    is_late: bool = False


def _is_complete(outcomes: Sequence[Outcome]) -> bool:
    return outcomes[-1].name == SITUATIONS[-1]


class _Server:
    """The server under test: it gets spoiled requests, and a valid one after each."""

    def __init__(self, predictor: EndpointPredictor, inputs: Any) -> None:
        client = predictor.client
        assert isinstance(client, OpenInferenceClient)
        self._predictor, self._client = predictor, client
        self._feed = _valid_feed(predictor, inputs)
        try:
            self._expected = predictor.predict(self._feed)
        except EndpointError as error:
            raise EndpointError(f"the valid request is not answered, pass inputs= for another: {error}") from None
        content, _ = client.request(self._feed)
        shape = predictor.signature.inputs[0].shape if predictor.signature else None
        self._valid = Request(
            root=client.root,
            path=f"{client.path}/infer",
            content=content,
            headers={
                "Host": client.address.partition("://")[2],
                "Content-Type": "application/json",
                "Connection": "close",
                **{name.title(): value for name, value in client.http.headers.items()},
            },
            fixed_axis=next((axis for axis, size in enumerate(shape or ()) if isinstance(size, int) and size), None),
        )

    def outcomes(self) -> list[Outcome]:
        """Send every request that applies to the model, and no more once the server is gone or lets five wait."""
        found: list[Outcome] = []
        for each in progress(BAD_REQUESTS, "invalid requests"):
            request = each.of(self._valid)
            if request is None:
                continue
            outcome = self._outcome(each, request)
            found.append(outcome)
            if _GONE in outcome.problem or sum(each.is_late for each in found) == _MOST_LATE:
                return found
        for name, situation in zip(SITUATIONS, (self._at_once, self._beside_unfinished), strict=True):
            began = time.perf_counter()
            found.append(Outcome(name, None, situation(), time.perf_counter() - began))
        self._client.http.close_idle()
        return found

    def _outcome(self, each: BadRequest, request: Request) -> Outcome:
        began = time.perf_counter()
        answer, problem = None, ""
        try:
            if each.accepts == "nothing":
                with self._client.http.sent(request.to_bytes()):
                    pass
            else:
                answer = self._client.http.exchange(request.to_bytes())
                problem = self._problem(each, answer)
        except (EndpointError, OSError) as error:
            problem = str(error)
        seconds = time.perf_counter() - began
        problem = "; ".join(filter(None, (problem, self._after())))
        status = None if answer is None else answer.status
        return Outcome(each.name, status, problem, seconds, is_late=seconds >= self._predictor.endpoint.timeout_s)

    def _problem(self, each: BadRequest, answer: HttpAnswer | None) -> str:
        if answer is None:
            return "" if each.accepts == "4xx or closed" else "the connection was closed without an answer"
        if 400 <= answer.status < 500:
            return "" if answer.body.strip() else f"status {answer.status} without a reason"
        if answer.status == 200 and each.accepts == "4xx or no rows" and _has_no_rows(self._client, answer):
            return ""
        if answer.status == 200:
            return "answered as if it were valid (status 200)"
        return f"status {answer.status}: {self._client.http.reason(answer.body)}"

    def _after(self) -> str:
        """Return what is wrong with the answer to the valid request."""
        try:
            found = self._predictor.predict(self._feed)
        except ModelServeError as error:
            return f"{_GONE}: {error}"
        if found.keys() != self._expected.keys() or not all(
            found[name].shape == array.shape and _is_close(found[name], array) for name, array in self._expected.items()
        ):
            return "the next valid request has another answer than before"
        return ""

    def _at_once(self) -> str:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            problems = list(filter(None, pool.map(lambda _: self._after(), range(CONNECTIONS))))
        return f"{len(problems)} of {CONNECTIONS} failed, such as: {problems[0]}" if problems else ""

    def _beside_unfinished(self) -> str:
        with ExitStack() as stack:
            try:
                for _ in range(CONNECTIONS):
                    stack.enter_context(self._client.http.sent(self._valid.to_bytes()[:-9]))
            except OSError as error:
                return f"{type(error).__name__} while they were sent"
            return self._after()


def _served(endpoint: object) -> EndpointPredictor:
    """Return a predictor that sends tensors as JSON, in which requests are spoiled."""
    settings = endpoint.endpoint if isinstance(endpoint, EndpointPredictor) else endpoint
    settings = Endpoint(settings) if isinstance(settings, str) else settings
    if not isinstance(settings, Endpoint):
        raise UsageError(f"endpoint must be the URL of a model or an ms.Endpoint; got {type(endpoint).__name__}")
    predictor = EndpointPredictor(replace(settings, binary=False))
    if not isinstance(predictor.client, OpenInferenceClient):
        predictor.close()
        raise UsageError(
            f"{settings!r} is no address by REST, over which conformance is tested: give http://…/v2/models/NAME, also "
            "for a server of gRPC"
        )
    return predictor


def _valid_feed(predictor: EndpointPredictor, inputs: Any) -> Feed:
    signature = predictor.signature
    if inputs is None:
        if signature is None:
            raise UsageError(f"{predictor.subject} does not tell its inputs: give inputs=, a mapping from their names")
        return {spec.name: _ones(spec) for spec in signature.inputs}
    batch = slice_rows(as_batch(inputs, signature), 1)
    if signature is not None:
        return checked_feed(batch, signature)
    if not isinstance(batch, Mapping):
        raise UsageError(f"{predictor.subject} does not tell its inputs: give inputs= as a mapping from their names")
    return {name: np.asarray(batch[name]) for name in batch}


def _ones(spec: TensorSpec) -> NDArray[Any]:
    shape = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
    return np.full(shape, "a", object) if spec.dtype == "str" else np.ones(shape, spec.dtype)


def _has_no_rows(client: OpenInferenceClient, answer: HttpAnswer) -> bool:
    found = client.http.parse(answer.body, "POST", client.path)
    outputs = found.get("outputs") if isinstance(found, Mapping) else None
    if not isinstance(outputs, list):
        return False
    shapes = [each.get("shape") if isinstance(each, Mapping) else None for each in outputs]
    return bool(shapes) and all(isinstance(shape, list) and shape[:1] == [0] for shape in shapes)


def _is_close(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    if expected.dtype.kind not in "fV":
        return bool(np.array_equal(found, expected))
    # Batches of other requests may change the order of sums.
    return bool(np.allclose(found.astype(float), expected.astype(float), rtol=1e-3, atol=1e-5, equal_nan=True))


class _Process:
    """Open files and memory of a process of this host, from /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc", str(pid))
        self.state()

    def state(self) -> tuple[int, int]:
        """Return the number of open files, and the resident memory in bytes."""
        try:
            pages = int((self._folder / "statm").read_text().split()[1])
            return len(os.listdir(self._folder / "fd")), pages * os.sysconf("SC_PAGE_SIZE")
        except OSError as error:
            raise UsageError(f"process {self._folder.name} cannot be read in /proc: {error.strerror}") from None

    def settled(self) -> tuple[int, int]:
        """Return the state once the server has closed connections: no more files close, or time is over."""
        deadline = time.monotonic() + _SETTLE_S
        after = self.state()
        while time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
            before, after = after, self.state()
            if after[0] >= before[0]:
                break
        return after


def _failures(outcomes: Sequence[Outcome], accepted: Collection[str]) -> Quantity:
    failing = sum(bool(each.problem) and each.name not in accepted for each in outcomes)
    return Quantity("failing requests", failing, "count", budget=Budget("at_most", 0))


def _evidence(
    predictor: EndpointPredictor,
    outcomes: Sequence[Outcome],
    accepted: Collection[str],
    quantities: Sequence[Quantity],
    duration_s: float,
) -> Evidence:
    failing = sorted((each for each in outcomes if each.problem), key=lambda each: each.name in accepted)
    wrong = ", ".join(_SUMMARIES[each.name] for each in quantities if each.verdict is Verdict.FAIL)
    summary = f"all invalid requests are refused{', but those accepted' if failing else ''}"
    advice = "close connections, and free what requests have taken"
    if failing:
        advice = (
            "let the server check requests before the model gets them; a known failure is accepted by its name, "
            f"accepted=[{failing[0].name!r}]"
        )
    findings = [f"{each.name}{' (accepted)' * (each.name in accepted)}: {each.problem}" for each in failing]
    if len(findings) > _MOST_SHOWN:
        findings[_MOST_SHOWN:] = [f'and {len(findings) - _MOST_SHOWN} more, all in details["requests"]']
    return Evidence(
        gate="conformance",
        subject=predictor.subject,
        quantities=tuple(quantities),
        n=len(outcomes),
        n_unit="requests",
        method=Method(
            "invalid requests, each followed by a valid one",
            source="Open Inference Protocol (v2), REST; RFC 9110 for statuses",
        ),
        summary=f"the server does not conform: {wrong}" if wrong else summary,
        findings=(*findings, *([] if _is_complete(outcomes) else ["no further request was sent"])),
        advice=advice if wrong else "",
        details={
            "requests": [
                {"name": each.name, "status": each.status, "ms": round(1e3 * each.seconds, 1), "problem": each.problem}
                for each in outcomes
            ]
        },
        duration_s=duration_s,
    )
