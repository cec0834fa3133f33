"""How much accuracy is lost when rows arrive corrupted: a table by corruption and severity, judged together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from pytest_modelserve.metrics import Decoding, correct_rows, decode
from pytest_modelserve.progress import progress
from pytest_modelserve.stats import paired_difference_bounds

if TYPE_CHECKING:
    from pytest_modelserve.robustness.corruptions import Corruption
    from pytest_modelserve.serving import Inputs, Predictor

_SHOWN = 5
"""Cells told with interval and verdict, the worst; all stand in the details."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """One corruption at one severity: of n rows, those answered rightly only as they were, and only corrupted."""

    corruption: Corruption
    severity: float
    lost: int
    gained: int
    n: int

    @property
    def label(self) -> str:
        return self.corruption.label(self.severity)

    def drop(self, budget: Budget, *, confidence: float, alpha: float) -> Quantity:
        """The drop of accuracy, judged."""
        low, high = levels_for(budget, confidence=confidence, alpha=alpha)
        bounds = paired_difference_bounds(self.lost, self.gained, self.n, low_level=low, high_level=high)
        return Quantity(f"drop {self.label}", bounds.estimate, "proportion_difference", Interval.of(bounds), budget)


def measure_corruption_accuracy(
    predictor: Predictor,
    inputs: Inputs,
    labels: ArrayLike,
    *,
    corruptions: Sequence[Corruption],
    max_drop: float | Mapping[str, float],
    input_name: str | None = None,
    output: str | None = None,
    decode: Decoding = "argmax",
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Evidence that no corruption, at any severity, costs more than `max_drop` of the accuracy (0.05: five points).

    The same rows are answered clean and in every cell of the grid, each corruption at each severity, drawn from `seed`;
    a cell's drop is that of the share of right answers, with a paired interval. `max_drop` is one budget for all, or
    one for each corruption by name. `corruptions` change the one input, or that called `input_name`. `output` and
    `decode` are those of `measure_accuracy`; a row whose scores hold NaN is wrong, and the clean rows must hold none.

    PASS where every cell passes, which takes no correction; FAIL takes Holm's over all cells, so that a model inside
    all of its budgets fails at most with probability `alpha`. The first quantity is the worst cell, the details hold
    the whole table: severity, accuracy, drop and interval. Assumes that the rows are a sample of those that are served,
    independent of each other. The corruptions are those of the list and say nothing of others.

    InputError for inputs and labels that do not fit, UsageError for an empty list, two corruptions of one name, and
    budgets that are none.
    """
    began = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    budgets = _budgets(corruptions, max_drop)
    feed, name = _feed(predictor, inputs, input_name)
    right = _right(predictor, labels, output, decode)
    clean = right(feed, may_be_nan=False)
    grid = [(corruption, severity) for corruption in corruptions for severity in corruption.severities]
    cells = []
    for number, (corruption, severity) in enumerate(progress(grid, "corruptions")):
        corrupted = corruption.at(feed[name], severity, np.random.default_rng([seed, number]))
        kept = right({**feed, name: corrupted}, may_be_nan=True)
        cells.append(_Cell(corruption, severity, int((clean & ~kept).sum()), int((kept & ~clean).sum()), len(clean)))
    judged = _judged(cells, budgets, confidence=confidence, alpha=alpha)
    worst = sorted(judged, key=_badness, reverse=True)
    verdict = worst[0].verdict
    assert verdict is not None
    return Evidence(
        gate="corruption accuracy",
        subject=predictor.subject,
        quantities=(worst[0], Quantity("clean accuracy", float(clean.mean()), "proportion"), *worst[1:_SHOWN]),
        n=len(clean),
        n_unit="rows",
        method=Method(
            f"Tango paired score in each of {len(cells)} cells; FAIL by Holm over all of them",
            "Tango 1998, Statistics in Medicine 17:891-908; Holm 1979, Scandinavian Journal of Statistics 6:65-70",
            "independent rows; the corruptions and severities of the list, and no others",
        ),
        summary=_SUMMARIES[verdict],
        confidence=confidence,
        alpha=alpha,
        findings=tuple(_table(cells, float(clean.mean()))),
        advice=_ADVICE[verdict],
        details={
            "seed": seed,
            "clean_accuracy": float(clean.mean()),
            "severity_accuracy_drop_low_high": _plain(cells, judged, float(clean.mean())),
        },
        duration_s=time.perf_counter() - began,
    )


def _budgets(corruptions: Sequence[Corruption], max_drop: float | Mapping[str, float]) -> dict[str, Budget]:
    names = [corruption.name for corruption in corruptions]
    if not names:
        raise UsageError("corruptions is empty: name at least one, such as corruptions.noise(low=0, high=255)")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two corruptions are called {name!r}: give one of them all severities, or another name")
    drops = dict(max_drop) if isinstance(max_drop, Mapping) else dict.fromkeys(names, max_drop)
    for name in drops.keys() - set(names):
        raise UsageError(f"max_drop: {unknown_choice('corruption', name, names)}")
    for name in names:
        if name not in drops:
            raise UsageError(f"max_drop has no budget for {name!r}")
        if not 0 < drops[name] < 1:
            raise UsageError(f"max_drop is a share between 0 and 1 (0.05 is five points), not {drops[name]}")
    return {name: Budget("at_most", drop) for name, drop in drops.items()}


def _feed(predictor: Predictor, inputs: Inputs, input_name: str | None) -> tuple[dict[str, NDArray[Any]], str]:
    """The inputs by name, and the name of the one to corrupt; an array alone goes by ""."""
    if not isinstance(inputs, Mapping):
        if input_name is not None:
            raise UsageError("input_name names one of several inputs, and one array is given")
        return {"": np.asarray(inputs)}, ""
    feed = {name: np.asarray(values) for name, values in inputs.items()}
    if input_name is None:
        if len(feed) != 1:
            raise UsageError(f"{predictor.subject} is given several inputs: say by input_name= which is corrupted")
        return feed, next(iter(feed))
    if input_name not in feed:
        raise UsageError(unknown_choice("input_name", input_name, feed))
    return feed, input_name


def _right(
    predictor: Predictor, labels: ArrayLike, output: str | None, how: Decoding
) -> Callable[..., NDArray[np.bool_]]:
    """Which rows of a feed are answered rightly, (n,)."""

    def right(feed: Mapping[str, NDArray[Any]], *, may_be_nan: bool) -> NDArray[np.bool_]:
        outputs = predictor.predict(feed.get("", feed))
        if output is None and len(outputs) > 1:
            names = ", ".join(map(repr, outputs))
            raise UsageError(f"{predictor.subject} has several outputs: say which one by output=..., one of {names}")
        if output is not None and output not in outputs:
            raise UsageError(f"{predictor.subject}: {unknown_choice('output', output, outputs)}")
        decoded = decode(outputs[output] if output is not None else next(iter(outputs.values())), how)
        if decoded.invalid.any() and not may_be_nan:
            raise InputError(
                f"{predictor.subject} answers NaN in {int(decoded.invalid.sum())} rows that are not corrupted: clean "
                "them, or mend the model"
            )
        return correct_rows(decoded, labels)

    return right


def _judged(
    cells: Sequence[_Cell], budgets: Mapping[str, Budget], *, confidence: float, alpha: float
) -> list[Quantity]:
    def at(cell: _Cell) -> Callable[[float], Quantity]:
        return lambda share: cell.drop(budgets[cell.corruption.name], confidence=confidence, alpha=share)

    found = holm_step_down({cell.label: at(cell) for cell in cells}, alpha=alpha)
    return [found[cell.label] for cell in cells]


def _badness(quantity: Quantity) -> tuple[int, float]:
    assert quantity.verdict is not None
    assert quantity.budget is not None
    return quantity.verdict.severity, quantity.value - quantity.budget.limit


def _table(cells: Sequence[_Cell], clean: float) -> list[str]:
    """One line a corruption: the accuracy at each severity."""
    lines = [f"accuracy {100 * clean:.1f} % clean; by severity:"]
    for corruption, some in itertools.groupby(cells, key=lambda cell: cell.corruption):
        each = ", ".join(f"{cell.severity:g}: {100 * _accuracy(cell, clean):.1f}" for cell in some)
        lines.append(
            f"{corruption.name} ({corruption.unit}) {each}" if corruption.unit else f"{corruption.name} {each}"
        )
    return lines


def _plain(cells: Sequence[_Cell], judged: Sequence[Quantity], clean: float) -> dict[str, list[list[float]]]:
    table: dict[str, list[list[float]]] = {}
    for cell, quantity in zip(cells, judged, strict=True):
        assert quantity.interval is not None
        figures = (_accuracy(cell, clean), quantity.value, quantity.interval.low, quantity.interval.high)
        table.setdefault(cell.corruption.name, []).append([cell.severity, *(round(figure, 4) for figure in figures)])
    return table


def _accuracy(cell: _Cell, clean: float) -> float:
    return clean - (cell.lost - cell.gained) / cell.n


_SUMMARIES = {
    Verdict.PASS: "accuracy stays within its budget under every corruption",
    Verdict.FAIL: "accuracy drops further than its budget under corruption",
    Verdict.INCONCLUSIVE: "the drop under corruption cannot be told from its budget with these rows",
}
_ADVICE = {
    Verdict.PASS: "",
    Verdict.FAIL: "train with such rows (augmentation), refuse them before the model, or give the corruption its own "
    "budget",
    Verdict.INCONCLUSIVE: "give more labelled rows, a larger max_drop, or fewer and milder severities",
}
