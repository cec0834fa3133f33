"""Rows made up for a signature where nobody has given any: plain numbers, and parameters that their operators take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, read_graph
from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import kind_of
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, take_rows
from pytest_modelserve.robustness.domains import Ranges, as_dtype, clip_to_ranges
from pytest_modelserve.robustness.operator_inputs import BOUNDED, JOINT, Call, OperatorUse, Shape, operator_uses

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.serving import Predictor


# Inputs that are no tensors, as tensors under the names by which they are served: a sequence, a map, an optional.


_ITEMS = 2
"""How many items a sequence is drawn with; its length says how many of them count."""


def tensors_of(spec: TensorSpec, kind: onnx.TypeProto | None) -> Iterator[TensorSpec]:
    """The tensors that stand for an input (see `pytest_modelserve.serving.onnx_predictor`), itself where it is one.

    `kind` is the type that the graph declares; without it items have one axis, of one length for all of them. An
    input that holds what no tensor can is given as it is.
    """
    yield from _tensors(spec.name, spec, spec.dtype, kind)


def is_length(spec: TensorSpec) -> bool:
    """Whether this is the length of a sequence, of `_ITEMS` at most."""
    return spec.name.endswith(".length") and spec.shape == () and spec.dtype == "int64"


def is_keys(name: str) -> bool:
    """Whether these are the keys of a map: ascending, each once."""
    return name.endswith(".keys")


def is_item(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Whether this is what a sequence, a map or an optional value holds: the model only reads it if the length, the
    keys or the presence beside it say so."""
    names = {other.name for other in specs}
    outer = spec.name.rpartition("[")[0] if spec.name.endswith("]") else spec.name
    return any(f"{outer}.{told}" in names for told in ("length", "keys", "present"))


def is_told(spec: TensorSpec, specs: Sequence[TensorSpec]) -> bool:
    """Whether this is such a length, presence, or keys."""
    return spec.name.rpartition(".")[2] in ("length", "keys", "present") and any(
        is_item(other, [spec]) for other in specs if other != spec
    )


def _tensors(name: str, spec: TensorSpec, dtype: str, kind: Any) -> Iterator[TensorSpec]:
    outer, _, inside = dtype.partition("(")
    inner = inside[:-1]
    if outer == "optional":
        yield TensorSpec(f"{name}.present", "bool", ())
        yield from _tensors(name, spec, inner, kind and kind.optional_type.elem_type)
    elif outer == "sequence" and inner.startswith("map("):
        key, value = inner[4:-1].split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.rows", f"{name}.size"))
    elif outer == "sequence":
        yield TensorSpec(f"{name}.length", "int64", ())
        for index in range(_ITEMS):
            yield from _tensors(f"{name}[{index}]", spec, inner, kind and kind.sequence_type.elem_type)
    elif outer == "map":
        key, value = inner.split(", ", 1)
        yield TensorSpec(f"{name}.keys", key, (f"{name}.size",))
        yield TensorSpec(name, value, (f"{name}.size",))
    elif dtype == spec.dtype:
        yield spec
    else:
        yield TensorSpec(name, dtype, _shape(spec.name, kind))


def _shape(name: str, kind: Any) -> tuple[int | str, ...]:
    """The shape of an item; free axes are the same for all items, which most operators on sequences want."""
    if not kind or not kind.tensor_type.HasField("shape"):
        return (f"{name}.items",)
    dims = kind.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or f"{name}.{axis}"
        for axis, dim in enumerate(dims)
    )


BASE_ROWS = 8


@dataclass(frozen=True, slots=True, eq=False)
class BaseRowGenerator:
    """What rows are made up for: the inputs, how many rows the model takes (see `InputSource.batch_size`), what its graph
    does with the inputs, and what is declared of features."""

    specs: tuple[TensorSpec, ...]
    batch_size: int | None
    uses: tuple[OperatorUse, ...] = ()
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
        for index in range(BASE_ROWS if self.batch_size == 0 else 0):
            feed = {name: array[index, ...] for name, array in rows.items()}
            for use in self.uses:
                _fill(Call(use, shapes, feed, rng, plain=index == 0 and not wide))
        return clip_to_ranges(rows, self.ranges, rng) if self.ranges else rows

    def _shape(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
        """The shape of one call's input; of rows whose number is free, that of one row."""
        dims = [
            dim if isinstance(dim, int) else sizes.get(axis_name(spec, axis), 2)
            for axis, dim in enumerate(spec.shape or ())
        ]
        if self.batch_size is None and dims:
            dims[0] = 1
        return tuple(dims)

    def _plain(
        self, spec: TensorSpec, whole: Shape, rng: np.random.Generator, pool: Sequence[int], wide: bool
    ) -> NDArray[Any]:
        shape = (BASE_ROWS, *(whole if self.batch_size == 0 else whole[1:]))
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


def joint_inputs(specs: Sequence[TensorSpec], uses: Sequence[OperatorUse]) -> frozenset[str]:
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


def _bound(use: OperatorUse, rows: Feed, shapes: Mapping[str, Shape], rng: np.random.Generator) -> None:
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


# Rows that a model takes, found by asking it: for parameters whose meaning no table tells.


_ROUNDS = 32
"""Rounds of eight rows: 256 in all find a value that one in fifty draws has, 99 times in a hundred."""


@dataclass(frozen=True, slots=True, eq=False)
class Accepting:
    """Finds rows that a model takes; `takes` asks it."""

    takes: Callable[[Feed], bool]

    def rows(self, maker: BaseRowGenerator, sizes: Mapping[str, int]) -> Feed:
        """Eight rows that the model takes, some of them several times where few were found; the plain ones where it
        takes none. The same for the same answers."""
        found: list[Feed] = []
        for seed in range(_ROUNDS):
            rows = maker.rows(sizes, seed=seed, wide=seed > 0)
            singles = [take_rows(rows, slice(row, row + 1)) for row in range(BASE_ROWS)]
            found += [single for single in singles if self.takes(single)]
            if len(found) >= BASE_ROWS:
                break
        if not found:
            return maker.rows(sizes)
        return concat_rows([found[row % len(found)] for row in range(BASE_ROWS)])


def accepted_by(predictor: Predictor, maker: BaseRowGenerator, sizes: Mapping[str, int]) -> Accepting | None:
    """What finds rows for a model that refuses some of those that are made up for `sizes`; None where it takes all.

    Whatever the model raises is a refusal. It is asked row by row only where it refuses them together.
    """

    def takes(rows: Feed) -> bool:
        if maker.batch_size == 0:
            feed = {name: array[0, ...] for name, array in rows.items()}
        else:
            count = len(next(iter(rows.values())))
            filled = np.arange(max(count, maker.batch_size or 1)) % count
            feed = take_rows(rows, filled)
        try:
            predictor.predict(feed)
        except Exception:
            return False
        return True

    rows = maker.rows(sizes)
    step = 1 if maker.batch_size == 0 else (maker.batch_size or BASE_ROWS)
    blocks = [take_rows(rows, slice(begin, begin + step)) for begin in range(0, BASE_ROWS, step)]
    return None if all(map(takes, blocks)) else Accepting(takes)


# What a model says of its inputs beyond dtypes and shapes: what its graph does with them, and what they hold.


def declared(
    source: Signature | Predictor | Artifact, signature: Signature
) -> tuple[tuple[TensorSpec, ...], tuple[OperatorUse, ...]]:
    """The tensors that the inputs are made of, and the nodes that take them; none without a file to read.

    A graph is only read where one of the inputs may be a parameter, or is no tensor.
    """
    if not any(may_be_parameter(spec) for spec in signature.inputs):
        return signature.inputs, ()
    artifact = source if isinstance(source, Artifact) else getattr(source, "artifact", None)
    graph = read_graph(artifact.path) if isinstance(artifact, Artifact) and artifact.path.exists() else None
    kinds = {value.name: value.type for value in graph.graph.input} if graph else {}
    specs = tuple(part for spec in signature.inputs for part in tensors_of(spec, kinds.get(spec.name)))
    return specs, operator_uses(graph) if graph else ()


def may_be_parameter(spec: TensorSpec) -> bool:
    """Whether values of an input may be refused for what they are: integers, and whatever has one axis or none.

    Real numbers along several axes are data, and every operator takes any of them.
    """
    is_data = spec.dtype.startswith(("float", "bfloat")) and len(spec.shape or ()) > 1
    return not is_data and spec.dtype != "bool"
