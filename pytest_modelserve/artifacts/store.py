"""Content-addressed cache on disk: each result is built once, by one process, and appears atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_modelserve._files import disk_full_error, flush_file, write_file
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.progress import progress

_log = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
# Interval at which a waiting process checks the lock; a build takes from a tenth of a second to minutes.
_POLL_S = 0.05
# An entry that was used in this time may be open in another process.
_IN_USE_S = 3600.0

# A checkpoint that was not written in this time belongs to a training that nobody continues.
_CHECKPOINT_S = 30 * 86400.0

# Lock files of the enclosing builds: a build that requests its own key would wait forever.
_held: ContextVar[tuple[Path, ...]] = ContextVar("_held", default=())


def _limit_bytes() -> int:
    text = os.environ.get("MODELSERVE_CACHE_GB", "10")
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UsageError(f"MODELSERVE_CACHE_GB must be a positive number of gigabytes; got {text!r}")
    return int(limit * 1e9)


@dataclass(frozen=True, slots=True)
class Store:
    """Cache of finished results under `root`, each in a folder named by its key.

    ```
    root/.gitignore                     "*", so that the cache is not committed
    root/entries/<key>/files/           the result; `get_or_build` returns this folder
    root/entries/<key>/manifest.json    size and sha256 of every file
    root/building/<key>.<random>/       a build in progress, or the leftover of a killed one
    root/checkpoints/<key>.ckpt         the state of an unfinished training
    root/locks/<key>.lock               held by the process that builds the key
    ```
    An entry appears by one rename after its files and manifest were flushed, so a kill leaves it complete or absent.
    Nothing is created before the first build. A relative `root` is resolved when the Store is created. After a build
    the least recently used entries beyond `limit_bytes` (default: the gigabytes of MODELSERVE_CACHE_GB, or 10) are
    deleted, but none that was used within the last hour.
    """

    root: Path
    limit_bytes: int = field(default_factory=_limit_bytes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())

    def get_or_build(self, key: str, build: Callable[[Path], None], *, what: str) -> Path:
        """Return the folder of the entry `key`, built first if it is missing or damaged.

        Of several processes one builds and the others wait, with a progress bar on a terminal. If the builder is
        killed, another one builds. On a hit every file is checked against the manifest. Exceptions of `build` pass
        through and leave nothing behind.

        Args:
            key: The `digest_of` everything that the result depends on.
            build: Fills an empty folder with the result.
            what: Name of the result, for messages.

        Raises:
            ArtifactError: The disk is full, also inside `build`, or `root` cannot be written.
            UsageError: An invalid key, or a build that requests its own key.
        """
        if not _KEY.fullmatch(key):
            raise UsageError(f"key {key!r} is not a sha256 in lower-case hex: make keys with digest_of(...)")
        entry = self.root / "entries" / key
        if not _is_complete(entry):
            with self._locked(key, what):
                if not _is_complete(entry):
                    self._build(key, build, what)
                    self._evict()
        with suppress(OSError):  # a cache that others may only read
            os.utime(entry)
        return entry / "files"

    def has(self, key: str) -> bool:
        """Return True if the entry `key` exists and is not damaged."""
        return _is_complete(self.root / "entries" / key)

    def checkpoint_path(self, key: str) -> Path:
        """Return the path of the state of an unfinished build of `key`.

        It is deleted when the entry is complete, or when it was not written for 30 days.
        """
        return self.root / "checkpoints" / f"{key}.ckpt"

    def entries(self) -> list[Entry]:
        """Return the entries, the least recently used first."""
        found = []
        for path in (self.root / "entries").glob("*"):
            with suppress(OSError, ValueError):  # deleted by another process, or damaged
                manifest = json.loads((path / "manifest.json").read_bytes())
                size = sum(int(file["bytes"]) for file in manifest["files"].values())
                found.append(Entry(path, manifest["what"], size, path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used_at)

    def clean(self) -> list[Entry]:
        """Delete all entries, also damaged ones, and checkpoints; return the entries that were complete.

        A build in progress continues, and keeps its checkpoint.
        """
        found = self.entries()
        for path in (self.root / "entries").glob("*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.root / "checkpoints").glob("*"):
            with suppress(Timeout), self._lock(_key_of(path)).acquire(timeout=0):
                path.unlink(missing_ok=True)
        return found

    def _evict(self) -> None:
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self.limit_bytes
        for entry in entries:
            if excess <= 0 or time.time() - entry.used_at < _IN_USE_S:
                return
            shutil.rmtree(entry.path, ignore_errors=True)
            _log.info(
                "deleted %s from the cache, %d bytes, last used %.0f s ago",
                entry.what,
                entry.size,
                time.time() - entry.used_at,
            )
            excess -= entry.size

    def _build(self, key: str, build: Callable[[Path], None], what: str) -> None:
        work = self.root / "building" / f"{key}.{secrets.token_hex(4)}"
        try:
            with self._write_errors():
                self._remove_leftovers(key)
                (work / "files").mkdir(parents=True)
            try:
                build(work / "files")
            except Exception as error:
                if full := disk_full_error(error):
                    raise self._write_error(full) from error
                raise
            with self._write_errors():
                _finish(work, self.root / "entries" / key, what)
                self.checkpoint_path(key).unlink(missing_ok=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _remove_leftovers(self, key: str) -> None:
        """Delete leftovers of killed builds: of this key, and of every key whose lock is free.

        Checkpoints stay, unless they are old; what was being written beside them goes.
        """
        for leftover in (self.root / "building").iterdir():
            other = leftover.name.partition(".")[0]
            if other == key:
                shutil.rmtree(leftover, ignore_errors=True)
                continue
            with suppress(Timeout), self._lock(other).acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        for path in (self.root / "checkpoints").glob("*"):
            is_part = path.suffix == ".tmp" and _key_of(path) == key
            with suppress(OSError):
                if is_part or time.time() - path.stat().st_mtime > _CHECKPOINT_S:
                    path.unlink()

    @contextmanager
    def _locked(self, key: str, what: str) -> Iterator[None]:
        """Wait for the lock of `key` and hold it."""
        lock = self._lock(key)
        path = Path(lock.lock_file)
        if path in _held.get():
            raise UsageError(f"the build of {what} requests its own key from the store")
        with self._write_errors():
            for folder in ("entries", "building", "locks"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), open(self.root / ".gitignore", "x", encoding="utf-8") as ignore:
                ignore.write("*\n")
            _acquire(lock, what)
        token = _held.set((*_held.get(), path))
        try:
            yield
        finally:
            _held.reset(token)
            lock.release()

    def _lock(self, key: str) -> FileLock:
        return FileLock(self.root / "locks" / f"{key}.lock")

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"the cache folder {self.root} cannot be written: {error}. "
            "Free space or grant permission there, or choose another folder with --modelserve-cache"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One result in the cache: its folder, its name, its size in bytes, and when it was last used."""

    path: Path
    what: str
    size: int
    used_at: float


def _key_of(path: Path) -> str:
    """Return the key of a checkpoint, or of the hidden file that is being written beside it."""
    return path.name.removeprefix(".").partition(".")[0]


def _acquire(lock: FileLock, what: str) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=0)
        return
    _log.info("waiting for another process that builds %s", what)
    for _ in progress(_attempts(lock), f"another process builds {what}"):
        time.sleep(_POLL_S)


def _attempts(lock: FileLock) -> Iterator[None]:
    """Yield for every attempt that found the lock taken; end once it is acquired."""
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield
        else:
            return


def _finish(work: Path, entry: Path, what: str) -> None:
    """Turn the folder of a build into an entry: flush everything, then one rename."""
    files = _describe(work / "files")
    if not files:
        raise ArtifactError(f"the build of {what} ended without writing a file")
    for name in files:
        flush_file(work / "files" / name)
    write_file(work / "manifest.json", [json.dumps({"what": what, "files": files}, indent=1).encode()])
    if entry.exists():
        # It is damaged, or it would have been a hit. It is moved away first, because a rename needs a free target; a
        # kill between the two renames leaves no entry.
        damaged = work.with_name(f"{work.name}.damaged")
        os.replace(entry, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    os.replace(work, entry)


def _is_complete(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / "manifest.json").read_bytes())
        return bool(manifest["files"] == _describe(entry / "files"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return size and sha256 of every file below `folder` by relative path."""
    described: dict[str, dict[str, str | int]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            described[path.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": path.stat().st_size}
    return described


def default_store() -> Store:
    """Return the store in the folder that MODELSERVE_CACHE names, by default `.modelserve/cache`."""
    return Store(Path(os.environ.get("MODELSERVE_CACHE", ".modelserve/cache")))


def as_store(store: Store | Path | str | None) -> Store:
    """Return `store` itself, that of a folder, or the default one for None; UsageError for anything else."""
    if isinstance(store, Store) or store is None:
        return store or default_store()
    if isinstance(store, (str, os.PathLike)):
        return Store(Path(store))
    raise UsageError(f"store must be a Store or the path of its folder; got {type(store).__name__}")
