"""Which rows count for precision, recall and what is made of them: one pair of sums a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics.decoding import Decoded
from pytest_modelserve.numerics.metrics import class_pairs


@dataclass(frozen=True, slots=True)
class ClassRows:
    """The rows of one class, `label`, among the labels `truth` and the `answers`, (n,) each.

    Where `answered` (n,) is False the scores held NaN, and the row is of no class by answer.
    """

    label: int | str
    truth: NDArray[Any]
    answers: NDArray[Any]
    answered: NDArray[np.bool_]

    @property
    def actual(self) -> NDArray[np.bool_]:
        """The rows that are of the class by label."""
        return np.asarray(self.truth == self.label)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """The rows that are of the class by answer."""
        return np.asarray((self.answers == self.label) & self.answered)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """The rows that are of the class by both."""
        return self.actual & self.predicted


def class_rows(decoded: Decoded, labels: ArrayLike) -> tuple[ClassRows, ...]:
    """The rows of each class that occurs in `labels` (n,), in sorted order.

    A class that is only ever answered is no class of its own: its rows are missing from the classes they belong to, and
    two models are averaged over the same classes. A row whose scores held NaN is of no class by answer. Raises
    InputError as `correct_rows` does.
    """
    truth, answers = class_pairs(decoded, labels)
    return tuple(ClassRows(value.item(), truth, answers, ~decoded.invalid) for value in np.unique(truth))


def positive_rows(decoded: Decoded, labels: ArrayLike, pos_label: int | str | None) -> ClassRows:
    """The rows of the class `pos_label`, by default 1 where the labels are 0 and 1.

    Raises InputError as `correct_rows` does, for labels of other classes without `pos_label`, and for a `pos_label`
    that no label is.
    """
    truth, answers = class_pairs(decoded, labels)
    positive = positive_label(truth, pos_label)
    return ClassRows(positive, truth, answers, ~decoded.invalid)


def positive_label(truth: NDArray[Any], pos_label: int | str | None) -> int | str:
    """`pos_label` if it is among the labels `truth` (n,), or 1 where none is given and they are 0 and 1; InputError."""
    classes = [value.item() for value in np.unique(truth)]
    if pos_label is None:
        if classes == [0, 1]:
            return 1
        raise InputError(
            f"labels are {_listed(classes)}: say which class is the positive one by pos_label=, or take the average "
            "over the classes ('precision_macro', 'recall_macro', 'f1_macro')"
        )
    if isinstance(pos_label, str) is not isinstance(classes[0], str) or pos_label not in classes:
        raise InputError(f"pos_label={pos_label!r} is none of the labels, which are {_listed(classes)}")
    return pos_label


def _listed(classes: list[int | str]) -> str:
    told = ", ".join(map(repr, classes[:5]))
    return f"{told} and {len(classes) - 5} more" if len(classes) > 5 else told
