"""Boundary search by labels alone: the direction in which the decision boundary is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.attacks.attack import Attack, Target
from pytest_modelserve.robustness.attacks.threat_model import ThreatModel

_FAR = 100.0
"""Largest radius, in multiples of eps, where the range of the input is not known."""
_PRECISION = 0.02
"""A search along a direction ends when the distance is known to this proportion."""
_ORDERS = 16
_NEIGHBORS = 1000
"""Rows among which the nearest with another label are looked for."""
_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class boundary(Attack):
    """Search the direction in which the prediction changes at the least distance, by predicted labels alone.

    A direction is a sign for each feature. Blocks of signs are flipped, halves first, then quarters and so on; a
    direction that is wrong at the best distance so far replaces it, and bisection finds its own distance. In "l2",
    blocks are also left out. It ends with the first distance of at most eps. The first directions lead to the nearest
    rows with other labels.

    Args:
        queries: Largest number of queries of each row. Those beyond eps count, too.

    Raises:
        UsageError: For a number of queries below 1.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.attacks.boundary(queries=500)
        boundary(queries=500)
    """

    queries: int = 2000

    name: ClassVar[str] = "boundary"
    changes_categories: ClassVar[bool] = False
    source: ClassVar[str] = "Chen & Gu 2020, KDD, RayS"

    def run(self, target: Target, rng: np.random.Generator) -> None:
        """Search around all active rows at once, each with its own direction and bracket."""
        threat = target.threat
        rows = target.active()
        place = np.zeros(len(target.labels), np.intp)
        place[rows] = np.arange(rows.size)
        states = _States(threat, rows.size, _first_directions(target, rows, rng), rng)
        for _ in progress(range(self.queries), "boundary search"):
            index = target.active()
            if not index.size:
                return
            directions, radii = states.proposals(place[index])
            answers = target.query(index, _at(threat, index, directions, radii))
            states.update(place[index], radii, answers.fooled)


def _at(
    threat: ThreatModel, index: NDArray[np.intp], directions: NDArray[np.float64], radii: NDArray[np.float64]
) -> NDArray[np.generic]:
    shape = (index.size, *threat.shape)
    units = (directions * radii[:, None]).reshape(shape)
    wished = threat.base[index].astype(np.float64) + units * threat.scale
    rows = threat.project(index, wished, into_ball=False)
    inside = radii <= 1
    if inside.any():
        rows[inside] = threat.project(index[inside], wished[inside])
    return rows


def _first_directions(target: Target, rows: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return directions (starts, k, features) from `rows` (k,): to near rows with other labels, then a random one."""
    threat = target.threat
    free = threat.free.reshape(-1)
    scale = threat.scale.reshape(-1)[free]
    others = rng.permutation(len(target.labels))[:_NEIGHBORS]

    def scaled(index: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.asarray(target.rows[index].reshape(len(index), -1)[:, free].astype(np.float64) / scale)

    starts, ends = scaled(rows), scaled(others)
    distances = (ends**2).sum(axis=1) - 2 * starts @ ends.T
    distances[target.labels[rows][:, None] == target.labels[others]] = np.inf
    found = rng.choice([-1.0, 1.0], (_STARTS + 1, rows.size, free.size))
    for k, nearest in enumerate(np.argsort(distances, axis=1)[:, :_STARTS].T):
        known = np.flatnonzero(np.isfinite(distances[np.arange(rows.size), nearest]))
        found[k][np.ix_(known, free)] = ends[nearest[known]] - starts[known]
    if threat.norm == "linf":
        signs = np.sign(found)
        found = np.where(signs == 0, rng.choice([-1.0, 1.0], signs.shape), signs)
    return found


class _States:
    """The search of each row: best direction and distance, and the direction that is tried or bisected.

    A row tries its first directions at the largest radius, then flips of blocks at its best distance; one that is wrong
    there is bisected between `low` and `high`.
    """

    def __init__(self, threat: ThreatModel, n: int, starts: NDArray[np.float64], rng: np.random.Generator) -> None:
        self.norm = threat.norm
        self.free = threat.free.reshape(-1).astype(np.float64)
        self.starts = starts
        self.best = self._normalized(starts[0])
        self.farthest = _farthest(threat)
        self.distance = np.full(n, np.inf)
        self.trial = self.best.copy()
        self.low, self.high = np.zeros(n), np.full(n, np.nan)
        self.started = np.zeros(n, np.intp)
        self.level, self.block, self.round = (np.zeros(n, np.intp) for _ in range(3))
        size = self.free.size
        self.orders = [np.arange(size), *(rng.permutation(size) for _ in range(_ORDERS - 1))]
        self.ranks = np.array([np.argsort(order) for order in self.orders])

    def proposals(self, index: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the direction (k, features) and the radius (k,) of the next query of each row."""
        bisecting = ~np.isnan(self.high[index])
        directions = self.trial[index]
        low, high = self.low[index], self.high[index]
        with np.errstate(invalid="ignore"):
            radii = np.where(low < 1, np.where(high > 1, 1.0, (low + high) / 2), (low + high) / 2)
        fresh = np.flatnonzero(~bisecting)
        if fresh.size:
            rows = index[fresh]
            directions[fresh] = self._next_directions(rows)
            self.trial[rows] = directions[fresh]
            best = self.distance[rows]
            radii[fresh] = np.where(np.isfinite(best), best * (1 - _PRECISION / 2), self.farthest)
        return directions, radii

    def update(
        self,
        index: NDArray[np.intp],
        radii: NDArray[np.float64],
        fooled: NDArray[np.bool_],
    ) -> None:
        """Take the answers to the last proposals."""
        bisecting = ~np.isnan(self.high[index])
        fresh, old = index[~bisecting], index[bisecting]
        wrong = fooled[~bisecting]
        hit = fresh[wrong]
        self.low[hit], self.high[hit] = 0.0, radii[~bisecting][wrong]
        self._advance(fresh)
        ends = np.where(fooled[bisecting], radii[bisecting], self.high[old])
        self.low[old] = np.where(fooled[bisecting], self.low[old], radii[bisecting])
        self.high[old] = ends
        done = np.concatenate([old, hit])
        done = done[self.high[done] - self.low[done] <= _PRECISION * self.high[done]]
        self.distance[done], self.best[done] = self.high[done], self.trial[done]
        self.high[done] = np.nan

    def _next_directions(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        found = self.best[rows].copy()
        starting = self.started[rows] < len(self.starts)
        for k in np.flatnonzero(starting):
            found[k] = self.starts[self.started[rows[k]], rows[k]]
        flipping = np.flatnonzero(~starting)
        if flipping.size:
            some = rows[flipping]
            ranks = self.ranks[self.round[some] % _ORDERS]
            size = -(-self.free.size // 2 ** self.level[some])[:, None]
            at = self.block[some][:, None] * size
            inside = (ranks >= at) & (ranks < at + size)
            factor = np.where((self.norm == "l2") & (self.round[some] % 2 == 1), 0.0, -1.0)[:, None]
            found[flipping] = np.where(inside, found[flipping] * factor, found[flipping])
        return self._normalized(found)

    def _advance(self, rows: NDArray[np.intp]) -> None:
        """Move rows to the next first direction or block."""
        starting = self.started[rows] < len(self.starts)
        self.started[rows[starting]] += 1
        rows = rows[~starting]
        self.block[rows] += 1
        done = rows[self.block[rows] >= 2 ** self.level[rows]]
        self.block[done] = 0
        self.level[done] += 1
        over = done[2 ** self.level[done] > 2 * self.free.size]
        self.level[over] = 0
        self.round[over] += 1

    def _normalized(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        directions = directions * self.free
        if self.norm == "l2":
            norms = np.sqrt((directions**2).sum(axis=1, keepdims=True))
        else:
            norms = np.abs(directions).max(axis=1, keepdims=True)
        return np.asarray(directions / np.where(norms > 0, norms, 1))


def _farthest(threat: ThreatModel) -> float:
    """Return a radius, in multiples of eps, beyond which every row is at an end of the range."""
    widths = threat.widths.reshape(-1)[threat.free.reshape(-1)]
    ratios = widths / threat.scale.reshape(-1)[threat.free.reshape(-1)]
    if not np.isfinite(ratios).all():
        return _FAR
    return float(ratios.max() if threat.norm == "linf" else np.sqrt((ratios**2).sum()))
