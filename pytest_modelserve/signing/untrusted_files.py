"""Untrusted files, read once: regular files inside one folder, no links, and JSON without repeated keys."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from pytest_modelserve._files import as_path, kind_of
from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.progress import progress

_CHUNK_BYTES = 1 << 20
_MOST_JSON_BYTES = 64 << 20
"""A manifest of 100,000 files has about 20 MB."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and sha256 of a file's content."""

    size: int
    sha256: str


def checked_location(location: str) -> PurePosixPath:
    """Return a path relative to a folder; raise InputError unless it names a file inside it on every system."""
    path = PurePosixPath(location)
    parts = location.split("/")
    if (
        not location
        or "\0" in location
        or any(part in ("", ".", "..") for part in parts)
        or PureWindowsPath(location).anchor
        or ".." in PureWindowsPath(location).parts
    ):
        raise InputError(f"{location!r} is not the path of a file inside the folder: give it relative, without '..'")
    return path


@contextmanager
def open_regular(folder: Path, location: str) -> Iterator[BinaryIO]:
    """Open a file inside `folder` for reading; no part of its path below the folder may be a link.

    Raises:
        ArtifactError: It is missing, a link, has a second name (a hard link), or is no regular file: a folder, a FIFO,
            a device. Nothing is read then, and a FIFO without a writer does not block.
    """
    parts = checked_location(location).parts
    descriptors = []
    try:
        for number, part in enumerate(("", *parts)):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            if number == 0:  # the folder itself is the caller's choice
                descriptors.append(os.open(folder, flags | os.O_DIRECTORY))
                continue
            flags |= os.O_NOFOLLOW | (os.O_DIRECTORY if number < len(parts) else 0)
            descriptors.append(os.open(part, flags, dir_fd=descriptors[-1]))
        found = os.fstat(descriptors[-1])
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{location!r} is {kind_of(found.st_mode)}, and a regular file is expected")
        if found.st_nlink > 1:
            raise ArtifactError(f"{location!r} is a hard link: {found.st_nlink} names share its content; copy it")
        with open(descriptors.pop(), "rb") as file:
            yield file
    except OSError as error:
        is_link = error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _has_link(folder, parts))
        reason = "a link, which is not followed: replace it by a copy" if is_link else error.strerror or str(error)
        raise ArtifactError(f"{location!r} is {reason}" if is_link else f"{location!r}: {reason}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _has_link(folder: Path, parts: tuple[str, ...]) -> bool:
    return any(folder.joinpath(*parts[:number]).is_symlink() for number in range(1, len(parts) + 1))


def digest_file(folder: Path, location: str, *, copy_to: Path | None = None) -> FileDigest:
    """Return size and sha256 of a file inside `folder`, read once, and write the same bytes to a new file `copy_to`.

    Raises:
        ArtifactError: See `open_regular`; also a file that changes while it is read.
    """
    with open_regular(folder, location) as source:
        before = os.fstat(source.fileno())
        digest, left = hashlib.sha256(), before.st_size
        with nullcontext() if copy_to is None else open(copy_to, "xb") as target:
            chunks: Iterable[int] = range(-(-left // _CHUNK_BYTES))
            for _ in chunks if target is None else progress(chunks, f"copying {location}"):
                chunk = source.read(min(left, _CHUNK_BYTES))
                digest.update(chunk)
                left -= len(chunk)
                if target is not None:
                    target.write(chunk)
        after = os.fstat(source.fileno())
        if left or source.read(1) or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ArtifactError(f"{location!r} changed while it was read: try again when nothing writes to it")
    return FileDigest(before.st_size, digest.hexdigest())


def files_in(folder: Path) -> Iterator[str]:
    """Yield the path of everything in `folder` that is no folder, links to folders included, in order."""
    found = []

    def refuse(error: OSError) -> None:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [Path(os.path.relpath(os.path.join(parent, name), folder)).as_posix() for name in (*files, *links)]
    yield from sorted(found)


class PrivateCopy:
    """A copy of a model's files in a folder that only this user can write to, removed with `close`.

    What is checked is what is opened: nobody can exchange a file in between. `source` is the path of the model file.
    `digests` holds what was copied, by path relative to the model's folder.
    """

    def __init__(self, model: str | os.PathLike[str]) -> None:
        self.source = as_path("model", model).absolute()
        folder = tempfile.mkdtemp(prefix="modelserve-")
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = Path(folder)
        self.digests: dict[str, FileDigest] = {}

    @property
    def path(self) -> Path:
        """The copy of the model file, with its own name."""
        return self.folder / self.source.name

    def add(self, location: str | None = None) -> FileDigest:
        """Copy a file of the model's folder, the model file itself by default, and return its digest."""
        location = self.source.name if location is None else location
        if location not in self.digests:
            target = self.folder / checked_location(location)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self.digests[location] = digest_file(self.source.parent, location, copy_to=target)
            except OSError as error:
                raise ArtifactError(f"no private copy of {location!r}: {error.strerror or error}") from error
        return self.digests[location]

    def close(self) -> None:
        """Remove the copy."""
        self._remove()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file in which no key stands twice.

    Raises:
        InputError: The file cannot be read, is no regular file, is too large, or is no such JSON.
    """
    path = as_path("path", path)
    try:
        with open_regular(path.parent, path.name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_JSON_BYTES:
                raise InputError(f"{path} has {size:,} bytes; at most {_MOST_JSON_BYTES:,} are read")
            content = file.read(size) or b""
    except ArtifactError as error:
        raise InputError(f"{path.absolute().parent}: {error}") from error
    try:
        return parse_json(content)
    except ValueError as error:
        raise InputError(f"{path} is no JSON document: {error}") from error


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text; ValueError for a key that stands twice, NaN, or too deep nesting."""
    try:
        return json.loads(content, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
