"""A child process as a copy of this one: it has the model already, whatever module its class was defined in."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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
