"""The file of one load generator: histograms by second, and their merger over several hosts."""

from __future__ import annotations

import json
import math
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytest_modelserve._files import write_file
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, Verdict
from pytest_modelserve.load.latency_histogram import SUB_BUCKET_BITS, LatencyHistogram, merged
from pytest_modelserve.load.load_run import LoadRun
from pytest_modelserve.serving.inputs import check_positive, check_quantile
from pytest_modelserve.stats.batch_quantiles import batch_quantile_bounds

_KIND = "pytest-modelserve load"
_VERSION = 1
_BATCHES = 16
_PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Histograms of the counted requests of one or several generators; equal sums whatever the order of merging.

    `runs` are the ids of the loads. `seconds` holds the latencies by the second of the epoch in which requests were
    due. `failures` counts failed requests by kind, those of the warm-up included.
    """

    subject: Subject
    runs: tuple[str, ...]
    loads: tuple[str, ...]
    seconds: dict[int, LatencyHistogram]
    service: LatencyHistogram
    issue_lag: LatencyHistogram
    failures: dict[str, int]

    @classmethod
    def of(cls, run: LoadRun, subject: Subject, *, started: float) -> LoadRecord:
        """Return the record of a load that started at `started` seconds of the epoch, with a new id."""
        counted = run.counted
        second = np.floor(started + counted.due_s).astype(np.int64)
        latency = counted.latency_ms
        return cls(
            subject,
            (secrets.token_hex(8),),
            (run.schedule.name,),
            {int(each): LatencyHistogram.of(latency[second == each]) for each in np.unique(second)},
            LatencyHistogram.of(counted.service_ms),
            LatencyHistogram.of(counted.issue_lag_ms),
            {name: each.count for name, each in run.failures.items()},
        )

    @property
    def latency(self) -> LatencyHistogram:
        """The latencies of all seconds."""
        return merged(self.seconds.values())

    @property
    def duration_s(self) -> int:
        """The number of seconds in which a request was due."""
        return len(self.seconds)

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically; the same counts are the same bytes."""
        document = {
            "kind": _KIND,
            "version": _VERSION,
            "sub_bucket_bits": SUB_BUCKET_BITS,
            "subject": asdict(self.subject),
            "runs": list(self.runs),
            "loads": list(self.loads),
            "seconds": {
                str(second): {"latency": each.to_json(), "unanswered": each.unanswered}
                for second, each in sorted(self.seconds.items())
            },
            "service": {"latency": self.service.to_json(), "unanswered": self.service.unanswered},
            "issue_lag": {"latency": self.issue_lag.to_json(), "unanswered": 0},
            "failures": dict(sorted(self.failures.items())),
        }
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
        try:
            write_file(path, [text.encode("utf-8", "backslashreplace")])
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}; use a writable path") from error

    @classmethod
    def read(cls, path: Path) -> LoadRecord:
        """Return the record in a file; InputError if it cannot be read, or is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["kind"] != _KIND or document["version"] != _VERSION:
                raise ValueError(f"it is {document['kind']!r}, version {document['version']!r}")
            if document["sub_bucket_bits"] != SUB_BUCKET_BITS:
                raise ValueError("its buckets have another width")
            return cls(
                Subject(**document["subject"]),
                tuple(map(str, document["runs"])),
                tuple(map(str, document["loads"])),
                {int(second): _histogram(each) for second, each in document["seconds"].items()},
                _histogram(document["service"]),
                _histogram(document["issue_lag"]),
                {str(name): int(count) for name, count in document["failures"].items()},
            )
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{path} is no file of a load of this release ({reason}): result_file= of "
                "measure_latency_under_load writes one"
            ) from None


def _histogram(data: Any) -> LatencyHistogram:
    return LatencyHistogram.from_json(data["latency"], data["unanswered"])


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
        {
            second: merged(record.seconds[second] for record in records if second in record.seconds)
            for second in sorted({second for record in records for second in record.seconds})
        },
        merged(record.service for record in records),
        merged(record.issue_lag for record in records),
        dict(sorted(failures.items())),
    )


def percentile_lines(record: LoadRecord) -> Iterator[str]:
    """Yield the figures of a record as lines of text."""
    latency, service = record.latency, record.service
    yield (
        f"{record.subject}: {len(record.runs)} load generators, {latency.n:,} requests over {record.duration_s} s, "
        f"{latency.unanswered:,} without an answer"
    )
    yield f"  {'':<6}  {'latency from due time':<30}  service time"
    for quantile in _PERCENTILES:
        texts = ("[{:.6g}, {:.6g}] ms".format(*each.quantile_ms(quantile)) for each in (latency, service))
        yield f"  p{100 * quantile:<5g}  {next(texts):<30}  {next(texts)}"
    yield f"  issue lag p99 at most {record.issue_lag.quantile_ms(0.99)[1]:.3g} ms"


def judge_record(
    record: LoadRecord,
    *,
    max_ms: float,
    quantile: float,
    max_failed: float,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Return the evidence of merged loads: the quantile with its bucket in the interval, by batches of seconds.

    The seconds of all hosts are batched together, as requests to one server depend on each other across hosts.
    """
    check_positive("max_ms", max_ms, "milliseconds")
    check_quantile(quantile)
    histogram = record.latency
    if not histogram.n:
        raise InputError("the files hold no request that was due after the warm-up")
    batches = np.array_split(np.array(sorted(record.seconds)), min(_BATCHES, len(record.seconds)))
    groups = [merged(record.seconds[int(second)] for second in batch) for batch in batches]
    levels = {"low_level": 1 - alpha, "high_level": confidence}
    low, high = (
        batch_quantile_bounds([group.values_ms(upper=upper) for group in groups], quantile, **levels)
        for upper in (False, True)
    )
    name, lag = f"p{100 * quantile:g}", record.issue_lag.quantile_ms(quantile)[1]
    is_late = lag > 0.05 * max_ms
    interval = Interval(low.low, math.inf if is_late else high.high, **levels)
    budget = Budget.of("max_ms", max_ms)
    failed = Quantity(
        "failed requests", histogram.unanswered / histogram.n, "proportion", None, Budget.of("max_failed", max_failed)
    )
    quantities = (
        Quantity(name, high.estimate, "ms", interval, budget),
        failed,
        Quantity(f"service {name}", record.service.quantile_ms(quantile)[1], "ms"),
        Quantity(f"issue lag {name}", lag, "ms"),
        Quantity("goodput per s", histogram.within(max_ms) / record.duration_s, ""),
    )
    worst = max((q.verdict for q in quantities if q.verdict), key=lambda each: each.severity)
    summaries = {
        Verdict.PASS: f"{name} is within its budget",
        Verdict.FAIL: f"{name} is above its budget" if quantities[0].verdict is Verdict.FAIL else "requests failed",
        Verdict.INCONCLUSIVE: f"too few independent requests to decide whether {name} is within its budget",
    }
    late = (f"the generators themselves were late: {name} of their issue lag is {lag:.3g} ms",) if is_late else ()
    return Evidence(
        gate=f"latency under load {name}",
        subject=record.subject,
        quantities=quantities,
        n=histogram.n,
        n_unit="requests",
        method=Method(
            "batch means over seconds of merged histograms",
            "Law, Simulation Modeling and Analysis, ch. 9; Woodruff (1952), JASA 47",
            "one steady load; dependence shorter than a sixteenth of it",
        ),
        summary=late[0] if late and worst is Verdict.INCONCLUSIVE else summaries[worst],
        confidence=confidence,
        alpha=alpha,
        findings=(
            f"{len(record.runs)} generators: {', '.join(dict.fromkeys(record.loads))}",
            *late,
            *(f"{count:,} requests failed with {kind}" for kind, count in record.failures.items()),
        ),
        details={"quantile": quantile, "runs": list(record.runs), "seconds": record.duration_s},
    )
