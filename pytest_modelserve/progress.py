"""A bar on a terminal for work that takes long; silence everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """What a training loop is handed: `for batch in progress(batches, "epoch 3"): ...`."""

    def __call__(self, items: Iterable[Item], description: str, *, total: int | None = None) -> Iterable[Item]:
        """Return `items` unchanged, told on the terminal while they are used up."""


_stream: TextIO | None = None


def progress(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterable[Item]:
    """Return `items`, with a bar on standard error while they are used up if that is a terminal.

    Work that takes under half a second never shows one. Without tqdm (extra `torch`) there is no bar.
    """
    stream = _stream or sys.stderr
    if not stream.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[Item] = tqdm(items, desc=description, total=total, file=stream, leave=False, delay=0.5)
    return bar


@contextmanager
def progress_to(stream: TextIO) -> Iterator[None]:
    """Send bars to `stream`: pytest captures standard error, so its plugin hands over the terminal itself."""
    global _stream
    earlier, _stream = _stream, stream
    try:
        yield
    finally:
        _stream = earlier
