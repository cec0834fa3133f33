"""Where two graphs first part, as a value and as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Scalar = float | int | bool | str
Kind = Literal["operator", "on the way", "optimised"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first node whose output differs beyond what its inputs explain.

    `node` and `operator` name it as the candidate does; a node that the candidate has lost is named as the reference
    does. `tensor` is its output by the reference's name, `index` the worst element of it (None where the whole tensor
    differs, in shape say), with both values there. `local` is True where the operator errs by itself: the candidate's
    value is what it makes of the reference's own inputs. It is False where no operator does ("on the way": many small
    differences add up) and where only onnxruntime's optimiser brings the difference about ("optimised").

    `changes` are sentences: in what the node's operator, attributes, inputs and stored weights differ. `problem` tells
    NaN, infinities, shapes and dtypes, `sqnr_db` the signal-to-quantisation-noise ratio of the tensor where a lower
    precision was allowed for. `agreeing` is the number of tensors before it that were held against the reference's and
    agree. `source` is the line of the torch module, "" where the file does not tell it.
    """

    node: str
    operator: str
    tensor: str
    index: tuple[int, ...] | None
    reference_value: Scalar | None
    candidate_value: Scalar | None
    local: bool
    kind: Kind
    source: str = ""
    changes: tuple[str, ...] = ()
    problem: str = ""
    sqnr_db: float | None = None
    agreeing: int = 0

    def __str__(self) -> str:
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        where = f"{self.operator} {self.node!r}"
        match self.kind:
            case "operator":
                yield f"{where} is the first to err, given the reference's own inputs"
            case "on the way":
                yield f"no operator errs by itself, the difference grows on the way: first beyond bounds after {where}"
            case "optimised":
                yield f"the graphs agree until onnxruntime optimises them; then the output of {where} differs"
        yield self._values()
        yield from self.changes
        if self.agreeing:
            yield f"the {self.agreeing} tensors before it agree" if self.agreeing > 1 else "the tensor before it agrees"
        if self.source:
            yield f"from {self.source}"

    def _values(self) -> str:
        told = f"tensor {self.tensor!r}"
        if self.index is not None:
            told += f" at {list(self.index)} is {_told(self.candidate_value)} where the reference has "
            told += _told(self.reference_value)
        if self.problem:
            told += f" ({self.problem})" if self.index is not None else f": {self.problem}"
        if self.sqnr_db is not None:
            told += f" (SQNR {self.sqnr_db:.1f} dB)"
        return told


def _told(value: Scalar | None) -> str:
    return f"{value:.7g}" if isinstance(value, float) else repr(value)
