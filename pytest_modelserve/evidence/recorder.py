"""Who evidence belongs to: a test or a fixture, an attempt of it, and one row of it under `@given`.

A `Recorder` collects what the gates of one owner say. The current one is found through a context variable, so that
threads started with `contextvars.copy_context().run` keep it; a plain thread, which inherits no context before
Python 3.14, falls back on the owner that runs in this process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_modelserve.errors import ModelServeWarning
from pytest_modelserve.evidence.evidence import Evidence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


InconclusivePolicy = Literal["fail", "skip", "warn"]
PROPERTY = "modelserve"
"""The name of the user property in which one record travels with a test report."""

INCONCLUSIVE_POLICIES: tuple[InconclusivePolicy, ...] = ("fail", "skip", "warn")


@dataclass(frozen=True, slots=True)
class Record:
    """Evidence with its owner; (owner, gate, digests, index) is its identity, `attempt` counts reruns from 1."""

    owner: str
    node_id: str
    index: int
    attempt: int
    examples: int
    evidence: Evidence

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """What stays the same when the same call is made again, in another process or on a rerun."""
        reference = self.evidence.reference
        return (self.owner, self.evidence.gate, _key(self.evidence.subject), _key(reference), self.index)

    def to_json(self) -> str:
        """One JSON object: the evidence and who it belongs to."""
        return json.dumps(
            {
                "owner": self.owner,
                "node_id": self.node_id,
                "index": self.index,
                "attempt": self.attempt,
                "examples": self.examples,
                "evidence": json.loads(self.evidence.to_json(max_bytes=15 * 1024)),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "evidence": Evidence.from_json(json.dumps(data["evidence"]))})


def _key(subject: Any) -> str:
    return "" if subject is None else (subject.sha256 or str(subject))


def worse_of(first: Record, second: Record) -> Record:
    """Two records of one identity as one: the worse verdict, every example counted, every look's alpha spent."""
    worse = second if second.evidence.verdict.severity > first.evidence.verdict.severity else first
    alpha = min(first.evidence.alpha + second.evidence.alpha, 1.0)
    return replace(
        worse,
        examples=first.examples + second.examples,
        evidence=replace(worse.evidence, alpha=alpha),
    )


class Recorder:
    """Collects the evidence of one owner: a test, or a fixture of a scope wider than a test.

    `samples` is the folder for raw samples, None where nobody keeps them.
    """

    def __init__(
        self,
        owner: str,
        node_id: str,
        *,
        attempt: int = 1,
        inconclusive: InconclusivePolicy = "fail",
        samples: Path | None = None,
    ) -> None:
        self.owner = owner
        self.node_id = node_id
        self.attempt = attempt
        self.inconclusive = inconclusive
        self.samples = samples
        self._records: dict[tuple[str, str, str, str, int], Record] = {}
        self._calls: dict[tuple[str, str, str], int] = {}
        self._example: object = None
        self._closed = False
        self._lock = threading.Lock()

    def add(self, evidence: Evidence) -> None:
        """Keep `evidence`; the same call under another example of `@given` is folded into the worse of the two."""
        if self._closed:
            warnings.warn(
                f"evidence of {evidence.gate!r} came after {self.owner} had ended and is in no report: "
                "join the thread that measures before the test returns",
                ModelServeWarning,
                stacklevel=3,
            )
            return
        with self._lock:
            example = _current_example()
            if example is not self._example:
                self._example, self._calls = example, {}
            call = (evidence.gate, _key(evidence.subject), _key(evidence.reference))
            index = self._calls.get(call, 0)
            self._calls[call] = index + 1
            record = Record(self.owner, self.node_id, index, self.attempt, 1, evidence)
            earlier = self._records.get(record.identity)
            self._records[record.identity] = record if earlier is None else worse_of(earlier, record)

    def records(self) -> tuple[Record, ...]:
        """What was collected so far, in order."""
        with self._lock:
            return tuple(self._records.values())

    def close(self) -> None:
        """Take no more: evidence that comes later is warned about."""
        self._closed = True


_current: ContextVar[Recorder | None] = ContextVar("pytest_modelserve_recorder", default=None)
_running: list[Recorder] = []


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Make `recorder` the current one, for this context and for plain threads of this process."""
    token = _current.set(recorder)
    _running.append(recorder)
    try:
        yield recorder
    finally:
        _running.remove(recorder)
        _current.reset(token)


def current_recorder() -> Recorder | None:
    """The recorder of the owner that runs now, or None outside pytest."""
    return _current.get() or (_running[-1] if _running else None)


def record(evidence: Evidence) -> None:
    """Hand `evidence` to the current recorder, if there is one."""
    recorder = current_recorder()
    if recorder is not None:
        recorder.add(evidence)


def _current_example() -> object:
    """The hypothesis example that runs now, or None; hypothesis is looked at only where somebody imported it."""
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context():
        return None
    return control.current_build_context()


# Raw samples beside the report: too long to travel in evidence, and needed by whoever wants to draw or judge again.


def keep_samples(**arrays: NDArray[np.float64]) -> dict[str, Any]:
    """Where the arrays were written, as an entry for `details`; {} where nobody keeps samples.

    One compressed .npz, named by its sha256, in the folder that the current recorder has for them: that of the run's
    JSON document. Written in one step, so that no reader sees half of it. A folder that cannot be written leaves
    the reason in the entry: the document itself, which goes there too, is refused with an error.
    """
    recorder = current_recorder()
    folder = None if recorder is None else recorder.samples
    if folder is None:
        return {}
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    name = f"{hashlib.sha256(content).hexdigest()}.npz"
    temporary = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)
    except OSError as error:
        return {"samples": {"not_written": error.strerror or str(error)}}
    return {"samples": {"file": f"{folder.name}/{name}", "arrays": sorted(arrays)}}
