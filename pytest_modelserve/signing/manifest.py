"""Manifests: the files of a folder with their sizes and sha256, written once and compared before use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pytest_modelserve._files import as_path, write_file
from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject
from pytest_modelserve.progress import progress
from pytest_modelserve.signing.untrusted_files import FileDigest, checked_location, digest_file, files_in, read_json

MANIFEST = "modelserve.manifest.json"
"""The name of a manifest inside the folder that it describes."""
VERSION = 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    size: int
    sha256: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=1)]
    algorithm: str
    files: list[_File]
    folder: str = "."


def write_manifest(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the sha256 and the size of every file in a folder, sorted by path, and return the manifest's path.

    Args:
        folder: The folder, with its subfolders.
        path: The manifest (default: `modelserve.manifest.json` in the folder). The manifest does not list itself.

    Returns:
        The path of the manifest.

    Raises:
        ArtifactError: The folder holds a link, a file with a second name, a FIFO or a device, or a file changes while
            it is read; nothing is written then.
        UsageError: The folder does not exist or is empty, or the manifest cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import pytest_modelserve as ms
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "labels.txt").write_text("cat dog")
        >>> ms.write_manifest(folder).name
        'modelserve.manifest.json'
        >>> ms.assert_untampered(folder).passed
        True
    """
    root = _folder(folder)
    target = root / MANIFEST if path is None else as_path("path", path).absolute()
    own = _own_location(root, target)
    names = [name for name in files_in(root) if name != own]
    if not names:
        raise UsageError(f"folder {root} has no files: give the folder of the model")
    files = {name: digest_file(root, name) for name in progress(names, "hashing")}
    entries = [{"path": name, "size": each.size, "sha256": each.sha256} for name, each in sorted(files.items())]
    is_above = root.is_relative_to(target.parent)  # else where it lies says nothing of the folder
    where = root.relative_to(target.parent).as_posix() if is_above else "."
    document = {"version": VERSION, "algorithm": "sha256", "folder": where, "files": entries}
    try:
        write_file(target, [json.dumps(document, indent=1).encode(), b"\n"])
    except OSError as error:
        raise UsageError(f"the manifest {target} cannot be written: {error.strerror or error}") from error
    return target


def read_manifest(path: str | os.PathLike[str]) -> tuple[dict[str, FileDigest], Path]:
    """Return the files that a manifest lists, and the folder that it describes, as seen from where it lies.

    Raises:
        InputError: The file cannot be read or is no manifest of this version, or it lists a path twice, a path outside
            the folder, or another hash algorithm than sha256.
    """
    try:
        document = msgspec.convert(_current(read_json(path), path), _Document)
    except msgspec.ValidationError as error:
        raise InputError(f"{os.fspath(path)} is not a manifest: {error}; write it again with write_manifest") from None
    files: dict[str, FileDigest] = {}
    try:
        folder = "." if document.folder == "." else checked_location(document.folder)
        locations = [str(checked_location(entry.path)) for entry in document.files]
    except InputError as error:
        raise InputError(f"manifest {os.fspath(path)}: {error}") from None
    for location, entry in zip(locations, document.files, strict=True):
        if location in files:
            raise InputError(f"manifest {os.fspath(path)} has two entries for {location!r}: write it again")
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef") or entry.size < 0:
            raise InputError(
                f"manifest {os.fspath(path)}: the entry of {location!r} has no sha256 in 64 digits, or no size"
            )
        files[location] = FileDigest(entry.size, entry.sha256)
    return files, Path(path).absolute().parent / folder


def _current(document: Any, path: str | os.PathLike[str]) -> Any:
    """Return a document of the version and the algorithm that this release reads."""
    if isinstance(document, dict):
        version, algorithm = document.get("version"), document.get("algorithm")
        if type(version) is int and version > VERSION:
            raise InputError(
                f"manifest {os.fspath(path)} has version {version}, and this release reads up to {VERSION}: install a "
                "newer version of pytest-modelserve"
            )
        if isinstance(algorithm, str) and algorithm != "sha256":
            raise InputError(f"manifest {os.fspath(path)} has the algorithm {algorithm!r}: only 'sha256' is accepted")
    return document


def measure_tampering(
    folder: str | os.PathLike[str],
    manifest: str | os.PathLike[str] | None = None,
) -> Evidence:
    """Compare the files of a folder with its manifest. Nothing is estimated, so the verdict is PASS or FAIL.

    A file counts as changed if its size or sha256 is another one, if it is missing, if the manifest does not list it,
    or if it is no regular file with one name: a link, a FIFO, a device. Whoever can write the manifest can hide a
    change: keep it under version control, or sign it.

    Args:
        folder: The folder, with its subfolders.
        manifest: What `write_manifest` wrote (default: `modelserve.manifest.json` in the folder).

    Returns:
        Evidence with the number of changed files and the reason for each.

    Raises:
        UsageError: The folder does not exist.
        InputError: The manifest cannot be read, or is not valid.

    Example:
        `ms.assert_untampered("models/")` fails if a byte of any file changed since `ms.write_manifest("models/")`.
    """
    root = _folder(folder)
    path = root / MANIFEST if manifest is None else as_path("manifest", manifest).absolute()
    digest = digest_file(path.parent, path.name).sha256 if os.path.exists(path) else None
    expected, _ = read_manifest(path)
    own = _own_location(root, path)
    present = [name for name in files_in(root) if name != own]
    changes = [f"{name!r} is missing" for name in sorted(expected.keys() - set(present))]
    for name in progress(present, "hashing"):
        if name not in expected:
            changes.append(f"{name!r} is not in the manifest")
        elif (change := _change(root, name, expected[name])) is not None:
            changes.append(change)
    return Evidence(
        gate="tampering",
        subject=Subject(root.name, sha256=digest),
        quantities=(Quantity("changed files", len(changes), "count", budget=Budget("at_most", 0)),),
        n=len(expected),
        n_unit="files",
        method=Method("sha256 of every file", assumptions="the manifest itself is authentic"),
        summary="files differ from the manifest" if changes else "every file is as in the manifest",
        findings=tuple(changes),
        advice="take the files from where the manifest was made; do not load them" if changes else "",
        details={"manifest": str(path)},
    )


def _change(root: Path, name: str, expected: FileDigest) -> str | None:
    """Return how a file differs from its entry; None if it does not."""
    try:
        return difference(name, digest_file(root, name), expected)
    except ArtifactError as error:
        return str(error)


def difference(name: str, found: FileDigest, expected: FileDigest) -> str | None:
    """Return how a file differs from its entry in a manifest; None if it does not."""
    if found.size != expected.size:
        return f"{name!r} has {found.size:,} bytes, and {expected.size:,} in the manifest"
    if found.sha256 != expected.sha256:
        return f"{name!r} has sha256 {found.sha256[:12]}…, and {expected.sha256[:12]}… in the manifest"
    return None


def locations_in(manifest: Path, model: Path) -> tuple[Mapping[str, FileDigest], str]:
    """Return the files of a manifest, and the prefix of the paths of the model's folder in it.

    Paths are relative to the folder that the manifest describes if the model lies there, else to that of the model.
    """
    files, root = read_manifest(manifest)
    folder = model.absolute().parent
    prefix = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else "."
    return files, "" if prefix == "." else f"{prefix}/"


def _folder(folder: str | os.PathLike[str]) -> Path:
    root = as_path("folder", folder).absolute()
    if not os.path.isdir(root):
        what = "a file: give the folder that holds it" if os.path.exists(root) else "missing"
        raise UsageError(f"folder {root} is {what}")
    return root


def _own_location(root: Path, manifest: Path) -> str | None:
    """Return the path of the manifest inside the folder, or None if it lies outside."""
    return manifest.relative_to(root).as_posix() if manifest.is_relative_to(root) else None
