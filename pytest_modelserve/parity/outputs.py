"""Output parity gate: two predictors return the same outputs, element by element within a tolerance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.metrics import (
    CalibratedTolerance,
    OutputComparison,
    OutputNames,
    Outputs,
    calibrate_tolerances,
    check_tolerances,
    choose_outputs,
    join_comparisons,
    output_names,
)
from pytest_modelserve.metrics.channels import describe_constant_channels
from pytest_modelserve.metrics.tolerance import OUTPUT_PARITY_EPSILONS, RERUN_FACTOR
from pytest_modelserve.parity.diagnosis import Diagnosis, diagnose_divergence
from pytest_modelserve.parity.failing_inputs import Criterion, FailingBatch, save_failing_input, worst_row
from pytest_modelserve.parity.row_parts import RowPart, over_parts
from pytest_modelserve.serving.inputs import Inputs, batch_size, is_one_batch, iterate_batches, slice_rows
from pytest_modelserve.serving.predictor import ENDPOINT_TRANSPORTS
from pytest_modelserve.serving.ready_outputs import ReadyOutputs
from pytest_modelserve.serving.reference_runs import alternative_runs
from pytest_modelserve.serving.serve import open_models

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

# Rows of the first batch for the calibration: enough for a few hundred outputs, and a model that takes 100 ms a row is
# done in seconds.
_CALIBRATION_ROWS = 64
# Rows for the divergence analysis, which reads a value at every node for each of them.
_DIVERGENCE_ROWS = 64


def measure_output_parity(
    candidate: Servable,
    reference: Servable,
    inputs: Any = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = True,
    dtype: Literal["exact", "value"] | None = None,
    outputs: OutputNames | None = None,
) -> Evidence:
    """Measure whether every output of `candidate` equals the reference's within `atol + rtol * |reference|`.

    For models of the same precision: an export, another runtime, another opset. Names, dtypes, shapes and the places of
    NaN and infinities must agree exactly; each mismatch is one finding. Two single outputs are compared whatever their
    names, and those of an estimator by the names that skl2onnx gives them. The verdict, PASS or FAIL, holds for these
    inputs; nothing is estimated.

    Without `rtol` and `atol` the tolerance is calibrated on the first 64 rows. The reference runs on them once more in
    other ways: a torch module in float64; an ONNX file in float64 by onnx's reference evaluator (if that knows its
    operators), without graph optimizations, and row by row. The tolerance is four times the largest change of its
    outputs and at least 16 machine epsilons, relative to the largest magnitude of the element's channel plus the
    element's. A channel is an index of any axis but the first: a class of (n, c), a map of (n, c, h, w), a feature of
    (n, t, c). A channel of zeros has the scale of its output, and one of less than 16 values up to 10^(4 / values)
    times its own.

    A FAIL names the channels that all differing elements have in common. After a FAIL between two files the evidence
    names the first diverging node; between a file and eager torch, the stage at fault. The smallest failing input is
    saved with the reference's outputs in `.modelserve/failures` of the working directory, or in the folder of the
    environment variable MODELSERVE_FAILURES.

    Args:
        candidate: The model to check, or its ready outputs: whatever `ms.serve` takes.
        reference: The model to compare with, a recording of its outputs, or its ready outputs.
        inputs: One batch: an array, a tensor or a list `(rows, ...)`, a frame, or a mapping from input names to arrays;
            leave it out where both models are ready outputs. More than 1,024 rows are predicted and compared in parts,
            if each row has outputs of its own; `[rows]` is always one call. Data larger than memory is given as an
            iterable of batches, for example a generator or a DataLoader of inputs: each is one call, compared before
            the next is taken, and elements are reported by their row in the whole.
        rtol: Relative tolerance, a finite number of at least 0. Give it with `atol`, or neither.
        atol: Absolute tolerance, in the output's units.
        equal_nan: Whether NaN equals NaN at the same place. If False, any NaN fails.
        dtype: "exact" demands equal dtypes and shapes; "value" compares numbers of other dtypes, and shapes that differ
            by axes of length 1. By default "value" for estimators, which compute in float64, and ready outputs;
            otherwise "exact". The method in the evidence says so.
        outputs: Name of the reference's output to compare, or several names. By default all are compared, and an output
            that only the candidate has is a mismatch.

    Returns:
        Evidence with the largest error as a multiple of its tolerance, and the number of structural mismatches.

    Raises:
        InputError: There are no rows.
        UsageError: One tolerance without the other, a negative or infinite one; or none, for a reference that cannot
            run another way (a callable, a recording) or whose outputs then change by more than rounding. An unknown
            name in `outputs`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> candidate, reference = ms.serve(lambda x: x * np.float32(1.001)), ms.serve(lambda x: x)
        >>> rows = np.ones((4, 3), np.float32)
        >>> ms.measure_output_parity(candidate, reference, rows, rtol=0.01, atol=0).verdict.name
        'PASS'
    """
    if (rtol is None) != (atol is None):
        raise UsageError("rtol and atol must be given together, or neither to calibrate them")
    output_names(outputs)  # anything but names is refused before a model runs
    if dtype not in (None, "exact", "value"):
        raise UsageError(unknown_choice("dtype", dtype, ("exact", "value")))
    started = time.perf_counter()
    with open_models(candidate, reference, inputs=inputs, ready=True) as (data, (new, old)):
        batches = iterate_batches(data)
        first = next(batches, None)
        if first is None:
            raise InputError("inputs: there is no batch; give at least one row")
        by_value = dtype == "value" or (dtype is None and any(map(_has_other_dtypes, (new, old))))
        calibration = None
        if rtol is None or atol is None:
            batch_size(first)  # zero rows are refused before anything runs
            calibration = calibrate(old, first, outputs=outputs)
            criterion = Criterion(
                equal_nan=equal_nan, calibrated=calibration.tolerances, by_value=by_value, outputs=outputs
            )
        else:
            check_tolerances(rtol, atol)
            criterion = Criterion(rtol, atol, equal_nan, by_value=by_value, aliases=old.aliases, outputs=outputs)
        run = _Run(new, old, criterion, in_parts=is_one_batch(data))
        comparison = join_comparisons(run.compared(itertools.chain([first], batches)))
        return _evidence(run, comparison, calibration, started)


def _has_other_dtypes(predictor: Predictor) -> bool:
    return predictor.transport in ("estimator", "json") or isinstance(predictor, ReadyOutputs)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Tolerances of each real output, the runs that they come from, and sentences on constant channels."""

    tolerances: tuple[CalibratedTolerance, ...]
    runs: tuple[str, ...]
    constant: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"tolerance calibrated: {RERUN_FACTOR:g} × the largest change of the reference's outputs when it runs "
            f"{' and '.join(self.runs)}, at least {OUTPUT_PARITY_EPSILONS} machine epsilons; relative to the scale of "
            "the element's channels plus the element"
        )

    @property
    def findings(self) -> tuple[str, ...]:
        """One sentence for each output, and one for its constant channels."""
        return tuple(
            f"output {each.output!r}: tolerance {_tolerance_text(each)}; largest change of the reference: "
            f"{', '.join(f'{value:.3g} {how}' for how, value in each.differences.items())}"
            for each in self.tolerances
        ) + tuple(self.constant)

    @property
    def details(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [
            {
                "output": each.output,
                "floor": each.relative.largest,
                "scale": each.scale.largest,
                "smallest_scale": each.scale.smallest()[0],
                "differences": dict(each.differences),
                "steps": each.steps,
            }
            for each in self.tolerances
        ]


def _tolerance_text(each: CalibratedTolerance) -> str:
    scale, channel = each.scale.smallest()
    if channel is None:
        return f"{each.relative.largest:.3g} of its scale {each.scale.largest:.3g}"
    of_channel = float(each.relative.axes[channel.axis][channel.index])
    return (
        f"{each.relative.largest:.3g} of the scale of a channel, at most {each.scale.largest:.3g}; {of_channel:.3g} of "
        f"{scale:.3g} in {channel}"
    )


def calibrate(reference: Predictor, batch: Inputs, *, outputs: OutputNames | None = None) -> Calibration:
    """Return the tolerances that rounding in `reference` itself needs on the first 64 rows of `batch`.

    Runs that its model does not support are left out. UsageError if it cannot run another way, or if its outputs then
    change by more than rounding: rows influence each other, as with dynamic quantization, or the graph has a lower
    precision inside.
    """
    runs = alternative_runs(reference)
    sample = slice_rows(batch, _CALIBRATION_ROWS)
    expected = choose_outputs(reference.predict(sample), outputs, aliases=reference.aliases, model=reference.subject)
    if batch_size(sample) is None:
        runs.pop("row by row", None)
    reruns = {how: again for how, run in runs.items() if (again := run(sample)) is not None}
    tolerances = calibrate_tolerances(expected, reruns)
    for each in tolerances:
        if not each.is_rounding:
            how = max(each.differences, key=lambda name: each.differences[name])
            raise UsageError(
                f"output {each.output!r} of {reference.subject} changes by {each.observed:.3g} of its scale when it "
                f"runs {how}, which is more than rounding of {each.dtype}: pass both rtol and atol"
            )
    constant = tuple(
        f"output {each.output!r}: {sentence}"
        for each in tolerances
        if (sentence := describe_constant_channels(expected[each.output]))
    )
    return Calibration(tolerances, tuple(reruns), constant)


@dataclass(slots=True)
class _Run:
    """The comparison of batch after batch, and the batch that differs most."""

    candidate: Predictor
    reference: Predictor
    criterion: Criterion
    in_parts: bool
    calls: int = field(default=0, init=False)
    rows: int | None = field(default=0, init=False)  # None as soon as one batch has no rows
    failing: FailingBatch | None = field(default=None, init=False)

    def compared(self, batches: Iterable[Inputs]) -> Iterator[tuple[int, OutputComparison]]:
        for batch in batches:
            rows = batch_size(batch)
            part = over_parts((self.reference, self.candidate), batch, self._compare, is_one_call=not self.in_parts)
            if not part.agrees:
                row, error = worst_row(part, rows)
                if self.failing is None or error > self.failing.error:
                    self.failing = FailingBatch(batch, row, error, call=self.calls, rows_before=self.rows)
            self.calls += 1
            self.rows = None if rows is None or self.rows is None else self.rows + rows
            yield rows or 0, part

    def _compare(self, parts: Iterator[RowPart]) -> OutputComparison:
        return join_comparisons((part.rows or 0, self._compare_part(*part.outputs)) for part in parts)

    def _compare_part(self, reference: Outputs, candidate: Outputs) -> OutputComparison:
        return self.criterion.compare(candidate, self.criterion.chosen(reference, self.reference.subject))


def _evidence(run: _Run, comparison: OutputComparison, calibration: Calibration | None, started: float) -> Evidence:
    duration_s = time.perf_counter() - started
    problems = (*comparison.structural_problems, *comparison.numeric_problems)
    divergence = saved = Diagnosis()
    if run.failing is not None and not any(isinstance(each, ReadyOutputs) for each in (run.candidate, run.reference)):
        rows = slice_rows(run.failing.batch, _DIVERGENCE_ROWS, first=run.failing.row)
        divergence = diagnose_divergence(run.candidate, run.reference, rows)
        saved = save_failing_input(run.candidate, run.reference, run.failing, run.criterion)
    advice = divergence.advice or _advice(run.candidate, run.reference)
    return Evidence(
        gate="output parity",
        subject=run.candidate.subject,
        reference=run.reference.subject,
        quantities=_quantities(comparison, "" if calibration else str(run.criterion)),
        n=run.calls if run.rows is None else run.rows,
        n_unit="calls" if run.rows is None else "rows",
        method=Method(f"every element compared{_of_outputs(run.criterion.outputs)}, {calibration or run.criterion}"),
        summary="outputs differ from the reference's" if problems else "outputs equal the reference's",
        findings=(
            *problems,
            *(each.finding for each in (divergence, saved) if each.finding),
            *(calibration.findings if calibration else ()),
        ),
        advice=advice if problems else "",
        details={
            "outputs": [
                {
                    "name": tensor.name,
                    "elements": tensor.n,
                    "beyond_tolerance": tensor.beyond,
                    **({"channels": tensor.channels} if tensor.channels else {}),
                    "max_abs_error": tensor.max_abs_error,
                    "max_rel_error": tensor.max_rel_error,
                    "max_ulp": tensor.max_ulp,
                }
                for tensor in comparison.tensors
            ],
            **({"calibration": calibration.details} if calibration else {}),
            **divergence.details,
            **saved.details,
        },
        duration_s=duration_s,
    )


def _of_outputs(outputs: OutputNames | None) -> str:
    """Return " of output 'y'" for the outputs that were chosen."""
    names = output_names(outputs)
    return f" of output{'s' * (len(names) > 1)} {', '.join(map(repr, names))}" if names else ""


def _advice(candidate: Predictor, reference: Predictor) -> str:
    """Return how the first operator that differs can be found, which takes two models with a graph."""
    for predictor in (reference, candidate):
        if predictor.transport == "recorded":
            return (
                f"{predictor.subject} holds recorded outputs and no operators: to find the one that differs, pass the "
                "model that was recorded instead, as ms.serve(path)"
            )
        if predictor.transport == "callable":
            return (
                f"{predictor.subject} is a Python function, in which no operator can be named: wrap the model that it "
                "calls, as ms.serve(module) or ms.serve(path); if it calls a service, record its outputs with "
                "ms.record_answers and compare with them"
            )
        if predictor.transport == "estimator":
            return (
                f"{predictor.subject} is an estimator, whose steps have no counterpart in the graph: convert and "
                "compare its steps one by one"
            )
        if predictor.transport in ENDPOINT_TRANSPORTS:
            return (
                f"{predictor.subject} is an endpoint, whose graph is not known here: ms.assert_serves(endpoint, file, "
                "inputs) names known causes of a difference"
            )
        if predictor.artifact is None and predictor.transport != "torch":
            return (
                f"{predictor.subject} has no graph: pass its file, as ms.serve(path), to find the operator that differs"
            )
    if candidate.artifact is None:
        return f"export {candidate.subject} and compare its file, to find the operator that differs"
    return (
        "ms.locate_divergence(candidate, reference, inputs) compares the tensors that both graphs have; bound the "
        "noise of a quantized or half-precision candidate with ms.assert_output_fidelity instead"
    )


def _quantities(comparison: OutputComparison, arguments: str) -> tuple[Quantity, ...]:
    """Return the worst error, and the count of structural mismatches only if there are any: most runs have none."""
    error = Quantity("error", comparison.worst_multiple, "tolerance", budget=Budget("at_most", 1.0, arguments))
    structural = len(comparison.structural_problems)
    if not structural:
        return (error,)
    mismatches = Quantity("mismatches", structural, "count", budget=Budget("at_most", 0))
    return (mismatches, error) if any(tensor.compared for tensor in comparison.tensors) else (mismatches,)
