"""Recordings as one .npz file, for requests of any shape and dtype.

Members are named `0/inputs/x`, `0/outputs/y`, `1/inputs/x` and so on; `0/inputs` is a request of one array without a
name. A file with `inputs/x` and `outputs/y`, as `np.savez` writes it by hand, is one request. The member `recording`
holds JSON: the schema version, the recorded model, and the dtypes that numpy's format does not know (bfloat16).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._files import new_file
from pytest_modelserve.errors import ArtifactError, ModelServeError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.parity.recordings.exchange import Exchange, StoredExchanges
from pytest_modelserve.parity.recordings.redaction import Redaction

_METADATA = "recording"
_SCHEMA, _REDACTED_SCHEMA = 1, 2
"""2 if inputs are missing: earlier releases would replay the rest."""
_MEMBER = re.compile(r"(?:(?P<index>\d+)/)?(?P<side>inputs|outputs)(?:/(?P<name>.*))?", re.DOTALL)
_RAW = {1: np.uint8, 2: np.uint16}


def write_npz(path: Path, exchanges: Iterable[Exchange], model: Subject) -> None:
    """Write `exchanges`, taken one by one, in one atomic step; equal content gives equal bytes.

    What the setting `modelserve_redact` names is left out or hashed.
    """
    redacted: dict[str, str] = {}
    dtypes: dict[str, str] = {}
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, exchange in enumerate(Redaction.of().exchanges(exchanges)):
            redacted |= exchange.redacted
            for member, array in _members(index, exchange):
                _write(archive, member, _storable(member, array, dtypes))
        about: dict[str, Any] = {
            "schema": _SCHEMA,
            "name": model.name,
            "variant": model.variant,
            "sha256": model.sha256,
        }
        about |= {"schema": _REDACTED_SCHEMA, "redacted": redacted} if redacted else {}
        _write(archive, _METADATA, np.array(json.dumps({**about, "dtypes": dtypes})))


@dataclass(frozen=True, slots=True)
class NpzExchanges(StoredExchanges):
    """The exchanges of an .npz file; `model` is the recorded model, None if the file does not name it."""

    path: Path
    members: tuple[tuple[str, ...], ...]
    dtypes: Mapping[str, str]
    model: Subject | None = None
    redacted: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, *, sides: Iterable[str] = ("inputs", "outputs")) -> NpzExchanges:
        """Open the file at `path`, whose requests must have `sides`; ArtifactError if it is damaged or another file."""
        with _open(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            about = json.loads(str(_read(archive, _METADATA))) if _METADATA in names else {}
        if about.get("schema", _SCHEMA) not in (_SCHEMA, _REDACTED_SCHEMA):
            raise ArtifactError(
                f"cannot read the recording {path}: it has schema {about['schema']}; this release reads {_SCHEMA} and "
                f"{_REDACTED_SCHEMA}"
            )
        members: dict[int, list[str]] = {}
        for name in names:
            if name != _METADATA:
                members.setdefault(_index(path, name), []).append(name)
        for index in range(len(members)):
            missing = set(sides) - {_part(name, "side") for name in members.get(index, ())}
            if missing:
                raise ArtifactError(
                    f"cannot read the recording {path}: request {index} has no {' and '.join(sorted(missing))}"
                )
        model = Subject(about["name"], about["variant"], about["sha256"]) if about else None
        return cls(
            path,
            tuple(tuple(members[index]) for index in sorted(members)),
            about.get("dtypes", {}),
            model,
            about.get("redacted", {}),
        )

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> Exchange:
        """Return the exchange at `index`."""
        sides: dict[str, dict[str, NDArray[Any]]] = {"inputs": {}, "outputs": {}}
        members = self.members[index]
        with _open(self.path) as archive:
            for member in members:
                sides[_part(member, "side")][_part(member, "name")] = self._array(archive, member)
        inputs = sides["inputs"]
        return Exchange(inputs[""] if list(inputs) == [""] else inputs, sides["outputs"], self.redacted)

    def _array(self, archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
        array = _read(archive, member)
        if member in self.dtypes:
            import ml_dtypes

            return array.view(np.dtype(getattr(ml_dtypes, self.dtypes[member], None)))
        return array.astype(object) if array.dtype.kind == "U" else array


def _members(index: int, exchange: Exchange) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(exchange.inputs, Mapping):
        for name, array in exchange.inputs.items():
            yield f"{index}/inputs/{name}", array
    else:
        yield f"{index}/inputs", exchange.inputs
    for name, array in exchange.outputs.items():
        yield f"{index}/outputs/{name}", array


def _storable(member: str, array: NDArray[Any], dtypes: dict[str, str]) -> NDArray[Any]:
    if array.dtype.kind in "OUT":
        return array.astype(np.str_)
    if array.dtype.isbuiltin == 2:  # of ml_dtypes: stored as bytes
        dtypes[member] = array.dtype.name
        return np.ascontiguousarray(array).view(_RAW[array.dtype.itemsize]).reshape(array.shape)
    return array


def _write(archive: zipfile.ZipFile, member: str, array: NDArray[Any]) -> None:
    # A new ZipInfo has a fixed date: equal outputs give the same file.
    with archive.open(zipfile.ZipInfo(f"{member}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive at `path`; any error in it becomes an ArtifactError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        if isinstance(error, ModelServeError):
            raise
        raise ArtifactError(
            f"cannot read the recording {path}: it is truncated, damaged or no .npz file ({error})"
        ) from error


def _read(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(f"{member}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _index(path: Path, member: str) -> int:
    match = _MEMBER.fullmatch(member)
    if match is None:
        raise ArtifactError(
            f"cannot read the recording {path}: unknown member {member!r}; members are called 'inputs/...' and "
            "'outputs/...', preceded by '0/', '1/' and so on for several requests"
        )
    return int(match["index"] or 0)


def _part(member: str, group: str) -> str:
    match = _MEMBER.fullmatch(member)
    return "" if match is None else match[group] or ""
