"""The user's calibration data: checked, digested and handed out batch by batch, without ever lying in memory whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, digest_of
from pytest_modelserve.compression.recipe import Inputs
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError
from pytest_modelserve.serving.inputs import checked_feed

Batch = NDArray[Any] | Mapping[str, NDArray[Any]]
Given = Batch | Iterable[Batch]

# Rows of one array that run at a time: enough to keep a processor busy, few enough for the activations of all layers.
_ROWS_AT_A_TIME = 32


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Batches that fit a model; `digest` covers their values and how they are cut."""

    digest: str
    source: tuple[Inputs, ...] | Path

    def batches(self) -> Iterator[Inputs]:
        """Every batch, from the first on."""
        if isinstance(self.source, Path):
            return (_read(folder) for folder in sorted(self.source.iterdir()))
        return iter(self.source)


@contextmanager
def calibration_of(given: Given, signature: Signature, *, what: str = "calibration=") -> Iterator[Calibration]:
    """`given` as batches that `signature` takes, usable inside the block.

    One array or mapping is cut into batches of 32 rows where the first axis of all inputs is one free axis. Of an
    iterable each batch stays as it is. One that is neither a list nor a tuple is read once, one batch at a time, into a
    temporary folder: it may be a generator, or a loader that shuffles and would give other batches the second time.

    RecipeError that calls the argument `what`, for no rows, NaN or infinite values, and batches that the model does not
    take; ArtifactError where the temporary folder is full.
    """
    if isinstance(given, (np.ndarray, Mapping)):
        yield _in_memory(_cut(_checked(given, signature, what), signature), what)
    elif isinstance(given, (list, tuple)):
        yield _in_memory(_checked_batches(given, signature, what), what)
    elif isinstance(given, Iterable):
        with TemporaryDirectory(prefix="modelserve-calibration-") as folder:
            yield _spooled(_checked_batches(given, signature, what), Path(folder), what)
    else:
        raise RecipeError(
            f"{what} is a {type(given).__name__}: give an array, a mapping from input names to arrays, or an "
            "iterable of such batches"
        )


def _in_memory(batches: Iterable[Inputs], what: str) -> Calibration:
    kept = tuple(batches)
    return Calibration(_digest((digest_of(batch) for batch in kept), what), kept)


def _spooled(batches: Iterable[Inputs], folder: Path, what: str) -> Calibration:
    digests = []
    for number, batch in enumerate(batches):
        try:
            _write(batch, folder / f"{number:09d}")
        except OSError as error:
            reason = error.strerror or f"the disk is full ({error})"  # numpy raises a bare OSError over half an array
            raise ArtifactError(
                f"batch {number} of {what} cannot be written to {folder}: {reason}. What comes "
                "from a generator is kept there meanwhile: set TMPDIR to a folder with more room, or give a list"
            ) from error
        digests.append(digest_of(batch))
    return Calibration(_digest(digests, what), folder)


def _write(batch: Inputs, folder: Path) -> None:
    folder.mkdir()
    for place, (name, array) in enumerate(batch.items()):
        np.save(folder / f"{place}.npy", array, allow_pickle=False)
        (folder / f"{place}.name").write_text(name, encoding="utf-8")


def _read(folder: Path) -> Inputs:
    return {
        path.with_suffix(".name").read_text(encoding="utf-8"): np.load(path, allow_pickle=False)
        for path in folder.glob("*.npy")
    }


def _digest(digests: Iterable[str], what: str) -> str:
    every = tuple(digests)
    if not every:
        raise RecipeError(f"{what} holds no batch: give rows like those that the model will serve")
    return digest_of(every)


def _checked_batches(given: Iterable[Batch], signature: Signature, what: str) -> Iterator[Inputs]:
    for number, batch in enumerate(given):
        yield _checked(batch, signature, f"batch {number} of {what}")


def _checked(batch: object, signature: Signature, where: str) -> Inputs:
    try:
        feed = checked_feed(batch, signature)
    except InputError as error:
        raise RecipeError(f"{where} does not fit the model: {error}") from error
    for name, array in feed.items():
        if array.size == 0:
            raise RecipeError(f"{where} is empty: input {name!r} has shape {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise RecipeError(
                f"{where} holds {array[first]} at {list(first)} of input {name!r}: leave such rows out, as no range of "
                "values holds them"
            )
    return feed


def _cut(feed: Inputs, signature: Signature) -> Iterator[Inputs]:
    """`feed` in batches of rows if the first axis of every input is one and the same free axis, else as it is."""
    first = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    rows = {len(array) if array.ndim else 0 for array in feed.values()}
    if len(first) > 1 or len(rows) > 1 or not isinstance(next(iter(first)), str):
        yield feed
        return
    for start in range(0, rows.pop(), _ROWS_AT_A_TIME):
        yield {name: array[start : start + _ROWS_AT_A_TIME] for name, array in feed.items()}
