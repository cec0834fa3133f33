"""Counterexamples on disk: inputs of any dtype in one .npz, without pickles."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.domains import is_numpys_own

FOLDER = Path(".modelserve", "counterexamples")
"""Beside the store's default place, in the working directory."""


def save_inputs(inputs: Mapping[str, NDArray[Any]], folder: Path, *, about: tuple[str, ...]) -> Path:
    """The file that now holds `inputs`, written in one step.

    It is called after `about` and after the test that runs, so that the same failure replaces its file: a search under
    hypothesis fails many times before it ends. OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(about)).strip("-").lower()[:60]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    path = folder / f"{words}-{hashlib.sha256('|'.join((*about, test)).encode()).hexdigest()[:8]}.npz"
    described = json.dumps([{"name": name, "dtype": array.dtype.name} for name, array in inputs.items()])
    arrays = {f"input_{index}": _stored(array) for index, array in enumerate(inputs.values())}
    draft = path.with_suffix(f".{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(draft, allow_pickle=False, described=np.array(described), **arrays)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def saved(path: str | os.PathLike[str]) -> Feed:
    """The inputs of a counterexample, by name, as they were saved: for `@example` and for asking once more.

    Raises ArtifactError for a file that cannot be read or that this package did not write.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            described = json.loads(str(file["described"]))
            return {
                entry["name"]: _restored(file[f"input_{index}"], entry["dtype"])
                for index, entry in enumerate(described)
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no saved counterexample: {error}") from error


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind in "OT":
        return array.astype(str)
    return array if is_numpys_own(array.dtype) else array.view(f"u{array.dtype.itemsize}")


def _restored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.name == dtype:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))
