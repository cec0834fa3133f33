"""Two models that are to give the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import pair_outputs
from pytest_modelserve.robustness.asking import Answering, magnitude
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen, decisions_apart
from pytest_modelserve.robustness.violations import Violations
from pytest_modelserve.serving import Predictor


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """See `agreement`."""

    other: Predictor
    decision: bool
    tolerance: Tolerance
    output: str | None
    name: str = "agreement"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        what = "decision" if self.decision else "answer"
        return f"both models give the same {what}, within {self.tolerance}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows the other model answers otherwise."""
        expected = chosen(predictor.alike(self.other).predict(candidates), self.output)
        found = pair_outputs(predictor.predict(candidates), expected)
        if missing := [name for name in expected if name not in found]:
            raise UsageError(f"{predictor.subject} has no output {missing[0]!r}, which {self.other.subject} has")
        sizes = {name: magnitude(array) for name, array in predictor.alike(self.other).predict(base).items()}
        if self.decision:
            if len(expected) != 1:
                raise UsageError(f"the models have {len(expected)} outputs: say which one decides by output=")
            ((name, scores),) = expected.items()
            excess = decisions_apart(found[name], scores, self.tolerance, sizes[name])
        else:
            excess = apart({name: found[name] for name in expected}, expected, self.tolerance, sizes).excess
        compared = apart({name: found[name] for name in expected}, expected, self.tolerance, sizes)
        words = f"by {predictor.subject}", f"by {self.other.subject}"
        return Violations.beyond(excess, lambda row: compared.sentence(row, *words))


def agreement(
    other: Predictor,
    *,
    decision: bool = False,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Agreement:
    """`other`, the reference, gives the same answers, or with `decision=True` the same decisions (arg-max, or label).

    Without `rtol` and `atol` the tolerance is the room for rounding, which an export of the same precision keeps and a
    quantised model does not: ask that one for `decision=True`, where scores within the tolerance of each other are a
    tie.
    """
    return Agreement(other, decision, Tolerance.of(rtol, atol), output)
