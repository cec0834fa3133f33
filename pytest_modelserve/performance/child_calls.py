"""Calls of a model that is served in a child process, timed there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_modelserve.errors import UsageError
from pytest_modelserve.performance.batches import BatchCalls
from pytest_modelserve.performance.timing import CallTimes, RemoteCalls
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.serve import in_child

if TYPE_CHECKING:
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor


class ChildCalls(BatchCalls, RemoteCalls):
    """Calls of `predictor` with `batches`, which its process keeps; the outputs stay there.

    `duration` is that of the first batch, in elapsed time, or with `cpu` in CPU time of the process.
    """

    def __init__(self, predictor: SubprocessPredictor, batches: Sequence[Inputs], *, cpu: bool = False) -> None:
        super().__init__(predictor, batches)
        self._predictor, self._clock = predictor, "process" if cpu else "wall"
        predictor.keep(batches)

    def __call__(self) -> CallTimes:
        """Make the next call."""
        return self.timed(1, limit_s=self._predictor.time_limit_s)

    def timed(self, n: int, *, limit_s: float) -> CallTimes:
        """Time the next `n` calls, or those that begin within `limit_s` seconds."""
        times = self._predictor.request(
            "time", limit_s=limit_s + self._predictor.time_limit_s, order=self.take(n), most_s=limit_s
        )
        wall_ms = times["wall"] / 1e6
        self.put_back(n - wall_ms.size)
        delay_ms = None if times["delay"] is None else times["delay"] / 1e6
        return CallTimes(wall_ms, None if delay_ms is not None else times["cpu"] / 1e6, delay_ms)

    def duration(self, repeats: int) -> int:
        """Return how long `repeats` calls with the first batch take in nanoseconds, after one that is not timed."""
        return int(self._predictor.request("block", repeats=repeats)[self._clock])


def calls_of(predictor: Predictor, batches: Sequence[Inputs]) -> BatchCalls:
    """Return calls of a predictor, timed where it runs."""
    child = in_child(predictor)
    return BatchCalls(predictor, batches) if child is None else ChildCalls(child, batches)


@contextmanager
def file_in_child(predictor: Predictor) -> Iterator[SubprocessPredictor]:
    """Yield the model in a child process: as it is, or a file that this process serves in a child of this Python.

    UsageError for anything but a model file in onnxruntime.
    """
    from pytest_modelserve.serving import OnnxPredictor
    from pytest_modelserve.serving.subprocess_predictor import CALL_LIMIT_S, SubprocessPredictor

    if isinstance(predictor, SubprocessPredictor):
        yield predictor
        return
    if not isinstance(predictor, OnnxPredictor):
        raise UsageError(f"{predictor.subject} is no model file in onnxruntime: pass its path, or ms.serve(path)")
    with SubprocessPredictor(predictor, time_limit_s=CALL_LIMIT_S) as child:
        child.start()
        yield child


@contextmanager
def in_like_processes(pair: tuple[Predictor, Predictor]) -> Iterator[tuple[Predictor, Predictor]]:
    """Yield the pair; a model file in this process beside one in a child gets a child of this Python.

    Otherwise one of them would be compared with all that this process holds: its memory, and the check of its inputs.
    """
    here = [each for each in pair if in_child(each) is None]
    if len(here) != 1 or here[0].artifact is None or here[0].transport != "in-process":
        with _on_one_processor(pair):
            yield pair
        return
    with file_in_child(here[0]) as alike:
        new, old = (alike if each is here[0] else each for each in pair)
        with _on_one_processor((new, old)):
            yield new, old


@contextmanager
def _on_one_processor(pair: tuple[Predictor, Predictor]) -> Iterator[None]:
    """Run two processes of one thread each on the same processor: two of one host can differ by 30 % for a second."""
    children = [child for child in map(in_child, pair) if child is not None and child.threads == 1]
    before: dict[int, set[int]] = {}
    if len(children) == 2 and hasattr(os, "sched_setaffinity"):
        for each in children:
            each.start()
        pids = [each.process.child.pid for each in children if each.process.child is not None]
        with suppress(OSError):  # where a container forbids it, the processes stay where they are
            before = {pid: os.sched_getaffinity(pid) for pid in pids}
            shared = set.intersection(*before.values())
            for pid in pids if shared else ():
                os.sched_setaffinity(pid, {max(shared)})
    try:
        yield
    finally:
        for pid, processors in before.items():
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(pid, processors)
