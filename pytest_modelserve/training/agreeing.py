"""Whether two answers are one, but for rounding; in the words of whoever exported the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import BakedAxisError, ExportError
from pytest_modelserve.numerics import compare_outputs
from pytest_modelserve.training.breaking_rows import Kind
from pytest_modelserve.training.tracing import Tracing

Outputs = Mapping[str, NDArray[Any]]

# Sums are rounded in another order than torch's. Measured on eight families of models (MLP to Transformer), the
# largest difference was 2 roundings (2e-7 for float32) of the largest value; 256 leave room for deep models, and are a
# thousandth of what reduced precision does.
_TOLERATED_ROUNDINGS = 256
# The inputs are moved by 16 roundings to see how much an answer owes to them; 16 times that makes as many as above.
_TOLERATED_MOVES = 16


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One run of both models: the size of each free axis, and what both answered.

    `moved` is the axis that has another size than the traced one, `kind` the row that was replaced. `shifted` is what
    the reference answers where rounding decides and the inputs are moved by a few roundings; else empty.
    """

    sizes: Mapping[str, int]
    expected: Outputs
    got: Outputs
    moved: str = ""
    kind: Kind | None = None
    shifted: Outputs = field(default_factory=dict)

    def __str__(self) -> str:
        if self.kind is not None:
            return self.kind.name
        return ", ".join(f"{label} = {size}" for label, size in self.sizes.items()) or "the traced sizes"


def check_agreement(probes: Sequence[Probe], ordinary: Sequence[Probe], tracing: Tracing) -> None:
    """ExportError unless both models answer alike in all of `probes`; BakedAxisError where a shape does not follow.

    NaN has to be where the reference has it, and integers and bools have to be equal. Floating outputs may differ by
    256 roundings of the largest value in that output, over this run and the `ordinary` ones: an extreme run loosens
    none but itself. Where rounding decides, they may also differ by 16 times what the reference itself moves when its
    inputs are moved by 16 roundings, and integers are not compared.
    """
    for name in ordinary[0].expected:
        usual = max(_largest(probe.expected[name]) for probe in ordinary)
        for probe in probes:
            expected, got = probe.expected[name], _compared(name, probe)
            tolerance = _tolerance(expected, usual) + _own_motion(name, probe)
            found = compare_outputs({name: got}, {name: expected}, rtol=0.0, atol=tolerance)
            if not found.agrees:
                told = "; ".join((*found.structural_problems, *found.numeric_problems))
                raise _disagreement(probe, told, tracing, reshaped=got.shape != expected.shape)


def where_free(label: str, tracing: Tracing) -> str:
    """The axis called `label` and where it is: "axis 'batch' (axis 0 of input 'x')"."""
    places = [
        f"axis {axis} of input {name!r}"
        for name, named in tracing.axes.items()
        for axis in named
        if named[axis] == label
    ]
    return f"axis {label!r} ({', '.join(places)})"


def _disagreement(probe: Probe, told: str, tracing: Tracing, *, reshaped: bool) -> ExportError:
    message = (
        f"the exported model (candidate) answers otherwise than eager torch (reference) at {probe}: {told}; tolerated "
        f"are {_TOLERATED_ROUNDINGS} roundings of the largest value"
    )
    if probe.kind is not None:
        return ExportError(f"{message}. What to do: {probe.kind.advice}")
    if probe.moved and reshaped:
        return BakedAxisError(f"{where_free(probe.moved, tracing)} was to be free and is fixed inside: {message}")
    return ExportError(message)


def _largest(array: NDArray[Any]) -> float:
    if array.dtype.kind != "f":
        return 0.0
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _tolerance(expected: NDArray[Any], usual: float) -> float:
    if expected.dtype.kind != "f":
        return 0.0
    largest = max(usual, _largest(expected))
    return _TOLERATED_ROUNDINGS * float(np.finfo(expected.dtype).eps) * (largest or 1.0)


def _own_motion(name: str, probe: Probe) -> float:
    if name not in probe.shifted or probe.expected[name].dtype.kind != "f":
        return 0.0
    return _TOLERATED_MOVES * _largest(probe.shifted[name] - probe.expected[name])


def _compared(name: str, probe: Probe) -> NDArray[Any]:
    """What the candidate answered; where rounding decides, the reference's own integers instead.

    Saturated scores are equal, and which of equals is the top one ONNX leaves to the runtime.
    """
    got, expected = probe.got[name], probe.expected[name]
    if (
        name in probe.shifted
        and expected.dtype.kind != "f"
        and (got.shape, got.dtype) == (expected.shape, expected.dtype)
    ):
        return expected
    return got
