"""Progress bars for long work on a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO, TypeVar

from pytest_modelserve.errors import printable

Item = TypeVar("Item")


class Progress(Protocol):
    """The callable that training loops receive: `for batch in progress(batches, "epoch 3"): ...`."""

    def __call__(self, items: Iterable[Item], description: str, *, total: int | None = None) -> Iterable[Item]:
        """Return `items` unchanged, with a bar while they are consumed."""


_stream: TextIO | None = None


def progress(
    items: Iterable[Item], description: str, *, total: int | None = None, note: Callable[[], str] | None = None
) -> Iterable[Item]:
    """Return `items` unchanged, with a bar on standard error while they are consumed if it is a terminal.

    Work of less than half a second shows no bar, and neither does an environment without tqdm (extra `torch`). `note`
    returns what the bar shows beside the time left, such as a loss.
    """
    stream = _stream or sys.stderr
    if not stream.isatty():
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar = tqdm(items, desc=printable(description), total=total, file=stream, leave=False, delay=0.5)
    return bar if note is None else _with_note(bar, note)


def _with_note(bar: Any, note: Callable[[], str]) -> Iterator[Any]:
    for item in bar:
        yield item
        bar.set_postfix_str(note(), refresh=False)


@contextmanager
def progress_to(stream: TextIO) -> Iterator[None]:
    """Send bars to `stream`: pytest captures standard error, so the plugin passes the real terminal."""
    global _stream
    earlier, _stream = _stream, stream
    try:
        yield
    finally:
        _stream = earlier
