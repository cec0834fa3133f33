"""How much of the reference's signal survives a loss of precision: for quantised and half-precision variants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Unit, Verdict
from pytest_modelserve.metrics import (
    Column,
    MarginAgreement,
    Part,
    Scores,
    Slices,
    agreement_by_margin,
    dtype_name,
    kind_of,
    kl_divergences,
    pair_outputs,
    row_cosines,
    signal_to_quantization_noise_db,
    slice_figures,
    top1_agreement,
)
from pytest_modelserve.serving.inputs import Inputs, count_rows

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import JSON, Artifact, LineageStep
    from pytest_modelserve.compression import CalibrationMethod, LayerSensitivity, SensitivityRanking
    from pytest_modelserve.serving import Predictor


# What of a signal is measured: one number for a pair of outputs, and which way is worse.


Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a candidate's and the reference's output, `of(candidate, reference)`, and its budget."""

    name: str
    unit: Unit
    budget: Budget
    of: Callable[[NDArray[Any], NDArray[Any]], float]

    def over(self, candidate: Arrays, reference: Arrays) -> float:
        """The worst of all outputs of the reference."""
        return self.worst(self.of(candidate[name], array) for name, array in reference.items())

    def figure(self, candidate: NDArray[Any], reference: NDArray[Any]) -> float | None:
        """`of` both, None where it means nothing to them: a slice in which no row is decided."""
        try:
            return self.of(candidate, reference)
        except InputError:
            return None

    def worst(self, values: Iterable[float]) -> float:
        """The one that is furthest from where the budget ends."""
        return min(values) if self.is_floor else max(values)

    def judged(self, candidate: Arrays, reference: Arrays) -> Quantity:
        """The worst output, held against the budget."""
        return Quantity(self.name, self.over(candidate, reference), self.unit, budget=self.budget)

    def told(self, value: float) -> str:
        """Name and value in a sentence: "SQNR 12.3 dB", "agreement 97.2 %"."""
        match self.unit:
            case "dB":
                return f"{self.name} {value:.1f} dB"
            case "proportion":
                return f"{self.name} {100 * value:.1f} %"
            case _:
                return f"{self.name} {value:.4g}"

    @property
    def is_floor(self) -> bool:
        """Whether less is worse."""
        return self.budget.kind == "at_least"


def asked_measures(
    *,
    min_sqnr_db: float | None,
    min_cosine: float | None,
    min_agreement: float | None,
    min_margin: float | None,
    max_kl: float | None,
    scores: Scores | None,
) -> tuple[Measure, ...]:
    """The measures that have a budget, in the order of the arguments of `measure_output_fidelity`.

    UsageError without any, for one out of range, and for `min_margin` and `scores` without the budget that they serve
    and the other way round.
    """
    if (max_kl is None) != (scores is None):
        raise UsageError(
            "max_kl and scores only mean something together: scores='logits' or 'probabilities' says what the outputs "
            "are"
        )
    if min_margin is not None and min_agreement is None:
        raise UsageError("min_margin says which rows min_agreement counts: give min_agreement as well, or neither")
    for name, share in (("min_cosine", min_cosine), ("min_agreement", min_agreement)):
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{name} lies between 0 and 1, not {share}")
    if min_margin is not None and not (math.isfinite(min_margin) and min_margin >= 0):
        raise UsageError(f"min_margin is a finite number of at least 0, not {min_margin}")
    found = []
    if min_sqnr_db is not None:
        found.append(Measure("SQNR", "dB", Budget("at_least", min_sqnr_db), signal_to_quantization_noise_db))
    if min_cosine is not None:
        found.append(Measure("cosine", "cosine", Budget("at_least", min_cosine), _lowest_cosine))
    if min_agreement is not None:
        agreement = top1_agreement if min_margin is None else _agreement_beyond(min_margin)
        found.append(Measure("agreement", "proportion", Budget("at_least", min_agreement), agreement))
    if max_kl is not None and scores is not None:
        found.append(_divergence(max_kl, scores))
    if not found:
        raise UsageError("give at least one of min_sqnr_db, min_cosine, min_agreement and max_kl")
    return tuple(found)


def told_margins(candidate: Arrays, reference: Arrays, min_margin: float) -> tuple[str, ...]:
    """A sentence for each output on the rows that an agreement beyond `min_margin` left out, and on those that flip."""
    return tuple(
        f"output {name!r}: {_told(agreement_by_margin(candidate[name], array, min_margin=min_margin))}"
        for name, array in reference.items()
    )


def _lowest_cosine(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    return float(row_cosines(candidate, reference).min())


def _agreement_beyond(min_margin: float) -> Callable[[NDArray[Any], NDArray[Any]], float]:
    return lambda candidate, reference: agreement_by_margin(candidate, reference, min_margin=min_margin).agreement


def _divergence(limit: float, scores: Scores) -> Measure:
    if scores not in get_args(Scores):
        raise UsageError(unknown_choice("scores", scores, get_args(Scores)))
    if not (math.isfinite(limit) and limit >= 0):
        raise UsageError(f"max_kl is a finite number of nats of at least 0, not {limit}")

    def mean(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
        return float(np.mean(kl_divergences(candidate, reference, scores=scores)))

    return Measure("KL in nats", "", Budget("at_most", limit), mean)


def _told(found: MarginAgreement) -> str:
    counted = f"the reference decides {found.decided} of {found.rows} rows by more than {found.min_margin:g}"
    if found.largest_flipped is None:
        return f"{counted}; no row changes its top class"
    return (
        f"{counted}; {found.flipped} of all rows change their top class, the most decided of them by "
        f"{found.largest_flipped:.3g}"
    )


# Which nodes a quantised candidate should not have quantised: told where it failed.


# Beyond a few dozen rows the order of layers hardly moves, and each of them costs a run of the model.
_ROWS = 64
# What a person waits for the reason of a failure: some hundred layers of a small model, a dozen of a large one.
_TIME_LIMIT_S = 30.0
_TOLD = 3
# An Add and the Softmax behind it both round what lies between them: each alone does the same damage, give or take what
# else it rounds, and excluding one of them does nothing. 3 dB are twice the noise.
_ALIKE_DB = 3.0
# Told of a pair once already: what is tested on generated inputs fails hundreds of times while the smallest of them is
# searched for, and each ranking takes seconds.
_RANKED: dict[tuple[str, str], LayersTold] = {}


@dataclass(frozen=True, slots=True)
class LayersTold:
    """A sentence, what to do about it and the whole ranking; all empty where there is nothing to say."""

    finding: str = ""
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


def tell_layers(candidate: Predictor, reference: Predictor, inputs: Inputs) -> LayersTold:
    """The nodes of `reference` ranked by what quantising each of them alone costs, on up to 64 rows of `inputs`.

    Only where `candidate` was made from the file behind `reference` by a recipe that quantises single nodes; else
    empty, as where no node does any damage. Those that were left out of it already are not ranked. Of "int8-static"
    they are all that it quantises, with weights or without. Raises nothing: a ranking that fails is told in the
    finding, because the gate that asks has a verdict to tell already.

    A process ranks a pair of files once. Where it fails again, on whatever rows, the same is told, and that it is of
    the first failure's rows.
    """
    step = _quantised_by(candidate.artifact, reference.artifact)
    if step is None or candidate.artifact is None or reference.artifact is None:
        return LayersTold()
    pair = candidate.artifact.sha256, reference.artifact.sha256
    if pair in _RANKED:
        return replace(_RANKED[pair], finding=f"{_RANKED[pair].finding}; ranked on the rows of an earlier failure")
    try:
        told = _told_layers(step, reference.artifact, inputs)
    except Exception as error:  # a tool's, a runtime's or our own: none of them changes the verdict
        return LayersTold(f"its layers could not be ranked by what quantising each costs: {error}")
    if told.finding:
        _RANKED[pair] = told
    return told


def _quantised_by(candidate: Artifact | None, reference: Artifact | None) -> LineageStep | None:
    """The first recipe of single layers on the way from `reference` to `candidate`, None where there is no way."""
    if candidate is None or reference is None:
        return None
    from pytest_modelserve.compression import SENSITIVITY_RECIPES

    parents = [step.parent for step in candidate.lineage]
    if reference.sha256 not in parents:
        return None
    since = candidate.lineage[parents.index(reference.sha256) :]
    return next((step for step in since if step.settings.get("recipe") in SENSITIVITY_RECIPES), None)


def _told_layers(step: LineageStep, reference: Artifact, inputs: Inputs) -> LayersTold:
    from pytest_modelserve.compression import rank_layers

    recipe, excluded = str(step.settings["recipe"]), _names(step.settings.get("exclude", ()))
    rows, stride = count_rows(inputs), _stride(inputs, reference)
    ranking = rank_layers(
        reference,
        recipe,
        _every(stride, inputs),
        calibration_method=cast("CalibrationMethod", step.settings.get("calibration_method", "min-max")),
        percentile=cast("float | None", step.settings.get("percentile")),
        time_limit_s=_TIME_LIMIT_S,
    )
    ranked = [damage for damage in ranking.ranked if damage.node not in excluded]
    worst = [damage for damage in ranked[:_TOLD] if damage.sqnr_db < math.inf]
    if not worst:
        return LayersTold()
    used = -(-rows // stride)
    alike = [damage.node for damage in worst if damage.sqnr_db <= worst[0].sqnr_db + _ALIKE_DB]
    return LayersTold(
        finding=_sentence(recipe, worst, _cut(ranking, used, rows)),
        advice=f"keep what loses most in full precision: compress with exclude={(*excluded, *alike)!r}",
        details={
            "sensitivity": {
                "recipe": recipe,
                "rows": used,
                "layers": ranking.total,
                "tried": ranking.evaluated,
                "ranking": [{"node": each.node, "operator": each.operator, "sqnr_db": each.sqnr_db} for each in ranked],
            }
        },
    )


def _names(setting: JSON) -> tuple[str, ...]:
    return tuple(map(str, setting)) if isinstance(setting, (list, tuple)) else ()


def _sentence(recipe: str, worst: list[LayerSensitivity], cut: str) -> str:
    first, *others = (f"{damage.operator} {damage.node!r}" for damage in worst)
    told = f"quantised alone by {recipe}{cut}, {first} costs most: SQNR {worst[0].sqnr_db:.1f} dB"
    following = (f"{name} {damage.sqnr_db:.1f} dB" for name, damage in zip(others, worst[1:], strict=True))
    return "; next ".join((told, ", ".join(following))) if others else told


def _cut(ranking: SensitivityRanking, used: int, rows: int) -> str:
    """What of layers and rows was left out, in brackets, or ""."""
    parts = []
    if ranking.evaluated < ranking.total:
        parts.append(f"the first {ranking.evaluated} of {ranking.total} nodes within {_TIME_LIMIT_S:.0f} s")
    if used < rows:
        parts.append(f"{used} of {rows} rows")
    return f" ({', '.join(parts)})" if parts else ""


def _stride(inputs: Inputs, artifact: Artifact) -> int:
    """Every how many rows to take one, so that at most `_ROWS` remain; 1 where the model's batch is fixed."""
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in artifact.signature.inputs)
    return 1 if fixed else -(-count_rows(inputs) // _ROWS)


def _every(stride: int, inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: np.ascontiguousarray(array[::stride]) for name, array in inputs.items()}
    return np.ascontiguousarray(inputs[::stride])


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
    slices: Slices | Mapping[str, Column] | None = None,
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
    n = count_rows(inputs)
    parts = Slices.of(slices).parts(inputs, n)
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
            Quantity("mismatches", len(problems), "count", budget=Budget("at_most", 0)),
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
        figures = slice_figures(parts, _figure(measure, found, judged))
        worst = (min if measure.is_floor else max)(figures, default=None)
        if worst is not None:
            told.append(f"worst slice {worst.label}: {measure.told(worst.value)} over {worst.n} rows")
    return tuple(told)


def _figure(measure: Measure, found: Arrays, judged: Arrays) -> Callable[[NDArray[np.bool_]], float]:
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
