"""Recorders of evidence: each belongs to a test or fixture, and to one attempt of it.

The current recorder is a context variable. Threads that run in a copied context see it; a plain thread, which inherits
no context before Python 3.14, uses the recorder of the test that runs in this process.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_modelserve.errors import ModelServeWarning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_modelserve.evidence.evidence import Evidence
    from pytest_modelserve.evidence.records import Record


InconclusivePolicy = Literal["fail", "skip", "warn"]
PROPERTY = "modelserve"
"""The name of the user property that holds one record in a test report."""
NOT_JUDGED = "modelserve_not_judged"
"""The name of the user property that holds the reason why a check judged nothing."""

INCONCLUSIVE_POLICIES: tuple[InconclusivePolicy, ...] = ("fail", "skip", "warn")


class Recorder:
    """The collected evidence of one owner: a test, or a fixture with a wider scope.

    `samples` is the folder for raw samples, or None if they are not kept. Without `raises`, assertions return their
    evidence whatever its verdict: for a caller who reads all of it.
    """

    def __init__(
        self,
        owner: str,
        node_id: str,
        *,
        attempt: int = 1,
        inconclusive: InconclusivePolicy = "fail",
        samples: Path | None = None,
        raises: bool = True,
    ) -> None:
        self.owner = owner
        self.node_id = node_id
        self.attempt = attempt
        self.inconclusive = inconclusive
        self.samples = samples
        self.raises = raises
        self._records: dict[tuple[str, str, str, str, int], Record] = {}
        self._calls: dict[tuple[str, str, str], int] = {}
        self._example: object = None
        self._closed = False
        self._lock = threading.Lock()

    def add(self, evidence: Evidence) -> None:
        """Add `evidence`; of the same call under several examples of `@given` the worst is kept."""
        if self._closed:
            warnings.warn(
                f"evidence of {evidence.gate!r} was recorded after {self.owner} had ended and is in no report: "
                "join the measuring thread before the test returns",
                ModelServeWarning,
                stacklevel=3,
            )
            return
        from pytest_modelserve.evidence.records import Record, key_of, worse_of

        with self._lock:
            example = _current_example()
            if example is not self._example:
                self._example, self._calls = example, {}
            call = (evidence.gate, key_of(evidence.subject), key_of(evidence.reference))
            index = self._calls.get(call, 0)
            self._calls[call] = index + 1
            record = Record(self.owner, self.node_id, index, self.attempt, 1, evidence)
            earlier = self._records.get(record.identity)
            self._records[record.identity] = record if earlier is None else worse_of(earlier, record)

    def records(self) -> tuple[Record, ...]:
        """Return the records so far, in order."""
        with self._lock:
            return tuple(self._records.values())

    def close(self) -> None:
        """Stop recording; evidence that is added later raises a warning."""
        self._closed = True


_current: ContextVar[Recorder | None] = ContextVar("pytest_modelserve_recorder", default=None)
_running: list[Recorder] = []


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Make `recorder` the current recorder of this context and of plain threads in this process."""
    token = _current.set(recorder)
    _running.append(recorder)
    try:
        yield recorder
    finally:
        _running.remove(recorder)
        _current.reset(token)


def current_recorder() -> Recorder | None:
    """Return the recorder of the running test or fixture, or None outside pytest."""
    return _current.get() or (_running[-1] if _running else None)


def record(evidence: Evidence) -> None:
    """Add `evidence` to the current recorder, if there is one."""
    recorder = current_recorder()
    if recorder is not None:
        recorder.add(evidence)


def _current_example() -> object:
    """Return the running hypothesis example, or None; hypothesis is never imported for this."""
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context():
        return None
    return control.current_build_context()


def keep_samples(**arrays: NDArray[np.float64]) -> dict[str, Any]:
    """Write raw samples next to the report and return an entry for `details`, or {} if samples are not kept.

    The arrays go into one compressed .npz, named by its sha256 and replaced atomically, in the folder of the run's
    JSON document. They are too long for evidence itself. If the folder cannot be written, the entry holds the reason.
    """
    recorder = current_recorder()
    folder = None if recorder is None else recorder.samples
    if folder is None:
        return {}
    import hashlib
    import io
    import secrets

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
