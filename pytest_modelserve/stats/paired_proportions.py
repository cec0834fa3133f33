"""How much accuracy a candidate loses against its reference on the same rows: Tango's score interval, held exactly.

Of n rows, `lost` are right under the reference and wrong under the candidate, `gained` the other way round. Rows on
which both agree say nothing of the difference (lost − gained)/n beyond being there.
"""

from __future__ import annotations

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments
from pytest_modelserve.stats.bounds import Bounds
from pytest_modelserve.stats.guarded_limit import guarded_limit


def paired_difference_bounds(lost: int, gained: int, n: int, *, low_level: float, high_level: float) -> Bounds:
    """The drop (lost − gained)/n between the bounds of Tango's score interval, all from −1 to 1.

    The low end is where `tango_statistic` reaches z(low_level), the high end where it reaches −z(high_level), rounded
    outwards to the next float: asymptotic levels, which a model exactly at a margin of 1 point breaks in 6.8 % of
    samples of 268 rows instead of 5 %, and in 0.40 % of samples of 1,018 rows instead of 0.1 %. So an end that would
    be wrong more than 1.1 times as often as its level says moves outwards to where an exact unconditional test holds
    that: the high end lies below the true drop in at most 1.1·(1 − high_level) of samples, the low end above it in at
    most 1.1·(1 − low_level), for any n and any share of discordant rows. Where many rows are discordant both ways,
    Tango's ends stay. `guarded_limit` has the method; benchmarks/drop_error_rates.py enumerates what is left.

    With no discordant row the interval still has width: at 95 % its high end is 1 − 0.055^(1/n), as "no error in n
    rows" does not mean "no error". All rows lost make the high end 1.

    Takes milliseconds where Tango's ends stay, else tens of them for n up to 10,000 and up to 0.2 s for 100,000.

    Assumes independent rows. Sources: Tango (1998), Statistics in Medicine 17, 891–908, equations 24–26; Buehler
    (1957), Journal of the American Statistical Association 52, 482–493; Berger and Boos (1994), the same 89, 1012–1016.

    UsageError for no rows, for counts that are negative, not integers or together more than n, and for a level outside
    (0.5, 1).
    """
    n = _arguments.count("n", n, minimum=1)
    lost, gained = _arguments.count("lost", lost), _arguments.count("gained", gained)
    if lost + gained > n:
        raise UsageError(f"lost and gained rows are among the n rows: {lost} + {gained} of {n} cannot be")
    low_level, high_level = _arguments.level("low_level", low_level), _arguments.level("high_level", high_level)
    return Bounds(
        estimate=(lost - gained) / n,
        low=-guarded_limit(gained, lost, n, low_level),  # seen from the other model, a loss is a gain
        high=guarded_limit(lost, gained, n, high_level),
        low_level=low_level,
        high_level=high_level,
    )
