"""How often a decision outlives a change that should not matter: a share of rows with exact bounds, and no search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.metrics import Decoded, Decoding, decode as decoded
from pytest_modelserve.metrics.tolerance import select_output
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.transformations import Transform, takes_generator, transformed
from pytest_modelserve.stats import binomial_bounds, proportion_rows_needed

if TYPE_CHECKING:
    from pytest_modelserve.serving import Inputs, Predictor

_LISTED = 50
"""Row numbers kept in the details: enough to look at, few enough to travel."""
_TOLD = 3


def measure_label_stability(
    predictor: Predictor,
    inputs: Inputs,
    transform: Transform,
    *,
    min_agreement: float,
    draws: int = 1,
    seed: int = 0,
    output: str | None = None,
    decode: Decoding = "argmax",
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    alpha: float = 0.01,
) -> Evidence:
    """Evidence that at least a share `min_agreement` of rows keep their label under `transform`, with exact bounds.

    `transform` is a function of `inputs` as they are given, or of them and a numpy generator. It gives them back,
    changed in a way that should change no label (another brightness, a synonym), each row for itself. A row keeps its
    label where each of `draws` changed copies has the label of the row as it stands; `decode` makes labels of the
    answers, as for `assert_accuracy`. The draws follow from `seed`, before any answer is seen, so rows stay independent
    trials and their Clopper-Pearson bounds exact. Rows with the same id in `groups` (n,), frames of one film say, are
    one trial, which counts where all of its rows keep their labels.

    PASS at `confidence`, FAIL at error rate `alpha`, and INCONCLUSIVE in between. It holds for rows drawn like these
    and bounds no worst case: for that, search with `assert_relation`.

    Scores that hold NaN have no label, and their row does not keep it. UsageError for a share outside (0, 1), for
    `draws` of a function that takes no generator, and for several outputs without `output`; InputError for inputs
    without rows, and for a transformation that loses rows or changes their dtype.
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    if not 0 < min_agreement < 1:
        raise UsageError(f"min_agreement is a share between 0 and 1 (0.95, say), not {min_agreement}")
    drawn = _check_draws(transform, draws)
    rows, given = batched(predictor, inputs)
    if rows.batch_size == 0 or not row_count(given):
        raise InputError("a share of rows needs rows, and the inputs have none")
    ids = _ids(groups, row_count(given))
    before = _labels(rows, given, output, decode)
    after = []
    for part in progress(np.random.SeedSequence(seed).spawn(draws), "transformed rows", total=draws):
        made = transformed(transform, inputs, np.random.default_rng(part) if drawn else None)
        after.append(_labels(rows, {next(iter(given)): made} if rows.pass_array else made, output, decode))
    kept = _Kept(before, tuple(after), ids)
    levels = levels_for(budget := Budget("at_least", min_agreement), confidence=confidence, alpha=alpha)
    bounds = binomial_bounds(kept.agreeing, kept.trials, low_level=levels[0], high_level=levels[1])
    share = Quantity("labels kept", bounds.estimate, "proportion", Interval.of(bounds), budget)
    needed = proportion_rows_needed(bounds.estimate, min_agreement, confidence=confidence, alpha=alpha)
    copies = f"{draws} drawn copies of each row, seed {seed}" if drawn else "one copy of each row"
    assert share.verdict is not None
    return Evidence(
        gate="agreement under a transformation",
        subject=predictor.subject,
        quantities=(share,),
        n=kept.trials,
        n_unit="rows" if ids is None else "groups",
        method=Method(
            f"exact binomial bounds, {copies}",
            "Clopper & Pearson 1934, Biometrika 26",
            f"independent {'rows' if ids is None else 'groups'}, and copies that were fixed before any answer",
        ),
        summary=_SUMMARIES[share.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=tuple(kept.findings()),
        advice="" if share.verdict is Verdict.PASS else _ADVICE,
        details={
            "changed_rows": np.flatnonzero(~kept.rows)[:_LISTED].tolist(),
            "copies_agreeing": float(kept.copies.mean()),
            "trials_needed": needed,
            "draws": draws,
            "seed": seed,
        },
        duration_s=time.perf_counter() - started,
    )


_SUMMARIES = {
    Verdict.PASS: "as many rows keep their label as required",
    Verdict.FAIL: "fewer rows keep their label than required",
    Verdict.INCONCLUSIVE: "the share of rows that keep their label cannot be told from its budget with these rows",
}
_ADVICE = "look at the rows that changed, train on transformed rows, or give more rows"


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The labels of rows as they stand and of their copies, and `ids` (n,) of the trials that they make up."""

    before: Decoded
    after: tuple[Decoded, ...]
    ids: NDArray[np.intp] | None

    @property
    def copies(self) -> NDArray[np.bool_]:
        """Which copies have the label of their row, (draws, n)."""
        whole = ~self.before.invalid
        return np.array([whole & ~copy.invalid & (copy.labels == self.before.labels) for copy in self.after])

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Which rows keep their label in every copy, (n,)."""
        return np.asarray(self.copies.all(axis=0))

    @property
    def trials(self) -> int:
        """The number of rows, or of groups."""
        return len(self.rows) if self.ids is None else int(self.ids.max()) + 1

    @property
    def agreeing(self) -> int:
        """The number of trials in which every row keeps its label."""
        if self.ids is None:
            return int(self.rows.sum())
        return self.trials - len(np.unique(self.ids[~self.rows]))

    def findings(self) -> Iterator[str]:
        """Sentences on the rows that changed."""
        changed = np.flatnonzero(~self.rows)
        if not len(changed):
            return
        told = [self._told(int(row)) for row in changed[:_TOLD]]
        more = f", and {len(changed) - _TOLD:,} more" if len(changed) > _TOLD else ""
        yield f"other labels: {', '.join(told)}{more}"
        broken = int(self.before.invalid.sum() + sum(int(copy.invalid.sum()) for copy in self.after))
        if broken:
            yield f"{broken} answers hold NaN and have no label: counted as another one"

    def _told(self, row: int) -> str:
        copy = self.after[int((~self.copies[:, row]).argmax())]
        here, there = (
            "none" if part.invalid[row] else str(part.labels[row]) for part in (self.before, copy)
        )  # fmt: skip
        return f"row {row} {here} → {there}"


def _check_draws(transform: Transform, draws: int) -> bool:
    """Whether copies are drawn; UsageError for a number of draws that means nothing."""
    drawn = takes_generator(transform)
    if draws < 1:
        raise UsageError(f"draws is a whole number of at least 1, not {draws}")
    if draws > 1 and not drawn:
        raise UsageError(
            f"draws={draws} copies of a function of rows alone are the same: let it take a generator too, "
            "transform(rows, rng)"
        )
    return drawn


def _labels(rows: BatchedPredictor, feed: Feed, output: str | None, decode: Decoding) -> Decoded:
    outputs = select_output(rows.predict(feed), output)
    if len(outputs) != 1:
        raise UsageError(f"the model has {len(outputs)} outputs: say which one decides by output=")
    return decoded(next(iter(outputs.values())), decode)


def _ids(groups: ArrayLike | None, n: int) -> NDArray[np.intp] | None:
    """The groups numbered from 0, None where every row is one; InputError for another shape, and for NaN."""
    if groups is None:
        return None
    ids: NDArray[Any] = np.asarray(groups)
    if ids.shape != (n,):
        raise InputError(f"groups have shape {ids.shape}; they need one id for each of the {n} rows")
    if ids.dtype.kind == "f" and np.isnan(ids).any():
        raise InputError(f"groups hold NaN in {int(np.isnan(ids).sum())} of {n} rows: give every row an id")
    _, numbers = np.unique(ids.astype(str) if ids.dtype.kind == "O" else ids, return_inverse=True)
    return np.asarray(numbers.reshape(-1), np.intp)
