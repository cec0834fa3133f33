"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_modelserve.artifacts.durable import flush_file
from pytest_modelserve.errors import ArtifactError, UsageError


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
