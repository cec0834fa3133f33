"""Rows like those of a profile: its ranges, categories, nulls and correlations, without any of its rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring import ReferenceProfile
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, hash_bucket, hash_key
from pytest_modelserve.monitoring.columns import is_length
from pytest_modelserve.monitoring.correlations import Feature
from pytest_modelserve.robustness.hypothesis_package import hypothesis_package
from pytest_modelserve.serving.serve import as_predictor
from pytest_modelserve.stats.two_sample_tests import correlations_of

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_modelserve.artifacts import TensorSpec
    from pytest_modelserve.serving import Servable

_MAX_SEED = 2**32 - 1
Floats = NDArray[np.float64]


def rows(profile: ReferenceProfile, *, min_rows: int = 1, max_rows: int = 1000) -> SearchStrategy[GeneratedRows]:
    """Return a strategy of data sets that could have come from the profile's distribution.

    Columns are drawn together: numbers from the histograms of the profile, with its correlations (a Gaussian copula of
    its normal-score correlations); categories by their rates, which depend on the columns before by a linear regression
    on the profile's correlations; nulls independently. Categories that the profile counts without their names are
    drawn as made-up texts of the profile's lengths. Times rise from row to row.

    Examples shrink to fewer rows and a smaller seed. A failure prints `ROWS.at(rows=3, seed=7)`, which can be pasted
    into `@example` if the strategy is assigned to a variable `ROWS`.

    Args:
        profile: The profile of the training data.
        min_rows: The smallest number of rows.
        max_rows: The largest number of rows.

    Returns:
        A hypothesis strategy of mappings from column names to arrays (rows,), with a method `at`.

    Raises:
        MissingDependencyError: If hypothesis is not installed.
        UsageError: For numbers of rows that are no range.
        InputError: For a profile of an embedding, whose rows cannot be drawn.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile({"age": rng.normal(40, 10, 2000), "site": rng.choice(["a", "b"], 2000)})
        >>> ROWS = ms.strategies.rows(profile, min_rows=2000, max_rows=4000)
        >>> drawn = ROWS.at(rows=3000, seed=1)
        >>> ms.measure_drift(drawn, profile, max_distance=0.1).verdict.name
        'PASS'
    """
    if not 1 <= min_rows <= max_rows:
        raise UsageError(f"min_rows and max_rows must be a range from 1 on; got {min_rows} and {max_rows}")
    st = hypothesis_package().strategies
    draw = functools.partial(_generate, _Sampler.of(profile))
    strategy: Any = st.builds(draw, rows=st.integers(min_rows, max_rows), seed=st.integers(0, _MAX_SEED))
    strategy.at = draw
    return strategy  # type: ignore[no-any-return]


def batches(
    profile: ReferenceProfile, predictor: Servable | None = None, *, max_batch: int = 64
) -> SearchStrategy[Any]:
    """Return a strategy of batches of a model's inputs, of any size, drawn as `rows` draws them.

    Args:
        profile: The profile of the training data.
        predictor: The model: whatever `ms.serve` takes. A single input gets all columns, in the profile's order;
            several get the columns of their names. Without a model, or for one without a signature, a batch is an array
            (rows, columns) of float64.
        max_batch: The largest number of rows.

    Returns:
        A hypothesis strategy of arrays, or of mappings from input names to arrays, with a method `at`.

    Raises:
        MissingDependencyError: If hypothesis is not installed.
        UsageError: For `max_batch` below 1.
        InputError: For columns that the model does not take, or that are not numbers where it takes numbers.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> profile = ms.reference_profile(np.random.default_rng(0).normal(size=(500, 3)))
        >>> ms.strategies.batches(profile).at(rows=2, seed=0).shape
        (2, 3)
    """
    if max_batch < 1:
        raise UsageError(f"max_batch must be at least 1; got {max_batch}")
    st = hypothesis_package().strategies
    sampler = _Sampler.of(profile)
    specs: tuple[TensorSpec, ...] = ()
    if predictor is not None:
        with as_predictor(predictor) as model:
            specs = () if model.signature is None else model.signature.inputs

    def draw(rows: int, seed: int) -> Any:
        return _as_inputs(_generate(sampler, rows=rows, seed=seed), specs)

    draw(1, 0)  # columns that do not fit are refused here, and not in the first example
    strategy: Any = st.builds(draw, rows=st.integers(1, max_batch), seed=st.integers(0, _MAX_SEED))
    strategy.at = draw
    return strategy  # type: ignore[no-any-return]


class GeneratedRows(dict[str, NDArray[Any]]):
    """Columns by name. The repr is the call that generates them again."""

    call: str = ""

    def __repr__(self) -> str:
        return self.call


@dataclass(frozen=True, slots=True)
class _Sampler:
    """The columns of a profile, the features that are drawn together, and the covariance matrix of their scores."""

    columns: tuple[NumericColumn | CategoricalColumn, ...]
    features: tuple[Feature, ...]
    correlations: Floats
    lengths: Mapping[str, NumericColumn]

    @classmethod
    def of(cls, profile: ReferenceProfile) -> _Sampler:
        columns = tuple(column for column in profile.columns if not is_length(column))
        embedded = next((column.source for column in columns if column.source is not None), None)
        if embedded is not None:
            raise InputError(f"column {embedded!r} of the profile is an embedding, whose rows cannot be drawn")
        lengths = {
            str(column.source): column
            for column in profile.columns
            if is_length(column) and isinstance(column, NumericColumn)
        }
        found = profile.associations
        if found is None:
            return cls(columns, (), np.eye(0), lengths)
        # Numbers first, so that the categories can be drawn given them.
        count = len(found.features)
        r = np.eye(count)
        upper = np.triu_indices(count, 1)
        r[upper] = np.nan_to_num(correlations_of(np.array(found.sums).reshape(-1, 15)).estimates)
        r = r + r.T - np.eye(count)
        kept = [i for i, feature in enumerate(found.features) if not _is_derived(feature, columns)]
        return cls(columns, tuple(found.features[i] for i in kept), r[np.ix_(kept, kept)], lengths)

    def draw(self, rows: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        numbers = [i for i, feature in enumerate(self.features) if feature.category is None]
        scores = dict(zip(numbers, self._normal_scores(numbers, rows, rng), strict=True))
        by_column: dict[str, list[int]] = {}
        for index, feature in enumerate(self.features):
            by_column.setdefault(feature.column, []).append(index)
        drawn: dict[str, NDArray[Any]] = {}
        for column in self.columns:
            indices = by_column.get(column.name, [])
            if isinstance(column, NumericColumn):
                z = scores[indices[0]] if indices else rng.standard_normal(rows)
                drawn[column.name] = _numbers(column, ndtr(z), rng)
            else:
                values = _categories(column, self._rates(column, indices, scores, rows), rng)
                drawn[column.name] = self._texts(column, values, rng) if column.hashed else values
                self._add_scores(column, indices, drawn[column.name], scores)
        return {column.name: drawn[column.name] for column in self.columns}

    def _normal_scores(self, numbers: list[int], rows: int, rng: np.random.Generator) -> Floats:
        """Return correlated normal scores (features, rows)."""
        if not numbers:
            return np.empty((0, rows))
        # Clipped eigenvalues: estimates of pairs need not be one positive definite matrix.
        values, vectors = np.linalg.eigh(self.correlations[np.ix_(numbers, numbers)])
        root = vectors * np.sqrt(np.clip(values, 0, None))
        root /= np.linalg.norm(root, axis=1, keepdims=True)
        drawn: Floats = root @ rng.standard_normal((len(numbers), rows))
        return drawn

    def _rates(self, column: CategoricalColumn, indices: list[int], scores: dict[int, Floats], rows: int) -> Floats:
        """Return the rate of each category in each row (rows, categories)."""
        counts = np.array(column.counts, np.float64)
        overall = counts / max(counts.sum(), 1)
        rates = np.tile(overall, (rows, 1))
        before = sorted(scores)
        named = [column.categories.index(str(self.features[i].category)) for i in indices]
        if before and indices:
            inverse = np.linalg.pinv(self.correlations[np.ix_(before, before)])
            known = np.stack([scores[i] for i in before], axis=1)
            for index, place in zip(indices, named, strict=True):
                slope = inverse @ self.correlations[before, index]
                p = overall[place]
                rates[:, place] = p + np.sqrt(p * (1 - p)) * (known @ slope)
            rates = np.clip(rates, 0, None)
            rates /= np.maximum(rates.sum(axis=1, keepdims=True), 1e-12)
        return rates

    def _texts(self, column: CategoricalColumn, buckets: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Return texts of these hash buckets, with lengths like those of the profile."""
        length = self.lengths.get(column.name)
        known = np.array([bucket is not None for bucket in buckets])
        key = hash_key(column.name, column.key_check)
        lengths = np.full(len(buckets), 8) if length is None else _numbers(length, rng.random(len(buckets)), rng)
        texts = np.full(len(buckets), None, object)
        for row in np.flatnonzero(known):
            length_of_row = int(np.nan_to_num(lengths[row]))
            texts[row] = _made_up_text(int(buckets[row]), length_of_row, len(column.counts), key)
        return texts

    def _add_scores(
        self, column: CategoricalColumn, indices: list[int], values: NDArray[Any], scores: dict[int, Floats]
    ) -> None:
        """Add the standardized indicators of the drawn categories, on which later columns depend."""
        for index in indices:
            p = column.counts[column.categories.index(str(self.features[index].category))] / max(column.known, 1)
            scores[index] = ((values == self.features[index].category) - p) / np.sqrt(max(p * (1 - p), 1e-12))


def _is_derived(feature: Feature, columns: tuple[NumericColumn | CategoricalColumn, ...]) -> bool:
    return all(column.name != feature.column for column in columns)


def _generate(sampler: _Sampler, rows: int, seed: int) -> GeneratedRows:
    generated = GeneratedRows(sampler.draw(rows, np.random.default_rng(seed)))
    generated.call = f"ROWS.at(rows={rows}, seed={seed})"
    return generated


def _numbers(column: NumericColumn, ranks: Floats, rng: np.random.Generator) -> NDArray[Any]:
    """Return values with these ranks (rows,) in the histogram, and nulls by their rate."""
    counts = np.array(column.counts, np.float64)
    if not counts.sum():
        return np.full(len(ranks), np.nan)
    ends = np.concatenate(([0.0], np.cumsum(counts) / counts.sum()))
    bins = np.clip(np.searchsorted(ends, ranks, side="right") - 1, 0, len(counts) - 1)
    edges = np.array([column.minimum, *column.edges, column.maximum])
    low = np.clip(edges[bins], column.minimum, column.maximum)
    high = np.clip(edges[bins + 1], column.minimum, column.maximum)
    width = ends[bins + 1] - ends[bins]
    within = np.where(width > 0, (ranks - ends[bins]) / np.where(width > 0, width, 1.0), 0.5)
    values = low + (high - low) * within
    null = rng.random(len(ranks)) < column.nulls / column.rows
    if column.kind in ("integer", "boolean"):
        # An edge lies above the integers of the bin before it.
        whole: NDArray[Any] = np.clip(np.floor(values), np.ceil(low), np.maximum(np.ceil(high) - 1, np.ceil(low)))
        whole = np.where(bins == len(counts) - 1, np.clip(np.floor(values + within), np.ceil(low), high), whole)
        if column.kind == "boolean" and not null.any():
            return whole.astype(np.bool_)
        if not null.any():
            return whole.astype(np.int64)
        values = whole
    if column.kind == "datetime":
        return np.sort(values * 1e6).astype(np.int64).astype("datetime64[us]")
    return np.where(null, np.nan, values)


def _categories(column: CategoricalColumn, rates: Floats, rng: np.random.Generator) -> NDArray[Any]:
    names = np.array(range(len(column.counts)) if column.hashed else column.labels, object)
    place: NDArray[np.intp] = (rng.random((len(rates), 1)) > np.cumsum(rates, axis=1)).sum(axis=1)
    values: NDArray[Any] = names[np.minimum(place, len(names) - 1)]
    values[rng.random(len(rates)) < column.nulls / column.rows] = None
    return values


@functools.cache
def _made_up_text(bucket: int, length: int, buckets: int, key: bytes | None) -> str:
    """Return a text of this length in this hash bucket; of no characters there is one in any bucket."""
    if length == 0:
        return ""
    texts = (f"{'x' * (length - 1)}{chr(0x4E00 + number)}" for number in range(20_000))
    return next(text for text in texts if hash_bucket(text, key) % buckets == bucket)


def _as_inputs(columns: GeneratedRows, specs: tuple[TensorSpec, ...]) -> Any:
    if len(specs) > 1:
        return {spec.name: _column_for(columns, spec) for spec in specs}
    for name, values in columns.items():
        if values.dtype.kind not in "biuf":
            raise InputError(f"column {name!r} of the profile holds no numbers, and the model has one input of numbers")
    matrix = np.stack([values.astype(np.float64) for values in columns.values()], axis=1)
    return matrix.astype(specs[0].dtype) if specs else matrix


def _column_for(columns: GeneratedRows, spec: TensorSpec) -> NDArray[Any]:
    if spec.name not in columns:
        raise InputError(f"input {spec.name!r} of the model is no column of the profile ({', '.join(columns)})")
    values = columns[spec.name]
    if spec.dtype != "str":
        if values.dtype.kind not in "biuf":
            raise InputError(f"column {spec.name!r} of the profile holds no numbers, and the model takes {spec.dtype}")
        values = values.astype(spec.dtype)
    return values[:, np.newaxis] if spec.shape is not None and len(spec.shape) == 2 else values
