"""Rows made up for a signature where nobody has given any: plain numbers, and parameters that their operators take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.errors import InputError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.bounded_parameters import BOUNDED
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.joint_parameters import JOINT
from pytest_modelserve.robustness.nested import is_keys, is_length
from pytest_modelserve.robustness.parameter_call import Call
from pytest_modelserve.robustness.parameters import Shape, Use
from pytest_modelserve.robustness.ranges import Ranges, within

BASE_ROWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """What rows are made up for: the inputs, how many rows the model takes (see `InputSource.batch`), what its graph
    does with the inputs, and what is declared of features."""

    specs: tuple[TensorSpec, ...]
    batch: int | None
    uses: tuple[Use, ...] = ()
    ranges: Ranges = field(default_factory=dict)

    def rows(self, sizes: Mapping[str, int], *, seed: int = 0, wide: bool = False) -> Feed:
        """Eight rows: zeros first, then numbers of a few digits around zero; integers and booleans of 0 and 1, because
        every table has rows with these numbers. Parameters are those that their operators take.

        With `wide`, integers are also sizes of the inputs' axes and other small numbers, as parameters are.
        """
        rng = np.random.default_rng(seed)
        shapes = {spec.name: self._shape(spec, sizes) for spec in self.specs}
        pool = sorted({-1, 0, 1, 2, 3, 4, *(dim for shape in shapes.values() for dim in shape)}) if wide else [0, 1]
        rows = {spec.name: self._plain(spec, shapes[spec.name], rng, pool, wide) for spec in self.specs}
        shapes = {spec.name: shapes[spec.name] for spec in self.specs if spec.shape is not None}
        for use in self.uses:
            _bound(use, rows, shapes, rng)
        for index in range(BASE_ROWS if self.batch == 0 else 0):
            feed = {name: array[index, ...] for name, array in rows.items()}
            for use in self.uses:
                _fill(Call(use, shapes, feed, rng, plain=index == 0 and not wide))
        return within(rows, self.ranges, rng) if self.ranges else rows

    def _shape(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
        """The shape of one call's input; of rows whose number is free, that of one row."""
        dims = [
            dim if isinstance(dim, int) else sizes.get(axis_name(spec, axis), 2)
            for axis, dim in enumerate(spec.shape or ())
        ]
        if self.batch is None and dims:
            dims[0] = 1
        return tuple(dims)

    def _plain(
        self, spec: TensorSpec, whole: Shape, rng: np.random.Generator, pool: Sequence[int], wide: bool
    ) -> NDArray[Any]:
        shape = (BASE_ROWS, *(whole if self.batch == 0 else whole[1:]))
        if is_keys(spec.name):
            return _keys(spec, shape)
        if spec.dtype == "str":
            return np.array(["a", "b"], object)[rng.integers(0, 2, shape)]
        dtype = dtype_of(spec)
        if is_length(spec):
            return rng.integers(1, 3, shape).astype(dtype)
        if kind_of(dtype) == "real":
            numbers = np.round(rng.standard_normal(shape), 2)
            if wide and len(whole) < 2:
                numbers = np.abs(numbers)
        else:
            held = [0, 1] if dtype == np.bool_ else pool
            numbers = np.array(held)[rng.integers(0, len(held), shape)].astype(np.float64)
        if not wide:
            numbers[0] = 0
        return as_dtype(numbers, dtype)


def joint_inputs(specs: Sequence[TensorSpec], uses: Sequence[Use]) -> frozenset[str]:
    """The inputs that are right or wrong as a whole: they come from a row as they are, and nothing edits them."""
    names = {spec.name for spec in specs}
    found = {use.name(slot) for use in uses if use.op in JOINT for slot in JOINT[use.op][0]} & names
    return frozenset(found | {name for name in names if is_keys(name)})


def axis_name(spec: TensorSpec, axis: int) -> str:
    """The name of a free axis: the model's own, or "input.axis" where it has none."""
    dim = (spec.shape or ())[axis]
    return dim if isinstance(dim, str) else f"{spec.name}.{axis}"


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """The numpy dtype of an input; InputError for one that no array of numbers or text can stand for."""
    if spec.dtype == "str":
        return np.dtype(object)
    if spec.is_tensor and not spec.dtype.startswith("complex"):
        try:
            return np.dtype(spec.dtype)
        except TypeError:
            import ml_dtypes

            if hasattr(ml_dtypes, spec.dtype):
                kind: np.dtype[Any] = np.dtype(getattr(ml_dtypes, spec.dtype))
                return kind
    raise InputError(
        f"input {spec.name!r} is of type {spec.dtype}: inputs are drawn for real numbers, integers, booleans and text, "
        "and for sequences, maps and optional values of them; build this one in a strategy of your own"
    )


def _bound(use: Use, rows: Feed, shapes: Mapping[str, Shape], rng: np.random.Generator) -> None:
    """Put bounded parameters into their ranges, the least first."""
    for slot, name in enumerate(use.inputs):
        if name not in rows or (use.op, slot) not in BOUNDED or rows[name].dtype.kind not in "iuf":
            continue
        is_real = rows[name].dtype.kind == "f"
        if is_real and use.op in ("Div", "Mod"):  # a real number is divided by any other
            continue
        try:
            found = BOUNDED[use.op, slot](Call(use, shapes, {}, rng))
            low, high = (np.broadcast_to(end, rows[name].shape).astype(np.float64) for end in found or ())
        except (IndexError, ValueError):  # nothing is known, or a graph that contradicts itself: the model says so
            continue
        drawn = low + rng.random(low.shape) * (high - low + (0 if is_real else 1))
        drawn = np.round(drawn, 2) if is_real else np.minimum(np.floor(drawn), high)
        drawn[0] = low[0]
        rows[name][...] = drawn.astype(rows[name].dtype)


def _fill(call: Call) -> None:
    """Put values for the joint parameters of one node into a row, those that fit the inputs' dtypes and shapes."""
    if call.use.op not in JOINT:
        return
    slots, make = JOINT[call.use.op]
    names = [call.use.name(slot) for slot in slots]
    if not any(name in call.feed for name in names) or call.shape(0) is None:
        return
    try:
        values = make(call)
    except (IndexError, ValueError):  # a graph that contradicts itself: the model says so
        return
    for slot, value in values.items():
        target = call.feed.get(call.use.name(slot))
        if slot in slots and target is not None and np.size(value) == target.size and target.dtype.kind in "iuf":
            target[...] = np.asarray(value).astype(target.dtype).reshape(target.shape)


def _keys(spec: TensorSpec, shape: Shape) -> NDArray[Any]:
    count = shape[-1]
    keys = np.array([f"k{i:03d}" for i in range(count)], object) if spec.dtype == "str" else np.arange(count)
    return np.broadcast_to(keys, shape).astype(dtype_of(spec))
