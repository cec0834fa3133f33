"""The search: fixed edge cases first, then seeded candidates, and the first row that breaks a relation made simple."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.robustness.coordinates import Feed, changed, joined, row_count, taken
from pytest_modelserve.robustness.minimizer import Counterexample, Minimised, minimise, simplest_ending
from pytest_modelserve.robustness.mutations import Space, block_rows, edge_cases, edited
from pytest_modelserve.robustness.relations.base import Relation, Violations, checked
from pytest_modelserve.serving.subprocess_predictor import ProcessCrashError, SubprocessPredictor

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import Answering

# What came of a search.


@dataclass(slots=True)
class Search:
    """What a search did, and what it found."""

    edge_cases: int = 0
    drawn: int = 0
    refused: int = 0
    refusal: str = ""
    max_excess: float = float("nan")
    counterexample: Counterexample | None = None
    trials: int = 0

    @property
    def candidates(self) -> int:
        """The rows that the model answered."""
        return self.edge_cases + self.drawn - self.refused


# What a relation says of many rows, also where the model refuses some of them or ends on them.


class EndedAtError(Exception):
    """Some of the rows from `begin` to `end` ended the model's process."""

    def __init__(self, begin: int, end: int, error: ProcessCrashError) -> None:
        super().__init__(str(error))
        self.begin, self.end, self.error = begin, end, error


@dataclass(frozen=True, slots=True)
class Answered:
    """That a model answers at all, which is asked before anything else where it may not."""

    name: str = "an answer"
    definition: str = "every row is answered"
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: Answering, candidates: Feed, _base: Feed) -> Violations:
        """None of the rows that are answered."""
        predictor.predict(candidates)
        return Violations(np.zeros(row_count(candidates), np.bool_))


@dataclass(slots=True)
class Judge:
    """Asks a relation about rows, in batches of `batch` where these are its unit; refusals are counted in `search`."""

    relation: Relation
    predictor: Answering
    space: Space
    batch: int
    search: Search = field(default_factory=Search, init=False)

    def check(self, rows: Feed) -> Violations:
        """What the relation says of rows; of a batch where that is its unit, one batch after the other."""
        if self.relation.unit == "row":
            return checked(self.relation, self.predictor, rows, self.space.base)
        count = row_count(rows)
        parts = [
            checked(self.relation, self.predictor, taken(rows, slice(begin, begin + self.batch)), self.space.base)
            for begin in range(0, count, self.batch)
        ]
        excess = [part.excess for part in parts if part.excess is not None]
        return Violations(
            np.concatenate([part.violated for part in parts]),
            np.concatenate(excess) if len(excess) == len(parts) else None,
        )

    def fails(self, rows: Feed) -> NDArray[np.bool_]:
        """Which rows break the relation; those that the model refuses do not, nor those that end its process."""
        violated = np.zeros(row_count(rows), np.bool_)
        for begin, found in self.answered(rows, minimising=True):
            violated[begin : begin + len(found.violated)] = found.violated
        return violated & self.space.holds(rows)  # a plainer number may lie outside what is declared

    def answered(self, rows: Feed, *, minimising: bool = False) -> Iterator[tuple[int, Violations]]:
        """What the relation says, in pieces with their first row; rows that the model refuses are set aside, found by
        halving, and while minimising also those that end its process.

        EndedAtError at other times for a piece that ends it.
        """
        open_ranges = [(0, row_count(rows))]
        while open_ranges:
            begin, end = open_ranges.pop()
            try:
                yield begin, self.check(taken(rows, slice(begin, end)))
            except (InputError, ArtifactError, ProcessCrashError) as error:
                if isinstance(error, ProcessCrashError) and not minimising:
                    raise EndedAtError(begin, end, error) from error
                if end - begin > 1:
                    middle = (begin + end) // 2
                    open_ranges += [(middle, end), (begin, middle)]
                elif not minimising:
                    self.search.refused += 1
                    self.search.refusal = self.search.refusal or str(error)

    def ends(self, rows: Feed) -> ProcessCrashError | None:
        """How rows end the process that serves the model, None where they are answered or refused."""
        refused, told = self.search.refused, self.search.refusal
        try:
            for _ in self.answered(rows):
                pass
        except EndedAtError as at:
            return at.error
        finally:
            self.search.refused, self.search.refusal = refused, told
        return None

    def sentence(self, rows: Feed) -> str:
        """What the relation says when it is asked once more; empty where it now holds."""
        try:
            again = checked(self.relation, self.predictor, rows, self.space.base)
        except ProcessCrashError as error:
            return str(error)
        return again.sentence(int(np.argmax(again.violated))) if again.violated.any() else ""


_ELITE = 32
"""Rows that came nearest to breaking the relation, from which half of the later candidates are made."""
_EDGE_SHARE = 4
_SINGLE_TRIALS = 1000
"""Trials of a minimiser that asks one call each."""


@dataclass(slots=True)
class _Run(Judge):
    elite: list[tuple[float, Feed, int]] = field(default_factory=list, init=False)

    def look(self, rows: Feed, origin: NDArray[np.intp]) -> bool:
        """Ask about a block of rows; True once a counterexample is found, and made simple."""
        try:
            for begin, found in self.answered(rows):
                places = np.arange(begin, begin + len(found.violated))
                if found.excess is not None and len(found.excess):
                    self._remember(taken(rows, places), origin[places], found.excess)
                if found.violated.any():
                    self.search.counterexample = self._simplest(taken(rows, places), origin[places], found)
                    return True
        except EndedAtError as at:
            piece = slice(at.begin, at.end)
            self.search.counterexample = self._simplest_ending(taken(rows, piece), origin[piece], at.error)
            return True
        return False

    def _remember(self, rows: Feed, origin: NDArray[np.intp], excess: NDArray[np.float64]) -> None:
        score = np.where(np.isfinite(excess), excess, -1.0)
        self.search.max_excess = float(np.fmax(self.search.max_excess, np.fmax.reduce(excess)))
        for place in np.argsort(-score)[:_ELITE]:
            self.elite.append((float(score[place]), taken(rows, slice(place, place + 1)), int(origin[place])))
        self.elite.sort(key=lambda entry: -entry[0])
        del self.elite[_ELITE:]

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Feed, NDArray[np.intp]]:
        """Candidates: half from the rows that came nearest so far, where the relation tells which did."""
        if not self.elite or self.elite[0][0] <= 0 or count < 2:
            return edited(self.space, rng, count)
        near = joined([rows for _, rows, _ in self.elite])
        lineage = np.array([origin for _, _, origin in self.elite], np.intp)
        first, first_origin = edited(self.space, rng, count - count // 2)
        second, place = edited(self.space, rng, count // 2, start=near)
        return joined([first, second]), np.concatenate([first_origin, lineage[place]])

    def _simplest(self, rows: Feed, origin: NDArray[np.intp], found: Violations) -> Counterexample:
        base = taken(self.space.base, origin)
        if self.relation.unit == "batch":
            return self._simplest_batch(rows, base, int(origin[0]), found)
        failing = np.flatnonzero(found.violated)[:_ELITE]
        counts = changed(taken(rows, failing), taken(base, failing)).sum(axis=1)
        order = [int(place) for place in failing[np.argsort(counts, kind="stable")]]
        # One that breaks it alone too, if there is one: that is what can be pasted.
        place = next((p for p in order if self.fails(taken(rows, slice(p, p + 1))).any()), order[0])
        here = slice(place, place + 1)
        least = self._least(taken(rows, here), taken(base, here))
        return Counterexample(
            rows=least.row,
            base=taken(base, here),
            changes=tuple((0, index) for index in least.coordinates),
            base_row=int(origin[place]),
            sentence=self.sentence(least.row),
            broke_again=bool(self.fails(least.row).any()),
            found_with=int(counts[list(failing).index(place)]),
        )

    def _simplest_ending(self, rows: Feed, origin: NDArray[np.intp], error: ProcessCrashError) -> Counterexample:
        base = taken(self.space.base, origin)
        limit_s = error.time_limit_s or 0.0
        found, trials = simplest_ending(rows, base, origin, self.ends, error=error, time_limit_s=limit_s)
        self.search.trials += trials
        return found

    def _least(self, row: Feed, base: Feed) -> Minimised:
        """The row made simple, one that breaks the relation when it is asked by itself if there is one.

        The answers of some models depend on the batch (dynamic quantisation takes its scale from it): there a trial
        among others proves nothing, and each is asked in a call of its own, which is slow and therefore limited.
        """
        least = minimise(row, base, self.fails)
        self.search.trials += least.trials
        if self.fails(least.row).any():
            return least
        if not self.fails(row).any():
            return Minimised(row, tuple(int(i) for i in np.flatnonzero(changed(row, base)[0])), 0)

        def singly(trials: Feed) -> NDArray[np.bool_]:
            places = range(row_count(trials))
            return np.array([self.fails(taken(trials, slice(i, i + 1)))[0] for i in places], np.bool_)

        least = minimise(row, base, singly, max_trials=_SINGLE_TRIALS)
        self.search.trials += least.trials
        return least

    def _simplest_batch(self, rows: Feed, base: Feed, base_row: int, found: Violations) -> Counterexample:
        """The batch of the first failing row: first fewer rows, then fewer changes in what is left."""
        begin = int(np.argmax(found.violated)) // self.batch * self.batch
        batch, start = (taken(feed, slice(begin, begin + self.batch)) for feed in (rows, base))

        def breaks(trial: Feed) -> bool:
            self.search.trials += 1
            return bool(self.fails(trial).any())

        kept = np.arange(row_count(batch))
        for row in kept[::-1]:
            fewer = kept[kept != row]
            if len(fewer) and breaks(taken(batch, fewer)):
                kept = fewer
        batch, start = taken(batch, kept), taken(start, kept)
        found_with = int(changed(batch, start).sum())
        one = {name: array[np.newaxis] for name, array in batch.items()}
        least = minimise(
            one,
            {name: array[np.newaxis] for name, array in start.items()},
            lambda trials: np.array([breaks(taken(trials, i)) for i in range(row_count(trials))], np.bool_),
            max_trials=_SINGLE_TRIALS,
        )
        simple = taken(least.row, 0)
        changes = tuple((int(r), int(c)) for r, c in np.argwhere(changed(simple, start)))
        return Counterexample(
            rows=simple,
            base=start,
            changes=changes,
            base_row=base_row,
            sentence=self.sentence(simple),
            broke_again=breaks(simple),
            found_with=found_with,
        )


def search_for(
    relation: Relation,
    predictor: Answering,
    space: Space,
    *,
    candidates: int,
    seed: int,
    batch: int = 8,
    first: tuple[Feed, NDArray[np.intp]] | None = None,
) -> Search:
    """The outcome of looking for rows that break `relation`: the same for the same seed and the same answers.

    `first` are rows to ask before any other, each with the base row that it was made from. A quarter of `candidates`,
    at most, are the fixed edge cases, base rows first; the rest is drawn. With 0 the base rows are asked alone.
    InputError where the model took not one candidate.
    """
    run = _Run(relation, predictor, space, batch)
    if (
        isinstance(predictor.predictor, SubprocessPredictor)
        and (ending := _ending_base_rows(predictor, space)) is not None
    ):
        return ending
    with suppress(ProcessCrashError):  # the search comes to it
        checked(relation, predictor, taken(space.base, slice(0, 1)), space.base)  # what does not fit is said of one row
    if first is not None and row_count(first[0]):
        run.search.drawn += row_count(first[0])
        if run.look(*first):
            return run.search
    fixed = _base_rows(space) if candidates == 0 else edge_cases(space, max(candidates // _EDGE_SHARE, 1))
    for rows, origin in fixed:
        run.search.edge_cases += row_count(rows)
        if run.look(rows, origin):
            return run.search
    rng = np.random.default_rng(seed)
    step = block_rows(space)
    while run.search.edge_cases + run.search.drawn < candidates:
        count = min(step, candidates - run.search.edge_cases - run.search.drawn)
        rows, origin = run.drawn(rng, count)
        run.search.drawn += count
        if run.look(rows, origin):
            return run.search
    if run.search.candidates <= 0:
        raise InputError(f"the model took not one of {run.search.refused} candidates: {run.search.refusal}")
    return run.search


def _ending_base_rows(predictor: Answering, space: Space) -> Search | None:
    """Base rows that end the process by themselves: relations ask them beside every other row."""
    run = _Run(Answered(), predictor, space, 1)
    for rows, origin in _base_rows(space):
        run.search.edge_cases += len(origin)
        if run.look(rows, origin):
            return run.search
    return None


def _base_rows(space: Space) -> Iterator[tuple[Feed, NDArray[np.intp]]]:
    """Every base row as it stands, in blocks."""
    step = block_rows(space)
    for begin in range(0, space.rows, step):
        origin = np.arange(begin, min(begin + step, space.rows))
        yield taken(space.base, origin), origin


# The test of hypothesis that runs now, if there is one; hypothesis is looked at only where somebody imported it.


def steer(excess: float, label: str) -> None:
    """Tell hypothesis how near a search came to breaking a relation, so that it goes on from the nearest examples."""
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context() or not math.isfinite(excess):
        return
    import hypothesis

    if label not in control.current_build_context().data.target_observations:  # told twice, it is an error there
        hypothesis.target(excess, label=label)
