"""Shadow models: the same training on other halves of the data, the log odds that they give rows, and their ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.artifacts import Store
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics.losses import SUM_TOLERANCE, Scores, label_columns
from pytest_modelserve.progress import progress
from pytest_modelserve.training import ModelSource, TrainedModel
from pytest_modelserve.training.model_pool import train_models

Floats = NDArray[np.float64]
FEWEST_SHADOWS = 4
PRIOR_SHADOWS = 32.0
"""How many shadow models the variance over all rows counts for. On noisy digits, 16 shadow models, 30 seeds: a bound
above 5 % at an error rate of 0.001 in 30; with one variance for all rows in 24, with one for each row in 4."""


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


@dataclass(frozen=True, slots=True)
class ScoreReading:
    """How the outputs of a model are read: as logits, or as probabilities of at least `floor`."""

    kind: Scores
    floor: float = 0.0

    @classmethod
    def of(cls, outputs: NDArray[Any], kind: Scores | None) -> ScoreReading:
        """Return the reading of outputs (n, classes), or (n,) for class 1 of two, whose kind may be None.

        Numbers between 0 and 1 with sums of at most 1 are probabilities. Half of the smallest positive one stands for
        a probability of 0, so that rounded probabilities have finite log odds. InputError for outputs of another shape
        or dtype.
        """
        if outputs.dtype.kind not in "fiu" or outputs.ndim not in (1, 2) or outputs.size == 0:
            raise InputError(
                f"output must hold numbers of shape (rows, classes), or (rows,) for class 1 of two; got shape "
                f"{outputs.shape} of {outputs.dtype}"
            )
        values = outputs.astype(np.float64).reshape(len(outputs), -1)
        inside = bool(((values >= 0) & (values <= 1)).all())
        if kind is None:
            sums = values.sum(axis=1) if values.shape[1] > 1 else np.zeros(1)
            kind = "probabilities" if inside and bool((sums <= 1 + SUM_TOLERANCE).all()) else "logits"
        if kind == "logits":
            return cls(kind)
        if not inside:
            raise InputError("output has scores='probabilities', and some lie below 0 or above 1: use scores='logits'")
        both = np.concatenate([values, 1 - values]) if values.shape[1] == 1 else values
        return cls(kind, float(both[both > 0].min()) / 2)


def label_log_odds(outputs: NDArray[Any], labels: ArrayLike, reading: ScoreReading) -> Floats:
    """Return log p − log(1 − p) of the probability p of each row's label, (n,).

    `outputs` are (n, classes), or (n,) or (n, 1) for class 1 of two; `labels` are the numbers of their columns. 1 − p
    is the sum over the other classes, which has no cancellation. About normal over trainings: Carlini et al. (2022),
    IEEE Symposium on Security and Privacy, section V. InputError for labels that are no columns, and for infinite
    logits that leave no odds.
    """
    values = outputs.astype(np.float64).reshape(len(outputs), -1)
    if values.shape[1] == 1:
        values = np.hstack([np.zeros_like(values), values] if reading.kind == "logits" else [1 - values, values])
    columns = label_columns(labels, values)
    rows = np.arange(len(values))
    own, others = values[rows, columns], values.copy()
    if reading.kind == "probabilities":
        others[rows, columns] = 0
        return np.asarray(
            np.log(np.maximum(own, reading.floor)) - np.log(np.maximum(others.sum(axis=1), reading.floor))
        )
    others[rows, columns] = -math.inf
    with np.errstate(invalid="ignore"):
        largest = others.max(axis=1)
        rest = np.exp(others - largest[:, np.newaxis]).sum(axis=1)
        odds = np.asarray(own - largest - np.log(rest))
    infinite = np.flatnonzero(~np.isfinite(odds))
    if infinite.size:
        raise InputError(
            f"output holds infinite logits, so that the labels of {infinite.size} of {len(odds)} rows have no finite "
            f"odds, first row {infinite[0]} ({values[infinite[0]].tolist()[:5]}): serve finite logits, such as -100 "
            "for a class that is left out"
        )
    return odds


def likelihood_ratios(
    target: ArrayLike, shadows: ArrayLike, included: NDArray[np.bool_], *, prior_shadows: float = PRIOR_SHADOWS
) -> Floats:
    """Return the log likelihood ratio of membership of each row, (n,), from its log odds under shadow models.

    log N(t; μ_in, σ²_in) − log N(t; μ_out, σ²_out), with the mean and the variance over the shadow models whose
    training included the row, and over the others. Each variance is an average of that of the row and that over all
    rows, which counts for `prior_shadows` shadow models: with 0 it is the attack with a variance for each row, with
    infinity that of a fixed variance. Sources: Carlini et al. (2022), IEEE Symposium on Security and Privacy,
    1897–1914, algorithm 1; the average of variances as in Smyth (2004), Statistical Applications in Genetics and
    Molecular Biology 3, article 3.

    Args:
        target: Log odds (n,) under the model that is attacked.
        shadows: Log odds (models, n) under the shadow models.
        included: Whether the training of a shadow model included a row, (models, n).
        prior_shadows: The weight of the variance over all rows, 0 to infinity.

    Raises:
        UsageError: A row lies in fewer than two shadow models or outside fewer than two, arrays do not fit, or a value
            is not finite.
    """
    values, scores = np.asarray(target, dtype=np.float64), np.asarray(shadows, dtype=np.float64)
    if scores.shape != included.shape or scores.shape[1:] != values.shape:
        raise UsageError(f"shadows {scores.shape}, included {included.shape} and target {values.shape} do not fit")
    if not (np.isfinite(values).all() and np.isfinite(scores).all()):
        raise UsageError("target and shadows must be finite: a NaN would be a verdict on nothing")
    inside, models = included.sum(axis=0), len(included)
    if inside.min() < 2 or models - inside.max() < 2:
        raise UsageError(
            f"included must hold each row in at least 2 of {models} shadow models and outside of at least 2; got "
            f"{inside.min()} to {inside.max()}"
        )
    return _log_density(values, scores, included, prior_shadows) - _log_density(
        values, scores, ~included, prior_shadows
    )


def _log_density(values: Floats, scores: Floats, chosen: NDArray[np.bool_], prior: float) -> Floats:
    """Return the logarithm of each row's normal density, without the constant that cancels."""
    counts = chosen.sum(axis=0)
    means = np.where(chosen, scores, 0.0).sum(axis=0) / counts
    squares = np.where(chosen, (scores - means) ** 2, 0.0).sum(axis=0)
    pooled = squares.sum() / counts.sum()
    variances = np.full(len(values), pooled) if math.isinf(prior) else (squares + prior * pooled) / (counts + prior)
    variances = np.maximum(variances, np.finfo(np.float64).tiny)
    return np.asarray(-0.5 * (np.log(variances) + (values - means) ** 2 / variances))
