"""Atomic writes: a kill, a full disk or a power cut leaves the old file or the new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_modelserve.errors import ArtifactError, UsageError

# A file-size limit (RLIMIT_FSIZE, some network file systems) raises EFBIG where a disk raises ENOSPC.
_FULL_DISK = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
_CHUNK = bytes(1 << 20)


def as_path(argument: str, value: object) -> Path:
    """Return the path that was given as `argument`; raise UsageError for anything that names no file or folder."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise UsageError(f"{argument} must be a path, got {type(value).__name__}: give a str or a Path")
    if not path or "\0" in path:
        raise UsageError(f"{argument} {path!r} is no path of a file or folder: give its path")
    return Path(path)


def kind_of(mode: int) -> str:
    """Return what a file is that is no regular one, by the mode of its state."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` to `path` atomically: temporary file in the same folder, fsync, rename.

    The folder is made. OSError passes through; the temporary file is removed except after a kill.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
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
    """Flush a file that other code wrote to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def disk_full_error(error: BaseException) -> OSError | None:
    """Return the OSError in the cause chain of `error` that means no space, quota or file size left."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and not any(link is earlier for earlier in seen):
        if isinstance(link, OSError) and link.errno in _FULL_DISK:
            return link
        seen.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make the folder and yield a temporary path that replaces `path` when the block succeeds, else is removed.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    temporary = _temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_file(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write the recording {path}: {error.strerror or error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block succeeds, and is removed when it fails.

    Raises:
        UsageError: `path` exists.
        ArtifactError: The folder cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path} exists already: choose another folder, or remove it first")
    temporary = _temporary_path(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*.pb"):
            flush_file(file)
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"cannot write the recording {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_path(path: Path) -> Path:
    # Not tempfile: its files are private to their owner, and a shared cache follows the umask.
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise the system's OSError if `needed_bytes` cannot be written to `folder`; nothing stays there.

    onnx and onnxruntime write in C++ and do not report a full disk: onnx leaves half a file, and its reader reports
    that the "wire format was corrupt".
    """
    probe = folder / "free_space"
    try:
        write_zeros(probe, needed_bytes)
    finally:
        probe.unlink(missing_ok=True)


def write_zeros(path: Path, count: int) -> None:
    """Write `count` zero bytes to `path`."""
    with open(path, "wb", buffering=0) as file:
        while count > 0:
            count -= file.write(_CHUNK[:count])
