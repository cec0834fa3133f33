"""Shadow models: the same training on other halves of the data, and the log odds that they give each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.training import ModelSource, TrainedModel
from pytest_modelserve.training.model_pool import train_models

Floats = NDArray[np.float64]
FEWEST_SHADOWS = 4


@dataclass(frozen=True, slots=True, eq=False)
class ShadowPlan:
    """Which rows (models, n) each shadow model is trained on: every row in equally many of them."""

    included: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: int, members: int, models: int, *, seed: int) -> ShadowPlan:
        """Return the plan of `models` shadow models for `rows` rows, of which the attacked model has seen `members`.

        A shadow model is trained on about as many rows as the attacked one, at most half of all. UsageError for fewer
        than four models, or for a number that leaves a row in fewer than two of them.
        """
        if isinstance(models, bool) or not isinstance(models, int) or models < FEWEST_SHADOWS:
            raise UsageError(f"shadows must be an integer of at least {FEWEST_SHADOWS}, such as 16; got {models!r}")
        each = max(2, min(models // 2, round(models * members / rows)))
        return cls(balanced_masks(rows, models, each, np.random.default_rng([seed, models, 11])))

    @property
    def models_a_row(self) -> int:
        """In how many shadow models each row is."""
        return int(self.included[:, 0].sum())

    def source(self, source: ModelSource, pool: Mapping[str, NDArray[Any]], number: int) -> ModelSource:
        """Return the source of one shadow model: that of the attacked model with its rows of `pool`."""
        rows = np.flatnonzero(self.included[number])
        return replace(
            source, name=f"{source.name[:80]}-shadow-{number + 1}", data={k: v[rows] for k, v in pool.items()}
        )

    def seeds(self, seed: int) -> list[int]:
        """Return the seed of each training."""
        return [int(each) for each in np.random.SeedSequence([seed, 13]).generate_state(len(self.included))]


def balanced_masks(rows: int, models: int, each: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return random masks (models, rows) with every row in exactly `each` models, and models of nearly equal size.

    Blocks of `models` rows are circulant squares with their rows and columns in random order: of two models the
    numbers of rows differ by at most `each`. Masks drawn without balance leave rows that no model includes.
    """
    shifts = (np.arange(models)[:, np.newaxis] - np.arange(models)) % models
    square = shifts < each
    blocks = -(-rows // models)
    masks = [square[rng.permutation(models)][:, rng.permutation(models)] for _ in range(blocks)]
    return np.concatenate(masks, axis=1)[:, :rows]


def shadow_log_odds(
    source: ModelSource,
    pool: Mapping[str, NDArray[Any]],
    plan: ShadowPlan,
    log_odds: Callable[[TrainedModel], Floats],
    *,
    seed: int,
    store: Store | None,
    processes: int | None,
    time_limit_s: float,
) -> Floats:
    """Train the shadow models of a plan through the store, and return their log odds of all rows, (models, n)."""
    trained = train_models(
        lambda number: plan.source(source, pool, number),
        plan.seeds(seed),
        store=store,
        processes=processes,
        time_limit_s=time_limit_s,
        what=f"shadow models of {source.name}",
    )
    return np.stack([log_odds(model) for model in progress(trained, "shadow models on all rows")])
