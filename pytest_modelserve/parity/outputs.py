"""Do two predictors give the same outputs? In the same precision: element by element within a stated tolerance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.numerics import (
    OutputComparison,
    Tolerance,
    check_tolerances,
    compare_outputs,
    join_comparisons,
    pair_outputs,
)
from pytest_modelserve.parity.batches import batch_rows, batches_of, some_rows
from pytest_modelserve.parity.calibrating import Calibration, calibrate
from pytest_modelserve.parity.failing_input import Failing, FailingTold, tell_failing, worst_row
from pytest_modelserve.parity.parting import PartingTold, tell_parting
from pytest_modelserve.parity.predicting import Inputs
from pytest_modelserve.serving import Predictor

_ROWS = 64
"""Rows on which the node at fault is searched for: it sees a value at every node for each of them."""


def measure_output_parity(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs | Iterable[Inputs],
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> Evidence:
    """Evidence that every output of `candidate` equals the reference's within `atol + rtol * |reference|`.

    For models of the same precision: an export, another runtime or opset. Names, dtypes, shapes and the places of NaN
    and infinities must agree exactly and are told in sentences of their own; two single outputs are compared whatever
    their names. Nothing is estimated: the verdict, PASS or FAIL, is of these inputs. Where it is FAIL the node at fault
    is searched for (between two files), or whether export or runtime is (between a file and eager torch), and the
    smallest input that fails is saved with the reference's answers in `.modelserve/failures` of the working directory,
    or in the folder that the environment variable MODELSERVE_FAILURES names.

    `inputs` that do not fit into memory are given as an iterable of batches, a generator say: each is answered and
    compared before the next one is taken, and elements are told by their row in the whole.

    Without `rtol` and `atol` the tolerance is calibrated: the reference's first 64 rows are run once more another way
    (a torch module in float64; an ONNX file in float64 by onnx's reference evaluator where that knows its operators,
    without graph optimisations, and row by row), and four times what its answers move, at least 16 steps of the dtype,
    is tolerated, relative to the largest magnitude of the output plus that of the element. One number an output: where
    its columns have very different scales, give `rtol` and `atol`.

    Raises InputError for zero rows; UsageError for one tolerance without the other, for one that is negative or not
    finite, and without both for a reference that cannot be run another way (a callable, a recording) or whose answers
    then move by more than rounding.
    """
    if (rtol is None) != (atol is None):
        raise UsageError("rtol and atol only mean something together: give both, or neither to calibrate them")
    started = time.perf_counter()
    batches = batches_of(inputs)
    first = next(batches, None)
    if first is None:
        raise InputError("there are no rows to judge by: the inputs hold no batch")
    calibration = None
    tolerances: tuple[Tolerance, Tolerance]
    if rtol is None or atol is None:
        batch_rows(first)  # no rows are told before anything is run
        calibration = calibrate(reference, first)
        tolerances = calibration.rtol, calibration.atol
        told = str(calibration)
    else:
        check_tolerances(rtol, atol)
        tolerances = rtol, atol
        told = f"rtol {rtol:g}, atol {atol:g}"
    run = _Run(candidate, reference, tolerances)
    comparison = join_comparisons(run.compared(itertools.chain([first], batches)))
    return _evidence(run, comparison, told, calibration, time.perf_counter() - started)


@dataclass(slots=True)
class _Run:
    """Both sides' answers to batch after batch, and how many there were."""

    candidate: Predictor
    reference: Predictor
    tolerances: tuple[Tolerance, Tolerance]
    calls: int = field(default=0, init=False)
    rows: int | None = field(default=0, init=False)
    """None as soon as one batch has no rows."""
    failing: Failing | None = field(default=None, init=False)
    """The batch that differs most."""

    def compared(self, batches: Iterable[Inputs]) -> Iterator[tuple[int, OutputComparison]]:
        rtol, atol = self.tolerances
        for batch in batches:
            rows = batch_rows(batch)
            answers = self.reference.predict(batch)
            found = pair_outputs(self.candidate.predict(batch), answers)
            part = compare_outputs(found, answers, rtol=rtol, atol=atol)
            del answers, found  # before the next ones are made
            if not part.agrees:
                row, error = worst_row(part, rows)
                if self.failing is None or error > self.failing.error:
                    self.failing = Failing(batch, row, error, call=self.calls, before=self.rows)
            self.calls += 1
            self.rows = None if rows is None or self.rows is None else self.rows + rows
            yield rows or 0, part

    def told(self) -> tuple[PartingTold, FailingTold]:
        """Where the two part in the batch that differs most, and the smallest input of it that shows it."""
        failing = self.failing
        if failing is None:
            return PartingTold(), FailingTold()
        rtol, atol = self.tolerances
        few = some_rows(failing.batch, _ROWS, first=failing.row)
        return (
            tell_parting(self.candidate, self.reference, few),
            tell_failing(self.candidate, self.reference, failing, rtol=rtol, atol=atol),
        )


def _evidence(
    run: _Run, comparison: OutputComparison, told: str, calibration: Calibration | None, duration_s: float
) -> Evidence:
    problems = (*comparison.structural_problems, *comparison.numeric_problems)
    parting, failing = run.told()
    return Evidence(
        gate="output parity",
        subject=run.candidate.subject,
        reference=run.reference.subject,
        quantities=_quantities(comparison),
        n=run.calls if run.rows is None else run.rows,
        n_unit="calls" if run.rows is None else "rows",
        method=Method(f"every element compared, {told}"),
        summary="outputs differ from the reference's" if problems else "outputs equal the reference's",
        findings=(
            *problems,
            *(told.finding for told in (parting, failing) if told.finding),
            *(calibration.sentences if calibration else ()),
        ),
        advice=_advice(parting) if problems else "",
        details={
            "outputs": [
                {
                    "name": tensor.name,
                    "elements": tensor.n,
                    "beyond_tolerance": tensor.beyond,
                    "max_abs_error": tensor.max_abs_error,
                    "max_rel_error": tensor.max_rel_error,
                    "max_ulp": tensor.max_ulp,
                }
                for tensor in comparison.tensors
            ],
            **({"calibration": calibration.details} if calibration else {}),
            **parting.details,
            **failing.details,
        },
        duration_s=duration_s,
    )


def _advice(parting: PartingTold) -> str:
    if parting.details:
        return "begin at that place: correct the candidate, or allow for the difference with rtol and atol"
    return "find the first operator that differs: compare both graphs with outputs at every node"


def _quantities(comparison: OutputComparison) -> tuple[Quantity, ...]:
    """The worst error, and the count of structural differences only where there are any: most runs have none."""
    error = Quantity("error", comparison.worst_multiple, "tolerance", budget=Budget("at most", 1.0))
    structural = len(comparison.structural_problems)
    if not structural:
        return (error,)
    mismatches = Quantity("mismatches", structural, "count", budget=Budget("at most", 0))
    return (mismatches, error) if any(tensor.compared for tensor in comparison.tensors) else (mismatches,)
