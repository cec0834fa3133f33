"""One timed gate at a time on this host, whichever process of whichever test run it is in."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 600.0
"""Holders are capped themselves, at a minute by default; after this long the lock says nothing any more."""


@contextmanager
def host_turn(folder: Path | None = None, *, patience_s: float = _PATIENCE_S) -> Iterator[bool]:
    """Hold the host's lock for what is timed: True where it is held.

    It keeps other timed gates of this user out, the workers of xdist above all, and no other load. Hold it inside the
    timed loop alone, never while building or waiting for the store. Without it, because `folder` (by default the one
    for temporary files) cannot be written or somebody held it for `patience_s`, the gate runs all the same: False.
    """
    from filelock import FileLock, Timeout

    # One file for each user: another user's could not be opened for writing.
    path = (folder or Path(tempfile.gettempdir())) / f"pytest_modelserve-timing-{_user()}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience_s, poll_interval=0.01)
    except (Timeout, OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _user() -> str:
    try:
        return "".join(letter if letter.isalnum() else "_" for letter in getpass.getuser())
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


class Cap:
    """A limit on the time that a gate takes, less what it waits for its turns on the host."""

    def __init__(self, limit_s: float, *, wall: Callable[[], int]) -> None:
        self._wall = wall
        self._limit_ns = round(limit_s * 1e9)
        self._began = wall()
        self._waited_ns = 0

    @property
    def used_ns(self) -> int:
        """How long it has taken so far."""
        return self._wall() - self._began - self._waited_ns

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more may begin."""
        return self.used_ns >= self._limit_ns

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Hold the host's lock; gives what the clock shows when time is up."""
        asked = self._wall()
        with host_turn():
            self._waited_ns += self._wall() - asked
            yield self._began + self._waited_ns + self._limit_ns
