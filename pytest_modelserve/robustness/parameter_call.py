"""One use of parameters in one row: what is known of the other inputs, and what draws values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.robustness.parameters import Shape, Use

MOST = 3
"""Repeats, lengths and counts that nothing in the model bounds stay small."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One use of one row: `feed` holds the values so far, `rng` what is drawn; the first row is `plain`."""

    use: Use
    shapes: Mapping[str, Shape]
    feed: Mapping[str, NDArray[Any]]
    rng: np.random.Generator
    plain: bool = False

    def shape(self, slot: int) -> Shape | None:
        """The shape of what feeds a slot, None where that is not known."""
        name = self.use.name(slot)
        return self.shapes.get(name, self.use.weights.get(name))

    def value(self, slot: int) -> NDArray[Any] | None:
        """The constant at a slot, or what the row has there; None where it is neither."""
        name = self.use.name(slot)
        return self.feed.get(name, self.use.constants.get(name))

    def size(self, slot: int) -> int:
        """How many elements a slot takes; 0 where nothing feeds it."""
        return int(np.prod(self.shape(slot) or (), dtype=np.int64)) if self.use.name(slot) else 0

    def attribute(self, name: str, default: Any) -> Any:
        """The node's attribute."""
        return self.use.attributes.get(name, default)

    def dims(self) -> Shape:
        """The shape of the first slot; a computed value counts as one without axes."""
        return self.shape(0) or ()

    def declared(self, rank: int | None = None) -> Shape | None:
        """The shape that the model declares for the node's first output, if it has this many axes."""
        found = self.use.outputs[0] if self.use.outputs else None
        return found if found is not None and (rank is None or len(found) == rank) else None

    def below(self, most: int) -> int:
        """A number from 1 to `most`; the plain one is the greatest."""
        return max(most, 1) if self.plain else int(self.rng.integers(1, max(most, 1) + 1))

    def axes(self, slot: int, rank: int, among: Sequence[int] | None = None) -> list[int]:
        """As many different axes as a slot takes, half of them counted from the end."""
        choices = list(range(rank)) if among is None else list(among)
        if not self.plain:
            choices = [int(axis) for axis in self.rng.permutation(choices)]
        chosen = choices[: self.size(slot)]
        return chosen if self.plain else [axis - rank * int(self.rng.integers(0, 2)) for axis in chosen]

    def parts(self, total: int, count: int, least: int = 0) -> list[int]:
        """`count` whole numbers that sum to `total`, none below `least`."""
        free = max(total - least * count, 0)
        if count == 0:
            return []
        return [least + int(part) for part in self.rng.multinomial(free, [1 / count] * count)]
