"""Generated base rows for a signature: simple numbers, and valid values for operator parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, read_graph
from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.domains import Ranges, as_dtype, clip_to_ranges
from pytest_modelserve.robustness.operator_inputs import (
    BOUNDED,
    JOINT,
    OperatorCall,
    OperatorUse,
    Shape,
    operator_uses,
)

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor

BASE_ROWS = 8
_SEQUENCE_ITEMS = 2
"""The items generated for a sequence. Its length input says how many of them count."""
_SEARCH_ROUNDS = 32
"""Rounds of eight rows: 256 rows in all find a value that one in fifty draws has, 99 times in a hundred."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseRowGenerator:
    """A generator of base rows for these inputs (see `InputSource` for `batch_size`)."""

    specs: tuple[TensorSpec, ...]
    batch_size: int | None
    uses: tuple[OperatorUse, ...] = ()
    ranges: Ranges = field(default_factory=dict)

    def generate(self, sizes: Mapping[str, int], *, seed: int = 0, varied: bool = False) -> Feed:
        """Generate eight rows with these sizes of the free axes. Operator parameters are valid.

        The first row is zeros. Real numbers lie around zero and have few digits. Integers and booleans are 0 and 1,
        because every embedding table has these rows. With `varied`, integers also take the sizes of the inputs' axes
        and other small numbers, as parameters do.
        """
        rng = np.random.default_rng(seed)
        shapes = {spec.name: self._shape(spec, sizes) for spec in self.specs}
        integers = [0, 1]
        if varied:
            integers = sorted({-1, 0, 1, 2, 3, 4, *(dim for shape in shapes.values() for dim in shape)})
        rows = {spec.name: self._simple(spec, shapes[spec.name], rng, integers, varied) for spec in self.specs}
        shapes = {spec.name: shapes[spec.name] for spec in self.specs if spec.shape is not None}
        for use in self.uses:
            _fill_bounded(use, rows, shapes, rng)
        for index in range(BASE_ROWS if self.batch_size == 0 else 0):
            feed = {name: array[index, ...] for name, array in rows.items()}
            for use in self.uses:
                _fill_joint(OperatorCall(use, shapes, feed, rng, simplest=index == 0 and not varied))
        return clip_to_ranges(rows, self.ranges, rng) if self.ranges else rows

    def generate_accepted(self, sizes: Mapping[str, int], accepts: Callable[[Feed], bool]) -> Feed:
        """Generate eight rows that `accepts` confirms, some of them repeatedly if few were found.

        If it confirms none, the rows of `generate` are returned.
        """
        found: list[Feed] = []
        for seed in range(_SEARCH_ROUNDS):
            rows = self.generate(sizes, seed=seed, varied=seed > 0)
            singles = [take_rows(rows, slice(row, row + 1)) for row in range(BASE_ROWS)]
            found += [single for single in singles if accepts(single)]
            if len(found) >= BASE_ROWS:
                break
        if not found:
            return self.generate(sizes)
        return concat_rows([found[row % len(found)] for row in range(BASE_ROWS)])

    def rejection_filter(self, predictor: Predictor, sizes: Mapping[str, int]) -> Callable[[Feed], bool] | None:
        """Return a function that says whether a model accepts rows, None if it accepts all generated ones.

        Any exception counts as a rejection.
        """

        def accepts(rows: Feed) -> bool:
            if self.batch_size == 0:
                feed = {name: array[0, ...] for name, array in rows.items()}
            else:
                count = row_count(rows)
                feed = take_rows(rows, np.arange(max(count, self.batch_size or 1)) % count)
            try:
                predictor.predict(feed)
            except Exception:
                return False
            return True

        rows = self.generate(sizes)
        step = 1 if self.batch_size == 0 else (self.batch_size or BASE_ROWS)
        blocks = [take_rows(rows, slice(begin, begin + step)) for begin in range(0, BASE_ROWS, step)]
        return None if all(map(accepts, blocks)) else accepts

    def _shape(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
        """Return the shape of one call's input, with one row if the number of rows is free."""
        dims = [
            dim if isinstance(dim, int) else sizes.get(axis_name(spec, axis), 2)
            for axis, dim in enumerate(spec.shape or ())
        ]
        if self.batch_size is None and dims:
            dims[0] = 1
        return tuple(dims)

    def _simple(
        self, spec: TensorSpec, call_shape: Shape, rng: np.random.Generator, integers: Sequence[int], varied: bool
    ) -> NDArray[Any]:
        shape = (BASE_ROWS, *(call_shape if self.batch_size == 0 else call_shape[1:]))
        if is_keys(spec.name):
            return _keys(spec, shape)
        if spec.dtype == "str":
            return np.array(["a", "b"], object)[rng.integers(0, 2, shape)]
        dtype = numpy_dtype(spec)
        if _is_length(spec):
            return rng.integers(1, 3, shape).astype(dtype)
        if kind_of(dtype) == "real":
            numbers = np.round(rng.standard_normal(shape), 2)
            if varied and len(call_shape) < 2:
                numbers = np.abs(numbers)
        else:
            choices = [0, 1] if dtype == np.bool_ else integers
            numbers = np.array(choices)[rng.integers(0, len(choices), shape)].astype(np.float64)
        if not varied:
            numbers[0] = 0
        return as_dtype(numbers, dtype)


def tensor_inputs(
    source: Signature | Predictor | Artifact, signature: Signature
) -> tuple[tuple[TensorSpec, ...], tuple[OperatorUse, ...]]:
    """Return the tensors that represent the inputs, and the nodes that take them, if `source` has a file to read.

    The graph is only read if one of the inputs may be a parameter or is no tensor.
    """
    if not any(may_be_parameter(spec) for spec in signature.inputs):
        return signature.inputs, ()
    artifact = source if isinstance(source, Artifact) else getattr(source, "artifact", None)
    graph = read_graph(artifact.path) if isinstance(artifact, Artifact) and artifact.path.exists() else None
    types = {value.name: value.type for value in graph.graph.input} if graph else {}
    specs = tuple(
        tensor for spec in signature.inputs for tensor in _tensors(spec.name, spec, spec.dtype, types.get(spec.name))
    )
    return specs, operator_uses(graph) if graph else ()


def may_be_parameter(spec: TensorSpec) -> bool:
    """Return whether values of an input may be invalid: integers, and inputs of at most one axis.

    Real numbers along several axes are data, which every operator accepts.
    """
    is_data = spec.dtype.startswith(("float", "bfloat")) and len(spec.shape or ()) > 1
    return not is_data and spec.dtype != "bool"


def joint_inputs(specs: Sequence[TensorSpec], uses: Sequence[OperatorUse]) -> frozenset[str]:
    """Return the inputs that are valid only as a whole, which no mutation changes."""
    names = {spec.name for spec in specs}
    found = {use.name(slot) for use in uses if use.op in JOINT for slot in JOINT[use.op][0]} & names
    return frozenset(found | {name for name in names if is_keys(name)})


def is_element(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Return whether a tensor is an element of a sequence, map or optional.

    The model reads it only if the corresponding `.length`, `.keys` or `.present` input says so.
    """
    names = {other.name for other in specs}
    outer = spec.name.rpartition("[")[0] if spec.name.endswith("]") else spec.name
    return any(f"{outer}.{suffix}" in names for suffix in ("length", "keys", "present"))


def is_container_input(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Return whether a tensor is the `.length`, `.present` or `.keys` input of a sequence, optional or map."""
    return spec.name.rpartition(".")[2] in ("length", "keys", "present") and any(
        is_element(other, [spec]) for other in specs if other != spec
    )


def is_keys(name: str) -> bool:
    """Return whether an input holds the keys of a map, which are ascending and unique."""
    return name.endswith(".keys")


def axis_name(spec: TensorSpec, axis: int) -> str:
    """Return the name of a free axis: the model's symbol, or "input.axis" if it has none."""
    dim = (spec.shape or ())[axis]
    return dim if isinstance(dim, str) else f"{spec.name}.{axis}"


def numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the numpy dtype of an input.

    Raises:
        InputError: If no array of numbers or text can represent it.
    """
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
        f"input {spec.name!r} has type {spec.dtype}: supported are real numbers, integers, booleans and text, and "
        "sequences, maps and optionals of them. Write a hypothesis strategy of your own for it"
    )


def _tensors(name: str, spec: TensorSpec, dtype: str, graph_type: Any) -> Iterator[TensorSpec]:
    """Yield the tensors that represent an input when it is served, the input itself if it is one.

    Without the type that the graph declares, items have one axis, of the same length for all of them.
    """
    outer, _, inside = dtype.partition("(")
    inner = inside[:-1]
    if outer == "optional":
        yield TensorSpec(f"{name}.present", "bool", ())
        yield from _tensors(name, spec, inner, graph_type and graph_type.optional_type.elem_type)
    elif outer == "sequence" and inner.startswith("map("):
        key, value = inner[4:-1].split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.rows", f"{name}.size"))
    elif outer == "sequence":
        yield TensorSpec(f"{name}.length", "int64", ())
        for index in range(_SEQUENCE_ITEMS):
            yield from _tensors(f"{name}[{index}]", spec, inner, graph_type and graph_type.sequence_type.elem_type)
    elif outer == "map":
        key, value = inner.split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.size",))
    elif dtype == spec.dtype:
        yield spec
    else:
        yield TensorSpec(name, dtype, _item_shape(spec.name, graph_type))


def _item_shape(name: str, graph_type: Any) -> tuple[int | str, ...]:
    """Return the shape of an item. Free axes are the same for all items, as most sequence operators require."""
    if not graph_type or not graph_type.tensor_type.HasField("shape"):
        return (f"{name}.items",)
    dims = graph_type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or f"{name}.{axis}"
        for axis, dim in enumerate(dims)
    )


def _is_length(spec: TensorSpec) -> bool:
    return spec.name.endswith(".length") and spec.shape == () and spec.dtype == "int64"


def _keys(spec: TensorSpec, shape: Shape) -> NDArray[Any]:
    count = shape[-1]
    keys = np.array([f"k{i:03d}" for i in range(count)], object) if spec.dtype == "str" else np.arange(count)
    return np.broadcast_to(keys, shape).astype(numpy_dtype(spec))


def _fill_bounded(use: OperatorUse, rows: Feed, shapes: Mapping[str, Shape], rng: np.random.Generator) -> None:
    """Set bounded parameters within their ranges, in the first row to the minimum."""
    for slot, name in enumerate(use.inputs):
        if name not in rows or (use.op, slot) not in BOUNDED or rows[name].dtype.kind not in "iuf":
            continue
        is_real = rows[name].dtype.kind == "f"
        if is_real and use.op in ("Div", "Mod"):  # any real number is a valid divisor
            continue
        try:
            found = BOUNDED[use.op, slot](OperatorCall(use, shapes, {}, rng))
            low, high = (np.broadcast_to(end, rows[name].shape).astype(np.float64) for end in found or ())
        except (IndexError, ValueError):  # unknown bounds, or an inconsistent graph, which the model itself reports
            continue
        values = low + rng.random(low.shape) * (high - low + (0 if is_real else 1))
        values = np.round(values, 2) if is_real else np.minimum(np.floor(values), high)
        values[0] = low[0]
        rows[name][...] = values.astype(rows[name].dtype)


def _fill_joint(call: OperatorCall) -> None:
    """Set the joint parameters of one node in a row, where they fit the inputs' dtypes and shapes."""
    if call.use.op not in JOINT:
        return
    slots, generate = JOINT[call.use.op]
    names = [call.use.name(slot) for slot in slots]
    if not any(name in call.feed for name in names) or call.shape(0) is None:
        return
    try:
        values = generate(call)
    except (IndexError, ValueError):  # an inconsistent graph, which the model itself reports
        return
    for slot, value in values.items():
        target = call.feed.get(call.use.name(slot))
        if slot in slots and target is not None and np.size(value) == target.size and target.dtype.kind in "iuf":
            target[...] = np.asarray(value).astype(target.dtype).reshape(target.shape)
