"""Agreement of an exported model with eager torch: runs of both, and the tolerance of each output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import BakedAxisError, ExportError
from pytest_modelserve.metrics import compare_outputs
from pytest_modelserve.metrics.channels import ChannelValues, channel_scale
from pytest_modelserve.metrics.tolerance import (
    EXPORT_EDGE_ROW_PROPORTION,
    EXPORT_EPSILONS,
    EXPORT_MOVE_FACTOR,
    RERUN_FACTOR,
    rounding_by_channel,
)
from pytest_modelserve.serving import Predictor
from pytest_modelserve.training.export_errors import DroppedConstant
from pytest_modelserve.training.export_request import Tracing
from pytest_modelserve.training.rounding_error import rounding_errors

OutputArrays = Mapping[str, NDArray[Any]]

_TOLERANCE_ADVICE = "pass rtol= and atol= if such a difference is acceptable"
# A difference of at most this many times its tolerance may still be rounding.
_NEAR = 100.0


@dataclass(frozen=True, slots=True)
class RowKind:
    """One kind of edge-case row, with the advice for an exported model that fails on it.

    `check` is its name in `check_rows`. `rounded` says that the values are so large that rounding determines the
    outputs.
    """

    name: str
    check: str
    advice: str
    rounded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One run of both models: the size of each free axis, and the outputs of both.

    `moved` is the axis whose size is not the traced one, `kind` the kind of the replaced row. `shifted` holds the
    reference's outputs for inputs perturbed by a few roundings, if rounding determines the outputs; otherwise empty.
    `loosened` holds the absolute tolerance of each output that the reference's own rounding error decided.
    """

    sizes: Mapping[str, int]
    expected: OutputArrays
    got: OutputArrays
    moved: str = ""
    kind: RowKind | None = None
    shifted: OutputArrays = field(default_factory=dict)
    inputs: OutputArrays = field(default_factory=dict)
    loosened: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.kind is not None:
            return self.kind.name
        return ", ".join(f"{label} = {size}" for label, size in self.sizes.items()) or "the traced sizes"


@dataclass(frozen=True, slots=True)
class GivenTolerance:
    """The tolerance that the user gave: `atol + rtol * |reference|`."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"


def check_agreement(
    probes: Sequence[Probe],
    ordinary: Sequence[Probe],
    tracing: Tracing,
    reference: Predictor,
    *,
    given: GivenTolerance | None = None,
    dropped: Sequence[DroppedConstant] = (),
) -> tuple[Probe, ...]:
    """Return the `probes` if the outputs match in all of them, with the tolerances that were loosened.

    NaN must be at the same places, and integers and bools must be equal. Floating outputs may differ by 256 roundings
    of the largest value of the element's channels in this run and the `ordinary` runs (`channel_scale`): an extreme run
    loosens only its own tolerance. Where that is not enough, they may differ by 4 times the reference's own rounding
    error in these channels (`rounding_by_channel`), up to half of the digits of the output, or 1 % of its largest value
    on a row of zeros or padding. If rounding
    determines the outputs, there is no such limit, they may also differ by 16 times the reference's own change when its
    inputs are perturbed by 16 roundings, and integers are not compared. `given` replaces the first two.

    Raises:
        ExportError: Outputs differ.
        BakedAxisError: The shape of an output does not follow the size of a free axis.
    """
    errors: dict[int, dict[str, NDArray[np.float64]]] = {}
    loosened: dict[int, dict[str, float]] = {index: {} for index in range(len(probes))}
    for name in ordinary[0].expected:
        for index, probe in enumerate(probes):
            scale = _scale(name, probe, ordinary)
            atol = _atol(name, probe, scale, given)
            problem = _disagreement(name, probe, atol, given, tracing)
            if problem is None:
                continue
            if given is None and _is_finite_difference(name, probe):
                if index not in errors:
                    errors[index] = rounding_errors(reference, probe.inputs, probe.expected)
                if name in errors[index]:
                    loose = np.maximum(atol, _rounding_atol(name, probe, scale, errors[index][name]))
                    if _disagreement(name, probe, loose, given, tracing) is None:
                        loosened[index][name] = float(loose.max())
                        continue
                    problem = _noise_error(problem, name, probe, atol, errors[index][name])
            if dropped and not isinstance(problem, BakedAxisError):
                raise ExportError(f"{str(problem).partition('. What to do: ')[0]}. {_dropped_advice(dropped)}")
            raise problem
    return tuple(replace(probe, loosened=loosened[index]) for index, probe in enumerate(probes))


def describe_axis(label: str, tracing: Tracing) -> str:
    """Return the axis `label` with its places: "axis 'batch' (axis 0 of input 'x')"."""
    places = [
        f"axis {axis} of input {name!r}"
        for name, named in tracing.axes.items()
        for axis in named
        if named[axis] == label
    ]
    return f"axis {label!r} ({', '.join(places)})"


def _dropped_advice(dropped: Sequence[DroppedConstant]) -> str:
    return (
        f"The likely cause: the exporter dropped {', '.join(map(str, dropped))}, because its optimizer takes constants "
        "up to 1e-8 for 0. What to do: use a constant above 1e-8, or a limit such as x.clamp_min(1e-12), which is kept"
    )


def _disagreement(
    name: str, probe: Probe, atol: NDArray[np.float64], given: GivenTolerance | None, tracing: Tracing
) -> ExportError | None:
    """Return the error to raise if output `name` differs by more than `atol`, and `rtol` if given, otherwise None."""
    got, expected = _comparable_output(name, probe), probe.expected[name]
    found = compare_outputs({name: got}, {name: expected}, rtol=given.rtol if given else 0.0, atol={name: atol})
    if found.agrees:
        return None
    problems = "; ".join((*found.structural_problems, *found.numeric_problems))
    basis = given or f"{EXPORT_EPSILONS} roundings of the largest value of each channel"
    message = (
        f"outputs of the exported model (candidate) differ from eager torch (reference) at {probe}: {problems}; the "
        f"tolerance is {basis}"
    )
    multiple = max((tensor.worst_multiple or 0.0 for tensor in found.tensors), default=math.inf)
    near = _is_finite_difference(name, probe) and multiple <= _NEAR
    if probe.kind is not None:
        advice = _TOLERANCE_ADVICE if near and probe.kind.check != "padding" else probe.kind.advice
        return ExportError(f"{message}. What to do: {advice}")
    if probe.moved and got.shape != expected.shape:
        return BakedAxisError(
            f"{describe_axis(probe.moved, tracing)} is in `dynamic` but fixed inside the graph: {message}"
        )
    if near:
        message += f". What to do: {_TOLERANCE_ADVICE}"
    return ExportError(message)


def _is_finite_difference(name: str, probe: Probe) -> bool:
    """Return True for floating outputs of one shape and dtype that are NaN or infinite at the same places."""
    got, expected = probe.got.get(name), probe.expected[name]
    if got is None or expected.dtype.kind != "f" or (got.shape, got.dtype) != (expected.shape, expected.dtype):
        return False
    return bool((np.isfinite(got) == np.isfinite(expected)).all())


def _scale(name: str, probe: Probe, ordinary: Sequence[Probe]) -> ChannelValues:
    """Return the scale of an output by channel; axes whose size changes between the ordinary runs hold no channels."""
    runs = [run.expected[name] for run in ordinary]
    if all(probe is not run for run in ordinary):
        runs.append(probe.expected[name])
    return channel_scale(*(run for run in runs if run.dtype.kind == "f"))


def _atol(name: str, probe: Probe, scale: ChannelValues, given: GivenTolerance | None) -> NDArray[np.float64]:
    expected = probe.expected[name]
    if expected.dtype.kind != "f":
        return np.zeros(())
    sensitivity = _input_sensitivity(name, probe)
    if given is not None:
        return np.asarray(given.atol + sensitivity)
    sizes = scale.for_shape(expected.shape) if scale.largest else np.ones(())
    return np.asarray(EXPORT_EPSILONS * float(np.finfo(expected.dtype).eps) * sizes + sensitivity)


def _rounding_atol(name: str, probe: Probe, scale: ChannelValues, errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the absolute tolerance that the reference's own rounding `errors` on the inputs of `probe` justify."""
    expected = probe.expected[name]
    epsilon = float(np.finfo(expected.dtype).eps)
    if probe.kind is not None and probe.kind.rounded:
        return np.asarray(RERUN_FACTOR * float(errors.max(initial=0.0)) + _input_sensitivity(name, probe))
    proportion = math.sqrt(epsilon) if probe.kind is None else EXPORT_EDGE_ROW_PROPORTION
    tolerance = rounding_by_channel(errors, scale, epsilon).for_shape(expected.shape)
    return np.minimum(tolerance, proportion * scale.largest) + _input_sensitivity(name, probe)


def _noise_error(
    problem: ExportError, name: str, probe: Probe, atol: NDArray[np.float64], errors: NDArray[np.float64]
) -> ExportError:
    """Return `problem`, with other advice if what differs is mostly the rounding error of the reference."""
    difference = np.abs(probe.got[name].astype(np.float64) - probe.expected[name].astype(np.float64))
    beyond = difference > atol
    error = float(errors[beyond].max(initial=0.0))
    if not 0 < float(difference[beyond].max(initial=0.0)) <= RERUN_FACTOR * error:
        return problem
    message = str(problem).partition(". What to do: ")[0]
    return ExportError(
        f"{message}. What to do: output {name!r} of eager torch moves by {error:.2g} when its sums are computed in "
        f"another order, so it is largely rounding; {_TOLERANCE_ADVICE}"
    )


def _input_sensitivity(name: str, probe: Probe) -> float:
    if name not in probe.shifted or probe.expected[name].dtype.kind != "f":
        return 0.0
    moved = np.abs(probe.shifted[name] - probe.expected[name])
    return EXPORT_MOVE_FACTOR * float(moved[np.isfinite(moved)].max(initial=0.0))


def _comparable_output(name: str, probe: Probe) -> NDArray[Any]:
    """Return the candidate's output, or the reference's own integers if rounding determines the outputs.

    Saturated scores are equal, and ONNX does not specify which of equal scores is the top one.
    """
    got, expected = probe.got[name], probe.expected[name]
    if (
        name in probe.shifted
        and expected.dtype.kind != "f"
        and (got.shape, got.dtype) == (expected.shape, expected.dtype)
    ):
        return expected
    return got
