"""How much of the reference's signal survives a loss of precision: for quantised and half-precision variants."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Unit, Verdict
from pytest_modelserve.numerics import (
    pair_outputs,
    row_cosines,
    signal_to_quantization_noise_db,
    top1_agreement,
)
from pytest_modelserve.parity.layers import LayersTold, tell_layers
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.serving import Predictor

_MEASURES: dict[str, tuple[str, Unit]] = {
    "min_sqnr_db": ("SQNR", "dB"),
    "min_cosine": ("cosine", "cosine"),
    "min_agreement": ("agreement", "share"),
}


def measure_output_fidelity(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    *,
    min_sqnr_db: float | None = None,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
) -> Evidence:
    """Evidence that the floating-point outputs of `candidate` keep the reference's signal.

    `min_sqnr_db` bounds the signal-to-quantisation-noise ratio of each output as a whole (field's floors: 55 dB for
    fp16, 25 for int8, 18 for int4), `min_cosine` the lowest cosine of paired rows, `min_agreement` the share of rows,
    0 to 1, whose highest score is of the same class. Give at least one; of several outputs the worst is judged.
    Nothing is estimated: the verdict, PASS or FAIL, is of these inputs. Missing outputs, other shapes and values that
    are not finite on one side only fail, in sentences of their own.

    Raises UsageError without a budget or for one out of range, InputError for zero rows and where the reference has
    no floating-point output.
    """
    budgets = {"min_sqnr_db": min_sqnr_db, "min_cosine": min_cosine, "min_agreement": min_agreement}
    asked = {name: limit for name, limit in budgets.items() if limit is not None}
    if not asked:
        raise UsageError("give at least one of min_sqnr_db, min_cosine and min_agreement")
    for name, highest in (("min_cosine", 1.0), ("min_agreement", 1.0)):
        if not 0 <= asked.get(name, 0) <= highest:
            raise UsageError(f"{name} lies between 0 and 1, not {asked[name]}")
    started = time.perf_counter()
    n = rows_of(inputs)
    answers = reference.predict(inputs)
    found = pair_outputs(candidate.predict(inputs), answers)
    judged = {name: array for name, array in answers.items() if array.dtype.kind == "f"}
    if not judged:
        raise UsageError(f"{reference.subject} has no floating-point output: compare labels with assert_output_parity")
    problems = tuple(_problem(name, found.get(name), array) for name, array in judged.items())
    told = tuple(problem for problem in problems if problem)
    quantities = (
        (Quantity("mismatches", len(told), "count", budget=Budget("at most", 0)),)
        if told
        else tuple(_worst(name, limit, found, judged) for name, limit in asked.items())
    )
    failed = any(quantity.verdict is Verdict.FAIL for quantity in quantities)
    layers = tell_layers(candidate, reference, inputs) if failed else LayersTold()
    return Evidence(
        gate="output fidelity",
        subject=candidate.subject,
        reference=reference.subject,
        quantities=quantities,
        n=n,
        n_unit="rows",
        method=Method("every row compared, worst output judged"),
        summary="outputs are further from the reference than allowed" if failed else "outputs keep the signal",
        findings=(*told, layers.finding) if layers.finding else told,
        advice=(layers.advice or "keep the layers that lose the signal in full precision") if failed else "",
        details=layers.details,
        duration_s=time.perf_counter() - started,
    )


def _worst(budget: str, limit: float, found: dict[str, NDArray[Any]], judged: dict[str, NDArray[Any]]) -> Quantity:
    name, unit = _MEASURES[budget]
    value = min(_measure(budget, found[output], array) for output, array in judged.items())
    return Quantity(name, value, unit, budget=Budget("at least", limit))


def _measure(budget: str, candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    match budget:
        case "min_sqnr_db":
            return signal_to_quantization_noise_db(candidate, reference)
        case "min_cosine":
            return float(row_cosines(candidate, reference).min())
        case _:
            return top1_agreement(candidate, reference)


def _problem(name: str, candidate: NDArray[Any] | None, reference: NDArray[Any]) -> str:
    """Why two outputs cannot be held against each other, or ""."""
    if candidate is None:
        return f"output {name!r} is missing from the candidate"
    if candidate.shape != reference.shape:
        return f"output {name!r}: shape is {candidate.shape} where the reference has {reference.shape}"
    broken = ~np.isfinite(candidate) & np.isfinite(reference)
    if broken.any():
        first = tuple(int(i) for i in np.argwhere(broken)[0])
        value = float(candidate[first])
        kind = "NaN" if math.isnan(value) else "infinity"
        return f"output {name!r}: {kind} where the reference is finite, {int(broken.sum())} elements, first at {first}"
    return ""
