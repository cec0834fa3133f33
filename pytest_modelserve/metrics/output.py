"""The outputs of a model that a gate reads, and how."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    from pytest_modelserve.metrics.classification import Decoding
    from pytest_modelserve.metrics.losses import Scores

OutputNames = str | Collection[str]
"""The name of one output, or of several."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Output:
    """The model output that a gate reads, and how its values become labels or probabilities.

    A gate that takes `output=` also takes the plain name: `output="logits"` is `output=ms.Output("logits")`.

    Args:
        name: Name of the output; required where the model has several.
        decode: How scores become class labels: "argmax", "threshold", "labels", or a callable from scores to labels
            (n,). Default of metrics that compare labels: "labels" for one integer or text a row, otherwise "argmax".
        scores: Whether the values are "logits" or "probabilities"; required by log loss and Brier score.
        pos_label: The positive class of precision, recall, F-beta and AUC; 1 by default where labels are 0 and 1.

    Example:
        >>> Output("probability", decode="threshold", pos_label=1)
        Output(name='probability', decode='threshold', scores=None, pos_label=1)
    """

    name: str | None = None
    _: KW_ONLY
    decode: Decoding | None = None
    scores: Scores | None = None
    pos_label: int | str | None = None

    @classmethod
    def of(cls, output: Output | str | None) -> Output:
        """Return `output` itself, or the output of that name; raise UsageError for another type."""
        if output is None or isinstance(output, str):
            return cls(output)
        if isinstance(output, Output):
            return output
        raise UsageError(f"output is a name or ms.Output(name, ...), got {type(output).__name__}")


def output_names(outputs: OutputNames | None) -> tuple[str, ...] | None:
    """Return the names of the outputs that a gate reads, None for all; UsageError for anything but names."""
    if outputs is None or isinstance(outputs, str):
        return None if outputs is None else (outputs,)
    if not isinstance(outputs, Collection) or not outputs or not all(isinstance(name, str) for name in outputs):
        raise UsageError(f"outputs must be the name of an output, or several names, got {outputs!r}")
    return tuple(outputs)


def choose_outputs(
    outputs: Mapping[str, Value],
    names: OutputNames | None,
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
    model: object = "",
) -> dict[str, Value]:
    """Return the outputs of these names, in the model's order, or all for None.

    `aliases` map other names to those of `outputs`. UsageError for an unknown name, with the nearest known one.
    """
    chosen = output_names(names)
    if chosen is None:
        return dict(outputs)
    known = {name if name in outputs else aliases.get(name, name) for name in chosen}
    for name in chosen:
        if name not in outputs and aliases.get(name) not in outputs:
            text = unknown_choice("output", name, outputs)
            raise UsageError(f"{model}: {text}" if model else text)
    return {name: value for name, value in outputs.items() if name in known}
