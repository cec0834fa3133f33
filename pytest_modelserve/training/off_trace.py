"""Whether an exported model answers like its module at sizes and on rows that the exporter never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import BakedAxisError, ExportError, ModelServeError
from pytest_modelserve.serving import Predictor
from pytest_modelserve.training.agreeing import Outputs, Probe, check_agreement, where_free
from pytest_modelserve.training.breaking_rows import Kind, breaking_rows
from pytest_modelserve.training.tracing import Tracing

Feed = Mapping[str, NDArray[Any]]

_BATCH_SIZES = (1, 3, 5)
# See `check_agreement`. A sum of n products is off by about sqrt(n) roundings: 16 stand for layers of a few hundred.
_MOVED_ROUNDINGS = 16


def check_off_trace(candidate: Predictor, reference: Predictor, tracing: Tracing) -> tuple[Probe, ...]:
    """The runs in which `candidate` answered like `reference`: at the traced sizes, at others, and on rows that break.

    A free first axis is tried with 1, 3 and 5 rows, any other with one step more, twice as many and one step less,
    except those that `reference` itself refuses. The rows are those of the example, drawn in another order, floating
    ones scaled by 0.5 to 1. Then one row of the traced inputs is replaced by nothing but padding, zeros and extremes
    (`breaking_rows`), except where `reference` itself fails, or is not finite on the large ones. How far answers may
    differ says `check_agreement`.

    ExportError for another answer, and for an axis that could be tried at no size but the traced one; BakedAxisError
    for a size that `candidate` alone refuses, or answers in another shape.
    """
    ordinary = [_run(candidate, reference.predict(tracing.inputs), tracing.inputs, tracing, tracing.sizes)]
    for label, tries in _sizes_to_try(tracing).items():
        ordinary += _at_sizes(candidate, reference, tracing, label, tries)
    check_agreement(ordinary, ordinary, tracing)
    rows = [_on_row(candidate, reference, tracing, kind, inputs) for kind, inputs in breaking_rows(tracing)]
    tried = [probe for probe in rows if probe is not None]
    check_agreement(tried, ordinary, tracing)
    return (*ordinary, *tried)


def nan_notes(probes: Sequence[Probe]) -> tuple[str, ...]:
    """A sentence for every output that is NaN, in both models at the same places, on a row that breaks models."""
    usual = {name for probe in probes if probe.kind is None for name in probe.expected if _nans(probe.expected[name])}
    return tuple(
        f"{probe}: output {name!r} is NaN at {_nans(array)} of {array.size} elements, in eager torch as well"
        for probe in probes
        if probe.kind is not None
        for name, array in probe.expected.items()
        if name not in usual and _nans(array)
    )


def _nans(array: NDArray[Any]) -> int:
    return int(np.isnan(array).sum()) if array.dtype.kind == "f" else 0


def _sizes_to_try(tracing: Tracing) -> dict[str, tuple[int, ...]]:
    rows = {named.get(0) for named in tracing.axes.values()}
    tries = {}
    for label, traced in tracing.sizes.items():
        sizes = _BATCH_SIZES if label in rows else (traced + 1, 2 * traced, traced - 1)
        tries[label] = tuple(size for size in sizes if size not in (traced, 0))
    return tries


def _at_sizes(
    candidate: Predictor, reference: Predictor, tracing: Tracing, label: str, tries: Sequence[int]
) -> list[Probe]:
    refused = []
    probes = []
    for size in tries:
        sizes = {**tracing.sizes, label: size}
        inputs = _resized(tracing, sizes)
        try:
            expected = reference.predict(inputs)
        except Exception as error:  # whatever a stranger's forward raises
            refused.append(f"{size}: {type(error).__name__}: {error}")
            continue
        probes.append(_run(candidate, expected, inputs, tracing, sizes, moved=label))
    if not probes:
        raise ExportError(
            f"axis {label!r} is to be free, but the module itself takes no other size than the traced "
            f"{tracing.sizes[label]} ({'; '.join(refused)}): leave it out of `dynamic`"
        )
    return probes


def _resized(tracing: Tracing, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    picks = {label: np.resize(rng.permutation(traced), sizes[label]) for label, traced in tracing.sizes.items()}
    inputs = {}
    for name, array in tracing.inputs.items():
        for axis, label in tracing.axes[name].items():
            array = np.take(array, picks[label], axis=axis)
        if array.dtype.kind == "f" and array.ndim:
            scale = rng.uniform(0.5, 1.0, size=(len(array), *[1] * (array.ndim - 1)))
            array = (array * scale).astype(array.dtype)
        inputs[name] = array
    return inputs


def _on_row(candidate: Predictor, reference: Predictor, tracing: Tracing, kind: Kind, inputs: Feed) -> Probe | None:
    """The run on `inputs`, whose last row is of `kind`; None where the reference does not take it."""
    shifted: Outputs = {}
    try:
        expected = reference.predict(inputs)
        if kind.rounded:
            shifted = reference.predict(_moved(inputs))
    except Exception:  # whatever a stranger's forward raises
        return None
    if kind.rounded and not all(np.isfinite(array).all() for array in (*expected.values(), *shifted.values())):
        return None
    return _run(candidate, expected, inputs, tracing, tracing.sizes, kind=kind, shifted=shifted)


def _moved(inputs: Feed) -> dict[str, NDArray[Any]]:
    """The inputs with every floating value moved by a few roundings, up or down."""
    rng = np.random.default_rng(0)
    moved = {}
    for name, array in inputs.items():
        if array.dtype.kind == "f":
            roundings = rng.choice((-_MOVED_ROUNDINGS, _MOVED_ROUNDINGS), size=array.shape)
            array = (array * (1 + roundings * float(np.finfo(array.dtype).eps))).astype(array.dtype)
        moved[name] = array
    return moved


def _run(
    candidate: Predictor,
    expected: Outputs,
    inputs: Feed,
    tracing: Tracing,
    sizes: Mapping[str, int],
    *,
    moved: str = "",
    kind: Kind | None = None,
    shifted: Outputs | None = None,
) -> Probe:
    try:
        got = candidate.predict(inputs)
    except ModelServeError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        told = f"{candidate.subject} cannot run the inputs {shapes}, which the torch module can: {error}"
        if moved:
            raise BakedAxisError(f"{where_free(moved, tracing)} was to be free and is fixed inside: {told}") from error
        if kind is not None:
            raise ExportError(f"at {kind.name}, {told}. What to do: {kind.advice}") from error
        raise ExportError(told) from error
    return Probe(dict(sizes), expected, got, moved, kind, shifted or {})
