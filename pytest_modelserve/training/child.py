"""One job in a process of its own, with a time limit: what it prints, warns of or breaks stays there."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from pytest_modelserve.errors import ExportError, ModelServeError
from pytest_modelserve.progress import progress
from pytest_modelserve.training.cause import Cause, found_in

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
