"""Whether a file can have changed since it was read, by what the file system says of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

# A file that changes twice within one tick of the file system's clock keeps its time: up to 10 ms on Linux, and up to
# 2 s (FAT) where whole seconds are all that it stores.
_TICK_NS, _COARSE_TICK_NS = 100_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file before it was read at `seen_ns`, by the clock that tells its times."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    seen_ns: int

    def still_holds(self, path: Path) -> bool:
        """Whether the file at `path` is surely the one that was read; False also where that cannot be told.

        A write leaves another time, except within the tick of the clock in which the one before it fell: of a file that
        was read so soon after it was written, nothing can be told (the "racy" entries of git's index).
        """
        return self._is_settled and self.is_of(stamp_of(path))

    def is_of(self, other: Stamp) -> bool:
        """Whether both are of one file with the same times."""
        return replace(self, seen_ns=other.seen_ns) == other

    @property
    def _is_settled(self) -> bool:
        tick = _TICK_NS if self.modified_ns % _SECOND_NS else _COARSE_TICK_NS
        return max(self.modified_ns, self.changed_ns) + tick < self.seen_ns


def stamp_of(path: Path) -> Stamp:
    """The stamp of the file at `path`, to be taken before it is read; OSError where there is none."""
    seen_ns = time.time_ns()
    found = os.stat(path)
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, seen_ns)
