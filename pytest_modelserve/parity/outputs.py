"""Do two predictors give the same outputs? In the same precision: element by element within a stated tolerance."""

from __future__ import annotations

import time

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.numerics import OutputComparison, compare_outputs, pair_outputs
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.serving import Predictor


def measure_output_parity(
    candidate: Predictor, reference: Predictor, inputs: Inputs, *, rtol: float, atol: float
) -> Evidence:
    """Evidence that every output of `candidate` equals the reference's within `atol + rtol * |reference|`.

    For models of the same precision: an export, another runtime or opset. Names, dtypes, shapes and the places of NaN
    and infinities must agree exactly and are told in sentences of their own; two single outputs are compared whatever
    their names. Nothing is estimated: the verdict, PASS or FAIL, is of these inputs.

    Raises InputError for zero rows, UsageError unless both tolerances are finite and not negative.
    """
    if rtol is None or atol is None:
        raise UsageError("rtol and atol only mean something together: give both")
    rows = rows_of(inputs)
    started = time.perf_counter()
    answers = reference.predict(inputs)
    comparison = compare_outputs(pair_outputs(candidate.predict(inputs), answers), answers, rtol=rtol, atol=atol)
    problems = (*comparison.structural_problems, *comparison.numeric_problems)
    return Evidence(
        gate="output parity",
        subject=candidate.subject,
        reference=reference.subject,
        quantities=_quantities(comparison),
        n=rows,
        n_unit="rows",
        method=Method(f"every element compared, rtol {rtol:g}, atol {atol:g}"),
        summary="outputs differ from the reference's" if problems else "outputs equal the reference's",
        findings=problems,
        advice="find the first operator that differs: compare both graphs with outputs at every node"
        if problems
        else "",
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
            ]
        },
        duration_s=time.perf_counter() - started,
    )


def _quantities(comparison: OutputComparison) -> tuple[Quantity, ...]:
    """The worst error, and the count of structural differences only where there are any: most runs have none."""
    error = Quantity("error", comparison.worst_multiple, "tolerance", budget=Budget("at most", 1.0))
    structural = len(comparison.structural_problems)
    if not structural:
        return (error,)
    mismatches = Quantity("mismatches", structural, "count", budget=Budget("at most", 0))
    return (mismatches, error) if any(tensor.compared for tensor in comparison.tensors) else (mismatches,)
