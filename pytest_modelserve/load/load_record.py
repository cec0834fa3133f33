"""The file of one load generator: histograms by second, and their merger over several hosts."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from pytest_modelserve._files import write_file
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.load.latency_histogram import Count, LatencyHistogram, merged
from pytest_modelserve.load.load_run import LoadRun

_Nanoseconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def check_writable(path: Path) -> None:
    """Raise UsageError, before a load, for a path that cannot become a file; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if path.is_dir() else ""
    except OSError as error:
        reason = error.strerror or str(error)
    if reason or not os.access(path.parent, os.W_OK):
        raise UsageError(f"result_file={str(path)!r} cannot be written{f': {reason}' * bool(reason)}")


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Histograms of the counted requests of one or several generators; equal sums whatever the order of merging.

    `runs` are the ids of the loads, `span_ns` the nanoseconds of the epoch at which the first began and the last ended,
    without its warm-up. `seconds` holds the latencies by the second of the epoch in which requests were due. `failures`
    counts failed requests by kind, those of the warm-up included. `cpu_share` is the CPU time of the busiest process of
    a generator, per second; None where the model ran in it.
    """

    subject: Subject
    runs: tuple[str, ...]
    loads: tuple[str, ...]
    span_ns: tuple[_Nanoseconds, _Nanoseconds]
    seconds: dict[int, LatencyHistogram]
    service: LatencyHistogram
    issue_lag: LatencyHistogram
    failures: dict[str, Count]
    cpu_share: Annotated[float, msgspec.Meta(ge=0)] | None = None
    kind: Literal["pytest-modelserve load"] = "pytest-modelserve load"
    version: Literal[2] = 2

    def __post_init__(self) -> None:
        if self.span_ns[0] > self.span_ns[1]:
            raise ValueError(f"it lasted from {self.span_ns[0]} to {self.span_ns[1]}")

    @classmethod
    def of(cls, run: LoadRun, subject: Subject, cpu_share: float | None = None) -> LoadRecord:
        """Return the record of a load, with a new id."""
        counted = run.counted
        second = np.floor(run.started + counted.due_s).astype(np.int64)
        latency, begin = counted.latency_ms, round(1e9 * (run.started + run.first_s))
        return cls(
            subject,
            (secrets.token_hex(8),),
            (run.schedule.name,),
            (begin, begin + round(1e9 * counted.seconds)),
            {int(each): LatencyHistogram.of(latency[second == each]) for each in np.unique(second)},
            LatencyHistogram.of(counted.service_ms),
            LatencyHistogram.of(counted.issue_lag_ms),
            {name: each.count for name, each in run.failures.items()},
            cpu_share,
        )

    @property
    def latency(self) -> LatencyHistogram:
        """The latencies of all seconds."""
        return merged(self.seconds.values())

    def batches(self, most: int) -> list[LatencyHistogram]:
        """Return the latencies of at most `most` runs of consecutive seconds."""
        parts = np.array_split(np.array(sorted(self.seconds)), min(most, len(self.seconds)))
        return [merged(self.seconds[int(second)] for second in part) for part in parts]

    @property
    def duration_s(self) -> float:
        """The seconds from the first counted request of any load to the end of the last load, above 0."""
        return max(1, self.span_ns[1] - self.span_ns[0]) / 1e9

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically; the same counts are the same bytes."""
        document = msgspec.to_builtins(self, str_keys=True)
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
        try:
            write_file(path, [text.encode("utf-8", "replace")])
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; use a writable path") from error

    @classmethod
    def read(cls, path: Path) -> LoadRecord:
        """Return the record in a file; InputError if it cannot be read, or is none."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} is no file of a load of this release ({error}): result_file= of measure_latency_under_load "
                "writes one"
            ) from None


def merge_records(records: Sequence[LoadRecord]) -> LoadRecord:
    """Return the sum of the records; its file is the same to the bit in whatever order they are given.

    UsageError for records of different models, and for a load that is in two of them.
    """
    if not records:
        raise UsageError("there is no file to merge: give at least one")
    subjects = dict.fromkeys(record.subject for record in records)
    if len(subjects) > 1:
        raise UsageError(f"the loads are of different models: {', '.join(map(str, subjects))}; merge those of one")
    counts = Counter(run for record in records for run in record.runs)
    if repeated := [run for run, count in counts.items() if count > 1]:
        raise UsageError(f"load {repeated[0]} is in two of the files: its requests would count twice; give it once")
    failures: Counter[str] = Counter()
    for record in records:
        failures.update(record.failures)
    return LoadRecord(
        records[0].subject,
        tuple(sorted(counts)),
        tuple(sorted(load for record in records for load in record.loads)),
        (min(record.span_ns[0] for record in records), max(record.span_ns[1] for record in records)),
        {
            second: merged(record.seconds[second] for record in records if second in record.seconds)
            for second in sorted({second for record in records for second in record.seconds})
        },
        merged(record.service for record in records),
        merged(record.issue_lag for record in records),
        dict(sorted(failures.items())),
        max((record.cpu_share for record in records if record.cpu_share is not None), default=None),
    )


def percentile_lines(record: LoadRecord) -> Iterator[str]:
    """Yield the figures of a record as lines of text."""
    latency, service = record.latency, record.service
    yield (
        f"{record.subject}: {len(record.runs)} load generators, {latency.n:,} requests over {record.duration_s:.1f} s, "
        f"{latency.unanswered:,} without an answer"
    )
    yield f"  {'':<6}  {'latency from due time':<30}  service time"
    for quantile in _PERCENTILES:
        texts = ("[{:.6g}, {:.6g}] ms".format(*each.quantile_ms(quantile)) for each in (latency, service))
        yield f"  p{100 * quantile:<5g}  {next(texts):<30}  {next(texts)}"
    cpu = "" if record.cpu_share is None else f", CPU of the busiest generator {record.cpu_share:.0%} of a core"
    yield f"  issue lag p99 at most {record.issue_lag.quantile_ms(0.99)[1]:.3g} ms{cpu}"
