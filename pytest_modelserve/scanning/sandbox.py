"""Sandbox for files that may be hostile: one warm process per target, which forks a limited child for each file.

On Linux the child has limits on memory, CPU time, file sizes, open files, processes, network and readable files, as far
as the system lets a process limit itself. Elsewhere each file gets a new process without those limits. The result names
every limit that could not be set.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve._processes import Crash, call_in_child

LIMITS = ("memory", "cpu", "files", "processes", "network", "reading")
"""What a child can be limited in: names that `SandboxResult.missing` uses."""

# How long the warm parent may take to start: it imports onnxruntime, or torch.
_START_S = 120.0
# The warm parent ends a child itself; this is for a warm parent that was killed.
_GRACE_S = 10.0
# A fork beside a thread can deadlock: numpy starts none, and onnxruntime none for its telemetry.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
_MAX_REPLY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a call in a sandbox ended.

    Attributes:
        value: What the target returned; None if it did not return.
        events: What the target reported before, in order: the last one says how far it got.
        signal: The signal that ended the child; None without one.
        timed_out: Whether its CPU time or the deadline ran out.
        error: The exception that it raised, or why there is no child.
        missing: Names of the limits that could not be set.
        peak_bytes: Its largest resident memory; 0 if unknown.
        duration_s: Seconds from the request to the end of the child.
    """

    value: Any = None
    events: tuple[Any, ...] = ()
    signal: int | None = None
    timed_out: bool = False
    error: str = ""
    missing: tuple[str, ...] = ()
    peak_bytes: int = 0
    duration_s: float = 0.0


def run_in_sandbox(
    target: str,
    request: Mapping[str, Any],
    *,
    readable: Sequence[Path],
    memory_bytes: int,
    cpu_s: float,
    deadline_s: float,
) -> SandboxResult:
    """Call `target` with `request` in a fresh child of the warm process of this target.

    Args:
        target: "module:function" of this package. The function gets the request and a callable that reports events;
            request, events and result are JSON builtins. The module is imported once, in the warm process, which must
            not start threads.
        request: The argument of the function.
        readable: The only files and folders that the child can open.
        memory_bytes: Memory that the child may use beyond what the warm process has.
        cpu_s: CPU time of the child in seconds.
        deadline_s: Elapsed time after which it is killed, whatever it does.

    Returns:
        The result of the function, or how the child ended. Nothing that the child does is raised here.
    """
    began = time.monotonic()
    message = {
        "request": dict(request),
        "readable": [os.fsdecode(base64.b64encode(os.fsencode(path))) for path in readable],
        "memory_bytes": memory_bytes,
        "cpu_s": cpu_s,
        "deadline_s": deadline_s,
    }
    if not sys.platform.startswith("linux"):
        reply = _without_fork(target, message)
    else:
        with _lock:
            if target in _warm and not _warm[target].is_alive:
                _warm.pop(target).close()
            if target not in _warm:
                _warm[target] = _WarmProcess(target)
            reply = _warm[target].call(message)
    known = {name: reply[name] for name in ("value", "signal", "timed_out", "error", "peak_bytes") if name in reply}
    return SandboxResult(
        events=tuple(reply.get("events", ())),
        missing=tuple(reply.get("missing", ())),
        duration_s=time.monotonic() - began,
        **known,
    )


def close_sandboxes() -> None:
    """End the warm processes; the next call starts a new one."""
    with _lock:
        while _warm:
            _warm.popitem()[1].close()


class _WarmProcess:
    """A process that has imported the target's module and forks for each request."""

    def __init__(self, target: str) -> None:
        # Neither the working folder nor that of a script can shadow a module: -P, and no empty entry of the path.
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pytest_modelserve.scanning.scan_worker", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the caller's, who ends this process
        )
        self._owner = os.getpid()
        self._wait_s = _START_S

    @property
    def is_alive(self) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None

    def call(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        wait_s, self._wait_s = self._wait_s + message["deadline_s"] + _GRACE_S, 0.0
        try:
            self._process.stdin.write(frame(message))
            self._process.stdin.flush()
            return dict(self._reply(time.monotonic() + wait_s))
        except (OSError, EOFError, ValueError):
            self.close()
            return {"error": "the process of the scanner ended, or sent no valid answer", "missing": ()}
        except TimeoutError:
            self.close()
            return {"timed_out": True, "missing": ()}
        except BaseException:  # an interrupted call: its answer must not be taken for that of the next one
            self.close()
            raise

    def close(self) -> None:
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        else:  # this process is a fork of the owner
            self._process.returncode = 0
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _reply(self, deadline: float) -> dict[str, Any]:
        (length,) = struct.unpack("<Q", self._read(8, deadline))
        if length > _MAX_REPLY_BYTES:
            raise ValueError("the answer is too long")
        found: dict[str, Any] = json.loads(self._read(length, deadline))
        return found

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        number, found = self._process.stdout.fileno(), b""
        while len(found) < count:
            if not select.select([number], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            chunk = os.read(number, count - len(found))
            if not chunk:
                raise EOFError
            found += chunk
        return found


def frame(message: Mapping[str, Any]) -> bytes:
    """Return a message as its length and JSON."""
    content = json.dumps(message).encode()
    return struct.pack("<Q", len(content)) + content


def _without_fork(target: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """Call the target in a new process with the limits that exist there."""
    payload = json.dumps({**message, "target": target}).encode()
    reply = call_in_child(
        "pytest_modelserve.scanning.scan_worker:call_alone", payload, timeout_s=message["deadline_s"] + _START_S
    )
    if isinstance(reply, Crash):
        return {"signal": reply.signal, "timed_out": reply.timed_out, "error": str(reply), "missing": LIMITS}
    found: dict[str, Any] = json.loads(reply)
    return found


def _new_lock() -> None:
    """Replace the lock in a fork, where another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


_lock = threading.Lock()
_warm: dict[str, _WarmProcess] = {}
atexit.register(close_sandboxes)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
