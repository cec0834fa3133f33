"""How much of the reference's signal survives a loss of precision: for quantised and half-precision variants."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Verdict
from pytest_modelserve.numerics import Scores, dtype_name, kind_of, pair_outputs
from pytest_modelserve.parity.fidelity_measures import Arrays, Measure, asked_measures, told_margins
from pytest_modelserve.parity.layers import LayersTold, tell_layers
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import Figure, Part, Slices, highest_slice, lowest_slice, slice_rules
from pytest_modelserve.serving import Predictor


def measure_output_fidelity(
    candidate: Predictor,
    reference: Predictor,
    inputs: Inputs,
    *,
    min_sqnr_db: float | None = None,
    min_cosine: float | None = None,
    min_agreement: float | None = None,
    min_margin: float | None = None,
    max_kl: float | None = None,
    scores: Scores | None = None,
    slices: Slices | None = None,
) -> Evidence:
    """Evidence that the floating-point outputs of `candidate` keep the reference's signal.

    `min_sqnr_db` bounds the signal-to-quantisation-noise ratio of each output as a whole (field's floors: 55 dB for
    fp16, 25 for int8, 18 for int4), `min_cosine` the lowest cosine of paired rows, `min_agreement` the share of rows,
    0 to 1, whose highest score is of the same class; with `min_margin` only rows count that the reference decides by
    more than that, its highest score less the second, because what it hardly decides flips under any rounding. `max_kl`
    bounds the mean over rows of Kullback and Leibler's divergence from the reference's class probabilities, in nats;
    `scores` says whether the outputs are "logits" or "probabilities". Give at least one budget; of several outputs the
    worst is judged, and `details` have the figures of each. Nothing is estimated: the verdict, PASS or FAIL, is of
    these inputs. Missing outputs, other shapes and values that are not finite on one side only fail, in sentences of
    their own.

    `slices` map a name to one value a row (`ms.bins` makes them of numbers) or to a predicate over the inputs. They
    inform: the worst slice of each budget is told, and `details` have every slice of every output.

    Raises UsageError without a budget, for one out of range, for `min_margin` and `scores` without theirs, and where
    the reference has no floating-point output; InputError for zero rows, for slices that do not fit, and for outputs
    that a budget means nothing to: fewer than two classes, probabilities that are none, no row that is decided.
    """
    measures = asked_measures(
        min_sqnr_db=min_sqnr_db,
        min_cosine=min_cosine,
        min_agreement=min_agreement,
        min_margin=min_margin,
        max_kl=max_kl,
        scores=scores,
    )
    started = time.perf_counter()
    n = rows_of(inputs)
    parts = slice_rules(slices, inputs, n, limits=(), min_rows=None).parts
    answers = reference.predict(inputs)
    found = pair_outputs(candidate.predict(inputs), answers)
    judged = {name: array for name, array in answers.items() if kind_of(array.dtype) == "real"}
    if not judged:
        raise UsageError(f"{reference.subject} has no floating-point output: compare labels with assert_output_parity")
    if parts:
        _check_rows(judged, n)
    problems = tuple(problem for name, array in judged.items() if (problem := _problem(name, found.get(name), array)))
    if problems:
        quantities: tuple[Quantity, ...] = (
            Quantity("mismatches", len(problems), "count", budget=Budget("at most", 0)),
        )
        told, details = problems, {}
    else:
        quantities = tuple(measure.judged(found, judged) for measure in measures)
        told = () if min_margin is None else told_margins(found, judged, min_margin)
        told += _told_slices(parts, measures, found, judged)
        details = _details(parts, measures, found, judged)
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
        details={**details, **layers.details},
        duration_s=time.perf_counter() - started,
    )


def _check_rows(judged: Arrays, n: int) -> None:
    for name, array in judged.items():
        if array.shape[:1] != (n,):
            raise InputError(
                f"output {name!r} has shape {array.shape} for {n} rows: slices= needs outputs with one row for each"
            )


def _told_slices(parts: Sequence[Part], measures: Sequence[Measure], found: Arrays, judged: Arrays) -> tuple[str, ...]:
    """A sentence for each measure on the slice that is worst by it."""
    told = []
    for measure in measures:
        worst = (lowest_slice if measure.is_floor else highest_slice)(parts, _figure(measure, found, judged))
        if worst is not None:
            told.append(f"worst slice {worst.label}: {measure.told(worst.value)} over {worst.n} rows")
    return tuple(told)


def _figure(measure: Measure, found: Arrays, judged: Arrays) -> Figure:
    return lambda rows: measure.over(_rows(found, rows), _rows(judged, rows))


def _details(parts: Sequence[Part], measures: Sequence[Measure], found: Arrays, judged: Arrays) -> dict[str, Any]:
    """The figures of every output where there are several, and of every output in every slice."""
    outputs = [{"name": name, **_figures(measures, found[name], array)} for name, array in judged.items()]
    slices = [
        {"slice": part.label, "rows": part.n, "output": name}
        | _figures(measures, found[name][part.rows], array[part.rows])
        for part in parts
        for name, array in judged.items()
    ]
    return {
        **({"outputs": outputs} if len(outputs) > 1 else {}),
        **({"slices": slices} if slices else {}),
    }


def _figures(measures: Sequence[Measure], candidate: NDArray[Any], reference: NDArray[Any]) -> dict[str, float | None]:
    return {measure.name: measure.figure(candidate, reference) for measure in measures}


def _rows(outputs: Arrays, rows: NDArray[np.bool_]) -> Arrays:
    return {name: array[rows] for name, array in outputs.items()}


def _problem(name: str, candidate: NDArray[Any] | None, reference: NDArray[Any]) -> str:
    """Why two outputs cannot be held against each other, or ""."""
    if candidate is None:
        return f"output {name!r} is missing from the candidate"
    if candidate.shape != reference.shape:
        return f"output {name!r}: shape is {candidate.shape} where the reference has {reference.shape}"
    if kind_of(candidate.dtype) not in ("real", "exact"):
        told, needed = dtype_name(candidate.dtype), dtype_name(reference.dtype)
        return f"output {name!r}: dtype is {told} where the reference has {needed}"
    broken = ~np.isfinite(candidate) & np.isfinite(reference)
    if broken.any():
        first = tuple(int(i) for i in np.argwhere(broken)[0])
        value = float(candidate[first])
        kind = "NaN" if math.isnan(value) else "infinity"
        return f"output {name!r}: {kind} where the reference is finite, {int(broken.sum())} elements, first at {first}"
    return ""
