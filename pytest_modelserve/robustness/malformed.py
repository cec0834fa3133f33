"""Inputs that a model has to refuse: each is right but for one fault, which is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.robustness.nested import is_item, is_told
from pytest_modelserve.robustness.sources import Drawn, InputSource


def faults_of(source: InputSource) -> tuple[str, ...]:
    """What can be wrong with inputs of this signature: "input 'x': dtype", and so on, always in the same order."""
    return tuple(fault for fault, _ in _faulty(source, source.at()))


def malformed(source: InputSource, fault: str, seed: int = 0) -> Drawn:
    """Inputs with this fault, which is also their `fault`, around those that `seed` draws."""
    good = source.at(rows=2, edits=2, seed=seed)
    bad = Drawn(next(feed for name, feed in _faulty(source, good) if name == fault))
    bad.source, bad.space, bad.rows, bad.origin, bad.seed = source, good.space, good.rows, good.origin, seed
    bad.fault, bad.call = fault, f"BAD.at({fault!r}, seed={seed})"
    return bad


def _faulty(source: InputSource, good: Drawn) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    for spec in source.specs:
        if is_item(spec, source.specs):
            continue
        array = good[spec.name]
        said = f"input {spec.name!r}: "
        yield f"{said}missing", {name: value for name, value in good.items() if name != spec.name}
        yield f"{said}another name", {(f"{k}_" if k == spec.name else k): value for k, value in good.items()}
        yield f"{said}dtype", {**good, spec.name: _other_dtype(array)}
        if is_told(spec, source.specs):
            continue
        if spec.shape is not None:
            yield f"{said}one axis more", {**good, spec.name: array[np.newaxis]}
            if array.ndim:
                yield f"{said}one axis less", {**good, spec.name: np.zeros(array.shape[1:], array.dtype)}
        for axis in _fixed_axes(spec):
            yield f"{said}axis {axis} longer", {**good, spec.name: np.concatenate([array, array], axis=axis)}
    yield "an input more", {**good, "unheard_of": np.zeros((1,), np.float32)}


def _fixed_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, dim in enumerate(spec.shape or ()) if isinstance(dim, int) and dim > 0]


def _other_dtype(array: NDArray[Any]) -> NDArray[Any]:
    """A dtype that nobody casts in passing: what looks alike is the mistake that is made."""
    if array.dtype.kind == "O":
        return np.zeros(array.shape, np.float32)
    return array.astype(np.float32 if array.dtype == np.float64 else np.float64)
