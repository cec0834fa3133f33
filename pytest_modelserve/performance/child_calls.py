"""Calls of a model that is served in a child process, timed there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_modelserve.performance.batches import BatchCalls
from pytest_modelserve.performance.timing import CallTimes, RemoteCalls
from pytest_modelserve.serving import Inputs, Predictor

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


def in_child(predictor: Predictor) -> SubprocessPredictor | None:
    """Return `predictor` if a child process of this package serves it, else None."""
    if predictor.transport != "own process":
        return None
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

    return predictor if isinstance(predictor, SubprocessPredictor) else None


def calls_of(predictor: Predictor, batches: Sequence[Inputs]) -> BatchCalls:
    """Return calls of a predictor, timed where it runs."""
    child = in_child(predictor)
    return BatchCalls(predictor, batches) if child is None else ChildCalls(child, batches)


@contextmanager
def in_like_processes(pair: tuple[Predictor, Predictor]) -> Iterator[tuple[Predictor, Predictor]]:
    """Yield the pair; a model file in this process beside one in a child gets a child of this Python.

    Otherwise one of them would be compared with all that this process holds: its memory, and the check of its inputs.
    """
    children = [in_child(each) for each in pair]
    here = [each for each, child in zip(pair, children, strict=True) if child is None]
    if len(here) != 1 or here[0].artifact is None or here[0].transport != "in-process":
        yield pair
        return
    from pytest_modelserve.serving import OnnxPredictor
    from pytest_modelserve.serving.subprocess_predictor import SubprocessPredictor

    (other,) = here
    assert isinstance(other, OnnxPredictor)
    limit_s = next(child.time_limit_s for child in children if child is not None)
    with SubprocessPredictor(other, time_limit_s=limit_s) as alike:
        alike.start()
        yield tuple(alike if each is other else each for each in pair)  # type: ignore[misc]
