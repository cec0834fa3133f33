"""The state of a monitor: one file with the totals of all windows, and the served rows that wait for labels.

The file has two lines of JSON: a head with a version and the sha256 of the second line, and the totals. It is replaced
atomically under a lock: concurrent jobs add to each other, and a killed job loses nothing that it had returned.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pytest_modelserve._files import write_file
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.stats.e_process import Starts, block_starts

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SCHEMA_VERSION = 1
_FORMAT = "pytest_modelserve monitor"
_LOCK_TIMEOUT_S = 60.0
_MAX_EVENTS = 300
"""Of the history, the newest events are kept: 1,000 windows with all of theirs would fill the file."""


@dataclass(slots=True)
class State:
    """All data of a monitor.

    `totals` and `rows` (blocks, streams) belong to the blocks that start at `slots` (blocks,), rising; totals are in
    multiples of each stream's quantum. `windows` have their slot and a digest of what was measured, `labels` their
    labeled rows and the wrong predictions of these. `events` are lists of a window, what happened, the verdict, and
    the alarmed streams.
    """

    slots: Integers
    totals: Integers
    rows: Integers
    windows: dict[str, tuple[int, str]] = field(default_factory=dict)
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    events: list[list[str]] = field(default_factory=list)

    @classmethod
    def empty(cls, streams: int) -> State:
        """Return the state of a new monitor."""
        nothing = np.zeros((0, streams), dtype=np.int64)
        return cls(np.zeros(0, dtype=np.int64), nothing, nothing)

    @property
    def latest(self) -> int:
        """The newest slot with a window; 0 without any."""
        return int(self.slots[-1]) if self.slots.size else 0

    def add(self, window: str, slot: int, digest: str, totals: Integers, rows: Integers) -> None:
        """Add a window, and pool blocks that have grown old."""
        self.windows[window] = slot, digest
        starts = block_starts(max(self.latest, slot))
        blocks = starts[np.searchsorted(starts, [*self.slots, slot], side="right") - 1]
        self.slots, place = np.unique(blocks, return_inverse=True)
        self.totals = _pooled(place, [*self.totals, totals])
        self.rows = _pooled(place, [*self.rows, rows])

    def note(self, window: str, what: str, verdict: str, alarmed: str) -> None:
        """Add an event to the history."""
        self.events = [*self.events, [window, what, verdict, alarmed]][-_MAX_EVENTS:]

    def arrays(self, starts: Starts, quanta: Floats) -> tuple[Floats, Floats]:
        """Return totals and rows (blocks, streams) in all blocks of `starts`."""
        totals, rows = np.zeros((2, starts.slots.size, quanta.size))
        blocks = starts.block_of(self.slots)
        totals[blocks], rows[blocks] = self.totals * quanta, self.rows
        return totals, rows


def _pooled(place: Integers, values: list[Integers]) -> Integers:
    pooled = np.zeros((int(place.max()) + 1, values[0].size), dtype=np.int64)
    np.add.at(pooled, place, np.stack(values))
    return pooled


class StateFile:
    """The file of a state, and the folder `<file>.rows` with served rows.

    `identity` describes name, streams and error budget of the monitor: a file of another monitor is refused.
    `streams` is their number.
    """

    def __init__(self, path: Path, identity: str, *, streams: int) -> None:
        self.path, self.identity, self.streams = path, identity, streams

    @contextmanager
    def locked(self) -> Iterator[State]:
        """Yield the state under the lock of the file; nobody else reads or writes it until the block ends.

        Raises:
            ArtifactError: The file is damaged or of another version, cannot be locked, or its folder be made.
            UsageError: The file belongs to another monitor.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT_S)
            lock.acquire()
        except Timeout:
            raise ArtifactError(
                f"the monitor's state {self.path} has been locked for {_LOCK_TIMEOUT_S:.0f} s by another process: wait "
                "for that job, or end it"
            ) from None
        except OSError as error:
            raise ArtifactError(f"the monitor's state {self.path} cannot be locked: {error}") from error
        try:
            yield self.read()
        finally:
            lock.release()

    def read(self) -> State:
        """Return the stored state, or an empty one if there is no file. Raises as `locked` does."""
        try:
            head_line, _, body = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return State.empty(self.streams)
        except OSError as error:
            raise ArtifactError(f"the monitor's state {self.path} cannot be read: {error}") from error
        try:
            head = json.loads(head_line)
            known = head["format"] == _FORMAT
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ArtifactError(
                f"{self.path} is not a monitor's state, or its beginning was cut or edited: restore a copy, or choose "
                "another file to start a new monitor"
            )
        if head["schema_version"] != SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path} has schema version {head['schema_version']!r}, and this release reads {SCHEMA_VERSION}: "
                "install the release that wrote it, or choose another file to start a new monitor"
            )
        if hashlib.sha256(body).hexdigest() != head.get("sha256"):
            raise ArtifactError(
                f"{self.path} was cut or edited after it was written: its content does not match its sha256. Restore a "
                "copy, or choose another file to start a new monitor"
            )
        if head["identity"] != self.identity:
            raise UsageError(
                f"{self.path} is the state of a monitor with another name, alpha, life, reference or tolerance: use "
                "the same ones, or choose another file to start a new error budget"
            )
        data = json.loads(body)
        slots = np.array(data["slots"], dtype=np.int64)
        return State(
            slots=slots,
            totals=_unpacked(data["totals"], slots.size, self.streams),
            rows=_unpacked(data["rows"], slots.size, self.streams),
            windows=data["windows"],
            labels=data["labels"],
            events=data["events"],
        )

    def write(self, state: State) -> None:
        """Replace the file; call it under the lock.

        Raises:
            ArtifactError: The file cannot be written.
        """
        body = {
            "windows": state.windows,
            "labels": state.labels,
            "slots": state.slots.tolist(),
            "totals": _packed(state.totals),
            "rows": _packed(state.rows),
            "events": state.events,
        }
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        head = {
            "format": _FORMAT,
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "sha256": hashlib.sha256(text).hexdigest(),
        }
        self._write(self.path, [json.dumps(head).encode(), b"\n", text])

    def rows_path(self, window: str) -> Path:
        """Return the file of the served rows of a window."""
        name = hashlib.sha256(window.encode()).hexdigest()[:24]
        return self.path.with_name(f"{self.path.name}.rows") / f"{name}.npz"

    def write_rows(self, window: str, served: ServedRows) -> None:
        """Write the served rows of a window; call it under the lock, before the state that counts them."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ids=served.ids,
            outputs=served.outputs,
            labels=served.labels,
            known=served.known,
            key_check=np.array(served.key_check),
        )
        self._write(self.rows_path(window), [buffer.getvalue()])

    def read_rows(self, window: str) -> ServedRows:
        """Return the served rows of a window.

        Raises:
            UsageError: None are stored.
            ArtifactError: The file is damaged.
        """
        path = self.rows_path(window)
        try:
            with np.load(path, allow_pickle=False) as stored:
                check = str(stored["key_check"]) if "key_check" in stored else ""
                return ServedRows(stored["ids"], stored["outputs"], stored["labels"], stored["known"], check)
        except FileNotFoundError:
            raise UsageError(
                f"no served rows of window {window!r} are stored in {path.parent}: pass outputs= and ids= when the "
                "window is checked, and keep the folder until its labels are added"
            ) from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"the served rows {path} of window {window!r} are damaged: {error}") from error

    def _write(self, path: Path, chunks: list[bytes]) -> None:
        try:
            write_file(path, chunks)
        except OSError as error:
            raise ArtifactError(f"the monitor's state cannot be written to {path}: {error}") from error
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of killed jobs: this one has the lock
            leftover.unlink(missing_ok=True)


def _packed(values: Integers) -> str:
    return base64.b64encode(zlib.compress(values.astype("<i8").tobytes(), 1)).decode()


def _unpacked(text: str, blocks: int, streams: int) -> Integers:
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i8")
    return values.reshape(blocks, streams).astype(np.int64)


@dataclass(slots=True)
class ServedRows:
    """Served rows by id: predictions (n,), and labels (n,) where `known` (n,).

    Ids are keyed hashes if there is a project key, which `key_check` recognizes; "" is none. `given` are the ids
    themselves, which are not stored.
    """

    ids: NDArray[Any]
    outputs: NDArray[Any]
    labels: NDArray[Any]
    known: NDArray[np.bool_]
    key_check: str = ""
    given: NDArray[Any] | None = None
