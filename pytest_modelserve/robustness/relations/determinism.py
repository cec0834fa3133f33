"""The same inputs have the same answers: asked again, in another session, on other numbers of threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pytest_modelserve.errors import UsageError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.relations.variants import farthest
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class Determinism:
    """See `determinism`."""

    repeats: int
    new_session: bool
    threads: tuple[int, ...]
    again: Tolerance
    threaded: Tolerance
    output: str | None
    name: str = "determinism"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        where = " and in a session opened anew" if self.new_session else ""
        told = f"asked {self.repeats + 1} times{where}, the model gives the same answers {_within(self.again)}"
        if not self.threads:
            return told
        return f"{told}, and on {_listed(self.threads)} threads the same {_within(self.threaded)}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows get another answer when they are asked again."""
        first = chosen(predictor.predict(candidates), self.output)
        asked = [(predictor, "when asked again", self.again)] * self.repeats
        if self.new_session:
            asked.append((predictor.again(), "in a new session", self.again))
        for count in self.threads:
            threads = f"{count} thread{'s' if count > 1 else ''}"
            asked.append((predictor.again(threads=count), f"on {threads}", self.threaded))
        magnitudes = predictor.magnitudes(base) if self.threads else {}
        several = [
            apart(chosen(other.predict(candidates), self.output), first, tolerance, magnitudes)
            for other, _, tolerance in asked
        ]
        return farthest(several, [words for _, words, _ in asked], "at first")


def determinism(
    *,
    repeats: int = 1,
    new_session: bool = False,
    threads: Iterable[int] = (),
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Determinism:
    """The same inputs have the same answers: when asked again, in a new session, and on each number of `threads`.

    Bit for bit where `rtol` and `atol` are not given, but for other numbers of threads: there sums may come in another
    order, and the tolerance is the room for rounding. Holds for onnxruntime on one CPU thread, also from session to
    session; on a GPU give tolerances. Broken by dropout that is left on, by random operators without a seed (a new
    session draws anew, or the same again), by state from call to call, and by kernels that choose by the number of
    threads. A new session needs a model that is served from a file; it is opened in this process, or in another one of
    its own where the search is isolated.
    """
    if repeats < 1:
        raise UsageError(f"repeats is a whole number of at least 1, not {repeats}")
    counts = tuple(threads)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"threads holds whole numbers of at least 1, not {count!r}")
    given = Tolerance.of(rtol, atol)
    exact = Tolerance(steps=0) if rtol is None else given
    return Determinism(repeats, new_session, counts, exact, given, output)


def _within(tolerance: Tolerance) -> str:
    return "bit for bit" if tolerance.steps == 0 else f"within {tolerance}"


def _listed(counts: tuple[int, ...]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, counts[:-1])), str(counts[-1]))))
