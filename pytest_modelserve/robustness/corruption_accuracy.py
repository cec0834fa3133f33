"""Corruption accuracy gate: the drop of accuracy by corruption and severity, all judged together."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Verdict,
    check_error_rates,
    holm_step_down,
    levels_for,
)
from pytest_modelserve.metrics import Output, correct_rows, decode
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.corruptions import Corruption
from pytest_modelserve.serving.inputs import select_output
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import (
    Bounds,
    Linearized,
    Sampling,
    SamplingUnits,
    block_means,
    delta_method_bounds,
    mean_of,
    paired_difference_bounds,
    serial_dependence,
)

if TYPE_CHECKING:
    from pytest_modelserve.serving import Inputs, Predictor, Servable

_MAX_QUANTITIES = 5
"""Cells shown with interval and verdict, the worst ones; all are in the details."""

_SUMMARIES = {
    Verdict.PASS: "accuracy stays within its budget under every corruption",
    Verdict.FAIL: "accuracy drops further than its budget under corruption",
    Verdict.INCONCLUSIVE: "not enough rows to decide whether the drop under corruption exceeds its budget",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "train with such rows (augmentation), reject them before the model, or give the corruption its own "
    "budget",
    Verdict.INCONCLUSIVE: "give more labeled rows, a larger max_drop, or fewer and milder severities",
}


def measure_corruption_accuracy(
    predictor: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    corruptions: Sequence[Corruption],
    max_drop: float | Mapping[str, float],
    input_name: str | None = None,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how much accuracy drops when rows are corrupted.

    The same rows are predicted as they are and in every cell of a grid: each corruption at each severity. A cell's drop
    has a paired interval (Tango; with `sampling`, the delta method over groups, blocks or weighted rows). PASS means
    that every cell passes, which needs no correction. FAIL is corrected by Holm over all cells, so a model inside all
    of its budgets fails with probability `alpha` at most. Other corruptions are not covered.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays; a sample of the
            rows that are served. A DataLoader of pairs holds inputs and labels.
        labels: Class labels (n,).
        corruptions: Corruptions of `ms.corruptions`, each with its own name.
        max_drop: Highest drop of accuracy that passes, between 0 and 1 (0.05 is five points): one for all corruptions,
            or one for each by name.
        input_name: The input to corrupt; required where `inputs` has several.
        output: The output to read, by name or as `ms.Output`, which also says how labels are decoded. Required where
            the model has several outputs, unless they are the labels and probabilities of a scikit-learn classifier.
        sampling: Groups or blocks of dependent rows, and sample weights, as `ms.Sampling`.
        seed: Seed of the corruptions.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence. Its first quantity is the worst cell; its details hold severity, accuracy, drop and interval of
        all. A corrupted row with NaN scores counts as wrong.

    Raises:
        UsageError: For no corruptions, two of one name, and budgets that are missing or out of range.
        InputError: For inputs and labels that do not fit, and for NaN scores of rows that are not corrupted.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(300, 2))
        >>> model = ms.serve(lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1))
        >>> late = ms.corruptions.lagged_feature([1])
        >>> ms.assert_corruption_accuracy(model, rows, rows[:, 0] > 0, corruptions=[late], max_drop=0.05).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    budgets = _budgets(corruptions, max_drop)
    data, labels = labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data) as (batch, (served,)):
        feed, name = _feed(batch, input_name)
        correct = _correctness(served, labels, Output.of(output))
        clean = correct(feed, nan_allowed=False)
        units = Sampling.of(sampling).units(len(clean))
        weights = units.weights
        grid = [(corruption, severity) for corruption in corruptions for severity in corruption.severities]
        cells = []
        for number, (corruption, severity) in enumerate(progress(grid, "corruptions")):
            corrupted = corruption.at(feed[name], severity, np.random.default_rng([seed, number]))
            after = correct({**feed, name: corrupted}, nan_allowed=True)
            cells.append(_Cell(corruption, severity, clean, after, units, weights))
    drops = _drops(cells, budgets, confidence=confidence, alpha=alpha)
    worst = sorted(drops, key=_excess, reverse=True)
    verdict = worst[0].verdict
    assert verdict is not None
    accuracy = float(np.average(clean, weights=weights))
    return Evidence(
        gate="corruption accuracy",
        subject=served.subject,
        quantities=(worst[0], Quantity("clean accuracy", accuracy, "proportion"), *worst[1:_MAX_QUANTITIES]),
        n=units.count,
        n_unit=_unit_name(units),
        method=_method(len(cells), units, weights),
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=(*_table(cells, accuracy), *_dependence(cells)),
        advice=_ADVICE[verdict],
        details={
            "seed": seed,
            "clean_accuracy": accuracy,
            "severity_accuracy_drop_low_high": _details(cells, drops, accuracy),
        },
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Cell:
    """One corruption at one severity, and which rows (n,) the model gets right without and with it."""

    corruption: Corruption
    severity: float
    clean: NDArray[np.bool_]
    corrupted: NDArray[np.bool_]
    units: SamplingUnits
    weights: NDArray[np.float64] | None

    @property
    def label(self) -> str:
        return self.corruption.label(self.severity)

    @property
    def value(self) -> float:
        """The drop of accuracy."""
        return float(np.average(self.clean.astype(np.float64) - self.corrupted, weights=self.weights))

    def drop(self, budget: Budget, *, confidence: float, alpha: float) -> Quantity:
        """Return the drop with its interval and budget."""
        low, high = levels_for(budget, confidence=confidence, alpha=alpha)
        bounds = self._bounds(low_level=low, high_level=high)
        return Quantity(f"drop {self.label}", bounds.estimate, "proportion_difference", Interval.of(bounds), budget)

    def dependent(self) -> bool:
        """Return whether the drops of neighboring blocks depend on each other."""
        return self.units.block is not None and serial_dependence(block_means(self._values()).deviations) is not None

    def _bounds(self, *, low_level: float, high_level: float) -> Bounds:
        if self.units.are_rows and self.weights is None:
            lost, gained = int((self.clean & ~self.corrupted).sum()), int((self.corrupted & ~self.clean).sum())
            return paired_difference_bounds(lost, gained, len(self.clean), low_level=low_level, high_level=high_level)
        if self.dependent() or self.units.count < 2:
            return Bounds(self.value, -math.inf, math.inf, low_level=low_level, high_level=high_level)
        estimate = self._estimate()
        return delta_method_bounds(
            self._values(), largest=estimate.largest, rows=self.units.n, low_level=low_level, high_level=high_level
        )

    def _estimate(self) -> Linearized:
        clean, corrupted = (
            mean_of(correct.astype(np.float64), self.weights, largest=1.0) for correct in (self.clean, self.corrupted)
        )
        return clean.minus(corrupted)

    def _values(self) -> NDArray[np.float64]:
        return self.units.values(self._estimate().values)


def _method(cells: int, units: SamplingUnits, weights: NDArray[np.float64] | None) -> Method:
    holm = "Holm 1979, Scandinavian Journal of Statistics 6:65-70"
    if units.are_rows and weights is None:
        return Method(
            f"Tango paired score in each of {cells} cells; FAIL by Holm over all of them",
            f"Tango 1998, Statistics in Medicine 17:891-908; {holm}",
            "independent rows; the corruptions and severities of the list, and no others",
        )
    return Method(
        f"delta method, Student t and Hall{units}, in each of {cells} cells; FAIL by Holm over all of them",
        f"Liang & Zeger 1986, Biometrika 73:13-22; Hall 1992, JRSS B 54:221-228; {holm}",
        f"independent {_unit_name(units)}; the corruptions and severities of the list, and no others",
    )


def _unit_name(units: SamplingUnits) -> str:
    return "rows" if units.are_rows else ("groups" if units.block is None else "blocks")


def _dependence(cells: Sequence[_Cell]) -> list[str]:
    dependent = [cell.label for cell in cells if cell.dependent()]
    if not dependent:
        return []
    return [f"no interval for {', '.join(dependent)}: neighboring blocks depend on each other; use a larger block"]


_CORRUPTIONS = "pass corruptions=[ms.corruptions.noise(low=0, high=255)], for example"


def _budgets(corruptions: Sequence[Corruption], max_drop: float | Mapping[str, float]) -> dict[str, Budget]:
    if isinstance(corruptions, (str, Corruption)):
        raise UsageError(f"corruptions must be a list, got {type(corruptions).__name__}: {_CORRUPTIONS}")
    for corruption in corruptions:
        if isinstance(corruption, str):
            raise UsageError(
                f"corruptions holds the text {corruption!r}: pass ms.corruptions.{corruption}(...), with the range of "
                "the inputs"
            )
        if not isinstance(corruption, Corruption):
            name = getattr(corruption, "__name__", repr(corruption))
            raise UsageError(f"corruptions holds {name}, which is no corruption: {_CORRUPTIONS}")
    names = [corruption.name for corruption in corruptions]
    if not names:
        raise UsageError("corruptions is empty: give at least one, such as ms.corruptions.noise(low=0, high=255)")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"corruptions has {name!r} twice: give one of them all severities, or another name")
    drops = dict(max_drop) if isinstance(max_drop, Mapping) else dict.fromkeys(names, max_drop)
    for name in drops.keys() - set(names):
        raise UsageError(f"max_drop: {unknown_choice('corruption', name, names)}")
    for name in names:
        if name not in drops:
            raise UsageError(f"max_drop has no budget for {name!r}")
        if not 0 < drops[name] < 1:
            raise UsageError(f"max_drop must be between 0 and 1 (0.05 is five points), got {drops[name]}")
    budgets = {name: Budget.of("max_drop", drop) for name, drop in drops.items()}
    if isinstance(max_drop, Mapping):
        return {
            name: replace(budget, argument=f"max_drop[{name!r}]={drops[name]:g}") for name, budget in budgets.items()
        }
    return budgets


def _feed(inputs: Inputs, input_name: str | None) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the inputs by name, and the name of the one to corrupt. The name of an array alone is ""."""
    if not isinstance(inputs, Mapping):
        if input_name is not None:
            raise UsageError("input_name is for a mapping of several inputs, got one array: remove it")
        return {"": np.asarray(inputs)}, ""
    feed = {name: np.asarray(values) for name, values in inputs.items()}
    if input_name is None:
        if len(feed) != 1:
            raise UsageError(f"input_name= is missing: inputs has {len(feed)} inputs, {', '.join(feed)}")
        return feed, next(iter(feed))
    if input_name not in feed:
        raise UsageError(unknown_choice("input_name", input_name, feed))
    return feed, input_name


def _correctness(predictor: Predictor, labels: ArrayLike, output: Output) -> Callable[..., NDArray[np.bool_]]:
    """Return a function from inputs to the rows (n,) that the model gets right."""

    def correct(feed: Mapping[str, NDArray[Any]], *, nan_allowed: bool) -> NDArray[np.bool_]:
        found = predictor.predict(feed.get("", feed))
        _, scores = select_output(predictor, found, output.name, reads_labels=True)
        decoded = decode(scores, output.decode)
        if decoded.invalid.any() and not nan_allowed:
            raise InputError(
                f"inputs have {int(decoded.invalid.sum())} rows for which {predictor.subject} returns NaN without any "
                "corruption: remove these rows, or fix the model"
            )
        return correct_rows(decoded, labels)

    return correct


def _drops(cells: Sequence[_Cell], budgets: Mapping[str, Budget], *, confidence: float, alpha: float) -> list[Quantity]:
    def at(cell: _Cell) -> Callable[[float], Quantity]:
        return lambda share: cell.drop(budgets[cell.corruption.name], confidence=confidence, alpha=share)

    found = holm_step_down({cell.label: at(cell) for cell in cells}, alpha=alpha)
    return [found[cell.label] for cell in cells]


def _excess(quantity: Quantity) -> tuple[int, float]:
    assert quantity.verdict is not None
    assert quantity.budget is not None
    return quantity.verdict.severity, quantity.value - quantity.budget.limit


def _table(cells: Sequence[_Cell], accuracy: float) -> list[str]:
    """Return one line a corruption, with the accuracy at each severity."""
    lines = [f"accuracy {100 * accuracy:.1f} % clean; by severity:"]
    for corruption, some in itertools.groupby(cells, key=lambda cell: cell.corruption):
        each = ", ".join(f"{cell.severity:g}: {100 * (accuracy - cell.value):.1f}" for cell in some)
        lines.append(
            f"{corruption.name} ({corruption.unit}) {each}" if corruption.unit else f"{corruption.name} {each}"
        )
    return lines


def _details(cells: Sequence[_Cell], drops: Sequence[Quantity], accuracy: float) -> dict[str, list[list[float | None]]]:
    table: dict[str, list[list[float | None]]] = {}
    for cell, quantity in zip(cells, drops, strict=True):
        assert quantity.interval is not None
        figures = (accuracy - cell.value, quantity.value, quantity.interval.low, quantity.interval.high)
        rounded = [round(figure, 4) if math.isfinite(figure) else None for figure in figures]
        table.setdefault(cell.corruption.name, []).append([cell.severity, *rounded])
    return table
