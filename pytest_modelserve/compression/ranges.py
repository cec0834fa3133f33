"""The range of every value inside a model, measured batch by batch in memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.compression.activations import Activations
from pytest_modelserve.compression.entropy import entropy_bounds
from pytest_modelserve.compression.ranging import Ranging
from pytest_modelserve.compression.recipe import Inputs

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


def measured_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: Ranging
) -> dict[str, Range]:
    """The range of each value on all `batches`, narrowed as `ranging` says; of none at all, from 0 to 0.

    "min-max" is from the least to the largest. "percentile" leaves out the largest absolute values, so many that at
    least that share lies within; the bound is an observed value or up to 0.4 % beyond. "entropy" reads the batches
    twice. None depends on the order of batches. A range with NaN or infinity in it is left as it is.
    """
    return narrowed_ranges(seen_ranges(activations, batches, ranging), activations, batches, ranging)


def seen_ranges(
    activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: Ranging
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


def narrowed_ranges(
    seen: dict[str, Range], activations: Activations, batches: Callable[[], Iterator[Inputs]], ranging: Ranging
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
