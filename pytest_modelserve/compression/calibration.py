"""Calibration: checked batches of the user's data, and the range of each activation measured on them.

Memory does not grow with the number of batches: data from a generator are spooled to disk, and ranges are running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, digest_of
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.serving.inputs import checked_feed, is_one_batch, without_labels

if TYPE_CHECKING:
    from pytest_modelserve._onnx.sessions import Activations
    from pytest_modelserve.compression.recipe import Inputs

Batch = NDArray[Any] | Mapping[str, NDArray[Any]]
CalibrationData = Batch | Iterable[Batch]

# Rows of one array in a batch: enough to keep a processor busy, few enough to hold the activations of all layers.
_BATCH_ROWS = 32

CalibrationMethod = Literal["min-max", "entropy", "percentile"]
"""See `compress`. Of the two that clip, "entropy" loses up to 19 dB against "min-max" where outputs are unbounded."""
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
# onnxruntime's default, and that of NVIDIA's pytorch-quantization.
DEFAULT_PERCENTILE = 99.999

Floats = NDArray[np.float32]

# As many as NVIDIA's calibrators have. onnxruntime's default, 128, leaves one candidate: it never clips.
_ENTROPY_BINS = 2048
# Levels of the non-negative half of int8.
_ENTROPY_LEVELS = 128
# What onnxruntime's smooth_distribution adds to an empty bin.
_EPSILON = 1e-4
# The upper 16 of the 31 bits of a positive float32 select its bin: exponent and 8 of 23 digits. A bin is thus at most
# 2**-8 wide relative to its content, whatever else the data hold. onnxruntime has 2,048 bins of equal width: with one
# value 10,000 times larger than the others, all others share the first bin, whose lower end is 0.
_DROPPED_BITS = 15
_PERCENTILE_BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class InputRange:
    """Least and largest value of an input in all calibration data, and whether all rows are the same."""

    low: float
    high: float
    is_constant: bool


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Batches that fit a model; `digest` covers their values and batch sizes, `ranges` hold the numeric inputs."""

    digest: str
    source: tuple[Inputs, ...] | Path
    ranges: Mapping[str, InputRange]

    def batches(self) -> Iterator[Inputs]:
        """Iterate over all batches, from the first on."""
        if isinstance(self.source, Path):
            return (_read(folder) for folder in sorted(self.source.iterdir()))
        return iter(self.source)


@contextmanager
def open_calibration(
    given: CalibrationData, signature: Signature, *, what: str = "calibration="
) -> Iterator[Calibration]:
    """Open `given` as batches that `signature` accepts, for use inside the block.

    One array or mapping is split into batches of 32 rows where the first axis of all inputs is the same free axis.
    Batches of an iterable stay as they are. An iterable other than a list or tuple is read once into a temporary
    folder, one batch at a time: it may be a generator, or a loader that shuffles.

    Args:
        given: An array, a tensor, a frame, a mapping from input names to arrays, or an iterable of such batches. The
            labels of a DataLoader's pairs are left out.
        signature: The signature of the model.
        what: Name of the argument, for messages.

    Raises:
        RecipeError: No rows, NaN or infinite values, or batches that the model does not accept.
        ArtifactError: The temporary folder is full.
    """
    if isinstance(given, Mapping) or is_one_batch(given):
        yield _in_memory(_split(_checked(given, signature, what), signature), what)
    elif isinstance(given, (list, tuple)):
        yield _in_memory(_checked_batches(given, signature, what), what)
    elif isinstance(given, Iterable):
        with TemporaryDirectory(prefix="modelserve-calibration-") as folder:
            yield _spooled(_checked_batches(given, signature, what), Path(folder), what)
    else:
        raise RecipeError(
            f"{what} is a {type(given).__name__}: pass an array, a mapping from input names to arrays, or an "
            "iterable of such batches"
        )


def check_varied(calibration: Calibration) -> None:
    """Raise RecipeError if no input varies: ranges that are measured on one value fit no other."""
    ranges = calibration.ranges
    if ranges and all(each.is_constant for each in ranges.values()):
        name, first = next(iter(ranges.items()))
        what = f"{first.low:g} throughout" if first.low == first.high else "the same in every row"
        raise RecipeError(
            f"calibration= does not vary: input {name!r} is {what}, so no range of the served values can be measured; "
            "pass rows as they are served"
        )


def constant_input_notes(calibration: Calibration) -> Iterator[str]:
    """Yield a note for each input of one value; the others vary."""
    for name, each in calibration.ranges.items():
        if each.low == each.high:
            yield f"input {name!r} is {each.low:g} in all of calibration=: other values are outside its range"


class _InputRanges:
    """Running ranges of the numeric inputs of batches."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[NDArray[Any], int]] = {}
        self.found: dict[str, InputRange] = {}

    def add(self, batch: Inputs) -> None:
        """Extend the ranges by `batch`."""
        for name, array in batch.items():
            if array.dtype.kind not in "fiu" or not array.size:
                continue
            rows = array if array.ndim else array[None]
            first, count = self._rows.setdefault(name, (rows[0].copy(), 0))
            self._rows[name] = first, count + len(rows)
            low, high = float(array.min()), float(array.max())
            same = rows.shape[1:] == first.shape and bool((rows == first).all())
            before = self.found.get(name, InputRange(low, high, is_constant=True))
            low, high = min(low, before.low), max(high, before.high)
            is_constant = low == high or (before.is_constant and same)
            self.found[name] = InputRange(low, high, is_constant)

    def finish(self) -> dict[str, InputRange]:
        """Return the ranges; a single row is constant only if it is one value."""
        return {
            name: replace(each, is_constant=each.is_constant and (self._rows[name][1] > 1 or each.low == each.high))
            for name, each in self.found.items()
        }


def _in_memory(batches: Iterable[Inputs], what: str) -> Calibration:
    listed = tuple(batches)
    ranges = _InputRanges()
    for batch in listed:
        ranges.add(batch)
    return Calibration(_digest((digest_of(batch) for batch in listed), what), listed, ranges.finish())


def _spooled(batches: Iterable[Inputs], folder: Path, what: str) -> Calibration:
    digests = []
    ranges = _InputRanges()
    for number, batch in enumerate(batches):
        try:
            _write(batch, folder / f"{number:09d}")
        except OSError as error:
            reason = error.strerror or f"the disk is full ({error})"  # numpy raises a bare OSError over half an array
            raise ArtifactError(
                f"batch {number} of {what} cannot be written to {folder}: {reason}. Batches from a generator are "
                "spooled there: set TMPDIR to a folder with more space, or pass a list"
            ) from error
        digests.append(digest_of(batch))
        ranges.add(batch)
    return Calibration(_digest(digests, what), folder, ranges.finish())


def _write(batch: Inputs, folder: Path) -> None:
    folder.mkdir()
    for place, (name, array) in enumerate(batch.items()):
        stored = array.astype(str) if array.dtype == object else array  # text
        np.save(folder / f"{place}.npy", stored, allow_pickle=False)
        (folder / f"{place}.name").write_text(name, encoding="utf-8")


def _read(folder: Path) -> Inputs:
    arrays = {
        path.with_suffix(".name").read_text(encoding="utf-8"): np.load(path, allow_pickle=False)
        for path in folder.glob("*.npy")
    }
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()}


def _digest(digests: Iterable[str], what: str) -> str:
    every = tuple(digests)
    if not every:
        raise RecipeError(f"{what} has no batches: pass representative inputs")
    return digest_of(every)


def _checked_batches(given: Iterable[Batch], signature: Signature, what: str) -> Iterator[Inputs]:
    for number, batch in enumerate(given):
        yield _checked(without_labels(batch), signature, f"batch {number} of {what}")


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
                f"{where} holds {array[first]} at {list(first)} of input {name!r}: remove such rows, because no range "
                "contains them"
            )
    return feed


def _split(feed: Inputs, signature: Signature) -> Iterator[Inputs]:
    """Split `feed` into batches if the first axis of every input is the same free axis."""
    first = {spec.shape[0] if spec.shape else None for spec in signature.inputs}
    rows = {len(array) if array.ndim else 0 for array in feed.values()}
    if len(first) > 1 or len(rows) > 1 or not isinstance(next(iter(first)), str):
        yield feed
        return
    for start in range(0, rows.pop(), _BATCH_ROWS):
        yield {name: array[start : start + _BATCH_ROWS] for name, array in feed.items()}


@dataclass(frozen=True, slots=True)
class RangeMethod:
    """A calibration method; `percentile` is None except for "percentile"."""

    method: CalibrationMethod = "min-max"
    percentile: float | None = None


MIN_MAX = RangeMethod()


def parse_range_method(method: CalibrationMethod, percentile: float | None) -> RangeMethod:
    """Return `method` with its percentile, by default 99.999.

    Raises:
        UsageError: An unknown method, a percentile without that method, or one outside (0, 100].
    """
    if method not in CALIBRATION_METHODS:
        raise UsageError(unknown_choice("calibration method", method, CALIBRATION_METHODS))
    if method != "percentile":
        if percentile is not None:
            raise UsageError(
                f"percentile={percentile} does not apply to calibration_method={method!r}: remove it, or use "
                "calibration_method='percentile'"
            )
        return RangeMethod(method)
    chosen = DEFAULT_PERCENTILE if percentile is None else float(percentile)
    if not 0 < chosen <= 100:
        raise UsageError(f"percentile={percentile}: expected a number above 0 and at most 100")
    return RangeMethod(method, chosen)


# Ranges of activations.


@dataclass(slots=True)
class Range:
    """Minimum and maximum of all values, and counts by magnitude where the method needs them."""

    low: np.float32 = field(default_factory=lambda: np.float32(np.inf))
    high: np.float32 = field(default_factory=lambda: np.float32(-np.inf))
    counts: NDArray[np.int64] | None = None

    def widen(self, values: Floats) -> None:
        """Extend the range to `values`; NaN makes both ends NaN permanently."""
        self.low = np.minimum(self.low, values.min(initial=np.inf))
        self.high = np.maximum(self.high, values.max(initial=-np.inf))
        if self.counts is not None:
            self.counts += np.bincount(_bins(values), minlength=_PERCENTILE_BINS)

    @property
    def is_finite(self) -> bool:
        """Return True if neither end is NaN or infinite."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def clip(self, low: float, high: float) -> Range:
        """Return the intersection with the interval from `low` to `high`."""
        return Range(max(self.low, np.float32(low)), min(self.high, np.float32(high)))


def measure_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], method: RangeMethod
) -> dict[str, Range]:
    """Measure the range of each activation on all `batches`, clipped by `method`.

    "min-max" is from the minimum to the maximum. "percentile" drops the largest absolute values, so that at least that
    proportion lies within; the bound is an observed value or up to 0.4 % beyond. "entropy" reads the batches twice.
    None depends on the order of batches. A range with NaN or infinity is not clipped. Without values it is 0 to 0.
    """
    return clip_ranges(observe_ranges(activations, batches, method), activations, batches, method)


def observe_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], method: RangeMethod
) -> dict[str, Range]:
    """Return the unclipped ranges: the first step of `measure_ranges`.

    A caller can reject ranges that are not finite before the search of "entropy", which takes seconds.
    """
    has_counts = method.method == "percentile"
    ranges = {
        name: Range(counts=np.zeros(_PERCENTILE_BINS, np.int64) if has_counts else None) for name in activations.names
    }
    for batch in batches():
        for name, values in activations.of(batch).items():
            ranges[name].widen(values)
    for name, found in ranges.items():
        if found.low > found.high:
            ranges[name] = Range(np.float32(0), np.float32(0))
    return ranges


def clip_ranges(
    observed: dict[str, Range], activations: Activations, batches: Callable[[], Iterator[Inputs]], method: RangeMethod
) -> dict[str, Range]:
    """Clip the result of `observe_ranges` by the same `method`: the second step of `measure_ranges`."""
    if method.percentile is not None:
        return {name: _percentile_range(found, method.percentile) for name, found in observed.items()}
    if method.method == "entropy":
        return _entropy_ranges(activations, batches(), observed)
    return observed


def _bins(values: Floats) -> NDArray[np.uint32]:
    bits = np.ascontiguousarray(np.abs(values)).reshape(-1).view(np.uint32)
    return np.right_shift(bits, np.uint32(_DROPPED_BITS))


def _percentile_range(found: Range, percentile: float) -> Range:
    if not found.is_finite or found.counts is None:
        return found
    counts = np.cumsum(found.counts)
    last = int(np.searchsorted(counts, percentile / 100 * counts[-1]))
    largest = float(np.array(((last + 1) << _DROPPED_BITS) - 1, np.uint32).view(np.float32))
    return found.clip(-largest, largest)


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
        narrowed[name] = ranges[name].clip(*entropy_bounds(found, edges))
    return narrowed


def entropy_bounds(counts: NDArray[np.int64], edges: NDArray[Any]) -> tuple[float, float]:
    """Return the clipping bounds that lose least information in 8 bits, by Kullback-Leibler divergence.

    The result equals that of onnxruntime's `get_entropy_threshold`, which sums in Python and takes half a second an
    activation; this takes a fiftieth of one. Clipped values are off by their whole distance from the bound: over twelve
    small networks, most with unbounded outputs, "entropy" lost up to 19 dB against "min-max" and won 2 at best.

    Args:
        counts: Counts of shape (n,), n even and at least 128.
        edges: Bin edges of shape (n + 1,), symmetric about 0.

    Returns:
        Two of the edges.

    Source: Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310.
    """
    middle = counts.size // 2
    below = np.concatenate(([0], np.cumsum(counts)))
    best, bounds = np.inf, (float(edges[0]), float(edges[-1]))
    for half in range(_ENTROPY_LEVELS // 2, middle + 1):
        start, end = middle - half, min(middle + half + 1, counts.size)
        inside = counts[start:end]
        reference = inside.copy()
        reference[0] += below[start]
        reference[-1] += below[-1] - below[end]
        divergence = _divergence(reference, _in_levels(inside, reference != 0))
        if divergence < best:
            best, bounds = divergence, (float(edges[start]), float(edges[end]))
    return bounds


def _in_levels(inside: NDArray[np.int64], is_used: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Sum `inside` to 128 levels and spread each evenly over its nonempty bins."""
    width = inside.size // _ENTROPY_LEVELS
    whole = _ENTROPY_LEVELS * width
    levels = inside[:whole].reshape(_ENTROPY_LEVELS, width).sum(axis=1)
    levels[-1] += inside[whole:].sum()
    used = is_used[:whole].reshape(_ENTROPY_LEVELS, width).sum(axis=1)
    spread = np.divide(levels, used, out=np.zeros(_ENTROPY_LEVELS), where=used > 0).astype(np.int64)
    return np.concatenate((np.repeat(spread, width), np.zeros(inside.size - whole, np.int64)))


def _divergence(reference: NDArray[np.int64], candidate: NDArray[np.int64]) -> float:
    p, q = _smooth(reference), _smooth(candidate)
    if p is None or q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _smooth(counts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Move a little from nonempty to empty bins; None if there are too few nonempty ones."""
    is_empty = counts == 0
    empty = int(is_empty.sum())
    if empty == counts.size or _EPSILON * empty >= counts.size - empty:
        return None
    taken = _EPSILON * empty / (counts.size - empty)
    return np.where(is_empty, _EPSILON, counts - taken)
