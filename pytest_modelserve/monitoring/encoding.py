"""Images, texts and whatever else is no column: embeddings of them, made by a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Predictor, named_outputs

Encoder = Predictor | Callable[[Any], Any]
"""A served model, or a callable, that takes a batch and returns one row of numbers for each of its items."""


def encoded(items: NDArray[Any] | Sequence[Any], encoder: Encoder, *, batch_size: int = 256) -> dict[str, NDArray[Any]]:
    """The embeddings (n, d) of `items` by output name: data for `reference_profile` and every gate on data.

    `items` is an array (n, ...), of images say, or a sequence, of texts say; the encoder gets `batch_size` of them at a
    time, as a slice. It returns an array (rows, d), or (rows,) for one number each, or several such by name; without
    a name it is called "output". With a bar on a terminal where it takes long.

    Use the same encoder for the profile and for what is held against it: another one is another distribution.

    Raises InputError for no items and for an output of another shape; what the encoder raises passes through.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is a number of items, at least 1, not {batch_size}")
    if not len(items):
        raise InputError("there are no items to encode")
    parts: dict[str, list[NDArray[Any]]] = {}
    starts = range(0, len(items), batch_size)
    for start in progress(starts, "encoding", total=len(starts)):
        batch = items[start : start + batch_size]
        for name, rows in _encoded(encoder, batch).items():
            parts.setdefault(name, []).append(rows)
    for name, rows_of in parts.items():
        if len(rows_of) < len(starts):
            raise InputError(f"the encoder gave {name!r} for some batches and not for others")
    return {name: np.concatenate(rows_of) for name, rows_of in parts.items()}


def _encoded(encoder: Encoder, batch: Any) -> dict[str, NDArray[Any]]:
    outputs = encoder.predict(batch) if isinstance(encoder, Predictor) else named_outputs(encoder(batch))
    found = {name: np.asarray(values) for name, values in outputs.items()}
    for name, values in found.items():
        if values.ndim not in (1, 2) or len(values) != len(batch):
            raise InputError(
                f"the encoder gave {name!r} of the shape {values.shape} for {len(batch)} items: an embedding has the "
                "shape (items, numbers); average what has more axes"
            )
    return found
