"""Random search over the features of a table: numbers, whole numbers and categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.attack import Attack, Target, check_proportion
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel


@dataclass(frozen=True, kw_only=True)
class random_search(Attack):
    """Change random subsets of features of the best row so far: to an end of their interval, or anywhere in it.

    For tables with columns of whole numbers and categories. The size of a subset is drawn log-uniformly. Reads margins
    where there are scores, and labels alone otherwise.

    Args:
        queries: Largest number of queries of each row.
        fresh: Proportion of candidates that start from the given row instead of the best one.

    Raises:
        UsageError: For a proportion outside [0, 1], and a number of queries below 1.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.attacks.random_search(queries=200)
        random_search(queries=200, fresh=0.2)
    """

    queries: int = 1000
    fresh: float = 0.2

    name: ClassVar[str] = "random search"
    source: ClassVar[str] = "random local search; Rastrigin 1963, Automation and Remote Control 24:1337-1342"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proportion("fresh of random_search", self.fresh)

    def run(self, target: Target, rng: np.random.Generator) -> None:
        """Search around all active rows at once."""
        threat = target.threat
        places = threat.changeable
        best = threat.base.astype(np.float64).reshape(len(threat.base), -1)
        margins = np.full(len(target.labels), np.inf)
        for step in progress(range(self.queries), "random search"):
            index = target.active()
            if not index.size:
                return
            start = best[index]
            fresh = rng.random(index.size) < (self.fresh if step else 1.0)
            start[fresh] = threat.base.reshape(len(threat.base), -1)[index[fresh]]
            wished = _changed(start, index, threat, places, rng)
            candidates = threat.project(index, wished.reshape(index.size, *threat.shape))
            answers = target.query(index, candidates)
            better = answers.margin <= margins[index]
            best[index[better]] = candidates.reshape(index.size, -1)[better]
            margins[index[better]] = answers.margin[better]


def _changed(
    rows: NDArray[np.float64],
    index: NDArray[np.intp],
    threat: ThreatModel,
    places: NDArray[np.intp],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return rows (k, features) with a random subset of the features at `places` drawn anew."""
    count = len(rows)
    sizes = np.exp(rng.uniform(0, np.log(places.size + 1), count)).astype(int).clip(1, places.size)
    chosen = np.zeros(rows.shape, np.bool_)
    order = rng.random((count, places.size))
    chosen[:, places] = order <= np.take_along_axis(np.sort(order, axis=1), sizes[:, None] - 1, axis=1)
    units = rng.uniform(-1, 1, rows.shape)
    at_end = rng.random((count, 1)) < 0.5
    units = np.where(at_end, np.sign(units), units)
    base = threat.base.reshape(len(threat.base), -1)[index].astype(np.float64)
    fresh = base + units * threat.scale.reshape(-1)
    for place, values in threat.category_values.items():
        fresh[:, place] = rng.choice(values, count)
    return np.where(chosen, fresh, rows)
