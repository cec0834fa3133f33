"""A table of rows whose labels are known: the least that a model has to get right."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.numerics import Decoding, decode
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count, taken
from pytest_modelserve.robustness.relations.tolerance import chosen
from pytest_modelserve.robustness.transforming import Transform, takes_generator, transformed
from pytest_modelserve.robustness.violations import Violations

Label = int | str


@dataclass(frozen=True, slots=True)
class MinimumFunctionality:
    """See `minimum_functionality`."""

    labels: tuple[Label, ...]
    perturb: Transform | None
    draws: int
    decode: Decoding
    output: str | None
    name: str = "minimum functionality"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        beside = f", and so has each of {self.draws} perturbed copies of it" if self.perturb is not None else ""
        return f"every row of the table has its expected label{beside}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows of the table are answered by another label; rows that are not in it have none."""
        expected = self._expected(candidates, base)
        variants = [candidates, *self._perturbed(candidates)]
        found = [self._labels(predictor, variant) for variant in variants]
        asked = np.array([label is not None for label in expected], np.bool_)
        wrong = np.array(
            [[one != label for one, label in zip(each, expected, strict=True)] for each in found], np.bool_
        )

        def told(row: int) -> str:
            first = int(wrong[:, row].argmax())
            copy = "" if first == 0 else f" for perturbed copy {first}"
            return f"the label is {found[first][row]!r}{copy} and {expected[row]!r} is expected"

        return Violations(asked & wrong.any(axis=0), None, told)

    def _expected(self, rows: Feed, base: Feed) -> list[Label | None]:
        """The label of each row, looked up in the table by its values."""
        if row_count(base) != len(self.labels):
            raise InputError(f"there are {len(self.labels)} labels for a table of {row_count(base)} rows")
        table: dict[bytes, Label] = {}
        for key, label in zip(_keys(base), self.labels, strict=True):
            if table.setdefault(key, label) != label:
                raise InputError(f"the table has one row twice, once as {table[key]!r} and once as {label!r}")
        return [table.get(key) for key in _keys(rows)]

    def _perturbed(self, rows: Feed) -> list[Feed]:
        """The copies, row by row and from the same seeds for each: what is said of a row is the same beside others."""
        if self.perturb is None:
            return []
        drawn = takes_generator(self.perturb)
        copies = []
        for draw in range(self.draws):
            parts = [
                transformed(self.perturb, taken(rows, slice(i, i + 1)), np.random.default_rng(draw) if drawn else None)
                for i in range(row_count(rows))
            ]
            copies.append(joined(parts))
        return copies

    def _labels(self, predictor: Answering, rows: Feed) -> list[Label | None]:
        outputs = chosen(predictor.predict(rows), self.output)
        if len(outputs) != 1:
            raise UsageError(f"the model has {len(outputs)} outputs: say which one decides by output=")
        decoded = decode(next(iter(outputs.values())), self.decode)
        return [
            None if bad else label for label, bad in zip(decoded.labels.tolist(), decoded.invalid.tolist(), strict=True)
        ]


def minimum_functionality(
    labels: ArrayLike | Iterable[Label],
    *,
    perturb: Transform | None = None,
    draws: int = 4,
    decode: Decoding = "argmax",
    output: str | None = None,
) -> MinimumFunctionality:
    """Every row of a table has the label that is expected of it: `assert_relation(predictor, table, ...(labels))`.

    `labels` belong to the rows that `assert_relation` is given, one each. With `perturb`, a function of rows by name
    (a dict of arrays) or of rows and a numpy generator, `draws` copies of each row that it makes have that label too.
    `decode` makes labels of the answers as for `assert_accuracy`. Nothing is tolerated, and nothing else is searched.
    For cases that nobody would forgive; broken by a shuffled label encoding, however high the accuracy. Scores that
    hold NaN have no label, which is never the expected one.
    """
    given = tuple(np.asarray(labels if not isinstance(labels, Iterable) else list(labels)).tolist())
    if not given or any(isinstance(label, bool) or not isinstance(label, (int, str)) for label in given):
        raise UsageError("labels are integers or strings, one for each row of the table")
    if perturb is not None and not takes_generator(perturb):
        draws = 1
    if draws < 1:
        raise UsageError(f"draws is a whole number of at least 1, not {draws}")
    return MinimumFunctionality(given, perturb, draws, decode, output)


def _keys(rows: Feed) -> list[bytes]:
    return [
        hashlib.sha256(b"|".join(_bytes(array[i]) for array in rows.values())).digest() for i in range(row_count(rows))
    ]


def _bytes(array: NDArray[Any]) -> bytes:
    values = np.asarray(array)
    return repr(values.tolist()).encode() if values.dtype.kind in "OUT" else values.tobytes()
