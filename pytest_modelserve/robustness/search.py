"""Counterexample search: fixed edge cases first, then seeded candidates. The first violation is minimized."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.robustness.coordinates import Feed, changed_mask, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.minimizer import Counterexample, MinimizedRow, minimize, minimize_crash
from pytest_modelserve.robustness.mutations import SearchSpace, block_size, edge_cases, mutate
from pytest_modelserve.robustness.relations.base import Relation, Violations, checked
from pytest_modelserve.serving.predictor import ProcessCrashError
from pytest_modelserve.serving.serve import in_child

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor

Block = tuple[Feed, NDArray[np.intp]]
"""Candidate rows (n, ...), and the base row that each one was made from, (n,)."""

_EDGE_CASE_FRACTION = 4
_ELITE_ROWS = 32
_MAX_SINGLE_TRIALS = 1000
"""Trials of a minimization that calls the model once per trial."""


def search_counterexample(
    relation: Relation,
    predictor: BatchedPredictor,
    space: SearchSpace,
    *,
    candidates: int,
    seed: int,
    batch: int = 8,
    first: Block | None = None,
) -> SearchResult:
    """Search for rows that violate `relation`. The result is the same for the same seed and the same model outputs.

    Args:
        relation: The relation to check.
        predictor: The model.
        space: The base rows, and where other values come from.
        candidates: The number of rows to check. At most a quarter of them are fixed edge cases, base rows first; the
            rest is generated. With 0 only the base rows are checked.
        seed: The seed of the generated candidates.
        batch: The number of rows of one batch, for relations about batches.
        first: Rows to check before all others.

    Raises:
        InputError: If the model rejects every candidate.
    """
    if in_child(predictor.predictor):
        # A relation evaluates the base rows along with all others, so one that crashes by itself is reported first.
        crashes = _Evaluator(_AnyOutput(), predictor, space, 1)
        for rows, origin in _base_blocks(space):
            crashes.result.edge_cases += len(origin)
            if crashes.find_counterexample(rows, origin):
                return crashes.result
    evaluator = _Evaluator(relation, predictor, space, batch)
    result = evaluator.result
    with suppress(ProcessCrashError):  # the search reports it
        # Arguments that do not fit the model are reported for one row.
        checked(relation, predictor, take_rows(space.base, slice(0, 1)), space.base)
    if first is not None and row_count(first[0]):
        result.generated += row_count(first[0])
        if evaluator.find_counterexample(*first):
            return result
    fixed = edge_cases(space, max(candidates // _EDGE_CASE_FRACTION, 1)) if candidates else _base_blocks(space)
    for rows, origin in fixed:
        result.edge_cases += row_count(rows)
        if evaluator.find_counterexample(rows, origin):
            return result
    rng = np.random.default_rng(seed)
    while (missing := candidates - result.edge_cases - result.generated) > 0:
        rows, origin = evaluator.elite.generate(space, rng, min(block_size(space), missing))
        result.generated += len(origin)
        if evaluator.find_counterexample(rows, origin):
            return result
    if result.candidates <= 0:
        raise InputError(
            f"the model rejected all {result.rejected} generated inputs; first error: {result.rejection_reason}"
        )
    return result


@dataclass(slots=True)
class SearchResult:
    """The counts of a search and its counterexample, if it found one."""

    edge_cases: int = 0
    generated: int = 0
    rejected: int = 0
    rejection_reason: str = ""
    max_excess: float = float("nan")
    counterexample: Counterexample | None = None
    trials: int = 0

    @property
    def candidates(self) -> int:
        """The number of rows for which the model returned outputs."""
        return self.edge_cases + self.generated - self.rejected


def report_to_hypothesis(excess: float, label: str) -> None:
    """Pass `excess` to `hypothesis.target` within a test of hypothesis, which then continues from the nearest examples.

    Hypothesis is not imported unless the test has done so.
    """
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context() or not math.isfinite(excess):
        return
    import hypothesis

    if label not in control.current_build_context().data.target_observations:  # a second observation is an error
        hypothesis.target(excess, label=label)


@dataclass(slots=True)
class _Elite:
    """The rows that came nearest to a violation, as (excess, row, base row), nearest first."""

    entries: list[tuple[float, Feed, int]] = field(default_factory=list)

    def add(self, rows: Feed, origin: NDArray[np.intp], excess: NDArray[np.float64]) -> None:
        score = np.where(np.isfinite(excess), excess, -1.0)
        for row in np.argsort(-score)[:_ELITE_ROWS]:
            self.entries.append((float(score[row]), take_rows(rows, slice(row, row + 1)), int(origin[row])))
        self.entries.sort(key=lambda entry: -entry[0])
        del self.entries[_ELITE_ROWS:]

    def generate(self, space: SearchSpace, rng: np.random.Generator, count: int) -> Block:
        """Generate candidates: half of them from the elite, if the relation has measured an excess."""
        if not self.entries or self.entries[0][0] <= 0 or count < 2:
            return mutate(space, rng, count)
        elite = concat_rows([rows for _, rows, _ in self.entries])
        elite_origin = np.array([origin for _, _, origin in self.entries], np.intp)
        rows, origin = mutate(space, rng, count - count // 2)
        near, parent = mutate(space, rng, count // 2, start=elite)
        return concat_rows([rows, near]), np.concatenate([origin, elite_origin[parent]])


@dataclass(slots=True)
class _Evaluator:
    """Evaluates a relation on blocks of candidates, in batches of `batch` rows if it is about batches."""

    relation: Relation
    predictor: BatchedPredictor
    space: SearchSpace
    batch: int
    result: SearchResult = field(default_factory=SearchResult, init=False)
    elite: _Elite = field(default_factory=_Elite, init=False)

    def find_counterexample(self, rows: Feed, origin: NDArray[np.intp]) -> bool:
        """Evaluate one block. Return True if it holds a counterexample, which is minimized and added to the result."""
        result = self.result
        try:
            for begin, found in self._evaluate(rows, count_rejected=True):
                piece = np.arange(begin, begin + len(found.violated))
                if found.excess is not None and len(found.excess):
                    result.max_excess = float(np.fmax(result.max_excess, np.fmax.reduce(found.excess)))
                    self.elite.add(take_rows(rows, piece), origin[piece], found.excess)
                if found.violated.any():
                    minimized = _minimize_batch if self.relation.unit == "batch" else _minimize_row
                    result.counterexample = minimized(self, take_rows(rows, piece), origin[piece], found.violated)
                    return True
        except _CrashError as crash:
            rows, origin = take_rows(rows, crash.piece), origin[crash.piece]
            base = take_rows(self.space.base, origin)
            result.counterexample, trials = minimize_crash(rows, base, origin, self.crash, error=crash.error)
            result.trials += trials
            return True
        return False

    def violations(self, rows: Feed) -> NDArray[np.bool_]:
        """Return which rows violate the relation. Rows that are rejected, crash or leave the ranges do not."""
        violated = np.zeros(row_count(rows), np.bool_)
        for begin, found in self._evaluate(rows, skip_crashes=True):
            violated[begin : begin + len(found.violated)] = found.violated
        return violated & self.space.contains(rows)  # a simpler number may lie outside the declared ranges

    def violates_alone(self, rows: Feed) -> NDArray[np.bool_]:
        """Return which rows violate the relation if each is evaluated in a call of its own."""
        singles = (take_rows(rows, slice(row, row + 1)) for row in range(row_count(rows)))
        return np.array([self.violations(single)[0] for single in singles], np.bool_)

    def crash(self, rows: Feed) -> ProcessCrashError | None:
        """Return how rows crash the serving process, None if they do not."""
        try:
            for _ in self._evaluate(rows):
                pass
        except _CrashError as crash:
            return crash.error
        return None

    def message(self, rows: Feed) -> str:
        """Return the relation's message about the first violating row, empty if it now holds."""
        try:
            found = checked(self.relation, self.predictor, rows, self.space.base)
        except ProcessCrashError as error:
            return str(error)
        return found.sentence(int(np.argmax(found.violated))) if found.violated.any() else ""

    def _evaluate(
        self, rows: Feed, *, skip_crashes: bool = False, count_rejected: bool = False
    ) -> Iterator[tuple[int, Violations]]:
        """Yield the violations in pieces with their first row. Rejected rows are found by halving, and left out.

        A crash raises _CrashError, unless `skip_crashes` leaves such rows out too.
        """
        open_ranges = [(0, row_count(rows))]
        while open_ranges:
            begin, end = open_ranges.pop()
            try:
                yield begin, self._check(take_rows(rows, slice(begin, end)))
            except (InputError, ArtifactError, ProcessCrashError) as error:
                if isinstance(error, ProcessCrashError) and not skip_crashes:
                    raise _CrashError(slice(begin, end), error) from error
                if end - begin > 1:
                    middle = (begin + end) // 2
                    open_ranges += [(middle, end), (begin, middle)]
                elif count_rejected:
                    self.result.rejected += 1
                    self.result.rejection_reason = self.result.rejection_reason or str(error)

    def _check(self, rows: Feed) -> Violations:
        if self.relation.unit == "row":
            return checked(self.relation, self.predictor, rows, self.space.base)
        batches = (take_rows(rows, slice(i, i + self.batch)) for i in range(0, row_count(rows), self.batch))
        parts = [checked(self.relation, self.predictor, batch, self.space.base) for batch in batches]
        excess = [part.excess for part in parts if part.excess is not None]
        return Violations(
            np.concatenate([part.violated for part in parts]),
            np.concatenate(excess) if len(excess) == len(parts) else None,
        )


class _CrashError(Exception):
    """A crash of the serving process on some of the rows in `piece`."""

    def __init__(self, piece: slice, error: ProcessCrashError) -> None:
        super().__init__(str(error))
        self.piece, self.error = piece, error


@dataclass(frozen=True, slots=True)
class _AnyOutput(Relation):
    """The relation that the model returns an output at all. It finds rows that crash the serving process."""

    name = "any output"
    definition = "the model returns an output for every row"

    def check(self, predictor: BatchedPredictor, candidates: Feed, _base: Feed) -> Violations:
        predictor.predict(candidates)
        return Violations(np.zeros(row_count(candidates), np.bool_))


def _base_blocks(space: SearchSpace) -> Iterator[Block]:
    """Yield every base row unchanged, in blocks."""
    step = block_size(space)
    for begin in range(0, space.n_rows, step):
        origin = np.arange(begin, min(begin + step, space.n_rows))
        yield take_rows(space.base, origin), origin


def _minimize_row(
    evaluator: _Evaluator, rows: Feed, origin: NDArray[np.intp], violated: NDArray[np.bool_]
) -> Counterexample:
    """Minimize the violating row with the fewest changes, preferably one that violates the relation alone."""
    base = take_rows(evaluator.space.base, origin)
    failing = np.flatnonzero(violated)[:_ELITE_ROWS]
    counts = changed_mask(take_rows(rows, failing), take_rows(base, failing)).sum(axis=1)
    order = np.argsort(counts, kind="stable")

    def alone(position: int) -> bool:
        row = failing[position]
        return bool(evaluator.violations(take_rows(rows, slice(row, row + 1))).any())

    chosen = next((position for position in order if alone(position)), order[0])
    row = int(failing[chosen])
    here = slice(row, row + 1)
    least = _minimize_alone(evaluator, take_rows(rows, here), take_rows(base, here))
    return Counterexample(
        rows=least.row,
        base=take_rows(base, here),
        changes=tuple((0, index) for index in least.coordinates),
        base_row=int(origin[row]),
        message=evaluator.message(least.row),
        reproduced=bool(evaluator.violations(least.row).any()),
        initial_changes=int(counts[chosen]),
    )


def _minimize_alone(evaluator: _Evaluator, row: Feed, base: Feed) -> MinimizedRow:
    """Minimize a row, if possible to one that violates the relation in a call of its own.

    The outputs of some models depend on the whole batch (dynamic quantization takes its scale from it). Trials in one
    call then prove nothing, and each trial is a call of its own, which is slow and therefore limited.
    """
    least = minimize(row, base, evaluator.violations)
    evaluator.result.trials += least.trials
    if evaluator.violations(least.row).any():
        return least
    if not evaluator.violations(row).any():
        return MinimizedRow(row, tuple(int(i) for i in np.flatnonzero(changed_mask(row, base)[0])), 0)
    least = minimize(row, base, evaluator.violates_alone, max_trials=_MAX_SINGLE_TRIALS)
    evaluator.result.trials += least.trials
    return least


def _minimize_batch(
    evaluator: _Evaluator, rows: Feed, origin: NDArray[np.intp], violated: NDArray[np.bool_]
) -> Counterexample:
    """Minimize the batch of the first violating row: first its rows, then the changes of the remaining ones."""
    begin = int(np.argmax(violated)) // evaluator.batch * evaluator.batch
    batch = take_rows(rows, slice(begin, begin + evaluator.batch))
    base = take_rows(evaluator.space.base, origin[begin : begin + evaluator.batch])

    def violates(trial: Feed) -> bool:
        evaluator.result.trials += 1
        return bool(evaluator.violations(trial).any())

    needed = np.arange(row_count(batch))
    for row in needed[::-1]:
        fewer = needed[needed != row]
        if len(fewer) and violates(take_rows(batch, fewer)):
            needed = fewer
    batch, base = take_rows(batch, needed), take_rows(base, needed)
    least = minimize(
        {name: array[np.newaxis] for name, array in batch.items()},
        {name: array[np.newaxis] for name, array in base.items()},
        lambda trials: np.array([violates(take_rows(trials, i)) for i in range(row_count(trials))], np.bool_),
        max_trials=_MAX_SINGLE_TRIALS,
    )
    minimized = take_rows(least.row, 0)
    return Counterexample(
        rows=minimized,
        base=base,
        changes=tuple((int(r), int(c)) for r, c in np.argwhere(changed_mask(minimized, base))),
        base_row=int(origin[0]),
        message=evaluator.message(minimized),
        reproduced=violates(minimized),
        initial_changes=int(changed_mask(batch, base).sum()),
    )
