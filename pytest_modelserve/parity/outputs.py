"""Do two predictors give the same outputs? In the same precision: element by element within a stated tolerance."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.metrics import (
    CalibratedTolerance,
    OutputComparison,
    Tolerance,
    calibrate_tolerances,
    check_tolerances,
    compare_outputs,
    join_comparisons,
    pair_outputs,
)
from pytest_modelserve.metrics.tolerance import OUTPUT_PARITY_EPSILONS, RERUN_FACTOR
from pytest_modelserve.parity.divergence import fault_origin, locate_divergence
from pytest_modelserve.parity.failing_inputs import Failing, FailingTold, tell_failing, worst_row
from pytest_modelserve.serving.inputs import Inputs, batch_size, iterate_batches, slice_rows
from pytest_modelserve.serving.reference_runs import alternative_runs

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor

# Tolerances that nobody had to choose: what the reference's own rounding reaches when it is run another way.


ROWS = 64
"""Rows of the first batch that are run again: enough for a few hundred outputs, and a model that takes 100 ms a row is
done in seconds."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tolerances for every real output, and how they were found."""

    floors: tuple[CalibratedTolerance, ...]
    reruns: tuple[str, ...]

    @property
    def rtol(self) -> dict[str, float]:
        """The relative part of the tolerance by output."""
        return {floor.output: floor.relative for floor in self.floors}

    @property
    def atol(self) -> dict[str, float]:
        """The absolute part of the tolerance by output, in the output's units."""
        return {floor.output: floor.relative * floor.scale for floor in self.floors}

    def __str__(self) -> str:
        """How an error is judged, in words."""
        how = " and ".join(self.reruns)
        return (
            f"tolerance calibrated: {RERUN_FACTOR:g} × what the reference's own answers move when it is run {how}, at "
            f"least {OUTPUT_PARITY_EPSILONS} steps of the dtype, relative to the output's scale plus the element"
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence for each output: its floor, and where it came from."""
        return tuple(map(_told, self.floors))

    @property
    def details(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [
            {
                "output": floor.output,
                "floor": floor.relative,
                "scale": floor.scale,
                "differences": dict(floor.differences),
                "steps": floor.steps,
            }
            for floor in self.floors
        ]


def calibrate(reference: Predictor, batch: Inputs) -> Calibration:
    """The tolerances that `reference` itself shows on the first 64 rows of `batch`.

    `alternative_runs` tells the ways in which it is run once more; one that its model does not allow is left out. UsageError
    for a reference that cannot be run another way, and for one whose answers then move by more than rounding does (rows
    influence each other, as in a model with dynamic quantisation, or the graph is of lower precision inside): the
    tolerances have to be given there.
    """
    reruns = alternative_runs(reference)
    sample = slice_rows(batch, ROWS)
    answers = reference.predict(sample)
    if batch_size(sample) is None:
        reruns.pop("row by row", None)
    again = {how: outputs for how, run in reruns.items() if (outputs := run(sample)) is not None}
    found = calibrate_tolerances(answers, again)
    for floor in found:
        if not floor.is_rounding:
            raise UsageError(_not_rounding(reference, floor))
    return Calibration(found, tuple(again))


def _told(floor: CalibratedTolerance) -> str:
    moved = ", ".join(f"{difference:.3g} {how}" for how, difference in floor.differences.items())
    return (
        f"output {floor.output!r}: the floor is {floor.relative:.3g} of its scale {floor.scale:.3g}; the reference "
        f"moved by at most {moved}"
    )


def _not_rounding(reference: Predictor, floor: CalibratedTolerance) -> str:
    how = max(floor.differences, key=lambda name: floor.differences[name])
    return (
        f"output {floor.output!r} of {reference.subject} moves by {floor.observed:.3g} of its scale when it is run "
        f"{how}, which is more than rounding of {floor.dtype}: give both rtol and atol"
    )


# Where two predictors part, told where they were found not to agree.


@dataclass(frozen=True, slots=True)
class PartingTold:
    """A sentence and the same as values; both empty where there is nothing to say."""

    finding: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


def tell_parting(candidate: Predictor, reference: Predictor, inputs: Inputs) -> PartingTold:
    """Where `candidate` parts from `reference` on `inputs`.

    Between two files it is the node that diverges first; between a file and eager torch, whether the export or
    onnxruntime's optimiser is at fault. Empty for anything else and where nothing is found. Raises nothing: a search
    that fails is told in the finding, because the gate that asks has a verdict to tell already.
    """
    try:
        if candidate.artifact is not None and reference.artifact is not None:
            found = locate_divergence(candidate, reference, inputs)
            return PartingTold() if found is None else PartingTold(str(found), {"divergence": asdict(found)})
        if candidate.artifact is not None and reference.transport == "torch":
            origin = fault_origin(candidate, reference, inputs)
            return PartingTold() if origin.fault == "none" else PartingTold(str(origin), {"origin": asdict(origin)})
    except Exception as error:  # a runtime's or our own: none of them changes the verdict
        return PartingTold(f"the node at fault could not be searched for: {error}")
    return PartingTold()


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
    batches = iterate_batches(inputs)
    first = next(batches, None)
    if first is None:
        raise InputError("there are no rows to judge by: the inputs hold no batch")
    calibration = None
    tolerances: tuple[Tolerance, Tolerance]
    if rtol is None or atol is None:
        batch_size(first)  # no rows are told before anything is run
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
            rows = batch_size(batch)
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
        few = slice_rows(failing.batch, _ROWS, first=failing.row)
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
    error = Quantity("error", comparison.worst_multiple, "tolerance", budget=Budget("at_most", 1.0))
    structural = len(comparison.structural_problems)
    if not structural:
        return (error,)
    mismatches = Quantity("mismatches", structural, "count", budget=Budget("at_most", 0))
    return (mismatches, error) if any(tensor.compared for tensor in comparison.tensors) else (mismatches,)
