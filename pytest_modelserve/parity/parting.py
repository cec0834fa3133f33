"""Where two predictors part, told where they were found not to agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_modelserve.parity.locating import fault_origin, locate_divergence
from pytest_modelserve.parity.predicting import Inputs
from pytest_modelserve.serving import Predictor


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
