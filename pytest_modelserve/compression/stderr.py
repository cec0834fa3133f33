"""What C++ libraries write to the process's standard error, kept off it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)

_STDERR = 2


@contextmanager
def native_stderr_held() -> Iterator[None]:
    """Send what is written to file descriptor 2 inside the block to this module's logger, at DEBUG, after the block.

    `contextlib.redirect_stderr` sees only what Python writes. What other threads write there meanwhile is held, too,
    and a process without a standard error keeps having none.
    """
    try:
        before = os.dup(_STDERR)
    except OSError:
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(before, _STDERR)
                held.seek(0)
                if text := held.read().decode(errors="replace").strip():
                    _log.debug("%s", text)
    finally:
        os.close(before)
