"""Valid values for operator parameters that are model inputs: axes, shapes, indices and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import has_omitted_data

if TYPE_CHECKING:
    import onnx


Shape = tuple[int, ...]

_OPERATOR_SETS = ("", "ai.onnx", "ai.onnx.ml")
_TRANSPARENT = ("Identity", "Cast", "CastLike")
"""Operators that pass a parameter on unchanged."""


@dataclass(frozen=True, slots=True, eq=False)
class OperatorUse:
    """A node that takes an input of the model.

    `inputs` are names of model inputs or constants, or "" for a computed tensor. `weights` are the shapes of constants,
    and `constants` the values of small ones. `outputs` are the shapes that the model declares for the node's outputs,
    None for an undeclared or partly declared one.
    """

    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    weights: Mapping[str, Shape]
    constants: Mapping[str, NDArray[Any]]
    outputs: tuple[Shape | None, ...]

    def name(self, slot: int) -> str:
        """Return the name of what feeds a slot, empty for an unused slot or a computed tensor."""
        return self.inputs[slot] if slot < len(self.inputs) else ""


def operator_uses(model: onnx.ModelProto) -> tuple[OperatorUse, ...]:
    """Return the nodes of the main graph that take an input of the model, directly or cast, in the order of the file.

    Nodes in branches, loops and model-local functions are ignored.
    """
    import onnx

    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    alias = {value.name: value.name for value in graph.input if value.name not in initializers}
    constants: dict[str, NDArray[Any]] = {}
    for name, tensor in initializers.items():
        if (
            tensor.data_location != onnx.TensorProto.EXTERNAL
            and not has_omitted_data(tensor)
            and np.prod(tensor.dims) < 64
        ):
            constants[name] = np.asarray(onnx.numpy_helper.to_array(tensor))
    weights: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in initializers.items()}
    shapes = dict(_declared_shapes(graph))
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            for tensor in (item.t for item in node.attribute if item.HasField("t")):
                constants[node.output[0]] = np.asarray(onnx.numpy_helper.to_array(tensor))
                weights[node.output[0]] = tuple(tensor.dims)
        names = tuple(alias.get(name, name if name in weights else "") for name in node.input)
        if node.op_type in _TRANSPARENT and names and names[0] in alias:
            alias[node.output[0]] = names[0]
        elif node.domain in _OPERATOR_SETS and any(name in alias.values() for name in names):
            attributes = {
                item.name: onnx.helper.get_attribute_value(item) for item in node.attribute if _is_plain(item)
            }
            outputs = tuple(shapes.get(name) for name in node.output)
            found.append(OperatorUse(node.op_type, attributes, names, weights, constants, outputs))
    return tuple(found)


def _declared_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    """Yield the fully declared shapes by name."""
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.WhichOneof("value") == "dim_value" for dim in kind.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _is_plain(item: onnx.AttributeProto) -> bool:
    return not item.ref_attr_name and item.type in (item.INT, item.INTS, item.FLOAT, item.FLOATS, item.STRING)


MAX_COUNT = 3
"""The largest repeat, length or count that the model does not bound."""


@dataclass(frozen=True, slots=True, eq=False)
class OperatorCall:
    """One operator in one row: `feed` holds the values so far. The first row is the `simplest`."""

    use: OperatorUse
    shapes: Mapping[str, Shape]
    feed: Mapping[str, NDArray[Any]]
    rng: np.random.Generator
    simplest: bool = False

    def shape(self, slot: int) -> Shape | None:
        """Return the shape of what feeds a slot, None if it is unknown."""
        name = self.use.name(slot)
        return self.shapes.get(name, self.use.weights.get(name))

    def value(self, slot: int) -> NDArray[Any] | None:
        """Return the row's value or the constant at a slot, None if it is computed."""
        name = self.use.name(slot)
        return self.feed.get(name, self.use.constants.get(name))

    def size(self, slot: int) -> int:
        """Return the number of elements at a slot, 0 if it is unused."""
        return int(np.prod(self.shape(slot) or (), dtype=np.int64)) if self.use.name(slot) else 0

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute of the node."""
        return self.use.attributes.get(name, default)

    def dims(self) -> Shape:
        """Return the shape of the first slot, () if it is computed."""
        return self.shape(0) or ()

    def declared_output(self, rank: int | None = None) -> Shape | None:
        """Return the declared shape of the node's first output, if it has `rank` axes."""
        found = self.use.outputs[0] if self.use.outputs else None
        return found if found is not None and (rank is None or len(found) == rank) else None

    def up_to(self, most: int) -> int:
        """Return a number from 1 to `most`; the simplest row has `most`."""
        return max(most, 1) if self.simplest else int(self.rng.integers(1, max(most, 1) + 1))

    def axes(self, slot: int, rank: int, among: Sequence[int] | None = None) -> list[int]:
        """Return as many different axes as a slot has elements, half of them counted from the end."""
        choices = list(range(rank)) if among is None else list(among)
        if not self.simplest:
            choices = [int(axis) for axis in self.rng.permutation(choices)]
        chosen = choices[: self.size(slot)]
        return chosen if self.simplest else [axis - rank * int(self.rng.integers(0, 2)) for axis in chosen]

    def partition(self, total: int, count: int, least: int = 0) -> list[int]:
        """Return `count` integers of at least `least` that sum to `total`."""
        free = max(total - least * count, 0)
        if count == 0:
            return []
        return [least + int(part) for part in self.rng.multinomial(free, [1 / count] * count)]


Bounds = tuple[Any, Any]


def _axis_index(axis_of: Callable[[OperatorCall], int]) -> Callable[[OperatorCall], Bounds | None]:
    def bounds(call: OperatorCall) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (0, max(shape[axis_of(call)] - 1, 0))

    return bounds


def _index_tuples(call: OperatorCall) -> Bounds | None:
    """Return the bounds of GatherND and ScatterND, whose last index axis runs over the first axes of the data."""
    shape, indices = call.shape(0), call.shape(1)
    if not shape or not indices:
        return None
    first = call.attribute("batch_dims", 0)
    return 0, np.maximum(np.array(shape[first : first + indices[-1]]) - 1, 0)


def _lengths(axis: int) -> Callable[[OperatorCall], Bounds | None]:
    def bounds(call: OperatorCall) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (1, max(shape[axis if not call.attribute("layout", 0) else 1 - axis], 1))

    return bounds


def _axis(call: OperatorCall) -> int:
    return int(call.attribute("axis", 0))


def _between(low: float, high: float) -> Callable[[OperatorCall], Bounds]:
    return lambda _: (low, high)


_POSITIVE = _between(0.5, 2.0)  # a scale or a variance
_DIVISOR = _between(1, MAX_COUNT)

BOUNDED: dict[tuple[str, int], Callable[[OperatorCall], Bounds | None]] = {
    ("ArrayFeatureExtractor", 1): _axis_index(lambda _: -1),
    ("BatchNormalization", 4): _POSITIVE,
    ("DequantizeLinear", 1): _POSITIVE,
    ("Div", 1): _DIVISOR,
    ("Dropout", 1): _between(0.1, 0.9),
    ("GRU", 4): _lengths(0),
    ("Gather", 1): _axis_index(_axis),
    ("GatherElements", 1): _axis_index(_axis),
    ("GatherND", 1): _index_tuples,
    ("LSTM", 4): _lengths(0),
    ("Loop", 0): _between(0, MAX_COUNT),
    ("MaxUnpool", 1): lambda call: (0, max(int(np.prod(call.dims())) - 1, 0)),
    ("Mod", 1): _DIVISOR,
    ("NonMaxSuppression", 2): _between(1, MAX_COUNT),
    ("NonMaxSuppression", 3): _between(0.1, 0.9),
    ("NonMaxSuppression", 4): _between(0.1, 0.9),
    ("OneHot", 1): _between(2, 8),
    ("QuantizeLinear", 1): _POSITIVE,
    ("RNN", 4): _lengths(0),
    ("ReverseSequence", 1): lambda call: (1, call.dims()[call.attribute("time_axis", 0)]),
    ("RoiAlign", 2): _axis_index(lambda _: 0),
    ("ScatterElements", 1): _axis_index(_axis),
    ("ScatterND", 1): _index_tuples,
}
"""The range of each independent element of a parameter, by operator and slot. None if the graph does not say.

An index is below the length of its axis, and a divisor is not zero.
"""


Joint = Callable[[OperatorCall], Mapping[int, Any]]


def _affine_grid(call: OperatorCall) -> Mapping[int, Any]:
    theta, count = call.dims(), call.size(1)
    grid = call.declared_output(count)
    batch = theta[0] if theta else 1
    spatial = grid[1:-1] if grid else [call.up_to(MAX_COUNT) for _ in range(count - 2)]
    return {1: [batch, call.up_to(MAX_COUNT), *spatial]}


def _one_axis(slot: int, last: bool = True) -> Joint:
    def values(call: OperatorCall) -> Mapping[int, Any]:
        rank = len(call.dims())
        return {slot: call.axes(slot, rank, range(rank if last else max(rank - 1, 1)))[:1]}

    return values


def _columns_to_image(call: OperatorCall) -> Mapping[int, Any]:
    """Return a block and an image of as many blocks as there are columns, among all small pairs that fit."""
    dims, count = call.dims(), call.size(1)
    if len(dims) != 3 or count > 3:  # of more axes there are too many blocks to try
        return {}
    attributes = [call.attribute(name, [1] * count) for name in ("dilations", "strides")]
    pads = call.attribute("pads", [0] * 2 * count)
    image = call.declared_output(count + 2)
    found = []
    for block in np.ndindex(*[8] * count):
        if dims[1] % int(np.prod(np.add(block, 1))):
            continue
        reach = [
            d * b + 1 - pads[i] - pads[count + i] for i, (d, b) in enumerate(zip(attributes[0], block, strict=True))
        ]
        for steps in _products(dims[2], count):
            sizes = [r + (n - 1) * s for r, n, s in zip(reach, steps, attributes[1], strict=True)]
            if min(sizes) > 0 and (image is None or tuple(sizes) == image[2:]):
                found.append((sizes, [b + 1 for b in block]))
    if not found:
        return {}
    sizes, chosen = found[int(call.rng.integers(0, len(found)))]
    return {1: sizes, 2: chosen}


def _products(total: int, count: int) -> list[tuple[int, ...]]:
    """Return every way to write `total` as a product of `count` numbers, in order."""
    if count == 0:
        return [()] if total == 1 else []
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return [(d, *rest) for d in divisors for rest in _products(total // d, count - 1)]


def _expand(call: OperatorCall) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    own = [1] * (count - len(dims)) + list(dims[max(len(dims) - count, 0) :])
    free = [call.up_to(MAX_COUNT) if dim == 1 else dim for dim in own]
    return {1: call.declared_output(count) or free}


def _mel_weights(call: OperatorCall) -> Mapping[int, Any]:
    rate = 8192 * call.up_to(2)  # bands that no bin of a short transform separates are refused
    return {0: call.up_to(8), 1: 16 * call.up_to(2), 2: rate, 3: 0.0, 4: rate / 2}


def _counts(slot: int, most: int = MAX_COUNT, least: int = 1) -> Joint:
    """Return a generator of integers from `least` to `most`, all equally valid."""
    return lambda call: {slot: call.rng.integers(least, most + 1, call.size(slot))}


def _output_size(call: OperatorCall) -> Mapping[int, Any]:
    """Return the output shape of MaxUnpool: at least as many places as the pooling had windows."""
    dims = call.dims()
    kernel = call.attribute("kernel_shape", [1] * (len(dims) - 2))
    strides = call.attribute("strides", [1] * len(kernel))
    least = [(d - 1) * s + k for d, s, k in zip(dims[2:], strides, kernel, strict=True)]
    return {2: call.declared_output(len(dims)) or [*dims[:2], *least]}


def _pad(call: OperatorCall) -> Mapping[int, Any]:
    dims = call.dims()
    axes = call.axes(3, len(dims)) if call.size(3) else list(range(len(dims)))
    margins = [0 if dims[axis] < 2 else 1 for axis in axes]  # a mirror has to be longer than what it reflects
    widths = [int(call.rng.integers(0, most + 1)) for most in (*margins, *margins)]
    return {1: widths, 3: axes}


def _range(call: OperatorCall) -> Mapping[int, Any]:
    start, step = int(call.rng.integers(0, 3)), call.up_to(MAX_COUNT)
    return {0: start, 1: start + step * call.up_to(4), 2: step}


def _reduced_axes(call: OperatorCall) -> Mapping[int, Any]:
    return {1: call.axes(1, len(call.dims()))}


def _reshape(call: OperatorCall) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    total = int(np.prod(dims, dtype=np.int64))
    wanted = call.declared_output(count)
    if wanted is not None and np.prod(wanted, dtype=np.int64) == total and (total or call.attribute("allowzero", 0)):
        return {1: wanted}
    if total == 0:
        return {1: dims} if count == len(dims) else {}
    if count == 0:
        return {1: []}
    shape = np.ones(count, np.int64)
    for factor in _prime_factors(total):
        shape[int(call.rng.integers(0, count))] *= factor
    if not call.simplest and call.rng.random() < 0.5:
        shape[int(call.rng.integers(0, count))] = -1
    return {1: shape}


def _prime_factors(number: int) -> list[int]:
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return [*found, number] if number > 1 else found


def _resize(call: OperatorCall) -> Mapping[int, Any]:
    dims = call.dims()
    scales, roi = (1, 9) if call.use.op == "Upsample" or len(call.use.inputs) == 2 else (2, 1)
    axes = [int(axis) for axis in call.attribute("axes", range(len(dims)))]
    wanted = call.declared_output(len(dims))
    outer = 2 if len(dims) > 2 and len(axes) == len(dims) else 0  # only the last axes are interpolated
    factors = [1.0 if place < outer else float(call.up_to(2)) for place in range(len(axes))]
    if wanted is not None:
        factors = [wanted[axis] / max(dims[axis], 1) for axis in axes]
    sizes = [wanted[axis] if wanted else round(dims[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    low, high = [0.25 * call.rng.random() for _ in axes], [1 - 0.25 * call.rng.random() for _ in axes]
    return {scales: factors, 3: sizes, roi: [*low, *high]}


def _slice(call: OperatorCall) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    fixed_axes, fixed_steps = (
        call.value(slot) if call.use.name(slot) in call.use.constants else None for slot in (3, 4)
    )
    if fixed_axes is not None:
        axes = [int(axis) for axis in np.ravel(fixed_axes)]
    else:
        axes = call.axes(3, len(dims)) if call.size(3) else list(range(count))
    if call.simplest or not call.use.name(4):
        steps = [1] * count
    else:
        steps = [int(step) for step in call.rng.choice([1, 2, -1], count)]
    if fixed_steps is not None:
        steps = [int(step) for step in np.ravel(fixed_steps)]
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        length = max(dims[axis], 1)
        first = 0 if call.simplest else int(call.rng.integers(0, length))
        starts.append(first)
        if step > 0:
            ends.append(first + call.up_to(length - first))
        else:
            last = int(call.rng.integers(-1, first)) if first else -1
            ends.append(-length - 1 if last < 0 else last)  # -1 is the last element, and not before the first
    return {1: starts, 2: ends, 3: axes, 4: steps}


def _split(call: OperatorCall) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    axis = int(call.attribute("axis", 0))
    if not dims:
        return {}
    if call.use.op == "SplitToSequence":
        return {1: call.up_to(dims[axis]) if call.shape(1) == () else call.partition(dims[axis], count, 1)}
    wanted = [shape[axis] if shape else None for shape in call.use.outputs]
    if None not in wanted and sum(filter(None, wanted)) == dims[axis]:
        return {1: wanted}
    return {1: call.partition(dims[axis], count)}


def _stft(call: OperatorCall) -> Mapping[int, Any]:
    """Return a frame no longer than the signal, of the window's length if there is one."""
    dims = call.dims()
    length = dims[1] if len(dims) > 1 else 1
    window = call.shape(2) if call.use.name(2) else None
    frame = window[0] if window else call.up_to(min(length, 16))
    return {1: call.up_to(min(length, 8)), 3: frame}


def _squeezed_axes(call: OperatorCall) -> Mapping[int, Any]:
    dims = call.dims()
    return {1: call.axes(1, len(dims), [axis for axis, dim in enumerate(dims) if dim == 1])}


def _top_k(call: OperatorCall) -> Mapping[int, Any]:
    dims = call.dims()
    return {1: call.up_to(dims[call.attribute("axis", -1)] if dims else 1)}


def _unsqueezed_axes(call: OperatorCall) -> Mapping[int, Any]:
    return {1: call.axes(1, len(call.dims()) + call.size(1))}


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
JOINT: dict[str, tuple[tuple[int, ...], Joint]] = {
    "AffineGrid": ((1,), _affine_grid),
    "BlackmanWindow": ((0,), _counts(0, 16)),
    "CenterCropPad": ((1,), _counts(1, 8)),
    "Col2Im": ((1, 2), _columns_to_image),
    "ConstantOfShape": ((0,), _counts(0)),
    "CumProd": ((1,), _one_axis(1)),
    "CumSum": ((1,), _one_axis(1)),
    "DFT": ((2,), _one_axis(2, last=False)),
    "Expand": ((1,), _expand),
    "HammingWindow": ((0,), _counts(0, 16)),
    "HannWindow": ((0,), _counts(0, 16)),
    "MaxUnpool": ((2,), _output_size),
    "MelWeightMatrix": ((0, 1, 2, 3, 4), _mel_weights),
    "Pad": ((1, 3), _pad),
    "Range": ((0, 1, 2), _range),
    "Reshape": ((1,), _reshape),
    "Resize": ((1, 2, 3), _resize),
    "STFT": ((1, 3), _stft),
    "Slice": ((1, 2, 3, 4), _slice),
    "Split": ((1,), _split),
    "SplitToSequence": ((1,), _split),
    "Squeeze": ((1,), _squeezed_axes),
    "Tile": ((1,), _counts(1)),
    "TopK": ((1,), _top_k),
    "Unsqueeze": ((1,), _unsqueezed_axes),
    "Upsample": ((1,), _resize),
    **{f"Reduce{name}": ((1,), _reduced_axes) for name in _REDUCTIONS},
}
"""Parameters that are valid only as a whole, often only with other inputs: their slots, and what generates them all.

Axes have no duplicates, a shape has as many elements as the data, and parts sum to a length. An output shape that the
model declares takes precedence.
"""
