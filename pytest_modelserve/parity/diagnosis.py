"""Explanations of a failed parity gate: the diverging node, or the layers most sensitive to quantization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pytest_modelserve.metrics.output_quality import worst_sqnr_db
from pytest_modelserve.parity.divergence import fault_origin, locate_divergence
from pytest_modelserve.parity.divergence.runtime_difference import can_compare_runtimes, locate_runtime_difference
from pytest_modelserve.serving.inputs import Inputs, count_rows
from pytest_modelserve.serving.substitution import is_replacing

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import JSON, Artifact, LineageStep
    from pytest_modelserve.compression import CalibrationMethod, LayerSensitivity, SensitivityRanking
    from pytest_modelserve.serving import Predictor

# Beyond a few dozen rows the order of layers hardly changes, and each of them costs a run of the model.
_ROWS = 64
# Some hundred layers of a small model, a dozen of a large one.
_TIME_LIMIT_S = 30.0
_LISTED_LAYERS = 3
# An Add and the Softmax behind it both round the values between them: each alone does the same damage, give or take
# what else it rounds, and excluding one of them changes nothing. 3 dB are twice the noise.
_SAME_DAMAGE_DB = 3.0
# Two of eight bits: calibrated on a range four times too wide, int8 rounds as 6 bits do.
_MISFIT = 0.25


_RUNTIME_ADVICE = (
    "read the release notes of both runtimes about this operator; if both results are right, give rtol and atol, or "
    "judge by assert_output_fidelity or assert_accuracy_parity"
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """An explanation: a sentence, what to do, and the same for programs; all empty if there is none."""

    finding: str = ""
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


# Rankings by pair of files: a test on generated inputs fails hundreds of times while hypothesis minimizes them, and
# each ranking takes seconds.
_RANKED: dict[tuple[str, str], Diagnosis] = {}


def diagnose_divergence(candidate: Predictor, reference: Predictor, inputs: Inputs) -> Diagnosis:
    """Find where `candidate` diverges from `reference` on `inputs`.

    Between two files it is the first diverging node; between two runtimes of one file, the first node that they
    compute differently; between a file and eager torch, the export or onnxruntime's optimizer. Empty for anything else
    and if nothing is found. Never raises: the gate already has a verdict, so a failed search is reported in the
    finding.
    """
    if is_replacing():
        return Diagnosis()
    try:
        if can_compare_runtimes(candidate, reference):
            difference = locate_runtime_difference(candidate, reference, inputs)
            if difference is None:
                return Diagnosis()
            return Diagnosis(str(difference), _RUNTIME_ADVICE, {"runtime_difference": str(difference)})
        if candidate.artifact is not None and reference.artifact is not None:
            found = locate_divergence(candidate, reference, inputs)
            return Diagnosis() if found is None else _located(str(found), "divergence", asdict(found))
        if candidate.artifact is not None and reference.transport == "torch":
            origin = fault_origin(candidate, reference, inputs)
            return Diagnosis() if origin.fault == "none" else _located(str(origin), "origin", asdict(origin))
    except Exception as error:  # a runtime's or our own: none of them changes the verdict
        return Diagnosis(f"searching for the diverging node failed: {error}")
    return Diagnosis()


def diagnose_quantization(candidate: Predictor, reference: Predictor, inputs: Inputs) -> Diagnosis:
    """Name calibration data that do not fit `inputs`, or rank the nodes of `reference` by their damage.

    The damage of a node is that of quantizing it alone, on up to 64 rows of `inputs`.
    Empty unless a recipe that quantizes single nodes made `candidate` from the file of `reference`. Nodes that the
    recipe excluded are not ranked. Never raises: a failed ranking is reported in the finding.

    A process ranks a pair of files once; later failures get the same ranking.
    """
    from pytest_modelserve.compression import SENSITIVITY_RECIPES

    step = _step_between(candidate.artifact, reference.artifact, SENSITIVITY_RECIPES)
    if step is None or candidate.artifact is None or reference.artifact is None or is_replacing():
        return Diagnosis()
    pair = candidate.artifact.sha256, reference.artifact.sha256
    if pair in _RANKED:
        return replace(_RANKED[pair], finding=f"{_RANKED[pair].finding}; ranked on the rows of an earlier failure")
    try:
        diagnosis = _calibration_misfit(step, candidate, reference, inputs)
        if not diagnosis.finding:
            diagnosis = _rank(step, reference.artifact, inputs)
    except Exception as error:  # a tool's, a runtime's or our own: none of them changes the verdict
        return Diagnosis(f"ranking the layers by quantization damage failed: {error}")
    if diagnosis.finding:
        _RANKED[pair] = diagnosis
    return diagnosis


def diagnose_overflow(candidate: Predictor, reference: Predictor, inputs: Inputs) -> str:
    """Describe values that overflow in fp16 on up to 64 rows of `inputs`.

    Empty if nothing overflows, or unless the recipe "fp16" made `candidate` from the file of `reference`. Never raises.
    """
    step = _step_between(candidate.artifact, reference.artifact, ("fp16",))
    if step is None or candidate.artifact is None or reference.artifact is None:
        return ""
    from pytest_modelserve.artifacts import load_with_weights, read_graph
    from pytest_modelserve.compression import describe_overflow
    from pytest_modelserve.serving.inputs import checked_feed

    try:
        feed = checked_feed(_every(_stride(inputs, reference.artifact), inputs), reference.artifact.signature)
        source, converted = load_with_weights(reference.artifact), read_graph(candidate.artifact.path)
        excluded = _names(step.settings.get("exclude", ()))
        return describe_overflow(source, converted, [feed], "these rows", excluded)
    except Exception as error:  # a tool's, a runtime's or our own: none of them changes the verdict
        return f"looking for values that overflow in fp16 failed: {error}"


def _located(finding: str, name: str, details: Mapping[str, Any]) -> Diagnosis:
    advice = "begin at that place: correct the candidate, or allow for the difference with rtol and atol"
    return Diagnosis(finding, advice, {name: details})


def _step_between(candidate: Artifact | None, reference: Artifact | None, recipes: Sequence[str]) -> LineageStep | None:
    """Return the first of `recipes` between `reference` and `candidate`, None if there is none."""
    if candidate is None or reference is None:
        return None
    parents = [step.parent for step in candidate.lineage]
    if reference.sha256 not in parents:
        return None
    since = candidate.lineage[parents.index(reference.sha256) :]
    return next((step for step in since if step.settings.get("recipe") in recipes), None)


def _calibration_misfit(step: LineageStep, candidate: Predictor, reference: Predictor, inputs: Inputs) -> Diagnosis:
    """Describe inputs that are served in another range than they were calibrated in, if that is the cause.

    It is where the same recipe keeps clearly more of the signal when calibrated on the served rows.
    """
    from pytest_modelserve.artifacts import Store
    from pytest_modelserve.compression import compress
    from pytest_modelserve.serving import serve

    assert reference.artifact is not None
    used = _every(_stride(inputs, reference.artifact), inputs)
    served = _served_ranges(used, reference.artifact)
    ranges = step.settings.get("calibration_ranges", {})
    misfits = []
    for name, found in ranges.items() if isinstance(ranges, Mapping) else ():
        low, high = cast("tuple[float, float]", found)
        if name in served and _differs(served[name], (low, high)):
            least, largest = served[name]
            misfits.append(
                f"input {name!r} was calibrated on values from {low:.4g} to {high:.4g} and is served values from "
                f"{least:.4g} to {largest:.4g}"
            )
    if not misfits:
        return Diagnosis()
    expected = reference.predict(used)
    with TemporaryDirectory() as folder:
        refitted = compress(
            reference.artifact,
            str(step.settings["recipe"]),
            calibration=used,
            calibration_method=cast("CalibrationMethod", step.settings.get("calibration_method", "min-max")),
            percentile=cast("float | None", step.settings.get("percentile")),
            exclude=_names(step.settings.get("exclude", ())),
            reduce_range=bool(step.settings.get("reduce_range", False)),
            store=Store(Path(folder)),
        )
        with serve(refitted) as better:
            fitting = worst_sqnr_db(better.predict(used), expected)
    if fitting < worst_sqnr_db(candidate.predict(used), expected) + _SAME_DAMAGE_DB:
        return Diagnosis()
    return Diagnosis(
        f"the calibration data do not fit: {'; '.join(misfits)}; calibrated on the served rows, "
        f"{step.settings['recipe']} keeps {fitting:.1f} dB",
        "pass calibration= rows that are scaled as the served ones are",
        {"calibration": {"misfits": misfits, "sqnr_db_if_calibrated_on_these_rows": fitting}},
    )


def _served_ranges(inputs: Inputs, artifact: Artifact) -> dict[str, tuple[float, float]]:
    """Return the least and largest finite value of each floating input."""
    named = inputs if isinstance(inputs, Mapping) else {artifact.signature.inputs[0].name: inputs}
    finite = {name: array[np.isfinite(array)] for name, array in named.items() if np.asarray(array).dtype.kind == "f"}
    return {name: (float(values.min()), float(values.max())) for name, values in finite.items() if values.size}


def _differs(served: tuple[float, float], calibrated: tuple[float, float]) -> bool:
    """Return True if the served values fill less than a quarter of the calibrated range, or lie beyond it by that."""
    width = calibrated[1] - calibrated[0]
    beyond = max(calibrated[0] - served[0], served[1] - calibrated[1])
    return served[1] - served[0] < width * _MISFIT or beyond > width * _MISFIT


def _rank(step: LineageStep, reference: Artifact, inputs: Inputs) -> Diagnosis:
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
    worst = [damage for damage in ranked[:_LISTED_LAYERS] if damage.sqnr_db < math.inf]
    if not worst:
        return Diagnosis()
    used = -(-rows // stride)
    same_damage = [damage.node for damage in worst if damage.sqnr_db <= worst[0].sqnr_db + _SAME_DAMAGE_DB]
    return Diagnosis(
        _describe_ranking(recipe, worst, _describe_limits(ranking, used, rows)),
        f"keep the most sensitive nodes in full precision: compress with exclude={(*excluded, *same_damage)!r}",
        {
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


def _describe_ranking(recipe: str, worst: list[LayerSensitivity], limits: str) -> str:
    first, *others = (f"{damage.operator} {damage.node!r}" for damage in worst)
    text = f"most sensitive to {recipe} when quantized alone{limits}: {first}, SQNR {worst[0].sqnr_db:.1f} dB"
    following = (f"{name} {damage.sqnr_db:.1f} dB" for name, damage in zip(others, worst[1:], strict=True))
    return "; next ".join((text, ", ".join(following))) if others else text


def _describe_limits(ranking: SensitivityRanking, used: int, rows: int) -> str:
    parts = []
    if ranking.evaluated < ranking.total:
        parts.append(f"the first {ranking.evaluated} of {ranking.total} nodes within {_TIME_LIMIT_S:.0f} s")
    if used < rows:
        parts.append(f"{used} of {rows} rows")
    return f" ({', '.join(parts)})" if parts else ""


def _stride(inputs: Inputs, artifact: Artifact) -> int:
    """Return the step between rows that leaves at most `_ROWS` of them; 1 if the model's batch size is fixed."""
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in artifact.signature.inputs)
    return 1 if fixed else -(-count_rows(inputs) // _ROWS)


def _every(stride: int, inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: np.ascontiguousarray(array[::stride]) for name, array in inputs.items()}
    return np.ascontiguousarray(inputs[::stride])
