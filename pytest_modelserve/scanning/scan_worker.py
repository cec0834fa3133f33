"""Warm process of the sandbox: imports a target once, then forks a limited child for each request.

Run by `sandbox.py` as a module with the target as its argument. Requests and replies are frames on the standard
streams. It starts no thread: a fork beside one can deadlock.
"""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_modelserve.scanning.process_limits import restrict

Report = Callable[[Any], None]
Target = Callable[[Mapping[str, Any], Report], Any]
# A child that was taken over could write for ever.
_MAX_EVENT_BYTES = 4 << 20


def main(target: str) -> None:
    """Serve requests until the standard input ends."""
    function = _imported(target)
    requests, replies = os.dup(0), os.dup(1)
    _silence()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    while (request := _read_frame(requests)) is not None:
        content = json.dumps(_in_child(function, request)).encode()
        _write_all(replies, struct.pack("<Q", len(content)) + content)


def call_alone(payload: bytes) -> bytes:
    """Call the target of a request in this process, which ends afterwards: on a system without fork."""
    message = json.loads(payload)
    function = _imported(message["target"])
    _silence()  # its output goes to a file, which it must not write once it is limited
    events: list[Any] = []
    missing = restrict(_readable(message), int(message["memory_bytes"]), float(message["cpu_s"]))
    try:
        reply = {"value": function(message["request"], events.append)}
    except Exception as error:
        reply = {"error": _describe(error)}
    return json.dumps({**reply, "events": events, "missing": missing}).encode()


def _imported(target: str) -> Target:
    module, _, name = target.partition(":")
    function: Target = getattr(importlib.import_module(module), name)
    return function


def _in_child(function: Target, message: Mapping[str, Any]) -> dict[str, Any]:
    """Fork, call the function in the child, and return what it wrote and how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _run_and_exit(function, message, writer)
        finally:
            os._exit(1)
    os.close(writer)
    written, in_time = _read_until(reader, time.monotonic() + float(message["deadline_s"]))
    os.close(reader)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    out_of_time = not in_time or ended in (signal.SIGPROF, signal.SIGXCPU)
    reply = {
        **_parsed(written),
        "signal": None if out_of_time else ended,
        "timed_out": out_of_time,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    if "value" not in reply and ended is None and not reply.get("error") and not out_of_time:
        reply["error"] = f"the process exited with status {os.waitstatus_to_exitcode(status)}"
    return reply


def _run_and_exit(function: Target, message: Mapping[str, Any], writer: int) -> None:
    def write(kind: str, value: Any) -> None:
        _write_all(writer, json.dumps({kind: value}).encode() + b"\n")

    os.closerange(3, writer)
    os.closerange(writer + 1, 256)
    missing = restrict(_readable(message), int(message["memory_bytes"]), float(message["cpu_s"]))
    write("missing", missing)
    try:
        value = function(message["request"], lambda event: write("event", event))
        write("value", value)
    except BaseException as error:  # a MemoryError, too
        write("error", _describe(error))
    os._exit(0)


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def _readable(message: Mapping[str, Any]) -> list[Path]:
    return [Path(os.fsdecode(base64.b64decode(text))) for text in message["readable"]]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _parsed(written: bytes) -> dict[str, Any]:
    """Return the lines that a child wrote; a last line that was cut short is left out."""
    reply: dict[str, Any] = {"events": []}
    for line in written.split(b"\n"):
        with suppress(ValueError):
            found = json.loads(line)
            if not isinstance(found, dict):
                continue
            for kind, value in found.items():
                if kind == "event":
                    reply["events"].append(value)
                elif kind in ("value", "error", "missing"):
                    reply[kind] = value
    return reply


def _read_until(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Return what the child wrote until it ended, and whether it ended in time."""
    found = bytearray()
    while (left := deadline - time.monotonic()) > 0 and len(found) < _MAX_EVENT_BYTES:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                return bytes(found), True
            found += chunk
    return bytes(found), False


def _read_frame(number: int) -> Mapping[str, Any] | None:
    head = _read_exactly(number, 8)
    if len(head) < 8:
        return None
    content = _read_exactly(number, struct.unpack("<Q", head)[0])
    found: Mapping[str, Any] = json.loads(content)
    return found


def _read_exactly(number: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count and (chunk := os.read(number, count - len(found))):
        found += chunk
    return bytes(found)


def _write_all(number: int, content: bytes) -> None:
    while content:
        content = content[os.write(number, content) :]


if __name__ == "__main__":
    main(sys.argv[1])
