"""Table of a model's latency by threads, graph optimization level and execution providers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, ModelServeError, UsageError, unknown_choice
from pytest_modelserve.evidence import Evidence, Interval, Method, Quantity, Subject, check_error_rates, record
from pytest_modelserve.performance.batches import check_batch
from pytest_modelserve.performance.child_calls import ChildCalls, file_in_child
from pytest_modelserve.performance.timing import block_repeats, host_lock, host_state, time_blocks, warm_up
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Servable
from pytest_modelserve.serving.inputs import check_positive, check_threads
from pytest_modelserve.serving.predictor import CPU
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import median_bounds

LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""Graph optimization levels, with onnxruntime's names of them."""
_ROUNDS = 31


def session_options(
    model: Servable,
    inputs: Any,
    *,
    threads: Sequence[int] = (1, 2),
    levels: Sequence[str] = tuple(LEVELS),
    providers: Sequence[Sequence[str]] = ((CPU,),),
    time_limit_s: float = 30.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> SessionOptions:
    """Time every combination of threads, graph optimization level and execution providers on one batch.

    All sessions are opened in one process. In each of up to 31 rounds every combination is timed once, in random order,
    so that host load affects all equally. Each is compared with the first one that opened: one thread and every
    optimization, as `ms.serve` opens a model, where these are asked for. Intervals are those of the sign test of the
    median ratio, each by itself: the fastest of many is chosen by chance in part. `ms.tune` chooses with gates.

    In a test the table is part of the reports, with a drawing.

    Args:
        model: An artifact, the path of an ONNX file, or a predictor that serves one, in another interpreter, too.
        inputs: One batch, shape (rows, ...) for each input.
        threads: Numbers of threads of the session.
        levels: Graph optimization levels: "none", "basic", "extended" and "all".
        providers: Execution providers, in order of preference: a sequence of such sequences.
        time_limit_s: The time after which no round begins, in seconds.
        confidence: The level of each end of the intervals.
        seed: Seed of the random order.

    Returns:
        The rows of the table, in the order of the arguments; printing it shows the table.

    Raises:
        UsageError: An argument is empty or not a sequence, a level is unknown, or `model` is no file in onnxruntime.
        ArtifactError: The model opens in no combination.

    Example:
        `print(ms.session_options("model.onnx", batch, threads=(1, 2, 4)))`.
    """
    settings = _settings(threads, levels, providers)
    check_positive("time_limit_s", time_limit_s, "seconds")
    check_error_rates(confidence=confidence, alpha=1 - confidence)
    began = time.perf_counter()
    with (
        open_models(model, inputs=inputs) as (batch, (served,)),
        file_in_child(served) as child,
        ExitStack() as stack,
    ):
        check_batch(batch)
        calls: dict[Setting, ChildCalls] = {}
        refused: dict[Setting, str] = {}
        for setting in settings:
            session = child.another_session(
                providers=setting.providers, threads=setting.threads, level=LEVELS[setting.level]
            )
            try:
                calls[setting] = ChildCalls(stack.enter_context(session), [batch])
                session.start()
            except ModelServeError as error:
                calls.pop(setting, None)
                refused[setting] = str(error)
        if not calls:
            raise ArtifactError(f"{served.subject} opens in no combination: {next(iter(refused.values()))}")
        reference = next((each for each in calls if each == Setting(1, "all", (CPU,))), next(iter(calls)))
        times = _time_rounds(calls, time_limit_s=time_limit_s, rng=random.Random(seed))
        runtime = child.process.runtime["onnxruntime"]
    table = SessionOptions(
        subject=served.subject,
        runtime=runtime,
        reference=reference,
        rows=tuple(
            TimedSetting.of(setting, times[setting], times[reference], confidence)
            if setting in times
            else TimedSetting(setting, refused=refused[setting])
            for setting in settings
        ),
        rounds=len(times[reference]),
        confidence=confidence,
        duration_s=time.perf_counter() - began,
    )
    record(table.evidence())
    return table


def _settings(threads: Sequence[int], levels: Sequence[str], providers: Sequence[Sequence[str]]) -> tuple[Setting, ...]:
    if isinstance(providers, str) or any(isinstance(each, str) for each in providers):
        raise UsageError(f"providers must be a sequence of sequences of names: pass [[{next(iter(providers))!r}]]")
    for name, given in (("threads", threads), ("levels", levels), ("providers", providers)):
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise UsageError(f"{name} must be a sequence with at least one item; got {given!r}")
    for count in threads:
        check_threads(count)
    for level in levels:
        if level not in LEVELS:
            raise UsageError(unknown_choice("level", level, LEVELS))
    found = itertools.product(providers, threads, levels)
    return tuple(dict.fromkeys(Setting(count, level, tuple(names)) for names, count, level in found))


def _time_rounds(
    calls: Mapping[Setting, ChildCalls], *, time_limit_s: float, rng: random.Random
) -> dict[Setting, NDArray[np.float64]]:
    """Return the milliseconds of a call of each setting in each round, shape (rounds,); at least one round."""
    rounds: list[NDArray[np.float64]] = []
    with host_lock():
        deadline = time.monotonic() + time_limit_s
        repeats = [block_repeats(warm_up(call, clock=time.perf_counter_ns)) for call in calls.values()]
        for _ in progress(range(_ROUNDS), "session options"):
            if rounds and time.monotonic() >= deadline:
                break
            times = time_blocks(list(calls.values()), repeats, 1, clock=time.perf_counter_ns, rng=rng)
            rounds.append(times[0] / 1e6)
    return dict(zip(calls, np.array(rounds).T, strict=True))


@dataclass(frozen=True, slots=True)
class Setting:
    """The options of a session: threads, graph optimization level and execution providers."""

    threads: int
    level: str
    providers: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(name.removesuffix("ExecutionProvider") for name in self.providers)
        return f"{names}, {self.threads} thread{'s' if self.threads > 1 else ''}, {self.level}"


@dataclass(frozen=True, slots=True)
class TimedSetting:
    """A row of the table: the median time of a call, and its ratio to the reference with an interval.

    `refused` is the reason for which the model did not open; the others are then None.
    """

    setting: Setting
    median_ms: float | None = None
    ratio: float | None = None
    interval: Interval | None = None
    refused: str = ""

    @classmethod
    def of(
        cls, setting: Setting, times: NDArray[np.float64], reference: NDArray[np.float64], confidence: float
    ) -> TimedSetting:
        """Return the row for the times of the rounds (rounds,)."""
        bounds = median_bounds(times / reference, low_level=confidence, high_level=confidence)
        return cls(setting, float(np.median(times)), bounds.estimate, Interval.of(bounds))


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """A model's latency by session options; `str` gives the table.

    `reference` is the setting that the ratios compare with, `runtime` the version of onnxruntime.
    """

    subject: Subject
    runtime: str
    reference: Setting
    rows: tuple[TimedSetting, ...]
    rounds: int
    confidence: float
    duration_s: float

    @property
    def fastest(self) -> TimedSetting:
        """The row with the smallest ratio."""
        return min((row for row in self.rows if row.ratio is not None), key=lambda row: row.ratio or 0.0)

    def __str__(self) -> str:
        lines = [
            f"session options of {self.subject} on onnxruntime {self.runtime}: median of {self.rounds} interleaved "
            f"rounds, ratios to {self.reference}",
            "",
            f"  {'ms':>9}  {'ratio':>7}  {f'{100 * self.confidence:g} % interval':<16}  options",
        ]
        for row in self.rows:
            if row.ratio is None or row.interval is None:
                lines.append(f"  {'–':>9}  {'–':>7}  {'':<16}  {row.setting}: {row.refused}")
                continue
            interval = f"[{row.interval.low:.3f}, {row.interval.high:.3f}]"
            mark = "  fastest" if row is self.fastest else ""
            lines.append(f"  {row.median_ms:>9.4f}  × {row.ratio:.3f}  {interval:<16}  {row.setting}{mark}")
        return "\n".join(lines)

    def evidence(self) -> Evidence:
        """Return the table as a measurement, for reports."""
        timed = [row for row in self.rows if row.ratio is not None]
        fastest = self.fastest
        return Evidence(
            gate="session options",
            subject=self.subject,
            quantities=(
                Quantity("fastest", fastest.ratio or 0.0, "ratio", fastest.interval),
                Quantity("median", fastest.median_ms or 0.0, "ms"),
            ),
            n=self.rounds,
            n_unit="rounds",
            method=Method(
                "sign interval of the median ratio, each by itself",
                "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1",
                "rounds are exchangeable",
            ),
            summary="measured, without a budget",
            confidence=self.confidence,
            findings=(
                f"fastest of {len(timed)}: {fastest.setting}, compared with {self.reference}",
                *(f"{row.setting}: {row.refused}" for row in self.rows if row.refused),
            ),
            details={
                "session_options": [
                    {
                        "name": str(row.setting),
                        "median_ms": row.median_ms,
                        "ratio": row.ratio,
                        "low": row.interval.low if row.interval else None,
                        "high": row.interval.high if row.interval else None,
                    }
                    for row in timed
                ],
                "reference": str(self.reference),
                "runtime": self.runtime,
                "host": host_state(),
            },
            duration_s=self.duration_s,
        )
