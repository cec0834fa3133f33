"""The output of a model that a gate reads, and how."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    from pytest_modelserve.metrics.classification import Decoding
    from pytest_modelserve.metrics.losses import Scores


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
