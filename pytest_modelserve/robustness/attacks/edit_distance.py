"""Edit distance of texts and of codes of characters: insertions, deletions, substitutions and swaps of neighbors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def edit_distances(before: NDArray[Any], after: NDArray[Any], *, padding: int | None, most: int) -> NDArray[np.float64]:
    """Return the least number of insertions, deletions, substitutions and swaps of neighbors, (k,); inf above `most`.

    Texts are strings (k,) or codes (k, length) that `padding` fills at the end. A swapped pair is not edited again
    (optimal string alignment; Damerau 1964, Communications of the ACM 7:171-176).
    """
    pairs = zip(texts_of(before, padding), texts_of(after, padding), strict=True)
    return np.array([_edit_distance(one, other, most) for one, other in pairs], np.float64)


def texts_of(rows: NDArray[Any], padding: int | None) -> list[Any]:
    """Return rows of text as strings, and rows of codes as lists without their padding."""
    if rows.dtype.kind in "OUT":
        return [str(text) for text in rows.reshape(-1).tolist()]
    lengths = rows.shape[1] - (rows[:, ::-1] != padding).argmax(axis=1)
    lengths[(rows == padding).all(axis=1)] = 0
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


def _edit_distance(one: Any, other: Any, most: int) -> float:
    if abs(len(one) - len(other)) > most:
        return math.inf
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    end = next((i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), None)
    end = min(len(one), len(other)) if end is None else end
    one, other = one[: len(one) - end], other[: len(other) - end]
    rows = [list(range(len(other) + 1))]
    for i in range(1, len(one) + 1):
        row = [i]
        for j in range(1, len(other) + 1):
            cost = one[i - 1] != other[j - 1]
            best = min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + cost)
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                best = min(best, rows[i - 2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return float(rows[-1][-1]) if rows[-1][-1] <= most else math.inf
