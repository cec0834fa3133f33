"""A stream of a monitor: a quantity of each window whose mean or rate is known in a reference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.evidence import Unit

Floats = NDArray[np.float64]

QUANTA: Mapping[str, float] = {"mean": 2.0**-12, "rate": 2.0**-4}
"""Totals are multiples of these, so that doubles add them up exactly in any order."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One monitored quantity, with what the reference shows of it.

    `rows` are the rows of the reference. Scores of a "mean" have mean 0 and variance 1 there, and `sd` and `tolerated`
    are in its own units. The reference has `events` of a "rate". `side` is 1 if only an increase matters, −1 for a
    decrease, and 0 for both. `argument` is the argument that gave `tolerated`, and `weight` the stream's part of the
    evidence of its group. Of several streams of one `column`, the first is the easiest to understand.
    """

    name: str
    kind: Literal["mean", "rate"]
    rows: float
    tolerated: float
    argument: str
    unit: Unit = ""
    events: float = 0.0
    sd: float = 1.0
    side: Literal[-1, 0, 1] = 0
    weight: float = 1.0
    column: str = ""

    def __str__(self) -> str:
        """Return the identity of a stream, with figures that do not depend on the machine."""
        figures = (self.rows, self.events, self.sd, self.tolerated, self.weight)
        return " ".join([self.name, self.kind, str(self.side), *(f"{figure:.9g}" for figure in figures)])


Measured = tuple[Floats, Floats]
"""Totals and numbers of rows (streams,) of one window."""


@dataclass(frozen=True, slots=True)
class StreamGroup:
    """The streams that `measure` reads from one argument of `Monitor.check`, named `source`.

    `identity` is that of the reference: a state file belongs to one. `within` is that of `accuracy`.
    """

    source: str
    streams: tuple[Stream, ...]
    measure: Callable[[Any], Measured]
    identity: str
    within: float | None = None

    def weighted(self, groups: int) -> tuple[Stream, ...]:
        """Return the streams with their weights in the evidence of a monitor with so many groups."""
        return tuple(replace(stream, weight=stream.weight / groups) for stream in self.streams)


def shift_rate(name: str, events: float, rows: float, max_shift: float, weight: float) -> Stream:
    """Return a rate of both sides whose tolerance is `max_shift` of its standard deviations."""
    share = (events + 0.5) / (rows + 1)
    sd = math.sqrt(share * (1 - share))
    return Stream(
        name,
        "rate",
        rows,
        max_shift * sd,
        f"max_shift={max_shift:g}",
        "proportion_difference",
        events=float(events),
        sd=sd,
        weight=weight,
    )


def rate_stream(
    name: str, events: float, rows: float, max_increase: float, *, argument: str = "max_increase", weight: float = 1.0
) -> Stream:
    """Return a rate of which only an increase matters."""
    share = min(events / rows + max_increase, 0.5)
    sd = math.sqrt(max(share * (1 - share), 1e-12))
    return Stream(
        name,
        "rate",
        rows,
        max_increase,
        f"{argument}={max_increase:g}",
        "proportion_difference",
        events=events,
        sd=sd,
        side=1,
        weight=weight,
    )


def digest_of(*parts: str | bytes) -> str:
    """Return twelve characters of the sha256 of `parts`: enough to distinguish windows."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()[:12]
