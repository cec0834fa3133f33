"""A folder of finished results: each built once, by one process, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_modelserve._files import disk_full_error, flush_file, write_file
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.progress import progress

_log = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
# A waiting process asks this often whether the builder is done; a build takes from a tenth of a second to minutes.
_POLL_S = 0.05

# Lock files of the builds around this one: a build that asks for itself would wait for itself for ever.
_held: ContextVar[tuple[Path, ...]] = ContextVar("_held", default=())


@dataclass(frozen=True, slots=True)
class Store:
    """Finished results under `root`, each in a folder named by its key.

    ```
    root/.gitignore                     "*": nobody commits a cache by accident
    root/entries/<key>/files/           what the builder wrote; this folder is what `get_or_build` returns
    root/entries/<key>/manifest.json    size and sha256 of every file
    root/building/<key>.<random>/       a build in progress, or what a kill left of one
    root/locks/<key>.lock               held by the one process that builds the key
    ```
    An entry appears by one rename, after its files and its manifest are on the disk, so a kill at any point leaves it
    whole or absent. Nothing is created before the first build. A relative `root` is taken from the working directory
    of the moment when the Store is made.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())

    def get_or_build(self, key: str, build: Callable[[Path], None], *, what: str) -> Path:
        """The folder of the finished entry `key`; `build` fills an empty folder for it where there is none yet.

        `key` is a `digest_of` everything that the result depends on; `what` names the result for a person who waits.
        Of several processes that ask at once one builds and the others wait (with a bar on a terminal); should the
        builder die, one of the waiting takes over. On a hit every file is checked against the manifest, and a damaged
        entry is built again. What `build` raises passes through and leaves nothing behind; but a disk that is full,
        also inside `build`, and a root that cannot be written are an ArtifactError that names the folder.
        """
        if not _KEY.fullmatch(key):
            raise UsageError(f"store key {key!r} is not a sha256 in lower-case hex: make keys with digest_of(...)")
        entry = self.root / "entries" / key
        if not _is_whole(entry):
            with self._alone_with(key, what):
                if not _is_whole(entry):
                    self._build(key, build, what)
        return entry / "files"

    def _build(self, key: str, build: Callable[[Path], None], what: str) -> None:
        work = self.root / "building" / f"{key}.{secrets.token_hex(4)}"
        try:
            with self._trouble_told():
                self._remove_leftovers(key)
                (work / "files").mkdir(parents=True)
            try:
                build(work / "files")
            except Exception as error:
                if full := disk_full_error(error):
                    raise self._trouble(full) from error
                raise
            with self._trouble_told():
                _finish(work, self.root / "entries" / key, what)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _remove_leftovers(self, key: str) -> None:
        """Delete what killed builders left: of this key, and of every key whose lock nobody holds."""
        for leftover in (self.root / "building").iterdir():
            other = leftover.name.partition(".")[0]
            if other == key:
                shutil.rmtree(leftover, ignore_errors=True)
                continue
            with suppress(Timeout), self._lock(other).acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def _alone_with(self, key: str, what: str) -> Iterator[None]:
        """Hold the lock of `key`, having waited for whoever held it."""
        lock = self._lock(key)
        path = Path(lock.lock_file)
        if path in _held.get():
            raise UsageError(f"the build of {what} asks the store for itself")
        with self._trouble_told():
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
    def _trouble_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._trouble(error) from error

    def _trouble(self, error: OSError) -> ArtifactError:
        return ArtifactError(
            f"the cache folder {self.root} cannot be written: {error}. "
            "Make room or permission there, or choose another folder with --modelserve-cache"
        )


def _acquire(lock: FileLock, what: str) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=0)
        return
    _log.info("waiting for another process that builds %s", what)
    for _ in progress(_attempts(lock), f"another process builds {what}"):
        time.sleep(_POLL_S)


def _attempts(lock: FileLock) -> Iterator[None]:
    """Yield once for every attempt that found the lock held; end when it is ours."""
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield
        else:
            return


def _finish(work: Path, entry: Path, what: str) -> None:
    """Turn the folder of a build into an entry: everything onto the disk, then one rename."""
    files = _describe(work / "files")
    if not files:
        raise ArtifactError(f"the build of {what} ended without writing a file")
    for name in files:
        flush_file(work / "files" / name)
    write_file(work / "manifest.json", [json.dumps({"what": what, "files": files}, indent=1).encode()])
    if entry.exists():
        # It is damaged, or it would have been a hit. It goes first, as a rename needs an empty place: a kill between
        # the two renames leaves no entry, which every caller can deal with.
        damaged = work.with_name(f"{work.name}.damaged")
        os.replace(entry, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    os.replace(work, entry)


def _is_whole(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / "manifest.json").read_bytes())
        return bool(manifest["files"] == _describe(entry / "files"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe(folder: Path) -> dict[str, dict[str, str | int]]:
    """Size and sha256 of every file below `folder`, by its relative name."""
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
