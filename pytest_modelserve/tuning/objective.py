"""Objectives of a search: what a variant takes relative to the original, and the file of what was measured."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pytest_modelserve._files import write_file
from pytest_modelserve.artifacts import Artifact, Store, digest_of, package_hash
from pytest_modelserve.errors import (
    ArtifactError,
    InputError,
    ModelServeError,
    UsageError,
    check_call,
    first_line,
    unknown_choice,
)
from pytest_modelserve.evidence import Environment
from pytest_modelserve.evidence.evidence import Unit
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.fresh_process import fresh_job, start_in_fresh_process
from pytest_modelserve.performance.resident_memory import describe_source
from pytest_modelserve.performance.slowdown import SESSION_SPREAD
from pytest_modelserve.performance.timing import Call, Clock, block_repeats, host_lock, time_blocks, warm_up
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, OnnxPredictor, Predictor
from pytest_modelserve.tuning.trial import Trial
from pytest_modelserve.tuning.variant import ORIGINAL

ObjectiveChoice = Literal["latency", "cpu_time", "size", "memory"] | Callable[[Predictor], float]
"""What is made small: a name, or a function of a predictor that returns a number above 0."""

NAMES = ("latency", "cpu_time", "size", "memory")
_GROUP = 6
"""Variants that are timed side by side: their sessions are in memory together."""
# Calls are like the rest from about the fifth on, and many sessions are warmed up. The check of outputs is the first.
_WARM_UP_CALLS = 4
_STARTS = 3
# A block of calls takes 0.2 ms.
_RESOLUTION_S = 1e-5
_CALLS = 5
_TIME_LIMIT_S = 300.0


class MeasurementFile:
    """What searches measured, in a file that is replaced after every group: a later search goes on from it.

    It is that of one objective, original, batch and host. An entry is a variant's log-ratios, whatever search
    measured them. Without a `path` nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: dict[str, list[float]] = {}
        if path is not None:
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
                self._entries = {str(key): [float(each) for each in values] for key, values in read.items()}
            except (OSError, ValueError, AttributeError, TypeError):
                self._entries = {}  # none yet, or damaged: measured again

    @classmethod
    def of(cls, store: Store, objective: ObjectiveChoice, original: Artifact, inputs: Inputs) -> MeasurementFile:
        """Return the file of these; one that keeps nothing for an objective that has no digest."""
        host = Environment.current()
        where = (host.machine, host.cpu, host.cpus, dict(host.packages), package_hash())
        try:
            key = digest_of(("tuning", objective, original.sha256, inputs, where))
        except UsageError:
            return cls(None)
        return cls(store.root / "tuning" / f"{key}.json")

    def get(self, key: str) -> list[float]:
        """Return the values of a variant, [] for one that was not measured."""
        return list(self._entries.get(key, ()))

    def write(self, entries: Iterable[tuple[str, Sequence[float]]]) -> None:
        """Keep the values of some variants; the file holds the old content or the new one at any time."""
        self._entries |= {key: list(values) for key, values in entries}
        if self._path is None:
            return
        try:
            write_file(self._path, [json.dumps(self._entries).encode()])
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror or error}") from error


class Objective:
    """An objective over one original and one batch, which keeps what it measures.

    Raises:
        UsageError: The objective is unknown.
        ModelServeError: It cannot be measured here.
    """

    def __init__(self, choice: ObjectiveChoice, original: Artifact, inputs: Inputs, *, store: Store, seed: int) -> None:
        if not callable(choice) and choice not in NAMES:
            raise UsageError(f"{unknown_choice('objective', choice, NAMES)}, or a function of a predictor")
        if callable(choice):
            check_call("objective", choice, "predictor")
        check_batch(inputs)
        self.choice = choice
        name = choice if isinstance(choice, str) else getattr(choice, "__name__", "objective")
        self.title = "objective" if name == "<lambda>" else name.replace("_", " ")
        units: dict[Any, Unit] = {"latency": "ms", "cpu_time": "ms", "size": "bytes", "memory": "bytes"}
        self.unit: Unit = units.get(choice, "") if isinstance(choice, str) else ""
        self._original, self._inputs = original, inputs
        self._rng = random.Random(seed)
        self._file = MeasurementFile.of(store, choice, original, inputs)
        with OnnxPredictor(original) as predictor:
            self._outputs = predictor.predict(inputs)
            if not self.is_timed:
                self._file.write([(ORIGINAL, self._file.get(ORIGINAL) or self._values(original, predictor, 1))])
        if choice == "cpu_time" and time.get_clock_info("process_time").resolution > _RESOLUTION_S:
            raise ModelServeError("objective 'cpu_time' cannot be measured here: the system counts it in ticks")

    @property
    def is_timed(self) -> bool:
        """Whether the objective is the duration of a call."""
        return self.choice in ("latency", "cpu_time")

    @property
    def gain_limit(self) -> float:
        """The ratio below which a variant gains: two sessions of one model differ in time by up to 3 %."""
        return 1 / SESSION_SPREAD if self.is_timed else 1.0

    @property
    def better(self) -> str:
        """The word for a variant that takes less."""
        return "faster" if self.is_timed else "smaller"

    @property
    def original_value(self) -> float:
        """The objective of the original: milliseconds, bytes, or what the function returned."""
        values = self._file.get(ORIGINAL)
        return float(np.median(values)) if values else math.nan

    def recall(self, trial: Trial) -> None:
        """Take what earlier searches measured of a variant."""
        trial.log_ratios[:] = self._file.get(trial.key)

    def measure(self, trials: Sequence[Trial], blocks: int) -> None:
        """Measure until each has `blocks` blocks, six variants side by side; those that cannot be measured fail.

        An objective that is not timed is measured once.
        """
        wanted = blocks if self.is_timed else 1
        missing = [trial for trial in trials if len(trial.log_ratios) < wanted]
        groups = [missing[start : start + _GROUP] for start in range(0, len(missing), _GROUP)]
        for group in progress(groups, f"{self.title} of {len(missing)} variants", total=len(groups)):
            if self.is_timed:
                self._time(group, wanted)
            else:
                self._evaluate(group)

    def _time(self, group: Sequence[Trial], blocks: int) -> None:
        with ExitStack() as stack:
            original = stack.enter_context(OnnxPredictor(self._original))
            self._check_outputs(original)
            calls: list[Call] = [lambda: original.predict(self._inputs)]
            timed: list[Trial] = []
            for trial in group:
                try:
                    predictor = stack.enter_context(trial.serve())
                    self._check_outputs(predictor)
                except Exception as error:
                    trial.end("fails", first_line(error))
                else:
                    calls.append(partial(predictor.predict, self._inputs))
                    timed.append(trial)
            if not timed:
                return
            rounds = max(blocks - len(trial.log_ratios) for trial in timed)
            with host_lock():
                typical = [warm_up(call, clock=time.perf_counter_ns, calls=_WARM_UP_CALLS) for call in calls]
                repeats = list(map(block_repeats, typical))
                durations = time_blocks(calls, repeats, rounds, clock=self._clock, rng=self._rng)
        ratios = np.log(durations[:, 1:] / durations[:, :1])
        for column, trial in enumerate(timed):
            trial.log_ratios += ratios[:, column].tolist()
        of_original = self._file.get(ORIGINAL) + (durations[:, 0] / 1e6).tolist()
        self._file.write([(ORIGINAL, of_original), *((trial.key, trial.log_ratios) for trial in timed)])

    @property
    def _clock(self) -> Clock:
        return time.perf_counter_ns if self.choice == "latency" else time.process_time_ns

    def _evaluate(self, group: Sequence[Trial]) -> None:
        for trial in group:
            assert trial.artifact is not None
            try:
                with trial.serve() as predictor:
                    self._check_outputs(predictor)
                    values = self._values(trial.artifact, predictor, trial.variant.threads)
            except Exception as error:
                trial.end("fails", first_line(error))
            else:
                trial.log_ratios[:] = [math.log(np.median(values) / self.original_value)]
                self._file.write([(trial.key, trial.log_ratios)])

    def _values(self, artifact: Artifact, predictor: Predictor, threads: int) -> list[float]:
        """Return the values of an objective that is not timed."""
        if callable(self.choice):
            value = self.choice(predictor)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise UsageError(f"the objective must return a number, got {type(value).__name__}")
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"the objective must return a finite number above 0, got {value}")
            return [float(value)]
        if self.choice == "size":
            if not artifact.initializer_bytes:
                raise UsageError(f"objective 'size' cannot be measured: {artifact.subject} has no weights")
            return [float(artifact.initializer_bytes)]
        try:
            describe_source()
        except ModelServeError as error:
            raise ModelServeError(f"objective 'memory' cannot be measured here: {error}") from error
        _, job, feeds = fresh_job(
            artifact, [self._inputs], providers=("CPUExecutionProvider",), threads=threads, calls=_CALLS
        )
        starts = [start_in_fresh_process(job, feeds, time_limit_s=_TIME_LIMIT_S) for _ in range(_STARTS)]
        return [float(max(each.added_bytes, 1)) for each in starts]

    def _check_outputs(self, predictor: Predictor) -> None:
        """Raise InputError for outputs on the batch that are NaN or infinite where the original's are not."""
        for name, array in predictor.predict(self._inputs).items():
            expected = self._outputs.get(name)
            if array.dtype.kind != "f" or expected is None or expected.shape != array.shape:
                continue
            bad = int((~np.isfinite(array) & np.isfinite(expected)).sum())
            if bad:
                raise InputError(f"output {name!r} is NaN or infinite in {bad} of {array.size} values of the batch")
