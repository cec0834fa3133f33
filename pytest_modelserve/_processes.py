"""One job in a process of its own, with a time limit: what it prints, warns of or breaks stays there."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from pytest_modelserve.errors import (
    ArtifactError,
    BakedAxisError,
    ControlFlowError,
    ExportError,
    ModelServeError,
    RecipeError,
    UnsupportedOperatorError,
)
from pytest_modelserve.progress import progress

if TYPE_CHECKING:
    pass


# Why a child process failed, as it crosses to its parent: the class of the error and its words.


CAUSE_FILE = "cause.json"
_CLASSES: dict[str, type[ModelServeError]] = {
    each.__name__: each
    for each in (ArtifactError, BakedAxisError, ControlFlowError, ExportError, UnsupportedOperatorError)
}


@dataclass(frozen=True, slots=True)
class Cause:
    """`error` is the name of the class to raise in the parent; `told` says why in a sentence, `detail` what else is
    known."""

    error: str
    told: str
    detail: str = ""

    def leave_in(self, folder: Path) -> None:
        """Write it where `found_in` of the parent looks for it."""
        (folder / CAUSE_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def raised(self, message: str) -> ModelServeError:
        """The error to raise in the parent, with `message`."""
        return _CLASSES[self.error](message)


def found_in(folder: Path) -> Cause | None:
    """What a child left in `folder`; None where it left nothing, or was ended while it wrote."""
    try:
        return Cause(**json.loads((folder / CAUSE_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


# All that a child printed, in its folder; why it failed lies beside it.
LOG_FILE = "log.txt"

_POLL_S = 0.02
_LOG_LINES = 20
# Where faulthandler's account of a crash begins; the frames next to the crash come first.
_CRASH = "Fatal Python error"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Child(Protocol):
    """A running child process: what `subprocess.Popen` and a fork have in common."""

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self) -> int:
        """The exit status, once there is one."""


def run_in_child(start: Callable[[], Child], *, folder: Path, time_limit_s: float, what: str) -> None:
    """Wait for the child that `start()` starts; it never outlives this call.

    ExportError, with the cause and the log that it left in `folder`, for a child that fails, dies of a signal or takes
    longer than `time_limit_s`; another class where the cause names one.
    """
    child = start()
    try:
        for _ in progress(_ticks(child, time.monotonic() + time_limit_s), what):
            time.sleep(_POLL_S)
        status = child.poll()
    finally:  # Ctrl-C comes this way too
        if child.poll() is None:
            child.kill()
            child.wait()
    if status is None:
        raise ExportError(f"{what} took longer than its time limit of {time_limit_s:g} s and was ended{_log(folder)}")
    if status < 0:
        raise ExportError(f"{what}: its process died of {_signal_name(-status)}{_log(folder)}")
    if status > 0:
        raise _failure(what, found_in(folder), folder)


def _ticks(child: Child, deadline: float) -> Iterator[None]:
    while child.poll() is None and time.monotonic() < deadline:
        yield


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _failure(what: str, cause: Cause | None, folder: Path) -> ModelServeError:
    if cause is None:
        return ExportError(f"{what} failed{_log(folder)}")
    told = cause.told if cause.detail in ("", cause.told) else f"{cause.told}\n{cause.detail}"
    return cause.raised(f"{what} failed: {told.strip()}{_log(folder, told)}")


def _log(folder: Path, told: str = "") -> str:
    """That part of the child's log which says more than what was `told`."""
    lines = [line for line in _text(folder / LOG_FILE).splitlines() if line.strip() and line.strip() not in told]
    crash = next((number for number, line in enumerate(lines) if line.startswith(_CRASH)), None)
    shown = lines[-_LOG_LINES:] if crash is None else lines[crash : crash + _LOG_LINES]
    if not shown:
        return "\nIt printed nothing."
    where = "The end of its log" if crash is None else "Its log"
    return f"\n{where}:\n" + "\n".join(f"  {line}" for line in shown)


def _text(path: Path) -> str:
    return _COLOUR.sub("", path.read_text(encoding="utf-8", errors="replace")) if path.exists() else ""


# A child process as a copy of this one: it has the model already, whatever module its class was defined in.


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def can_fork() -> bool:
    """Whether a fork of this process can run torch.

    Elsewhere than on Linux the system's own libraries do not survive one (macOS) or there is none (Windows); and CUDA,
    once initialised, does not work in a copy.
    """
    import torch

    return sys.platform == "linux" and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


class ForkedChild:
    """A forked process, with the methods of `subprocess.Popen` that are needed here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """The exit status, once there is one."""
        status = self._reap(0)
        assert status is not None
        return status

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # The process ignores SIGCHLD, so the system has thrown the status away; the results will tell.
                self._status = 0
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


def fork(run: Callable[[], None], log: Path) -> ForkedChild:
    """Start `run` in a copy of this process that writes what it prints to `log`."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads. What they may hold is seen to in _settle_in, and the time limit
        # sees to what is not.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_the_child(run, log, parent)
    return ForkedChild(pid)


def _be_the_child(run: Callable[[], None], log: Path, parent: int) -> NoReturn:
    """Never return: above here is the stack of the parent, with its `finally` clauses and exit handlers."""
    status = 1
    try:
        _die_with(parent)
        _settle_in(log)
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when `parent` is killed: it has inherited the parent's locks and pipes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that
        os._exit(1)


def _settle_in(log: Path) -> None:
    # The parent's garbage stays where it is: to collect an onnxruntime session waits for threads that a fork lacks.
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # sys.stdout may be pytest's capture, whose file the parent goes on using.
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(output, "w"), encoding="utf-8", write_through=True)
    faulthandler.enable(sys.stderr)
    warnings.simplefilter("ignore")
    # The parent may have put a function in its place that records or raises.
    warnings.showwarning = lambda *_, **__: None
    _silence_handlers()


def _silence_handlers() -> None:
    """Take away every handler, for they write to the parent's files; what is logged goes to the child's log."""
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers = []
            logger.propagate = True
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))


# A child process as a new interpreter: the model goes there pickled, its class by value.


# Whether onnxruntime survives opening a model, asked in a process of its own.


# Every optimisation on, as is onnxruntime's default: at the level that `optimize` uses the crash does not show. One
# thread, as `serve` has it.
_OPEN = """
import os, sys, onnxruntime
path = os.fsdecode(sys.stdin.buffer.read())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""
_PYTHON_EXCEPTION = 1


@contextmanager
def crash_watch() -> Iterator[Callable[[Path], None]]:
    """A function that raises RecipeError if opening the model at a path ends the process; to be called once.

    A model that onnxruntime only refuses passes. onnxruntime 1.32 does end the process (SIGSEGV, in its layout
    optimiser for the CPU) for a float16 Transpose of an input that feeds a MatMul, for one. Nothing can be caught
    afterwards, so the first to open such a model must not be the caller. The process that does starts at once and
    loads onnxruntime while the model is made.
    """
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, "-c", _OPEN], stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere
    ) as child:

        def refuse_crash(path: Path) -> None:
            child.communicate(os.fsencode(path))
            if child.returncode not in (0, _PYTHON_EXCEPTION):
                raise RecipeError(
                    f"onnxruntime ends the whole process (exit status {child.returncode}) when it opens the result: "
                    "its own fault; leave this model in fp32. 'simplify' before helps some such models (a "
                    "bidirectional RNN) and not others (a bidirectional GRU)"
                )

        try:
            yield refuse_crash
        finally:
            child.kill()


# What C++ libraries write to the process's standard error, kept off it.


_log_stderr = logging.getLogger(__name__)

_STDERR = 2


@contextmanager
def native_stderr_held() -> Iterator[None]:
    """Send what is written to file descriptor 2 inside the block to this module's logger, at DEBUG, after the block.

    `contextlib.redirect_stderr` sees only what Python writes. What other threads write there meanwhile is held, too,
    and a process without a standard error keeps having none.
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
                    _log_stderr.debug("%s", text)
    finally:
        os.close(before)
