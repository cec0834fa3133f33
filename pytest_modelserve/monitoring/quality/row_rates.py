"""What is wrong with rows beside each other: copies of earlier ones, and times that run backwards."""

from __future__ import annotations

from pytest_modelserve.monitoring.comparing import Blocks
from pytest_modelserve.monitoring.duplicates import RepeatedRows
from pytest_modelserve.monitoring.moved import points
from pytest_modelserve.monitoring.quality.rates import Rate, against

_ORDERLESS = 0.25
"""Times in no order are earlier than the one before in half of all rows. A profile halfway there keeps none that a
window could lose."""


def duplicate_rate(now: RepeatedRows, rows: int, then: RepeatedRows, reference_rows: int, blocks: Blocks) -> Rate:
    """The share of rows that equal an earlier one, by Fisher's exact test against that of the profile.

    The more rows, the more have an equal: of rows drawn from one distribution the chance of the i-th to be a copy
    rises with i, and no faster than i. Fewer rows than the profile's are therefore expected to have at most its share,
    more rows at most its share times as many as they are: the profile's rows then count as that many times fewer. The
    number of copies varies less than a binomial one (occupied cells are negatively associated: Joag-Dev and Proschan
    1983, Annals of Statistics 11, 286–295), so that the test is conservative.
    """
    base = max(reference_rows * min(then.among, now.among) // now.among, 1)
    copies = min(then.rows, base)
    told = f"{now.rows:,} of {rows:,} rows equal an earlier one, {points(copies / base, now.rows / rows)}"
    return against(copies, base, now.rows, rows, blocks, "", "duplicate rows", told)


def keeps_order(backward: int, known: int) -> bool:
    """Whether times, of which `backward` of `known` are earlier than the one before, come in some order at all."""
    return backward <= _ORDERLESS * known


def disorder_rate(name: str, now: int, known: int, then: int, reference_known: int, blocks: Blocks) -> Rate:
    """The share of times earlier than the one before, by Fisher's exact test against that of the profile.

    A time can only be earlier than the one before if that one is late, so that two in a row are rarer than among
    independent rows: their number varies less than a binomial one, and the test is conservative.
    """
    told = f"{name!r} earlier than the row before in {points(then / reference_known, now / known)}"
    return against(then, reference_known, now, known, blocks, name, "out of order", told)
