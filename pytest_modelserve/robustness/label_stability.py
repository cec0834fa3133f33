"""Label stability gate: the proportion of rows that keep their label under a transformation, with exact bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from pytest_modelserve.metrics import Decoded, Output, decode
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.transformations import Transform, takes_generator, transformed
from pytest_modelserve.serving.inputs import as_one_batch, select_output
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Sampling, SamplingUnits, binomial_bounds, proportion_rows_needed

if TYPE_CHECKING:
    from pytest_modelserve.serving import Servable

_MAX_CHANGED_ROWS = 50
"""Row numbers in the details of the evidence."""
_MAX_EXAMPLES = 3

_SUMMARIES = {
    Verdict.PASS: "as many rows keep their label as required",
    Verdict.FAIL: "fewer rows keep their label than required",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether as many keep their label as required",
}
_ADVICE = "look at the rows that changed, train on transformed rows, or give more rows"


def measure_label_stability(
    predictor: Servable,
    inputs: Any,
    transform: Transform,
    *,
    min_agreement: float,
    draws: int = 1,
    seed: int = 0,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    confidence: float = 0.95,
    alpha: float = 0.01,
) -> Evidence:
    """Measure the proportion of rows that keep their label under a transformation.

    A row keeps its label if each of its `draws` transformed copies has the label of the original row. The copies follow
    from `seed` alone, so rows stay independent trials and their Clopper-Pearson bounds exact. PASS holds for rows drawn
    like these and does not bound the worst case: search for that with `assert_relation`.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, a mapping of input names to arrays, or an
            iterable of such batches.
        transform: Function of `inputs`, or of `inputs` and a numpy generator. It returns them changed in a way that
            should change no label (another brightness, a synonym), each row by itself.
        min_agreement: Lowest proportion of rows that passes, between 0 and 1.
        draws: Number of copies of each row; above 1 only if `transform` takes a generator.
        seed: Seed of the generators.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, as `ms.Sampling`. Each is one trial, which counts if all of its
            rows keep their labels. Weights are not supported.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence. A row whose scores, or whose copies' scores, hold NaN has no label and does not keep it.

    Raises:
        UsageError: For values out of range, weights, several `draws` of a transformation without a generator, and
            several outputs without `output`.
        InputError: For inputs without rows, and for a transformation that drops rows or changes their dtype.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1))
        >>> rows = np.random.default_rng(0).normal(size=(200, 3))
        >>> ms.assert_label_stability(model, rows, lambda x: 2 * x, min_agreement=0.9).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    if not 0 < min_agreement < 1:
        raise UsageError(f"min_agreement must be a proportion between 0 and 1 (0.95, say), got {min_agreement}")
    sampled, read = Sampling.of(sampling), Output.of(output)
    if sampled.sample_weight is not None:
        raise UsageError(
            "sample_weight is not supported by exact binomial bounds, which count every row once: remove it"
        )
    seeded = _check_draws(transform, draws)
    with open_models(predictor, inputs=as_one_batch(inputs)) as (given, (served,)):
        batch, rows = batched(served, given)
        if batch.batch_size == 0 or not row_count(rows):
            raise InputError("inputs must have rows, and there are none")
        units = sampled.units(row_count(rows))
        original = _labels(batch, rows, read)
        copies = []
        for part in progress(np.random.SeedSequence(seed).spawn(draws), "transformed rows", total=draws):
            copy = transformed(transform, given, np.random.default_rng(part) if seeded else None)
            copies.append(_labels(batch, {next(iter(rows)): copy} if batch.pass_array else copy, read))
    found = _Agreement(original, tuple(copies), units)
    levels = levels_for(budget := Budget.of("min_agreement", min_agreement), confidence=confidence, alpha=alpha)
    bounds = binomial_bounds(found.agreeing, units.count, low_level=levels[0], high_level=levels[1])
    proportion = Quantity("labels kept", bounds.estimate, "proportion", Interval.of(bounds), budget)
    needed = proportion_rows_needed(bounds.estimate, min_agreement, confidence=confidence, alpha=alpha)
    copied = f"{draws} generated copies of each row, seed {seed}" if seeded else "one copy of each row"
    trials = "rows" if units.are_rows else ("groups" if units.block is None else "blocks")
    assert proportion.verdict is not None
    return Evidence(
        gate="label stability",
        subject=served.subject,
        quantities=(proportion,),
        n=units.count,
        n_unit=trials,
        method=Method(
            f"exact binomial bounds, {copied}",
            "Clopper & Pearson 1934, Biometrika 26",
            f"independent {trials}, and copies that do not depend on the outputs",
        ),
        summary=_SUMMARIES[proportion.verdict],
        confidence=confidence,
        alpha=alpha,
        findings=tuple(found.findings()),
        advice="" if proportion.verdict is Verdict.PASS else _ADVICE,
        details={
            "changed_rows": np.flatnonzero(~found.rows)[:_MAX_CHANGED_ROWS].tolist(),
            "copies_agreeing": float(found.copies.mean()),
            "trials_needed": needed,
            "draws": draws,
            "seed": seed,
        },
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Agreement:
    """The labels of the original rows (n,) and of their transformed copies."""

    original: Decoded
    transformed: tuple[Decoded, ...]
    units: SamplingUnits

    @property
    def copies(self) -> NDArray[np.bool_]:
        """Which copies have the label of their row, (draws, n)."""
        valid = ~self.original.invalid
        return np.array([valid & ~copy.invalid & (copy.labels == self.original.labels) for copy in self.transformed])

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Which rows keep their label in every copy, (n,)."""
        return np.asarray(self.copies.all(axis=0))

    @property
    def agreeing(self) -> int:
        """The number of trials in which every row keeps its label."""
        if self.units.ids is None:
            return int(self.rows.sum())
        return self.units.count - len(np.unique(self.units.ids[~self.rows]))

    def findings(self) -> Iterator[str]:
        """Yield sentences about the rows that changed."""
        changed = np.flatnonzero(~self.rows)
        if not len(changed):
            return
        examples = [self._describe(int(row)) for row in changed[:_MAX_EXAMPLES]]
        more = f", and {len(changed) - _MAX_EXAMPLES:,} more" if len(changed) > _MAX_EXAMPLES else ""
        yield f"other labels: {', '.join(examples)}{more}"
        invalid = int(self.original.invalid.sum() + sum(int(copy.invalid.sum()) for copy in self.transformed))
        if invalid:
            yield f"{invalid} outputs hold NaN and have no label: counted as another one"

    def _describe(self, row: int) -> str:
        copy = self.transformed[int((~self.copies[:, row]).argmax())]
        before, after = (
            "none" if part.invalid[row] else str(part.labels[row]) for part in (self.original, copy)
        )  # fmt: skip
        return f"row {row} {before} → {after}"


def _check_draws(transform: Transform, draws: int) -> bool:
    """Return whether `transform` takes a generator. Raises `UsageError` for an invalid number of draws."""
    seeded = takes_generator(transform)
    if draws < 1:
        raise UsageError(f"draws must be a whole number of at least 1, got {draws}")
    if draws > 1 and not seeded:
        raise UsageError(f"draws must be 1 for a transform without a generator, got {draws}: use transform(rows, rng)")
    return seeded


def _labels(predictor: BatchedPredictor, rows: Feed, output: Output) -> Decoded:
    _, scores = select_output(predictor.predictor, predictor.predict(rows), output.name, reads_labels=True)
    return decode(scores, output.decode)
