"""The drift gate: decide whether data differ from a profile by more than a budget."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject, Verdict, check_error_rates
from pytest_modelserve.monitoring.decision import CONFIDENCE, DriftResult, decide
from pytest_modelserve.monitoring.drift.column_tests import DriftTest
from pytest_modelserve.monitoring.drift.effective_rows import SOURCE, EffectiveRows
from pytest_modelserve.monitoring.drift.groups import Comparison, DriftTests, describe_methods, plan_rows, run_tests
from pytest_modelserve.monitoring.drift.output_change import OutputDrift, output_drift
from pytest_modelserve.monitoring.drift.report import advice, details, findings, shown, summary
from pytest_modelserve.monitoring.profile import ReferenceProfile, as_profile
from pytest_modelserve.monitoring.readers import Data
from pytest_modelserve.monitoring.schema import choose_columns, describe_choice
from pytest_modelserve.monitoring.window import window_of_gate

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Output
    from pytest_modelserve.serving import Servable


def measure_drift(
    data: Data | ReferenceProfile,
    profile: ReferenceProfile | str | os.PathLike[str],
    *,
    max_distance: float,
    alpha: float = 0.01,
    block: int | None = None,
    columns: Collection[str] | None = None,
    exclude: Collection[str] = (),
    predictor: Servable | None = None,
    max_output_change: float | None = None,
    output: Output | str | None = None,
    name: str | None = None,
) -> Evidence:
    """Measure how far `data` differ from `profile`: each column, each pair of columns, and whole rows.

    The distance of a numeric column is the largest difference of the two distribution functions at the profile's edges;
    of a categorical column it is the largest difference of a category's proportion. If the profile has associations,
    the distance of a pair of columns is half the change of its normal-score correlation. If it has a sketch, the
    distance of whole rows is the Kolmogorov-Smirnov distance of a classifier's held-out scores.

    FAIL: some test is significant within `alpha` and its distance exceeds `max_distance`. Pairs and whole rows each
    use a quarter of `alpha` (Holm over pairs, one permutation test); columns use the rest (Holm). Unchanged data fail
    with probability at most `alpha`. PASS: every upper bound is at most `max_distance`. The bound is the distance plus
    1.36/√n with n = N·m/(N + m), or plus 1.645 standard errors for pairs; data beyond the budget pass in fewer than
    5 % of samples. Otherwise INCONCLUSIVE, with the number of rows that would decide. FAIL also: a column is missing,
    additional, of another kind, unreadable in some row, or without any value; the other columns are tested all the
    same.

    With `predictor` the consequence is judged: how far the outputs change if all columns are moved back to the
    profile's distribution (see `output_drift`). Columns that moved and change the outputs by at most
    `max_output_change` are then reported and do not fail, and whole rows only where no column moved. Pairs of columns
    beyond `max_distance` still fail, as do columns that cannot be moved back.

    Rows may depend on their neighbors. If neither `block` nor `profile.block` is given, the dependence of each column
    is estimated: n rows count as n divided by the variance inflation, and whole rows are permuted in blocks of
    three block lengths (Politis and White 2004). Evidence and text report both. Only a memory of at most
    about √n rows is recognized; sorted or trending rows are judged as if theirs were that long. With `block`, n rows
    count as n/block.

    Args:
        data: Anything that `reference_profile` accepts, or a profile made with `like=profile`. Nulls (None, NaN, NaT)
            are ignored, as `measure_data_quality` tests them. Times are ignored, because they always advance. An
            infinity counts as the smallest or the largest number. At least two rows are needed.
        profile: The profile of the training data, or the path of its file.
        max_distance: The largest allowed distance, between 0 and 1.
        alpha: The probability that unchanged data fail.
        block: The number of neighboring rows that may depend on each other; 1 if the order of rows has no meaning, as
            where independent rows were sorted. Default: `profile.block`, or an estimate for each column.
        columns: Names of the columns to compare; other columns of the profile and of the data are ignored. By default
            all are compared.
        exclude: Names of columns to leave out, such as ids, which differ in every row; the data alone may have them.
        predictor: The model whose inputs the data are, in memory; the profile needs `sketch_rows=`.
        max_output_change: The largest allowed mean change of the outputs, in their units; of labels the proportion
            that changes.
        output: The output of `predictor` to read, by name or as `ms.Output`; with `decode=` labels are compared.
        name: The name of the data in reports. Default: the stem of the file, or "data".

    Returns:
        The evidence. `details` holds the distance, upper bound and p-value of each column, and the planned rows.

    Raises:
        InputError: No column can be compared, or there is only one row.
        UsageError: A budget is out of range, or `columns` or `exclude` has an unknown name.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 12, 10_000)})
        >>> evidence = ms.measure_drift({"age": rng.normal(46, 12, 2_000)}, profile, max_distance=0.1)
        >>> evidence.verdict.name, evidence.details["moved"]
        ('FAIL', ['age'])
    """
    check_error_rates(confidence=CONFIDENCE, alpha=alpha)
    if not 0 < max_distance < 1:
        raise UsageError(f"max_distance must lie between 0 and 1 (0.1, for example); got {max_distance}")
    if block is not None and block < 1:
        raise UsageError(f"block must be a number of rows, at least 1; got {block}")
    if (predictor is None) is not (max_output_change is None):
        raise UsageError("predictor and max_output_change belong together: give both, or neither")
    if max_output_change is not None and not 0 < max_output_change < math.inf:
        raise UsageError(f"max_output_change must be a positive number, got {max_output_change}")
    if output is not None and predictor is None:
        raise UsageError("output is an output of predictor=: give both, or neither")
    whole = as_profile(profile, data)
    chosen = choose_columns(whole, columns, exclude)
    started = time.perf_counter()
    window, chosen = window_of_gate(data, chosen, name=name, whole=whole)
    if window.rows < 2:
        raise InputError(f"{window.name} has one row: drift needs at least 2 rows")
    window, profile = window.comparable(chosen)
    pairs, faults = window.without_times(), window.schema_errors
    effective = EffectiveRows.of(window, profile, block=block)
    error = alpha if predictor is None else alpha / 2  # the other half is that of the outputs
    tests = run_tests(Comparison(window, profile, effective, max_distance, error))
    result = decide(tests.weighted(), budget=max_distance, alpha=error)
    distance = Quantity(
        "distance", result.headline.distance, "", result.interval, Budget.of("max_distance", max_distance)
    )
    verdict = distance.verdict
    assert verdict is not None
    faulty = Quantity("faulty columns", len(faults), "count", budget=Budget("at_most", 0))
    plan = plan_rows(tests, max_distance=max_distance, rows=window.rows, profile_rows=profile.rows)
    evidence = Evidence(
        gate="drift",
        subject=Subject(window.name),
        reference=Subject(whole.name, sha256=whole.digest),
        quantities=(faulty, distance) if faults else (distance,),
        n=window.rows,
        n_unit="rows",
        method=_method(tests, effective),
        summary=summary(verdict, result, tests, effective, faults=faults),
        confidence=CONFIDENCE,
        alpha=alpha,
        findings=(
            *shown(faults),
            *findings(verdict, result, tests, pairs, effective, max_distance=max_distance, alpha=error, plan=plan),
            *filter(None, [describe_choice(whole, chosen)]),
        ),
        advice=advice(
            verdict,
            effective,
            plan=plan,
            rows=window.rows,
            profile_rows=profile.rows,
            max_distance=max_distance,
            faults=faults,
        ),
        details=details(result, tests, plan, effective, pairs=pairs, faults=faults),
        duration_s=time.perf_counter() - started,
    )
    if predictor is None or max_output_change is None:
        return evidence
    change = output_drift(
        predictor, cast(Data, data), whole, output=output, columns=columns, exclude=exclude, alpha=error
    )
    evidence = _with_output_budget(evidence, result, change, max_output_change)
    return replace(evidence, duration_s=time.perf_counter() - started)


def _with_output_budget(
    evidence: Evidence, result: DriftResult[DriftTest], drift: OutputDrift, max_output_change: float
) -> Evidence:
    """Return the evidence with the budget on the change of outputs, in place of distances that it covers."""
    names = {each.name for each in drift.columns}
    columns_moved = any(test.kind == "column" for test in result.beyond)
    covered = all(
        test.name in names if test.kind == "column" else columns_moved and test.kind == "rows" for test in result.beyond
    )
    together = drift.together
    budget = Budget.of("max_output_change", max_output_change)
    quantity = Quantity("output change", together.change, drift.unit, together.interval, budget)
    others = tuple(replace(each, budget=None) if covered else each for each in evidence.quantities[-1:])
    moved = sum(test.kind == "column" for test in result.beyond)
    columns = f"{moved} moved column{'s' * (moved != 1)}" if moved else "the data"
    limit = f"{'changes' if moved == 1 or not moved else 'change'} the outputs by {{}} than max_output_change"
    summary, advice = {
        Verdict.PASS: (f"{columns} {limit.format('no more')}", ""),
        Verdict.FAIL: (f"{columns} {limit.format('more')}", "look at the columns that change the outputs, or retrain"),
        Verdict.INCONCLUSIVE: (
            f"not enough rows to decide whether {columns} {limit.format('more')}",
            "give more rows, a profile with more sketch_rows, or a larger max_output_change",
        ),
    }[cast(Verdict, quantity.verdict)]
    decisive = evidence.summary if not covered or len(evidence.quantities) > 1 else summary
    return replace(
        evidence,
        quantities=(*evidence.quantities[:-1], quantity, *others),
        summary=decisive,
        method=Method(
            f"columns moved back, Student t and Hall, over {drift.rows} rows",
            f"optimal coupling of each column; Student 1908; Hall 1992; distances: {evidence.method.source}",
            f"independent rows; the interval is wider by what chance changes; distances: {evidence.method.assumptions}",
        ),
        findings=(*drift.describe(), *evidence.findings),
        advice=advice if decisive is summary else evidence.advice,
        details={**evidence.details, "output_changes": {each.name: each.change for each in drift.columns[:50]}},
    )


def _method(tests: DriftTests, effective: EffectiveRows) -> Method:
    methods, sources = describe_methods(tests)
    return Method(
        f"low end a test of no change ({methods})",
        f"{sources}; {SOURCE}" if effective.dependent else sources,
        f"{effective.assumption()}; the low end is the observed distance if significant, else 0, and not a bound"
        + "".join(f"; {reason}" for reason in tests.skipped),
    )
