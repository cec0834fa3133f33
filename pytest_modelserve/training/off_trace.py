"""Whether an exported model answers like its module at sizes that the exporter never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ExportError
from pytest_modelserve.numerics import compare_outputs
from pytest_modelserve.serving import Predictor
from pytest_modelserve.training.tracing import Tracing

Outputs = Mapping[str, NDArray[Any]]

# Sums are rounded in another order than torch's. Measured on eight families of models (MLP to Transformer), the
# largest difference was 2 roundings (2e-7 for float32) of the largest value; 256 leave room for deep models, and are a
# thousandth of what reduced precision does.
_TOLERATED_ROUNDINGS = 256
_BATCH_SIZES = (1, 3, 5)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One run of both models: the size of each free axis, and what both answered."""

    sizes: Mapping[str, int]
    expected: Outputs
    got: Outputs

    def __str__(self) -> str:
        return ", ".join(f"{label} = {size}" for label, size in self.sizes.items()) or "the traced sizes"


def check_off_trace(candidate: Predictor, reference: Predictor, tracing: Tracing) -> tuple[Probe, ...]:
    """The runs in which `candidate` answered like `reference`: at the traced sizes, and with each free axis at others.

    A free first axis is tried with 1, 3 and 5 rows, any other with one step more, twice as many and one step less,
    except those that `reference` itself refuses. The rows are those of the example, drawn in another order, floating
    ones scaled by 0.5 to 1. Floating outputs may differ by 256 roundings of the largest value in that output, NaN has
    to be where `reference` has it, and everything else has to be equal.

    ExportError for another answer, for a size that `candidate` alone refuses, and for an axis that could be tried at
    no size but the traced one.
    """
    traced = tracing.sizes
    probes = [_probe(candidate, reference.predict(tracing.inputs), tracing.inputs, traced)]
    for label, tries in _sizes_to_try(tracing).items():
        refused = []
        for size in tries:
            sizes = {**traced, label: size}
            inputs = _resized(tracing, sizes)
            try:
                expected = reference.predict(inputs)
            except Exception as error:  # whatever a stranger's forward raises
                refused.append((size, error))
                continue
            probes.append(_probe(candidate, expected, inputs, sizes))
        if len(refused) == len(tries):
            told = "; ".join(f"{size}: {type(error).__name__}: {error}" for size, error in refused)
            raise ExportError(
                f"axis {label!r} is to be free, but the module itself takes no other size than the traced "
                f"{traced[label]} ({told}): leave it out of `dynamic`"
            )
    _compare(probes)
    return tuple(probes)


def _sizes_to_try(tracing: Tracing) -> dict[str, tuple[int, ...]]:
    rows = {named.get(0) for named in tracing.axes.values()}
    tries = {}
    for label, traced in tracing.sizes.items():
        sizes = _BATCH_SIZES if label in rows else (traced + 1, 2 * traced, traced - 1)
        tries[label] = tuple(size for size in sizes if size not in (traced, 0))
    return tries


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


def _probe(
    candidate: Predictor, expected: Outputs, inputs: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]
) -> Probe:
    try:
        got = candidate.predict(inputs)
    except Exception as error:  # onnxruntime raises bare RuntimeErrors, among others
        shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        raise ExportError(
            f"{candidate.subject} cannot run the inputs {shapes}, which the torch module can: {error}\n"
            "An axis that is free in its signature is fixed inside the graph"
        ) from error
    return Probe(dict(sizes), expected, got)


def _compare(probes: Sequence[Probe]) -> None:
    for name in probes[0].expected:
        tolerance = _tolerance([probe.expected[name] for probe in probes])
        for probe in probes:
            found = compare_outputs({name: probe.got[name]}, {name: probe.expected[name]}, rtol=0.0, atol=tolerance)
            if not found.agrees:
                told = "; ".join((*found.structural_problems, *found.numeric_problems))
                raise ExportError(
                    f"the exported model (candidate) answers otherwise than eager torch (reference) at {probe}: "
                    f"{told}; tolerated are {_TOLERATED_ROUNDINGS} roundings of the largest value"
                )


def _tolerance(references: Sequence[NDArray[Any]]) -> float:
    dtype = references[0].dtype
    if dtype.kind != "f":
        return 0.0
    finite = [np.abs(array[np.isfinite(array)]) for array in references]
    largest = max((float(array.max()) for array in finite if array.size), default=0.0)
    return _TOLERATED_ROUNDINGS * float(np.finfo(dtype).eps) * (largest or 1.0)
