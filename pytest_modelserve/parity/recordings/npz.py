"""Recordings as one .npz file: any number of requests of any shapes, every dtype that a model takes or gives.

Members are `0/inputs/x`, `0/outputs/y`, `1/inputs/x` and so on, `0/inputs` for a request that is one array without a
name. A file with `inputs/x` and `outputs/y`, as `np.savez` writes it by hand, is one request. The member `recording`
holds JSON: the schema version, the model that answered, and the dtypes that numpy's format does not know (bfloat16).
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._files import new_file
from pytest_modelserve.errors import ArtifactError, ModelServeError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.parity.recordings.exchange import Exchange, StoredExchanges

_ABOUT = "recording"
_SCHEMA = 1
_MEMBER = re.compile(r"(?:(?P<place>\d+)/)?(?P<side>inputs|outputs)(?:/(?P<name>.*))?", re.DOTALL)
_RAW = {1: np.uint8, 2: np.uint16}


def write_npz(path: Path, exchanges: Iterable[Exchange], subject: Subject) -> None:
    """Write `exchanges`, taken one by one, in one atomic step; the same content gives the same bytes."""
    dtypes: dict[str, str] = {}
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, exchange in enumerate(exchanges):
            for member, array in _members(index, exchange):
                _write(archive, member, _storable(member, array, dtypes))
        about = {"schema": _SCHEMA, "name": subject.name, "variant": subject.variant, "sha256": subject.sha256}
        _write(archive, _ABOUT, np.array(json.dumps({**about, "dtypes": dtypes})))


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
    if array.dtype.isbuiltin != 1:  # of ml_dtypes: kept as bytes
        dtypes[member] = array.dtype.name
        return np.ascontiguousarray(array).view(_RAW[array.dtype.itemsize]).reshape(array.shape)
    return array


def _write(archive: zipfile.ZipFile, member: str, array: NDArray[Any]) -> None:
    # A ZipInfo of its own has a fixed date: the same answers are the same file.
    with archive.open(zipfile.ZipInfo(f"{member}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


@dataclass(frozen=True, slots=True)
class NpzExchanges(StoredExchanges):
    """The exchanges of a file, each read when it is asked for."""

    path: Path
    members: tuple[tuple[str, ...], ...]
    dtypes: Mapping[str, str]
    answered_by: Subject | None = None

    @classmethod
    def of(cls, path: Path) -> NpzExchanges:
        """Those of the file at `path`; ArtifactError where it is damaged, or holds something else."""
        with _reading(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            about = json.loads(str(_read(archive, _ABOUT))) if _ABOUT in names else {}
        if about.get("schema", _SCHEMA) != _SCHEMA:
            raise ArtifactError(
                f"cannot read the recording {path}: it has schema {about['schema']}; this release reads {_SCHEMA}"
            )
        members: dict[int, list[str]] = {}
        for name in names:
            if name != _ABOUT:
                members.setdefault(_place(path, name), []).append(name)
        for index in range(len(members)):
            sides = {_side(name) for name in members.get(index, ())}
            if sides != {"inputs", "outputs"}:
                missing = " and ".join(sorted({"inputs", "outputs"} - sides))
                raise ArtifactError(f"cannot read the recording {path}: request {index} has no {missing}")
        subject = Subject(about["name"], about["variant"], about["sha256"]) if about else None
        return cls(path, tuple(tuple(members[index]) for index in sorted(members)), about.get("dtypes", {}), subject)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> Exchange:
        """The exchange at `index`; ArtifactError for a file that was damaged meanwhile."""
        sides: dict[str, dict[str, NDArray[Any]]] = {"inputs": {}, "outputs": {}}
        with _reading(self.path) as archive:
            for member in self.members[index]:
                sides[_side(member)][_name(member)] = self._array(archive, member)
        inputs = sides["inputs"]
        return Exchange(inputs[""] if list(inputs) == [""] else inputs, sides["outputs"])

    def _array(self, archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
        array = _read(archive, member)
        if member in self.dtypes:
            import ml_dtypes

            return array.view(np.dtype(getattr(ml_dtypes, self.dtypes[member], None)))
        return array.astype(object) if array.dtype.kind == "U" else array


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`; whatever is wrong with it is an ArtifactError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError, OSError) as error:
        if isinstance(error, ModelServeError):
            raise
        raise ArtifactError(
            f"cannot read the recording {path}: it is cut short, damaged or no .npz file ({error})"
        ) from error


def _read(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(f"{member}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _place(path: Path, member: str) -> int:
    match = _MEMBER.fullmatch(member)
    if match is None:
        raise ArtifactError(
            f"cannot read the recording {path}: it holds {member!r}, where members are called 'inputs/...' and "
            "'outputs/...', with '0/', '1/' and so on before them for several requests"
        )
    return int(match["place"] or 0)


def _side(member: str) -> str:
    match = _MEMBER.fullmatch(member)
    return "" if match is None else match["side"]


def _name(member: str) -> str:
    match = _MEMBER.fullmatch(member)
    return "" if match is None else match["name"] or ""
