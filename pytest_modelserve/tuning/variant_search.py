"""Searches: a grid that is fixed in advance, and nodes that leave a quantization until the gates hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import first_line
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.evidence.failure_text import format_in_words
from pytest_modelserve.performance.slowdown import SESSION_SPREAD
from pytest_modelserve.progress import progress
from pytest_modelserve.tuning.gate import GateFunction, GateResult, Kind, run_gate
from pytest_modelserve.tuning.objective import Objective
from pytest_modelserve.tuning.selection import SHORTLIST, KnownLevels, Selection, Split, closeness, missing_rows, select
from pytest_modelserve.tuning.trial import Trial
from pytest_modelserve.tuning.variant import Variant, VariantFactory

# Blocks of timed calls: of every variant of a grid, of those that are not clearly faster and of those made adaptively,
# of those among which the fastest is chosen, and of those that are then still faster.
FIRST_BLOCKS, SECOND_BLOCKS, THIRD_BLOCKS, FINAL_BLOCKS = 6, 12, 18, 54
_CLEARLY_FASTER = 0.9
"""The ratio up to which six blocks are enough before the gates: their median varies by 2 to 3 %."""
_RATIO = attrgetter("ratio")
_WAVE = 6
"""Variants that the gates see before the next decision."""
_FINALISTS = 4
_LIKELY = 0.9
"""The search for the nodes to exclude takes fewer where the gates hold with this probability."""
_MOST_TRIALS = 12
_PLANNED = 3
"""Undecided variants, the nearest, for which the missing rows are planned: a plan takes up to half a second."""


@dataclass(slots=True, eq=False)
class Search:
    """What both searches share: the gates, the objective, and the trials so far.

    `kinds` are the kinds of the gates, as they showed on the original.
    """

    gates: Sequence[GateFunction]
    kinds: Sequence[Kind]
    objective: Objective
    error_rate: float
    trials: list[Trial] = field(default_factory=list)
    selection: Selection = field(default_factory=lambda: Selection((), 0.0, 0))
    known: KnownLevels = field(default_factory=KnownLevels)
    chosen: Trial | None = None
    split: Split | None = None

    def grid(self, variants: Sequence[Variant]) -> None:
        """Judge a grid by max-T over all variants that are faster than the original; the fastest that passes is chosen.

        Timings do not depend on the rows, so that a slower variant leaves the family. One that is not judged, because a
        faster one passes, counts in it.
        """
        self.trials = [Trial(variant) for variant in variants]
        for trial in progress(self.trials, f"building {len(variants)} variants", total=len(variants)):
            self._build(trial)
        self._measure(self._open, FIRST_BLOCKS)
        for trial in self._open:
            self._leave_without_gain(trial, 1.0)
        self._measure([trial for trial in self._open if trial.ratio > _CLEARLY_FASTER], SECOND_BLOCKS)
        for trial in self._open:
            self._leave_without_gain(trial, self.objective.gain_limit)
        for trial in self._open:
            self._run(trial, "file")
        family = list(self._open)
        while True:
            judged = [trial for trial in family if self._has_verdict(trial)]
            unjudged = [trial for trial in family if not self._has_verdict(trial)]
            self.selection = select(judged, error_rate=self.error_rate, unjudged=len(unjudged), known=self.known)
            passing = self._passing()
            best = min(passing, key=_RATIO, default=None)
            pending = [trial for trial in unjudged if trial.outcome == "open"]
            # With six blocks a variant may look slower than another by as much as two sessions of one model differ.
            limit = math.inf if best is None else SESSION_SPREAD * best.ratio
            wave = sorted((trial for trial in pending if trial.ratio < limit), key=_RATIO)[:_WAVE]
            if wave:
                for trial in progress(wave, "gates of the fastest variants", total=len(wave)):
                    self._run(trial, "rows")
            elif best is None or self._choose(passing):
                break
        self._explain(family)

    def exclusions(self, factory: VariantFactory, original: Artifact, recipe: tuple[str, ...], split: Split) -> None:
        """Exclude nodes from a quantization, the most damaging first, until the gates hold.

        The number of nodes is searched on 30 % of the rows: doubled until the gates hold there, then halved back. The
        six variants with the largest probability of passing times gain are judged by max-T on the other rows.
        """
        self.split = split
        nodes = factory.ranked_nodes(original, recipe)
        found: dict[int, Trial] = {}

        def attempt(count: int) -> float:
            if count not in found:
                found[count] = Trial(factory.with_excluded(original, recipe, nodes[:count]))
                self.trials.append(found[count])
                self._attempt(found[count], split)
            return found[count].probability or 0.0

        for count in progress(_counts(len(nodes), attempt), f"nodes to exclude, of {len(nodes)}", total=_MOST_TRIALS):
            attempt(count)
        ranked = sorted(self._open, key=lambda trial: (trial.probability or 0.0) * (1 - trial.ratio), reverse=True)
        family = ranked[:SHORTLIST]
        for trial in ranked[SHORTLIST:]:
            trial.end("not judged", "not among the six that are judged on the other rows")
        self.selection = select(family, error_rate=self.error_rate, split=split)
        while passing := self._passing():
            if self._choose(passing):
                break
        self._explain(family)

    @property
    def nearest(self) -> Trial | None:
        """The variant that is nearest to passing, where none does."""
        judged = [trial for trial in self.trials if trial.results and trial.outcome in ("not shown", "fails")]
        undecided = [trial for trial in judged if trial.outcome == "not shown"]
        return max(undecided or judged, key=closeness, default=None)

    @property
    def _open(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.outcome == "open"]

    def _passing(self) -> list[Trial]:
        return [trial for trial in self.selection.shown if trial.outcome == "open"]

    def _has_verdict(self, trial: Trial) -> bool:
        return "rows" not in self.kinds or len(trial.results) > self.kinds.count("file")

    def _attempt(self, trial: Trial, split: Split) -> None:
        self._build(trial)
        if trial.outcome == "open":
            self._measure([trial], SECOND_BLOCKS)
            self._leave_without_gain(trial, self.objective.gain_limit)
        self._run(trial, "file")
        # No verdict here: it would let the rows that judge the shortlist take part in the search.
        self._run(trial, "rows", may_end=False)
        if trial.outcome == "open":
            level = 1 - self.error_rate / SHORTLIST
            trial.probability = split.pass_probability(trial, level=level)

    def _build(self, trial: Trial) -> None:
        """Build a trial's model; note why it cannot be, and which earlier one is the same."""
        try:
            trial.artifact = trial.variant.build()
            trial.key = trial.variant.identity(trial.artifact)
        except Exception as error:
            trial.end("not built", first_line(error))
            return
        twin = next((each for each in self.trials if each is not trial and each.key == trial.key), None)
        if twin is not None:
            trial.end("not judged", f"the same model and session as {twin.name}")
            return
        self.objective.recall(trial)

    def _measure(self, trials: Sequence[Trial], blocks: int) -> None:
        self.objective.measure([trial for trial in trials if trial.outcome == "open"], blocks)

    def _leave_without_gain(self, trial: Trial, limit: float) -> None:
        if trial.outcome == "open" and trial.ratio >= limit:
            trial.end("no gain", f"{self.objective.title} × {trial.ratio:.2f} of the original's")

    def _run(self, trial: Trial, kind: Kind, *, may_end: bool = True) -> None:
        """Run the gates of a kind; the first FAIL ends the trial, if it may, and an error does."""
        for gate, its_kind in zip(self.gates, self.kinds, strict=True):
            if its_kind != kind or trial.outcome != "open":
                continue
            try:
                with trial.serve() as predictor:
                    result = run_gate(gate, predictor)
            except Exception as error:
                result = GateResult((), (), first_line(error))
            if kind != "rows" and result.figures:
                result = replace(result, problem="the gate judges labeled rows, and did not of the original")
            elif kind == "rows" and not result.figures and not result.problem:
                result = replace(result, problem="the gate judges no labeled rows, and did of the original")
            trial.results.append(result)
            if result.failed and (may_end or not result.figures):
                trial.end("fails", _reason(result))
            elif kind != "rows" and not result.passed:
                trial.end("not shown", _reason(result))

    def _choose(self, passing: Sequence[Trial]) -> bool:
        """Time the fastest more closely, run the other gates on the one that is chosen; return whether it passes."""
        fastest = min(passing, key=_RATIO)
        close = [trial for trial in passing if trial.low <= fastest.high]
        finalists = sorted(close, key=_RATIO)[:_FINALISTS]
        self._measure(finalists, THIRD_BLOCKS)
        for trial in finalists:
            self._leave_without_gain(trial, 1.0)
        self._measure(finalists, FINAL_BLOCKS)
        for trial in passing:
            if trial.outcome == "open" and trial.high >= self.objective.gain_limit:
                trial.end("no gain", f"not shown to be {self.objective.better} than the original")
        best = min((trial for trial in passing if trial.outcome == "open"), key=_RATIO, default=None)
        if best is None:
            return False
        self._run(best, "other")
        if best.outcome != "open":
            return False
        best.end("chosen", "")
        self.chosen = best
        return True

    def _explain(self, family: Sequence[Trial]) -> None:
        """Give every trial that is left its outcome and the reason."""
        shown, chosen = self.selection.shown, self.chosen
        undecided: list[Trial] = []
        for trial in family:
            if trial.outcome != "open":
                continue
            failed = next((result for result in trial.results if result.failed), None)
            if failed is not None:
                trial.end("fails", _reason(failed))
            elif trial in shown and chosen is not None:
                trial.end("passes", f"{chosen.name} is {self.objective.better}")
            elif not self._has_verdict(trial):
                trial.end(
                    "not judged", "" if chosen is None else f"{chosen.name} passes and is {self.objective.better}"
                )
            else:
                undecided.append(trial)
        for place, trial in enumerate(sorted(undecided, key=closeness, reverse=True)):
            trial.end("not shown", self._undecided(trial, is_planned=place < _PLANNED))

    def _undecided(self, trial: Trial, *, is_planned: bool) -> str:
        own = next((_reason(result) for result in trial.results if not result.passed), "")
        paid = own or f"passes alone, and is not shown to pass as one of {self.selection.family} variants"
        rows = missing_rows(trial, level=self.selection.level, split=self.split) if is_planned else None
        return paid if rows is None else f"{paid}; about {rows[1]:,} rows would show it, {rows[1] - rows[0]:,} more"


def _counts(total: int, attempt: Callable[[int], float]) -> Iterator[int]:
    """Yield the numbers of nodes to exclude: 0, 1, 2, 4, 8 until one is likely to pass, then between, then around."""
    tried, low, high = [0], -1, 0
    yield 0
    while attempt(high) < _LIKELY and high < total - 1:
        low, high = high, min(max(1, 2 * high), total - 1)
        tried.append(high)
        yield high
    while high - low > 1 and len(tried) < _MOST_TRIALS:
        middle = (low + high) // 2
        tried.append(middle)
        yield middle
        low, high = (low, middle) if attempt(middle) >= _LIKELY else (middle, high)
    for count in range(high, total):
        if len(tried) >= SHORTLIST:
            break
        if count not in tried:
            tried.append(count)
            yield count


def _reason(result: GateResult) -> str:
    """Return the gate and the value that decide, in one line."""
    evidence = result.decisive
    if result.problem or evidence is None:
        return result.problem
    quantity, verdict = evidence.decisive, evidence.verdict or Verdict.FAIL
    limit = "" if quantity.budget is None else f" against {quantity.budget.argument or quantity.budget.limit}"
    return f"{evidence.gate} {verdict.value}: {quantity.name} {format_in_words(quantity.value, quantity.unit)}{limit}"
