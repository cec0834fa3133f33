"""Child processes: call a function in another process, with a time limit and its output captured."""

from __future__ import annotations

import faulthandler
import importlib
import io
import logging
import multiprocessing
import os
import re
import signal as signals
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pytest_modelserve.progress import progress

_POLL_S = 0.02
# How long an idle process has to exit by itself before it is killed.
_EXIT_S = 1.0
# A process that closed its connection exits, or is killed after this long.
_JOIN_S = 10.0
# A connection holds at least this much without being read.
_CONNECTION_BYTES = 32 << 10
# The longest result; a wrong length must not take the memory of the host.
_MOST_BYTES = 4 << 30
_LOG_LINES = 20
# faulthandler's report of a crash begins with this; the frames next to the crash come first.
_CRASH = "Fatal Python error"
# And its report of a process that was asked where it is, with this.
_STACK = "Stack (most recent call first)"
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Crash:
    """How a child process ended without a result.

    `signal` and `exit_code` are None where they do not apply or the system does not say. `log_tail` is the end of what
    the process printed, or faulthandler's report of a crash.
    """

    signal: int | None
    exit_code: int | None
    log_tail: str
    timed_out: bool = False

    def __str__(self) -> str:
        if self.timed_out:
            return "exceeded its time limit"
        if self.signal is None:
            return "ended without a result" if self.exit_code is None else f"exited with status {self.exit_code}"
        try:
            return f"killed by {signals.Signals(self.signal).name}"
        except ValueError:  # a real-time signal has no name
            return f"killed by signal {self.signal}"


def call_in_child(
    target: str, payload: bytes, *, timeout_s: float, preload: bool = False, description: str = ""
) -> bytes | Crash:
    """Return what `target`, "module:function" from bytes to bytes, makes of `payload` in a process that then ends.

    An exception in `target` is a Crash with exit status 1 and the traceback in its log. `preload` is that of
    ChildProcess; `description` labels a progress bar on a terminal.
    """
    with ChildProcess(target, preload=preload) as child:
        return child.call(payload, timeout_s=timeout_s, description=description)


def format_log(log_tail: str) -> str:
    """Return the end of a child's log as indented lines to append to a message."""
    if not log_tail:
        return "\nIt printed nothing."
    title = "Its log" if log_tail.startswith(_CRASH) else "The end of its log"
    return f"\n{title}:\n" + "\n".join(f"  {line}" for line in log_tail.splitlines())


class ChildProcess:
    """A process that calls `target`, "module:function" from bytes to bytes, once for each payload.

    With `preload` the process is forked from multiprocessing's fork server, which has imported the target's module
    once; without it, or on a system that has no fork server, a new interpreter starts. Its warnings are ignored and its
    output goes to a log. It ends with `close`, and with this process.
    """

    def __init__(self, target: str, *, preload: bool = False) -> None:
        method = "forkserver" if preload and "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([target.partition(":")[0]])

        def start(theirs: connection.Connection, log: str) -> Any:
            process = context.Process(target=_serve, args=(target, theirs, log, dict(os.environ)))
            with _no_main_module():
                process.start()
            return process

        self._start(start)

    def _start(self, start: Callable[[connection.Connection, str], Any]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="modelserve-", suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        # Also of a process that is never closed, such as that of a predictor of a whole module.
        self._remove_log = weakref.finalize(self, self._log.unlink, missing_ok=True)
        self._connection, theirs = multiprocessing.Pipe()
        # Idle after a call: before the first one there is nothing to end in order.
        self._is_idle = False
        try:
            self._process = start(theirs, name)
        except BaseException:
            self._connection.close()
            self._remove_log()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return int(self._process.pid)

    def call(self, payload: bytes, *, timeout_s: float, description: str = "") -> bytes | Crash:
        """Return the result for `payload`, or how the process ended; after a Crash it is closed."""
        self._is_idle = False
        deadline = time.monotonic() + timeout_s
        try:
            self._send(payload, timeout_s)
            ticks = self._ticks(deadline)
            for _ in progress(ticks, description) if description else ticks:
                pass
            if self._connection.poll():
                self._is_idle = True
                return bytes(self._connection.recv_bytes(_MOST_BYTES))
            crash = Crash(None, None, self.log_tail(), timed_out=True)
        except (EOFError, OSError):
            late = time.monotonic() >= deadline
            self._process.join(_JOIN_S)
            status = self._process.exitcode
            killed = status is not None and status < 0
            crash = Crash(-status if killed else None, None if killed else status, self.log_tail(), timed_out=late)
        self.close()
        return crash

    def _send(self, payload: bytes, timeout_s: float) -> None:
        if len(payload) <= _CONNECTION_BYTES:
            self._connection.send_bytes(payload)
            return
        # A process that has stopped reads nothing, and what its connection cannot hold would wait for ever.
        killer = threading.Timer(timeout_s, self._process.kill)
        killer.start()
        try:
            self._connection.send_bytes(payload)
        finally:
            killer.cancel()

    def _ticks(self, deadline: float) -> Iterator[None]:
        while not self._connection.poll(max(0.0, min(_POLL_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
            yield

    def log_tail(self) -> str:
        """Return the end of what the process printed; of a crash or a stack from faulthandler, the beginning."""
        text = _COLOR.sub("", self._log.read_text(encoding="utf-8", errors="replace"))
        lines = [line for line in text.splitlines() if line.strip()]
        if any(line.startswith(_CRASH) for line in lines):
            return "\n".join(_crash_report(lines)[:_LOG_LINES])
        if _STACK in "".join(lines):
            lines = lines[: max(number for number, line in enumerate(lines) if _STACK in line) + _LOG_LINES]
        return "\n".join(lines[-_LOG_LINES:])

    def kill(self) -> None:
        """End the process at once, also from another thread than that of its call."""
        with suppress(ValueError):  # closed
            self._process.kill()

    def close(self) -> None:
        """End the process, at once if it is in a call."""
        if self._connection.closed:
            return
        self._connection.close()
        if self._is_idle:
            self._process.join(_EXIT_S)
        self._process.kill()
        self._process.join()
        with suppress(ValueError):  # a parent that ignores SIGCHLD gets no exit status
            self._process.close()
        self._remove_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ScriptProcess(ChildProcess):
    """A process of any Python interpreter that runs a self-contained `script` with a connection.

    The script gets the number of the connection's file descriptor, and ends with its standard input. `-E` keeps the
    paths of this process's environment out of the other one; the script's folder is no place to import from either.

    Raises OSError if the interpreter cannot be started.
    """

    def __init__(self, interpreter: str, script: Path) -> None:
        def start(theirs: connection.Connection, log: str) -> _Script:
            with open(log, "ab") as output:
                return _Script(
                    [interpreter, "-E", "-c", _RUN_SCRIPT, str(script), str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                )

        self._start(start)


_RUN_SCRIPT = (
    "import sys; del sys.path[0], sys.argv[0]; "
    "exec(compile(open(sys.argv[0], encoding='utf-8').read(), sys.argv[0], 'exec'))"
)


class _Script(subprocess.Popen[bytes]):
    """A subprocess with the methods of a process of multiprocessing."""

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self.returncode

    def close(self) -> None:
        assert self.stdin is not None
        self.stdin.close()


def _crash_report(lines: list[str]) -> list[str]:
    """Return faulthandler's report: its title, and the thread that crashed without the others."""
    begin = next(number for number, line in enumerate(lines) if line.startswith(_CRASH))
    current = [number for number, line in enumerate(lines) if line.startswith("Current thread") and number > begin]
    return [lines[begin], *lines[current[0] if current else begin + 1 :]]


_main_lock = threading.Lock()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide `__main__`: multiprocessing would run it again in the child, a script without a main guard included."""
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _serve(target: str, requests: connection.Connection, log: str, environment: Mapping[str, str]) -> None:
    """Call `target` with each request until the connection is closed: what the child process runs."""
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()  # a fork server has that of the time when it was started
    os.environ.update(environment)
    _redirect_output(log)
    with suppress(ImportError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    module, _, name = target.partition(":")
    function: Callable[[bytes], bytes] = getattr(importlib.import_module(module), name)
    with suppress(EOFError, ConnectionError):
        while True:
            requests.send_bytes(function(requests.recv_bytes()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _redirect_output(log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # New streams, as a process may have none, and without buffers, which a crash would lose.
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", write_through=True)
        for number in (1, 2)
    )
    faulthandler.enable(sys.stderr)


_logger = logging.getLogger(__name__)
_STDERR = 2


@contextmanager
def native_stderr_held() -> Iterator[None]:
    """Send what is written to file descriptor 2 inside the block to this module's logger, at DEBUG, after the block.

    `contextlib.redirect_stderr` sees only what Python writes, not what C++ libraries do. Output of other threads is
    held, too, and a process without a standard error keeps having none.
    """
    try:
        before = os.dup(_STDERR)
    except OSError:
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(before, _STDERR)
                held.seek(0)
                if text := held.read().decode(errors="replace").strip():
                    _logger.debug("%s", text)
    finally:
        os.close(before)
