"""Writing so that a kill, a full disk or a power cut leaves the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

# EFBIG is what a file-size limit (RLIMIT_FSIZE, some network file systems) answers where a disk answers ENOSPC.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write `chunks` to `path` in one atomic step: a temporary file beside it, fsync, rename over it.

    The folder must exist. OSError passes through; the temporary file is removed in every case but a kill.
    """
    # Not tempfile: its files are private to their owner, and a shared cache follows the umask like any other folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_file(path: Path) -> None:
    """Force a file that somebody else wrote onto the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def out_of_room(error: BaseException) -> OSError | None:
    """The OSError behind `error` (itself, or one that caused it) that says: no space, quota or file size left."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and not any(link is earlier for earlier in seen):
        if isinstance(link, OSError) and link.errno in _NO_ROOM:
            return link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None
