"""The fewest neighbouring rows that still fail together."""

from __future__ import annotations

from collections.abc import Callable


def smallest_failing_rows(rows: int, row: int, fails: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The first row and the one behind the last of the fewest neighbours among `rows` rows for which `fails` is true.

    `row` alone is tried first. Where it does not fail alone (rows influence each other, or the model takes one batch
    size only) ends of the whole are left out as long as the rest fails, the larger ones first: no end of what comes
    back can be left out. About 4 log2(rows) attempts. None where the whole does not fail.
    """
    if fails(row, row + 1):
        return row, row + 1
    if not fails(0, rows):
        return None
    start, stop = 0, rows
    size = rows // 2
    while size:
        if fails(start + size, stop):
            start += size
        elif fails(start, stop - size):
            stop -= size
        else:
            size //= 2
        size = min(size, (stop - start) // 2)
    return start, stop
