"""Rows beside variants of themselves that are to have the same answer, or the same decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count, taken
from pytest_modelserve.robustness.relations.tolerance import Apart, Tolerance, apart, chosen, decisions_apart
from pytest_modelserve.robustness.violations import Violations


def farthest(several: Sequence[Apart], found: Sequence[str], expected: str) -> Violations:
    """The rows in which one of several comparisons lies too far apart, told of the one that does so most.

    `found` says of each comparison where its answers come from, `expected` where those come from that they should be.
    """
    excess = np.array([part.excess for part in several])

    def told(row: int) -> str:
        worst = int(excess[:, row].argmax())
        return several[worst].sentence(row, found[worst], expected)

    return Violations.beyond(excess.max(axis=0), told)


def compared_variants(
    tolerance: Tolerance,
    output: str | None,
    decision: bool,
    predictor: Answering,
    rows: Feed,
    variants: list[Feed],
    base: Feed,
    *,
    words: list[str],
) -> Violations:
    """The rows for which one of the variants, all asked in one call, has another answer or another decision."""
    count = row_count(rows)
    answers = chosen(predictor.predict(joined([rows, *variants])), output)
    expected = taken(answers, slice(0, count))
    magnitudes = predictor.magnitudes(base)
    found = [taken(answers, slice(begin, begin + count)) for begin in range(count, count * (len(variants) + 1), count)]
    excess: NDArray[Any]
    if decision:
        name = _only(answers)
        scores = [decisions_apart(part[name], expected[name], tolerance, magnitudes[name]) for part in found]
        excess = np.array(scores)

        def told(row: int) -> str:
            worst = int(excess[:, row].argmax())
            here, there = _decided(found[worst][name][row]), _decided(expected[name][row])
            return f"output {name!r} decides for {here} {words[worst]} and for {there} as it stands"
    else:
        return farthest([apart(part, expected, tolerance, magnitudes) for part in found], words, "as it stands")

    return Violations.beyond(excess.max(axis=0), told)


def _only(answers: Feed) -> str:
    if len(answers) != 1:
        raise UsageError(f"the model has {len(answers)} outputs: say which one decides by output=")
    return next(iter(answers))


def _decided(answer: NDArray[Any]) -> str:
    return f"class {int(np.argmax(answer))}" if kind_of(answer.dtype) == "real" else str(np.ravel(answer)[0])
