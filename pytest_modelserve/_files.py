"""Writing so that a kill, a full disk or a power cut leaves the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_modelserve.errors import ArtifactError, UsageError

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


def disk_full_error(error: BaseException) -> OSError | None:
    """The OSError behind `error` (itself, or one that caused it) that says: no space, quota or file size left."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and not any(link is earlier for earlier in seen):
        if isinstance(link, OSError) and link.errno in _NO_ROOM:
            return link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


# Files and folders that appear whole or not at all.


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block ends well and is gone when it does not.

    A file that is at `path` already stays until then. ArtifactError where the folder cannot be written.
    """
    temporary = _beside(path)
    try:
        yield temporary
        flush_file(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"cannot write the recording {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path` when the block ends well and is gone when it does not.

    UsageError where `path` exists: a folder may hold what nobody meant to replace.
    """
    if path.exists():
        raise UsageError(f"{path} exists already: choose another folder, or remove it first")
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*.pb"):
            flush_file(file)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"cannot write the recording {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


# Whether a failure of somebody else's code was a full disk.


_CHUNK = bytes(1 << 20)


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """OSError, as the system words it, if `needed_bytes` cannot be written to `folder`; nothing stays there.

    onnx and onnxruntime write in C++ and do not tell: onnx leaves half a file, of which the next to read it says that
    its "wire format was corrupt".
    """
    probe = folder / "room"
    try:
        write_zeros(probe, needed_bytes)
    finally:
        probe.unlink(missing_ok=True)


def write_zeros(path: Path, count: int) -> None:
    """Fill `path` with `count` bytes."""
    with open(path, "wb", buffering=0) as file:
        while count > 0:
            count -= file.write(_CHUNK[:count])
