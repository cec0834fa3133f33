"""Trial of a checkpoint in the sandbox: loaded by torch with `weights_only=True`. This module runs there alone."""

from __future__ import annotations

import collections
import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any

try:
    import torch
except ImportError:  # then the static rules have to do
    torch = None  # type: ignore[assignment]


def _load(file: Any) -> None:
    torch.load(file, map_location="cpu", weights_only=True)


def _load_once() -> None:
    """Load a small checkpoint in each format, so that what loading imports is there before the file system is shut."""
    for is_zip in (True, False):
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = {"dense": torch.zeros(2), "sparse": torch.eye(2).to_sparse()}
            torch.save(collections.OrderedDict(tensors), buffer, _use_new_zipfile_serialization=is_zip)
            buffer.seek(0)
            _load(buffer)


if torch is not None:
    _load_once()


def try_checkpoint(request: Mapping[str, Any], report: Callable[[Any], None]) -> dict[str, Any]:
    """Load the checkpoint at `request["path"]` without code of its own; return the reason if that is not possible."""
    if torch is None:
        return {"not_run": "torch is not installed: pip install 'pytest-modelserve[torch]'"}
    report("loading")
    try:
        _load(request["path"])
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise
        # A harmless global or opcode beyond what torch allows by default: a path, a date, an array of numpy.
        reason = next(line for line in str(error).splitlines() if "Unsupported" in line)
        return {"not_run": f"torch does not load it as weights alone: {reason.strip()}"}
    return {"not_run": ""}
