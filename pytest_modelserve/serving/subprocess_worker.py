"""The process that serves model files: a script that needs numpy and onnxruntime alone, of almost any version.

Another interpreter runs it, so that it imports nothing of this package and keeps to the syntax of Python 3.8. Requests
and replies are messages of JSON and arrays (`encode`) over the connection whose file descriptor is its argument.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

# The longest message: outputs of this size are a mistake, and a wrong length must not take the memory of the host.
MOST_BYTES = 4 << 30
# onnxruntime takes arrays at any address; aligned ones need no copy.
_ALIGNMENT = 64
_LENGTH = struct.Struct(">Q")


def encode(message: Any) -> bytes:
    """Return a message: its JSON, with the bytes of its arrays behind it.

    Lists, tuples, mappings with any keys, numbers, text, None, and arrays of numpy's own dtypes and of text.
    """
    chunks: list[Any] = []
    size = 0

    def plain(value: Any) -> Any:
        nonlocal size
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "OUST":
                return {"text": [str(each) for each in value.reshape(-1)], "shape": list(value.shape)}
            data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            entry = {"array": value.dtype.str, "shape": list(value.shape), "at": size}
            chunks.extend((data.data, bytes(-data.size % _ALIGNMENT)))
            size += data.size + -data.size % _ALIGNMENT
            return entry
        if isinstance(value, dict):
            return {"map": [[plain(key), plain(each)] for key, each in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(each) for each in value]}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return value.item() if isinstance(value, np.generic) else value

    header = json.dumps(plain(message)).encode()
    if size > MOST_BYTES:
        raise ValueError(f"a message of {size / 2**30:.1f} GiB is too long, the limit is {MOST_BYTES >> 30} GiB")
    begin = _LENGTH.pack(len(header)) + header
    return b"".join((begin, bytes(-len(begin) % _ALIGNMENT), *chunks))


def decode(data: Any) -> Any:
    """Return the message that `encode` made; its arrays are views of `data`."""
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    first = end + -end % _ALIGNMENT

    def restored(value: Any) -> Any:
        if isinstance(value, list):
            return [restored(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "array" in value:
            dtype, count = np.dtype(value["array"]), int(np.prod(value["shape"], dtype=np.int64))
            if not count:
                return np.zeros(value["shape"], dtype)
            return np.frombuffer(data, dtype, count, first + value["at"]).reshape(value["shape"])
        if "text" in value:
            text = np.empty(len(value["text"]), object)
            text[:] = value["text"]
            return text.reshape(value["shape"])
        if "tuple" in value:
            return tuple(restored(each) for each in value["tuple"])
        return {restored(key): restored(each) for key, each in value["map"]}

    return restored(json.loads(bytes(data[_LENGTH.size : end])))


class Server:
    """The sessions of one process, by number; each public method is an operation that a request can name."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._sessions: dict[int, Any] = {}
        self._runs: dict[int, Callable[[Any], list[Any]]] = {}
        self._feeds: dict[int, list[Any]] = {}

    def hello(self) -> dict[str, Any]:
        """Return the versions of Python, numpy and onnxruntime, and the execution providers of this build."""
        delay = _DelayClock()
        delay.close()
        return {
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "numpy": np.__version__,
            "onnxruntime": self._runtime.__version__,
            "providers": list(self._runtime.get_available_providers()),
            "reports_delay": delay.is_reported,
        }

    def open(
        self,
        session: int,
        path: str,
        providers: list[str],
        threads: int,
        level: str,
        outputs: dict[str, bool],
        profile: str | None = None,
    ) -> dict[str, Any]:
        """Open a model file; return the providers that started, and the times that it took.

        `level` is a member of GraphOptimizationLevel. `outputs` says which outputs are returned as bytes, because numpy
        lacks their dtype. `profile` is the prefix of the file of a profile.
        """
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # fatal: what goes wrong is raised
        levels = self._runtime.GraphOptimizationLevel
        # The level between the last two is younger than the others.
        options.graph_optimization_level = getattr(levels, level, levels.ORT_ENABLE_EXTENDED)
        for pool in ("intra", "inter"):
            options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
        if "CPUExecutionProvider" not in providers:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        with _Stopwatch() as watch:
            opened = self._runtime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        self._sessions[session] = opened
        self._runs[session] = self._runner(opened, outputs)
        return {"providers": list(opened.get_providers()), **watch.times}

    def close(self, session: int) -> None:
        """Release a session."""
        for held in (self._runs, self._sessions, self._feeds):
            held.pop(session, None)

    def run(self, session: int, feed: dict[str, Any]) -> list[Any]:
        """Return the outputs of one run."""
        return self._runs[session](self._feed(feed))

    def keep(self, session: int, feeds: list[Any]) -> None:
        """Keep the inputs of the calls of `time` and `block`."""
        self._feeds[session] = [self._feed(feed) for feed in feeds]

    def time(self, session: int, order: Any, most_s: float) -> dict[str, Any]:
        """Call the kept inputs in `order`, until it ends or time is up; return the times of each call in nanoseconds.

        "delay" is the run delay of this thread in each call, or None with "cpu", its CPU time, where the system does
        not report it; "process" is the CPU time of all calls with all threads.
        """
        run, feeds = self._runs[session], self._feeds[session]
        walls: list[int] = []
        seconds: list[int] = []
        began = time.perf_counter_ns()
        delay = _DelayClock()
        second_clock = delay.read if delay.is_reported else time.thread_time_ns
        gc.disable()
        try:
            process, end, before = time.process_time_ns(), began, second_clock()
            for which in order.tolist():
                if end - began >= most_s * 1e9:
                    break
                start = time.perf_counter_ns()
                run(feeds[which])
                end = time.perf_counter_ns()
                after = second_clock()
                seconds.append(after - before)
                before = after
                walls.append(end - start)
            process = time.process_time_ns() - process
        finally:
            gc.enable()
            delay.close()
        second = np.array(seconds, np.int64)
        return {
            "wall": np.array(walls, np.int64),
            "delay": second if delay.is_reported else None,
            "cpu": None if delay.is_reported else second,
            "process": process,
        }

    def block(self, session: int, repeats: int) -> dict[str, int]:
        """Call the first kept inputs once, and then `repeats` times; return the times of the latter in nanoseconds."""
        run, feed = self._runs[session], self._feeds[session][0]
        gc.disable()
        try:
            run(feed)  # after the wait for the request the caches are cold
            process, wall = time.process_time_ns(), time.perf_counter_ns()
            for _ in range(repeats):
                run(feed)
            return {"wall": time.perf_counter_ns() - wall, "process": time.process_time_ns() - process}
        finally:
            gc.enable()

    def max_rss(self) -> int:
        """Return the peak of resident memory by getrusage in bytes, for a system without /proc."""
        return largest_resident_size()

    def end_profile(self, session: int) -> str:
        """Return the file of the profile of a session."""
        return str(self._sessions[session].end_profiling())

    def _runner(self, session: Any, is_raw: dict[str, bool]) -> Callable[[Any], list[Any]]:
        names = list(is_raw)
        if not any(is_raw.values()):
            return lambda feed: session.run(names, feed)
        make = self._runtime.OrtValue.ortvalue_from_numpy

        def run(feed: Any) -> list[Any]:
            values = {name: make(value) if isinstance(value, np.ndarray) else value for name, value in feed.items()}
            outputs = session.run_with_ort_values(names, values)
            return [_bytes(each) if is_raw[name] else each.numpy() for name, each in zip(names, outputs)]  # noqa: B905

        return run

    def _feed(self, sent: dict[str, Any]) -> dict[str, Any]:
        """Return inputs as a run takes them: of a dtype that numpy lacks, from the element type and codes."""
        return {name: self._ort_value(*value) if isinstance(value, tuple) else value for name, value in sent.items()}

    def _ort_value(self, elem_type: int, codes: Any) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, elem_type)


def _bytes(value: Any) -> Any:
    shape = list(value.shape())
    size = value.tensor_size_in_bytes() if np.prod(shape, dtype=np.int64) else 0
    return shape, np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", np.uint8)


def largest_resident_size() -> int:
    """Return the largest resident size of this process by getrusage, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _DelayClock:
    """The clock of the time for which this thread was ready to run and did not; Linux reports it in nanoseconds."""

    def __init__(self) -> None:
        self._file = -1
        self.is_reported = False
        try:
            self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
            counts = os.pread(self._file, 64, 0).split()
            self.is_reported = len(counts) == 3 and int(counts[0]) > 0  # a kernel that does not count shows zeros
        except (OSError, AttributeError):
            pass

    def read(self) -> int:
        return int(os.pread(self._file, 64, 0).split()[1])

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _Stopwatch:
    """The wall time, the CPU time of the process and the run delay of a block; the last is None where not reported."""

    def __enter__(self) -> _Stopwatch:
        self._delay = _DelayClock()
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._read()
        self._delay.close()
        self.times = {name: None if after[name] is None else after[name] - self._before[name] for name in after}

    def _read(self) -> dict[str, Any]:
        delay = self._delay.read() if self._delay.is_reported else None
        return {"delay": delay, "process": time.process_time_ns(), "wall": time.perf_counter_ns()}


def _end_with_parent() -> None:
    while os.read(0, 1 << 10):  # the parent never writes: its end closes the pipe
        pass
    os._exit(1)


def main(descriptor: int) -> None:
    """Answer requests until the connection ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except ImportError:
        pass
    import onnxruntime

    connection = Connection(descriptor)
    server = Server(onnxruntime)
    while True:
        try:
            request = decode(connection.recv_bytes(MOST_BYTES))
        except EOFError:
            return
        try:
            reply = {"result": getattr(server, request.pop("operation"))(**request)}
            data = encode(reply)
        except Exception as error:  # every request gets a reply
            data = encode({"error": str(error), "kind": type(error).__name__})
        connection.send_bytes(data)


if __name__ == "__main__":
    main(int(sys.argv[1]))
