"""The user's calibration data: checked, digested and handed out batch by batch, without ever lying in memory whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, digest_of
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.serving.inputs import checked_feed

if TYPE_CHECKING:
    from pytest_modelserve._onnx.sessions import Activations
    from pytest_modelserve.compression.recipe import Inputs

Batch = NDArray[Any] | Mapping[str, NDArray[Any]]
CalibrationData = Batch | Iterable[Batch]

# Rows of one array that run at a time: enough to keep a processor busy, few enough for the activations of all layers.
_ROWS_AT_A_TIME = 32


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Batches that fit a model; `digest` covers their values and how they are cut."""

    digest: str
    source: tuple[Inputs, ...] | Path

    def batches(self) -> Iterator[Inputs]:
        """Every batch, from the first on."""
        if isinstance(self.source, Path):
            return (_read(folder) for folder in sorted(self.source.iterdir()))
        return iter(self.source)


@contextmanager
def open_calibration(
    given: CalibrationData, signature: Signature, *, what: str = "calibration="
) -> Iterator[Calibration]:
    """`given` as batches that `signature` takes, usable inside the block.

    One array or mapping is cut into batches of 32 rows where the first axis of all inputs is one free axis. Of an
    iterable each batch stays as it is. One that is neither a list nor a tuple is read once, one batch at a time, into a
    temporary folder: it may be a generator, or a loader that shuffles and would give other batches the second time.

    RecipeError that calls the argument `what`, for no rows, NaN or infinite values, and batches that the model does not
    take; ArtifactError where the temporary folder is full.
    """
    if isinstance(given, (np.ndarray, Mapping)):
        yield _in_memory(_cut(_checked(given, signature, what), signature), what)
    elif isinstance(given, (list, tuple)):
        yield _in_memory(_checked_batches(given, signature, what), what)
    elif isinstance(given, Iterable):
        with TemporaryDirectory(prefix="modelserve-calibration-") as folder:
            yield _spooled(_checked_batches(given, signature, what), Path(folder), what)
    else:
        raise RecipeError(
            f"{what} is a {type(given).__name__}: give an array, a mapping from input names to arrays, or an "
            "iterable of such batches"
        )


def _in_memory(batches: Iterable[Inputs], what: str) -> Calibration:
    kept = tuple(batches)
    return Calibration(_digest((digest_of(batch) for batch in kept), what), kept)


def _spooled(batches: Iterable[Inputs], folder: Path, what: str) -> Calibration:
    digests = []
    for number, batch in enumerate(batches):
        try:
            _write(batch, folder / f"{number:09d}")
        except OSError as error:
            reason = error.strerror or f"the disk is full ({error})"  # numpy raises a bare OSError over half an array
            raise ArtifactError(
                f"batch {number} of {what} cannot be written to {folder}: {reason}. What comes "
                "from a generator is kept there meanwhile: set TMPDIR to a folder with more room, or give a list"
            ) from error
        digests.append(digest_of(batch))
    return Calibration(_digest(digests, what), folder)


def _write(batch: Inputs, folder: Path) -> None:
    folder.mkdir()
    for place, (name, array) in enumerate(batch.items()):
        np.save(folder / f"{place}.npy", array, allow_pickle=False)
        (folder / f"{place}.name").write_text(name, encoding="utf-8")


def _read(folder: Path) -> Inputs:
    return {
        path.with_suffix(".name").read_text(encoding="utf-8"): np.load(path, allow_pickle=False)
        for path in folder.glob("*.npy")
    }


def _digest(digests: Iterable[str], what: str) -> str:
    every = tuple(digests)
    if not every:
        raise RecipeError(f"{what} holds no batch: give rows like those that the model will serve")
    return digest_of(every)


def _checked_batches(given: Iterable[Batch], signature: Signature, what: str) -> Iterator[Inputs]:
    for number, batch in enumerate(given):
        yield _checked(batch, signature, f"batch {number} of {what}")


def _checked(batch: object, signature: Signature, where: str) -> Inputs:
    try:
        feed = checked_feed(batch, signature)
    except InputError as error:
        raise RecipeError(f"{where} does not fit the model: {error}") from error
    for name, array in feed.items():
        if array.size == 0:
            raise RecipeError(f"{where} is empty: input {name!r} has shape {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise RecipeError(
                f"{where} holds {array[first]} at {list(first)} of input {name!r}: leave such rows out, as no range of "
                "values holds them"
            )
    return feed


def _cut(feed: Inputs, signature: Signature) -> Iterator[Inputs]:
    """`feed` in batches of rows if the first axis of every input is one and the same free axis, else as it is."""
    first = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    rows = {len(array) if array.ndim else 0 for array in feed.values()}
    if len(first) > 1 or len(rows) > 1 or not isinstance(next(iter(first)), str):
        yield feed
        return
    for start in range(0, rows.pop(), _ROWS_AT_A_TIME):
        yield {name: array[start : start + _ROWS_AT_A_TIME] for name, array in feed.items()}


# Where to cut off a distribution so that 8 bits tell the most of what is left.
#
# What is cut off is lost by its whole distance from the edge. Over twelve small networks, of which most have outputs
# without a bound, "entropy" lost up to 19 dB against "min-max" (a residual CNN: 16.6 for 35.7) and won 2 at best; where
# a column of inputs is a long tail it can leave no answer, which "int8-static" refuses.


# The talk quantizes to 128 levels: the non-negative half of int8.
_LEVELS = 128
# What onnxruntime's smooth_distribution gives to a bin that is empty.
_EPSILON = 1e-4


def entropy_bounds(counts: NDArray[np.int64], edges: NDArray[Any]) -> tuple[float, float]:
    """The two edges between which the distribution in 128 levels is nearest to the whole, by Kullback-Leibler.

    `counts` (n,) of values between `edges` (n + 1,), which are symmetric about 0; n is even and at least 128. As
    onnxruntime's `get_entropy_threshold`, step by step and to the same result; that one adds up in Python and takes
    half a second for each value inside a model where this takes a fiftieth of one.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310.
    """
    middle = counts.size // 2
    below = np.concatenate(([0], np.cumsum(counts)))
    best, bounds = np.inf, (float(edges[0]), float(edges[-1]))
    for half in range(_LEVELS // 2, middle + 1):
        start, end = middle - half, min(middle + half + 1, counts.size)
        kept = counts[start:end]
        reference = kept.copy()
        reference[0] += below[start]
        reference[-1] += below[-1] - below[end]
        divergence = _divergence(reference, _in_levels(kept, reference != 0))
        if divergence < best:
            best, bounds = divergence, (float(edges[start]), float(edges[end]))
    return bounds


def _in_levels(kept: NDArray[np.int64], is_used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`kept` summed up to 128 levels, each spread evenly over its bins again."""
    width = kept.size // _LEVELS
    whole = _LEVELS * width
    levels = kept[:whole].reshape(_LEVELS, width).sum(axis=1)
    levels[-1] += kept[whole:].sum()
    used = is_used[:whole].reshape(_LEVELS, width).sum(axis=1)
    spread = np.divide(levels, used, out=np.zeros(_LEVELS), where=used > 0).astype(np.int64)
    return np.concatenate((np.repeat(spread, width), np.zeros(kept.size - whole, np.int64)))


def _divergence(reference: NDArray[np.int64], candidate: NDArray[np.int64]) -> float:
    p, q = _smooth(reference), _smooth(candidate)
    if p is None or q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _smooth(counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """`counts` with a little taken from the bins that hold something for those that hold nothing; None if too few."""
    is_empty = counts == 0
    empty = int(is_empty.sum())
    if empty == counts.size or _EPSILON * empty >= counts.size - empty:
        return None
    taken = _EPSILON * empty / (counts.size - empty)
    return np.where(is_empty, _EPSILON, counts - taken)


# How calibration turns the values that it sees into a range: the user's choice, checked.


CalibrationMethod = Literal["min-max", "entropy", "percentile"]
"""See `compress`. Of the two that clip, "entropy" loses up to 19 dB against "min-max" where outputs are unbounded."""
METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)

# onnxruntime's default, and that of NVIDIA's pytorch-quantization.
DEFAULT_PERCENTILE = 99.999


@dataclass(frozen=True, slots=True)
class RangeMethod:
    """A range method; `percentile` is a number for "percentile" alone."""

    method: CalibrationMethod = "min-max"
    percentile: float | None = None


MIN_MAX = RangeMethod()


def range_method(method: CalibrationMethod, percentile: float | None) -> RangeMethod:
    """`method` with its percentile, 99.999 where none is given.

    UsageError for an unknown method, a percentile without that method, and one that is not above 0 and at most 100.
    """
    if method not in METHODS:
        raise UsageError(unknown_choice("calibration method", method, METHODS))
    if method != "percentile":
        if percentile is not None:
            raise UsageError(
                f"percentile={percentile} is given, and calibration_method={method!r} takes none: leave it out, or use "
                "calibration_method='percentile'"
            )
        return RangeMethod(method)
    chosen = DEFAULT_PERCENTILE if percentile is None else float(percentile)
    if not 0 < chosen <= 100:
        raise UsageError(f"percentile={percentile} is no share of the values: give a number above 0 and at most 100")
    return RangeMethod(method, chosen)


# The range of every value inside a model, measured batch by batch in memory that does not grow with the data.


Floats = NDArray[np.float32]

# As many as NVIDIA's calibrators have. With onnxruntime's default, 128, there is one place to cut: it never cuts.
_ENTROPY_BINS = 2048
# Of the 31 bits of a positive float32 the upper 16 say which bin it is in: its exponent and 8 of 23 digits. A bin is
# thus at most 2**-8 wide, relative to what is in it, whatever else the data hold. onnxruntime has 2,048 bins of one
# width: one value 10,000 times larger than the others and all of these share the first bin, whose lower end is 0.
_DROPPED_BITS = 15
_PERCENTILE_BINS = 1 << 16


@dataclass(slots=True)
class Range:
    """Least and largest of all values, and how many there were of each size where that is asked for."""

    low: np.float32 = field(default_factory=lambda: np.float32(np.inf))
    high: np.float32 = field(default_factory=lambda: np.float32(-np.inf))
    sizes: NDArray[np.int64] | None = None

    def widen(self, values: Floats) -> None:
        """Let `values` in; a NaN among them stays for good, as least and as largest."""
        self.low = np.minimum(self.low, values.min(initial=np.inf))
        self.high = np.maximum(self.high, values.max(initial=-np.inf))
        if self.sizes is not None:
            self.sizes += np.bincount(_bins(values), minlength=_PERCENTILE_BINS)

    @property
    def is_finite(self) -> bool:
        """Whether neither end is NaN or infinite."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def cut(self, low: float, high: float) -> Range:
        """What of this range lies between `low` and `high`."""
        return Range(max(self.low, np.float32(low)), min(self.high, np.float32(high)))


def measure_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: RangeMethod
) -> dict[str, Range]:
    """The range of each value on all `batches`, narrowed as `ranging` says; of none at all, from 0 to 0.

    "min-max" is from the least to the largest. "percentile" leaves out the largest absolute values, so many that at
    least that share lies within; the bound is an observed value or up to 0.4 % beyond. "entropy" reads the batches
    twice. None depends on the order of batches. A range with NaN or infinity in it is left as it is.
    """
    return clip_ranges(observe_ranges(activations, batches, ranging), activations, batches, ranging)


def observe_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: RangeMethod
) -> dict[str, Range]:
    """What `measured_ranges` begins with: from the least to the largest of each value, whatever `ranging` says.

    Whether they are finite is known here already, and the search of "entropy" takes seconds from here on.
    """
    has_sizes = ranging.method == "percentile"
    ranges = {
        name: Range(sizes=np.zeros(_PERCENTILE_BINS, np.int64) if has_sizes else None) for name in activations.names
    }
    for batch in batches():
        for name, values in activations.of(batch).items():
            ranges[name].widen(values)
    for name, found in ranges.items():
        if found.low > found.high:
            ranges[name] = Range(np.float32(0), np.float32(0))
    return ranges


def clip_ranges(
    seen: dict[str, Range], activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: RangeMethod
) -> dict[str, Range]:
    """What `measured_ranges` makes of what `seen_ranges` gave for the same `ranging`."""
    if ranging.percentile is not None:
        return {name: _within(found, ranging.percentile) for name, found in seen.items()}
    if ranging.method == "entropy":
        return _entropy_ranges(activations, batches(), seen)
    return seen


def _bins(values: Floats) -> NDArray[np.uint32]:
    bits = np.ascontiguousarray(np.abs(values)).reshape(-1).view(np.uint32)
    return np.right_shift(bits, np.uint32(_DROPPED_BITS))


def _within(found: Range, percentile: float) -> Range:
    if not found.is_finite or found.sizes is None:
        return found
    counts = np.cumsum(found.sizes)
    last = int(np.searchsorted(counts, percentile / 100 * counts[-1]))
    largest = float(np.array(((last + 1) << _DROPPED_BITS) - 1, np.uint32).view(np.float32))
    return found.cut(-largest, largest)


def _entropy_ranges(activations: Activations, batches: Iterable[Inputs], ranges: dict[str, Range]) -> dict[str, Range]:
    widths = {name: float(max(-found.low, found.high)) for name, found in ranges.items() if found.is_finite}
    counts = {name: np.zeros(_ENTROPY_BINS, np.int64) for name, width in widths.items() if width > 0}
    for batch in batches:
        for name, values in activations.of(batch).items():
            if name in counts:
                counts[name] += np.histogram(values, _ENTROPY_BINS, range=(-widths[name], widths[name]))[0]
    narrowed = dict(ranges)
    for name, found in counts.items():
        edges = np.histogram_bin_edges(np.zeros(0), _ENTROPY_BINS, range=(-widths[name], widths[name]))
        narrowed[name] = ranges[name].cut(*entropy_bounds(found, edges))
    return narrowed
