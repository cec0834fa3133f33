"""Load generator: threads, or processes with threads, that send each request when it is due."""

from __future__ import annotations

import math
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.load.load_run import REQUEST, Failure, LoadRun, joined
from pytest_modelserve.load.schedule import Schedule
from pytest_modelserve.performance.batches import Batches, batches_of
from pytest_modelserve.performance.timing import host_lock, no_garbage_collection
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, Predictor, Servable
from pytest_modelserve.serving.inputs import as_batch, batch_size, check_time_limit, is_one_batch, slice_rows
from pytest_modelserve.serving.serve import serve

Answer = dict[str, NDArray[Any]]
Check = Callable[[int, Answer], str | None]
"""What is wrong with the answer to a request, by the number of the request; None if nothing is."""

# Free threads that wait for the next requests. With fewer, a burst finds none until another is started.
_RESERVE = 8
# Threads that compute in Python give up the interpreter after this long, so that a request that is due waits no longer.
# Python's default is 5 ms.
_SWITCH_S = 0.0005
_LEAD_S = 0.05
_POLL_S = 0.1
# Requests that are prepared in advance; afterwards they repeat.
_MOST_PREPARED = 20_000
# What a child needs in addition to the load: to import the runtime and open the model.
_START_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How requests are sent: at most `max_in_flight` at a time, each given up after `timeout_s` at the end."""

    warm_up_s: float
    timeout_s: float = 30.0
    max_in_flight: int = 256
    processes: int = 1

    def __post_init__(self) -> None:
        if not (self.warm_up_s >= 0 and math.isfinite(self.warm_up_s)):
            raise UsageError(f"warm_up_s must be a number of seconds of at least 0; got {self.warm_up_s}")
        check_time_limit("timeout_s", self.timeout_s)
        for name, most in (("max_in_flight", 10_000), ("processes", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise UsageError(f"{name} must be a whole number from 1 to {most:,}; got {value!r}")


def requests_of(inputs: Batches, rows_per_request: int | None) -> list[Inputs]:
    """Return the inputs of each request: runs of rows of one batch, or the batches of a list as they are.

    With None the whole batch is one request. InputError for no rows, UsageError for a number of rows below 1.
    """
    if rows_per_request is not None and (type(rows_per_request) is not int or rows_per_request < 1):
        raise UsageError(f"rows_per_request must be a whole number of at least 1; got {rows_per_request!r}")
    if isinstance(inputs, (list, tuple)) and not is_one_batch(inputs):
        return list(batches_of(inputs))
    (batch,) = batches_of(as_batch(inputs) if is_one_batch(inputs) else inputs)
    rows = batch_size(batch)
    if rows is None or rows_per_request is None:
        return [batch]
    if rows < rows_per_request:
        raise InputError(f"inputs have {rows} rows, and rows_per_request={rows_per_request}: give more rows")
    starts = range(0, rows - rows_per_request + 1, rows_per_request)[:_MOST_PREPARED]
    return [slice_rows(batch, rows_per_request, first=first) for first in starts]


def answer_alone(predictor: Predictor, request: Inputs, timeout_s: float) -> Answer:
    """Return the answer to one request that is sent alone.

    Raises:
        ModelServeError: There is no answer within `timeout_s`.
        Exception: What the model raises, with a note.
    """
    result: list[Answer | BaseException] = []

    def call() -> None:
        try:
            result.append(predictor.predict(request))
        except BaseException as error:
            error.add_note("raised by a request that was sent alone, before the load")
            result.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not result:
        raise ModelServeError(
            f"{predictor.subject} did not answer a request, sent alone, within timeout_s={timeout_s:g} s"
        )
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def has_structure_of(answer: Answer, requests: Sequence[Inputs]) -> Check:
    """Return a check for outputs with other names or ranks than those of `answer` to the first request.

    Where all requests have the same number of rows, an output that had as many has to have them in every answer.
    """
    sizes = {batch_size(request) for request in requests}
    rows = sizes.pop() if len(sizes) == 1 else None
    known = {name: (array.ndim, rows is not None and array.shape[:1] == (rows,)) for name, array in answer.items()}
    names = known.keys()

    def check(_: int, found: Answer) -> str | None:
        if found.keys() != names:
            return f"outputs {', '.join(map(repr, found))} instead of {', '.join(map(repr, names))}"
        for name, array in found.items():
            rank, has_rows = known[name]
            if array.ndim != rank or (has_rows and len(array) != rows):
                return f"output {name!r} has shape {list(array.shape)}, which does not fit the request"
        return None

    return check


def run_load(
    target: Servable,
    predictor: Predictor,
    requests: Sequence[Inputs],
    schedule: Schedule,
    settings: LoadSettings,
    *,
    check: Check | None = None,
    is_timed: bool = True,
) -> LoadRun:
    """Send `requests` in turn to `predictor` as `schedule` says, and return their times.

    Returns at the latest `timeout_s` after the last request was due, with what is then open; threads that still wait
    for an answer end with this process. A predictor that is not thread-safe gets one request at a time. With several
    processes each opens `target` itself. Unless the load is not timed, it waits for other timed gates on this host.

    Raises:
        UsageError: `target` cannot be opened in another process.
        ModelServeError: A process of the generator ended without a result.
    """
    if not predictor.is_thread_safe:
        settings = replace(settings, max_in_flight=1)
        if schedule.clients is not None:
            schedule = replace(schedule, clients=1)
    description = f"load of {schedule.name}"
    with host_lock() if is_timed else nullcontext():
        if settings.processes == 1:
            return _Generator(predictor.predict, requests, schedule, settings, check).run(description=description)
        return _run_in_processes(target, requests, schedule, settings, description)


@dataclass(slots=True)
class _Log:
    """The requests of one thread: index, due, taken, sent, ended, answered; `current` has no end yet."""

    rows: list[tuple[int, float, float, float, float, bool]] = field(default_factory=list)
    current: tuple[int, float, float, float] | None = None
    failures: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)

    def fail(self, name: str, message: str) -> None:
        self.failures[name] += 1
        self.messages.setdefault(name, message.partition("\n")[0][:200])


class _Generator:
    """One load by threads of this process. A thread takes the next request, waits until it is due, and sends it."""

    def __init__(
        self,
        predict: Callable[[Inputs], Answer],
        requests: Sequence[Inputs],
        schedule: Schedule,
        settings: LoadSettings,
        check: Check | None,
    ) -> None:
        self._predict, self._requests, self._check = predict, requests, check
        self._schedule, self._settings = schedule, settings
        self._lock = threading.Lock()
        self._wake = threading.Event()  # of the main thread: a thread is missing, or the last one has ended
        self._next = self._busy = self._running = 0
        self._is_stopped = False
        self._logs: list[_Log] = []
        if schedule.due_s is None:
            assert schedule.clients is not None
            self._most_threads = schedule.clients
            self._n = schedule.limit or sys.maxsize
        else:
            self._most_threads = settings.max_in_flight
            self._n = schedule.due_s.size
            self._due = schedule.due_s.tolist()

    def run(self, *, start: float | None = None, description: str = "") -> LoadRun:
        """Send all requests and return their times; `start` is that of `time.perf_counter`."""
        before, interval = time.process_time(), sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            with no_garbage_collection():
                self._start = time.perf_counter() + _LEAD_S if start is None else start
                self._started = time.time() + self._start - time.perf_counter()
                for _ in range(self._most_threads if self._is_closed else min(self._most_threads, _RESERVE)):
                    self._add_thread()
                ticks = self._ticks()
                # A number of requests ends sooner than the time that it may take.
                seconds = None if self._schedule.limit else math.ceil(self._schedule.duration_s)
                for _ in progress(ticks, description, total=seconds) if description else ticks:
                    pass
        finally:
            self._is_stopped = True
            if interval != _SWITCH_S:  # else another load, in another thread, restores it
                sys.setswitchinterval(interval)
        wall = time.perf_counter() - self._start
        return self._collected(cpu_share=(time.process_time() - before) / max(wall, 1e-9))

    @property
    def _is_closed(self) -> bool:
        return not self._schedule.is_open

    def _ticks(self) -> Iterator[int]:
        """Yield once for every second of the load, until the last thread has ended or time is up."""
        last = self._schedule.duration_s if self._is_closed else self._due[-1]
        deadline = self._start + last + self._settings.timeout_s
        second = 1
        while self._running:
            self._wake.wait(_POLL_S)
            self._wake.clear()
            now = time.perf_counter()
            if now >= deadline or self._is_stuck(now):
                return
            while self._needs_thread():
                self._add_thread()
            while second <= min(now - self._start, self._schedule.duration_s):
                yield second
                second += 1

    def _is_stuck(self, now: float) -> bool:
        """Return whether as many requests as may be in flight have been so for longer than the time limit."""
        if len(self._logs) < self._most_threads:
            return False
        current = [log.current for log in self._logs]
        return all(each is not None and now - each[3] > self._settings.timeout_s for each in current)

    def _needs_thread(self) -> bool:
        """Return whether too few threads of an open loop are free for the next requests."""
        return (
            self._running - self._busy < _RESERVE
            and len(self._logs) < self._most_threads
            and self._next < self._n
            and not self._is_closed
        )

    def _add_thread(self) -> None:
        log = _Log()
        thread = threading.Thread(target=self._work, args=(log,), daemon=True, name=f"load-{len(self._logs)}")
        with self._lock:
            self._running += 1
        try:
            thread.start()
        except RuntimeError:  # no more threads: the requests wait for those that there are
            with self._lock:
                self._running -= 1
            if not self._logs:
                raise
            self._most_threads = len(self._logs)
            return
        self._logs.append(log)

    def _work(self, log: _Log) -> None:
        """Send requests until none is left: what each thread runs."""
        clock, sleep, predict = time.perf_counter, time.sleep, self._predict
        requests, count, check = self._requests, len(self._requests), self._check
        while (request := self._take()) is not None:
            index, due, taken = request
            if due > taken:
                sleep(due - taken)
            with self._lock:
                self._busy += 1
            if self._needs_thread():
                self._wake.set()
            if self._is_stopped:
                break
            sent = clock()
            log.current = (index, due, taken, sent)
            is_answered = False
            try:
                answer = predict(requests[index % count])
                ended = clock()
                wrong = None if check is None else check(index, answer)
                is_answered = wrong is None
                if wrong is not None:
                    log.fail("a wrong answer", wrong)
            except BaseException as error:  # an exit of one thread would lose its request
                ended = clock()
                log.fail(type(error).__name__, str(error))
            log.rows.append((index, due, taken, sent, ended, is_answered))
            log.current = None
            with self._lock:
                self._busy -= 1
        with self._lock:
            self._running -= 1
        if not self._running:
            self._wake.set()

    def _take(self) -> tuple[int, float, float] | None:
        """Return the next request, when it is due, and when it was taken; None if no request is left.

        A request that waited because as many as may be were in flight is taken now. Any other was late because this
        thread was: it counts as taken when it was due, so that the delay is issue lag.
        """
        with self._lock:
            index, now = self._next, time.perf_counter()
            is_full = self._busy >= self._most_threads - 1
            if self._is_stopped or index >= self._n:
                return None
            if self._is_closed:
                if now - self._start >= self._schedule.duration_s:
                    return None
                due = max(now, self._start)
            else:
                due = self._start + self._due[index]
            self._next += 1
        return index, due, now if is_full else min(now, due)

    def _collected(self, *, cpu_share: float) -> LoadRun:
        """Return the times of all requests, those without an end included."""
        now = time.perf_counter()
        rows = [row for log in self._logs for row in log.rows[:]]
        begun = {row[0] for row in rows}
        current = [log.current for log in self._logs]
        rows += [(*each, math.nan, False) for each in current if each is not None and each[0] not in begun]
        if not self._is_closed:  # due, and never sent, as no thread was free
            begun = {row[0] for row in rows}
            late = (i for i in range(self._n) if i not in begun and self._start + self._due[i] < now)
            rows += [(i, self._start + self._due[i], math.nan, math.nan, math.nan, False) for i in late]
        requests = np.sort(np.array(rows, dtype=REQUEST), order=("due", "index"))
        for name in ("due", "taken", "sent", "ended"):
            requests[name] -= self._start
        failures: Counter[str] = sum((log.failures for log in self._logs), Counter())
        messages = {name: text for log in reversed(self._logs) for name, text in log.messages.items()}
        return LoadRun(
            self._schedule,
            requests,
            first_s=self._settings.warm_up_s,
            failures={name: Failure(count, messages[name]) for name, count in failures.items()},
            cpu_share=cpu_share,
            in_flight_limit=self._most_threads,
            started=self._started,
        )


def _run_in_processes(
    target: Servable, requests: Sequence[Inputs], schedule: Schedule, settings: LoadSettings, description: str
) -> LoadRun:
    count = settings.processes
    if schedule.clients is not None and schedule.clients < count:
        raise UsageError(f"processes={count} need at least as many clients; got clients={schedule.clients}")
    payloads = [_pickled(target, requests, schedule.part(number, count), settings) for number in range(count)]
    with ExitStack() as stack:
        children = [stack.enter_context(ChildProcess(f"{__name__}:serve_load")) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))

        def call_all(messages: list[bytes], limit_s: float, text: str = "") -> list[bytes]:
            texts = [text, *[""] * (count - 1)]
            return list(pool.map(_reply, children, messages, [limit_s] * count, texts))

        try:
            call_all(payloads, _START_LIMIT_S)
            start = pickle.dumps(time.perf_counter() + 4 * _LEAD_S)
            limit_s = schedule.duration_s + settings.timeout_s + _START_LIMIT_S
            replies = call_all([start] * count, limit_s, description)
        except BaseException:  # Ctrl-C, or one process has failed: the others would go on to the end of the load
            for child in children:
                child.kill()
            raise
    return joined([pickle.loads(reply) for reply in replies], schedule)


def _pickled(target: Servable, requests: Sequence[Inputs], schedule: Schedule, settings: LoadSettings) -> bytes:
    if isinstance(target, Predictor):
        target = getattr(target, "endpoint", target)
    why = "is an open predictor" if isinstance(target, Predictor) else ""
    try:
        if not why:
            return pickle.dumps((target, list(requests), schedule, settings), protocol=5)
    except Exception as error:  # what pickle raises for what it cannot save has no common class
        why = f"cannot be sent there: {error}"
    raise UsageError(
        f"processes={settings.processes} open the model in processes of their own, and this one {why}; pass the path "
        "of a file, an endpoint, or a function of an importable module"
    )


def _reply(child: ChildProcess, message: bytes, limit_s: float, description: str) -> bytes:
    reply = child.call(message, timeout_s=limit_s, description=description)
    if isinstance(reply, Crash):
        raise ModelServeError(f"a process of the load generator {reply}{format_log(reply.log_tail)}")
    return reply


_opened: dict[str, Any] = {}


def serve_load(message: bytes) -> bytes:
    """Open the model at the first message, and run the load at the second: what a process of the generator does."""
    if not _opened:
        target, requests, schedule, settings = pickle.loads(message)
        predictor = serve(target)  # closed by the end of the process
        answer = answer_alone(predictor, requests[0], settings.timeout_s)
        check = has_structure_of(answer, requests)
        _opened["generator"] = _Generator(predictor.predict, requests, schedule, settings, check)
        return b""
    return pickle.dumps(_opened["generator"].run(start=pickle.loads(message)), protocol=5)
