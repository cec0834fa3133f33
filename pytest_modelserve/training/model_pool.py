"""Training of several models at the same time, each by one process, with the store as the list of what is done."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.artifacts import Store, as_store, digest_of
from pytest_modelserve.errors import TrainingError, UsageError, require
from pytest_modelserve.progress import progress
from pytest_modelserve.serving.inputs import check_time_limit
from pytest_modelserve.training.module_pickle import pickle_job
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.train import ModelSource, TrainedModel, built, train, training_identity
from pytest_modelserve.training.train_spec import TrainSpec

_TARGET = "pytest_modelserve.training.model_pool_worker:run"


def train_models(
    make_source: Callable[[int], ModelSource],
    seeds: Sequence[int],
    *,
    store: Store | Path | str | None = None,
    processes: int | None = None,
    time_limit_s: float = 3600.0,
    what: str = "models",
) -> list[TrainedModel]:
    """Train a model for each seed, several at a time, and return them in order.

    Each is an entry of the store, the same as that of `train`: what is there is not trained again, so that a call that
    was killed continues. One process trains in this process.

    Args:
        make_source: Returns the source of the model with a number, from 0; it is called again for the result, so that
            only the data of the models in training are in memory.
        seeds: Seed of each model.
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        processes: Number of processes (default: that of the cores, at most one a model).
        time_limit_s: Longest time of one training in a process of its own, in seconds; the first one of each process
            includes its start.
        what: Name of the models for the progress bar.

    Raises:
        UsageError: `processes` is below 1, or the source cannot be sent to a process.
        TrainingError: A training diverges, its process crashes, or it exceeds its time. The others are ended.
    """
    require("torch", "training")
    check_pool(processes, time_limit_s)
    store = as_store(store)
    identities = [training_identity(make_source(number), seed, 1) for number, seed in enumerate(seeds)]
    missing = [number for number, identity in enumerate(identities) if not store.has(digest_of(identity))]
    count = min(_cores() if processes is None else processes, len(missing))
    if count > 1:

        def job(number: int) -> bytes:
            return _job(make_source(number), identities[number], seeds[number], store)

        _train_in_children(job, missing, count, len(seeds), time_limit_s, what)
    numbers = range(len(seeds))
    return [
        train(make_source(number), seed=seeds[number], store=store)
        for number in (progress(numbers, f"training {what}") if count == 1 else numbers)
    ]


def check_pool(processes: int | None, time_limit_s: float) -> None:
    """Raise UsageError unless `processes` is an integer of at least 1 or None, and the limit a number of seconds."""
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
        raise UsageError(f"processes must be an integer of at least 1; got {processes!r}")
    check_time_limit("time_limit_s", time_limit_s)


def _job(source: ModelSource, identity: dict[str, Any], seed: int, store: Store) -> bytes:
    functions = source.fit.functions().values() if isinstance(source.fit, TrainSpec) else (source.fit,)
    with reproducible(seed):
        module = built(source)
    try:
        return pickle_job(
            (source, identity, seed, store), module, [source.build, *functions], purpose="training of several models"
        )
    except UsageError as error:
        raise UsageError(f"{error}, or train in this process with processes=1") from error


def _train_in_children(
    job: Callable[[int], bytes], numbers: Sequence[int], count: int, total: int, time_limit_s: float, what: str
) -> None:
    lock = threading.Lock()  # pickling by value and seeding change what is global
    with ExitStack() as stack:
        children = [stack.enter_context(ChildProcess(_TARGET, preload=True)) for _ in range(count)]
        free: SimpleQueue[ChildProcess] = SimpleQueue()
        for child in children:
            free.put(child)

        def call(number: int) -> bytes | Crash:
            child = free.get()
            with lock:
                payload = job(number)
            result = child.call(payload, timeout_s=time_limit_s)
            free.put(child)
            return result

        with ThreadPoolExecutor(count) as pool:
            calls = {pool.submit(call, number): number for number in numbers}
            try:
                for done in progress(as_completed(calls), f"training {what}", total=len(calls)):
                    _check(done.result(), calls[done], total, time_limit_s, what)
            finally:
                for each in calls:
                    each.cancel()
                for child in children:
                    child.kill()


def _check(result: bytes | Crash, number: int, total: int, time_limit_s: float, what: str) -> None:
    if isinstance(result, Crash):
        how = f"exceeded time_limit_s={time_limit_s:g}" if result.timed_out else f"ended: {result}"
        raise TrainingError(
            f"training {number + 1} of {total} {what}: its process {how}; the others were ended, and what is complete "
            f"is kept{format_log(result.log_tail)}"
        )
    error = pickle.loads(result)
    if error is not None:
        raise error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
