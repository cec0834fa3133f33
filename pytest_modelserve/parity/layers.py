"""Which nodes a quantised candidate should not have quantised: told where it failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pytest_modelserve.artifacts import JSON, Artifact, LineageStep
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.serving import Predictor

if TYPE_CHECKING:
    from pytest_modelserve.compression import CalibrationMethod, LayerDamage, Ranking

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
        told = _told(step, reference.artifact, inputs)
    except Exception as error:  # a tool's, a runtime's or our own: none of them changes the verdict
        return LayersTold(f"its layers could not be ranked by what quantising each costs: {error}")
    if told.finding:
        _RANKED[pair] = told
    return told


def _quantised_by(candidate: Artifact | None, reference: Artifact | None) -> LineageStep | None:
    """The first recipe of single layers on the way from `reference` to `candidate`, None where there is no way."""
    if candidate is None or reference is None:
        return None
    from pytest_modelserve.compression import LAYERED

    parents = [step.parent for step in candidate.lineage]
    if reference.sha256 not in parents:
        return None
    since = candidate.lineage[parents.index(reference.sha256) :]
    return next((step for step in since if step.settings.get("recipe") in LAYERED), None)


def _told(step: LineageStep, reference: Artifact, inputs: Inputs) -> LayersTold:
    from pytest_modelserve.compression import rank_layers

    recipe, excluded = str(step.settings["recipe"]), _names(step.settings.get("exclude", ()))
    rows, stride = rows_of(inputs), _stride(inputs, reference)
    ranking = rank_layers(
        reference,
        recipe,
        _every(stride, inputs),
        calibration_method=cast("CalibrationMethod", step.settings.get("calibration_method", "min-max")),
        percentile=cast("float | None", step.settings.get("percentile")),
        time_limit_s=_TIME_LIMIT_S,
    )
    ranked = [damage for damage in ranking.damages if damage.node not in excluded]
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
                "layers": ranking.layers,
                "tried": ranking.tried,
                "ranking": [{"node": each.node, "operator": each.operator, "sqnr_db": each.sqnr_db} for each in ranked],
            }
        },
    )


def _names(setting: JSON) -> tuple[str, ...]:
    return tuple(map(str, setting)) if isinstance(setting, (list, tuple)) else ()


def _sentence(recipe: str, worst: list[LayerDamage], cut: str) -> str:
    first, *others = (f"{damage.operator} {damage.node!r}" for damage in worst)
    told = f"quantised alone by {recipe}{cut}, {first} costs most: SQNR {worst[0].sqnr_db:.1f} dB"
    following = (f"{name} {damage.sqnr_db:.1f} dB" for name, damage in zip(others, worst[1:], strict=True))
    return "; next ".join((told, ", ".join(following))) if others else told


def _cut(ranking: Ranking, used: int, rows: int) -> str:
    """What of layers and rows was left out, in brackets, or ""."""
    parts = []
    if ranking.tried < ranking.layers:
        parts.append(f"the first {ranking.tried} of {ranking.layers} nodes within {_TIME_LIMIT_S:.0f} s")
    if used < rows:
        parts.append(f"{used} of {rows} rows")
    return f" ({', '.join(parts)})" if parts else ""


def _stride(inputs: Inputs, artifact: Artifact) -> int:
    """Every how many rows to take one, so that at most `_ROWS` remain; 1 where the model's batch is fixed."""
    fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in artifact.signature.inputs)
    return 1 if fixed else -(-rows_of(inputs) // _ROWS)


def _every(stride: int, inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: np.ascontiguousarray(array[::stride]) for name, array in inputs.items()}
    return np.ascontiguousarray(inputs[::stride])
