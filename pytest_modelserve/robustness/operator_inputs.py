"""Inputs that an operator takes as parameters: axes, shapes, indices, counts. Read from the graph of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import has_omitted_data

if TYPE_CHECKING:
    import onnx


Shape = tuple[int, ...]

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_SAME = ("Identity", "Cast", "CastLike")
"""Operators behind which a parameter is still the same one."""


@dataclass(frozen=True, slots=True, eq=False)
class OperatorUse:
    """One node, and what it is given: `inputs` are names of the model's inputs, of constants, or of something computed
    (""); `weights` are the shapes of constants, `constants` their values where those are small; `outputs` are the
    shapes that the model declares for the node's outputs, None where it does not, or not all of it."""

    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    weights: Mapping[str, Shape]
    constants: Mapping[str, NDArray[Any]]
    outputs: tuple[Shape | None, ...]

    def name(self, slot: int) -> str:
        """What feeds a slot; empty where nothing does, or something that the model computes."""
        return self.inputs[slot] if slot < len(self.inputs) else ""


def operator_uses(model: onnx.ModelProto) -> tuple[OperatorUse, ...]:
    """The nodes of the main graph that take an input of the model, as it is or cast, in the order of the file.

    Nodes in branches and loops, and in functions of the model's own, are not looked at.
    """
    import onnx

    graph = model.graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    alias = {value.name: value.name for value in graph.input if value.name not in kept}
    constants: dict[str, NDArray[Any]] = {}
    for name, tensor in kept.items():
        if (
            tensor.data_location != onnx.TensorProto.EXTERNAL
            and not has_omitted_data(tensor)
            and np.prod(tensor.dims) < 64
        ):
            constants[name] = np.asarray(onnx.numpy_helper.to_array(tensor))
    weights: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in kept.items()}
    shapes = dict(_declared(graph))
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            for tensor in (item.t for item in node.attribute if item.HasField("t")):
                constants[node.output[0]] = np.asarray(onnx.numpy_helper.to_array(tensor))
                weights[node.output[0]] = tuple(tensor.dims)
        names = tuple(alias.get(name, name if name in weights else "") for name in node.input)
        if node.op_type in _SAME and names and names[0] in alias:
            alias[node.output[0]] = names[0]
        elif node.domain in _DOMAINS and any(name in alias.values() for name in names):
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute if _plain(item)}
            outputs = tuple(shapes.get(name) for name in node.output)
            found.append(OperatorUse(node.op_type, attributes, names, weights, constants, outputs))
    return tuple(found)


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    """The shapes that the file says in full."""
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.WhichOneof("value") == "dim_value" for dim in kind.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in kind.shape.dim)


def _plain(item: onnx.AttributeProto) -> bool:
    return not item.ref_attr_name and item.type in (item.INT, item.INTS, item.FLOAT, item.FLOATS, item.STRING)


# One use of parameters in one row: what is known of the other inputs, and what draws values.


MOST = 3
"""Repeats, lengths and counts that nothing in the model bounds stay small."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One use of one row: `feed` holds the values so far, `rng` what is drawn; the first row is `plain`."""

    use: OperatorUse
    shapes: Mapping[str, Shape]
    feed: Mapping[str, NDArray[Any]]
    rng: np.random.Generator
    plain: bool = False

    def shape(self, slot: int) -> Shape | None:
        """The shape of what feeds a slot, None where that is not known."""
        name = self.use.name(slot)
        return self.shapes.get(name, self.use.weights.get(name))

    def value(self, slot: int) -> NDArray[Any] | None:
        """The constant at a slot, or what the row has there; None where it is neither."""
        name = self.use.name(slot)
        return self.feed.get(name, self.use.constants.get(name))

    def size(self, slot: int) -> int:
        """How many elements a slot takes; 0 where nothing feeds it."""
        return int(np.prod(self.shape(slot) or (), dtype=np.int64)) if self.use.name(slot) else 0

    def attribute(self, name: str, default: Any) -> Any:
        """The node's attribute."""
        return self.use.attributes.get(name, default)

    def dims(self) -> Shape:
        """The shape of the first slot; a computed value counts as one without axes."""
        return self.shape(0) or ()

    def declared(self, rank: int | None = None) -> Shape | None:
        """The shape that the model declares for the node's first output, if it has this many axes."""
        found = self.use.outputs[0] if self.use.outputs else None
        return found if found is not None and (rank is None or len(found) == rank) else None

    def below(self, most: int) -> int:
        """A number from 1 to `most`; the plain one is the greatest."""
        return max(most, 1) if self.plain else int(self.rng.integers(1, max(most, 1) + 1))

    def axes(self, slot: int, rank: int, among: Sequence[int] | None = None) -> list[int]:
        """As many different axes as a slot takes, half of them counted from the end."""
        choices = list(range(rank)) if among is None else list(among)
        if not self.plain:
            choices = [int(axis) for axis in self.rng.permutation(choices)]
        chosen = choices[: self.size(slot)]
        return chosen if self.plain else [axis - rank * int(self.rng.integers(0, 2)) for axis in chosen]

    def parts(self, total: int, count: int, least: int = 0) -> list[int]:
        """`count` whole numbers that sum to `total`, none below `least`."""
        free = max(total - least * count, 0)
        if count == 0:
            return []
        return [least + int(part) for part in self.rng.multinomial(free, [1 / count] * count)]


# Parameters that take any number of a range, each element by itself: a table by operator and slot, after the
# operators' definitions. An index lies below the length of an axis, a divisor is not zero.


Bounds = tuple[Any, Any]


def _index(axis_of: Callable[[Call], int]) -> Callable[[Call], Bounds | None]:
    def bounds(call: Call) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (0, max(shape[axis_of(call)] - 1, 0))

    return bounds


def _index_tuples(call: Call) -> Bounds | None:
    """GatherND and ScatterND: the last axis of the indices counts through the first axes of the data."""
    shape, indices = call.shape(0), call.shape(1)
    if not shape or not indices:
        return None
    first = call.attribute("batch_dims", 0)
    return 0, np.maximum(np.array(shape[first : first + indices[-1]]) - 1, 0)


def _lengths(axis: int) -> Callable[[Call], Bounds | None]:
    def bounds(call: Call) -> Bounds | None:
        shape = call.shape(0)
        return None if not shape else (1, max(shape[axis if not call.attribute("layout", 0) else 1 - axis], 1))

    return bounds


def _axis(call: Call) -> int:
    return int(call.attribute("axis", 0))


_POSITIVE: Callable[[Call], Bounds | None] = lambda _: (0.5, 2.0)  # noqa: E731  a scale or a variance
_DIVISOR: Callable[[Call], Bounds | None] = lambda _: (1, MOST)  # noqa: E731

BOUNDED: dict[tuple[str, int], Callable[[Call], Bounds | None]] = {
    ("ArrayFeatureExtractor", 1): _index(lambda _: -1),
    ("BatchNormalization", 4): _POSITIVE,
    ("DequantizeLinear", 1): _POSITIVE,
    ("Div", 1): _DIVISOR,
    ("Dropout", 1): lambda _: (0.1, 0.9),
    ("GRU", 4): _lengths(0),
    ("Gather", 1): _index(_axis),
    ("GatherElements", 1): _index(_axis),
    ("GatherND", 1): _index_tuples,
    ("LSTM", 4): _lengths(0),
    ("Loop", 0): lambda _: (0, MOST),
    ("MaxUnpool", 1): lambda call: (0, max(int(np.prod(call.dims())) - 1, 0)),
    ("Mod", 1): _DIVISOR,
    ("NonMaxSuppression", 2): lambda _: (1, MOST),
    ("NonMaxSuppression", 3): lambda _: (0.1, 0.9),
    ("NonMaxSuppression", 4): lambda _: (0.1, 0.9),
    ("OneHot", 1): lambda _: (2, 8),
    ("QuantizeLinear", 1): _POSITIVE,
    ("RNN", 4): _lengths(0),
    ("ReverseSequence", 1): lambda call: (1, call.dims()[call.attribute("time_axis", 0)]),
    ("RoiAlign", 2): _index(lambda _: 0),
    ("ScatterElements", 1): _index(_axis),
    ("ScatterND", 1): _index_tuples,
}
"""The range of a bounded parameter, None where the graph does not tell it."""


# Parameters that are right or wrong as a whole, often only beside other inputs: a table by operator, after the
# operators' definitions. Axes are without duplicates, a shape has as many elements as the data, parts sum to a length.
#
# A shape that the model declares for the result goes before all others: it promises that one.


Joint = Callable[[Call], Mapping[int, Any]]


def _affine_grid(call: Call) -> Mapping[int, Any]:
    theta, count = call.dims(), call.size(1)
    grid = call.declared(count)
    batch = theta[0] if theta else 1
    spatial = grid[1:-1] if grid else [call.below(MOST) for _ in range(count - 2)]
    return {1: [batch, call.below(MOST), *spatial]}


def _axis_of_rank(slot: int, last: bool = True) -> Joint:
    def values(call: Call) -> Mapping[int, Any]:
        rank = len(call.dims())
        return {slot: call.axes(slot, rank, range(rank if last else max(rank - 1, 1)))[:1]}

    return values


def _columns_to_image(call: Call) -> Mapping[int, Any]:
    """A block and an image of as many blocks as there are columns: of all small pairs, those that fit."""
    dims, count = call.dims(), call.size(1)
    if len(dims) != 3 or count > 3:  # of more axes there are too many blocks to try
        return {}
    attributes = [call.attribute(name, [1] * count) for name in ("dilations", "strides")]
    pads = call.attribute("pads", [0] * 2 * count)
    image = call.declared(count + 2)
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
    """Every way to write `total` as a product of `count` numbers, in order."""
    if count == 0:
        return [()] if total == 1 else []
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return [(d, *rest) for d in divisors for rest in _products(total // d, count - 1)]


def _expand(call: Call) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    own = [1] * (count - len(dims)) + list(dims[max(len(dims) - count, 0) :])
    free = [call.below(MOST) if dim == 1 else dim for dim in own]
    return {1: call.declared(count) or free}


def _mel_weights(call: Call) -> Mapping[int, Any]:
    rate = 8192 * call.below(2)  # bands that no bin of a short transform separates are refused
    return {0: call.below(8), 1: 16 * call.below(2), 2: rate, 3: 0.0, 4: rate / 2}


def _numbers(slot: int, most: int = MOST, least: int = 1) -> Joint:
    """Whole numbers from `least` to `most`, one as good as another."""
    return lambda call: {slot: call.rng.integers(least, most + 1, call.size(slot))}


def _output_size(call: Call) -> Mapping[int, Any]:
    """MaxUnpool: the rows and channels of the input, and at least as many places as the pooling had windows."""
    dims = call.dims()
    kernel = call.attribute("kernel_shape", [1] * (len(dims) - 2))
    strides = call.attribute("strides", [1] * len(kernel))
    least = [(d - 1) * s + k for d, s, k in zip(dims[2:], strides, kernel, strict=True)]
    return {2: call.declared(len(dims)) or [*dims[:2], *least]}


def _pad(call: Call) -> Mapping[int, Any]:
    dims = call.dims()
    axes = call.axes(3, len(dims)) if call.size(3) else list(range(len(dims)))
    room = [0 if dims[axis] < 2 else 1 for axis in axes]  # a mirror has to be longer than what it reflects
    drawn = [int(call.rng.integers(0, most + 1)) for most in (*room, *room)]
    return {1: drawn, 3: axes}


def _range(call: Call) -> Mapping[int, Any]:
    start, step = int(call.rng.integers(0, 3)), call.below(MOST)
    return {0: start, 1: start + step * call.below(4), 2: step}


def _reduced_axes(call: Call) -> Mapping[int, Any]:
    return {1: call.axes(1, len(call.dims()))}


def _reshape(call: Call) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    total = int(np.prod(dims, dtype=np.int64))
    said = call.declared(count)
    if said is not None and np.prod(said, dtype=np.int64) == total and (total or call.attribute("allowzero", 0)):
        return {1: said}
    if total == 0:
        return {1: dims} if count == len(dims) else {}
    if count == 0:
        return {1: []}
    ways = np.ones(count, np.int64)
    for factor in _prime_factors(total):
        ways[int(call.rng.integers(0, count))] *= factor
    if not call.plain and call.rng.random() < 0.5:
        ways[int(call.rng.integers(0, count))] = -1
    return {1: ways}


def _prime_factors(number: int) -> list[int]:
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return [*found, number] if number > 1 else found


def _resize(call: Call) -> Mapping[int, Any]:
    dims = call.dims()
    scales, roi = (1, 9) if call.use.op == "Upsample" or len(call.use.inputs) == 2 else (2, 1)
    axes = [int(axis) for axis in call.attribute("axes", range(len(dims)))]
    said = call.declared(len(dims))
    outer = 2 if len(dims) > 2 and len(axes) == len(dims) else 0  # only the last axes are interpolated
    factors = [1.0 if place < outer else float(call.below(2)) for place in range(len(axes))]
    if said is not None:
        factors = [said[axis] / max(dims[axis], 1) for axis in axes]
    sizes = [said[axis] if said else round(dims[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    low, high = [0.25 * call.rng.random() for _ in axes], [1 - 0.25 * call.rng.random() for _ in axes]
    return {scales: factors, 3: sizes, roi: [*low, *high]}


def _slice(call: Call) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    given = call.value(3) if call.use.name(3) in call.use.constants else None
    axes = call.axes(3, len(dims)) if call.size(3) and given is None else list(range(count))
    axes = [int(axis) for axis in np.ravel(given)] if given is not None else axes
    fixed = call.value(4) if call.use.name(4) in call.use.constants else None
    steps = [1] * count if call.plain or not call.use.name(4) else [int(s) for s in call.rng.choice([1, 2, -1], count)]
    steps = [int(step) for step in np.ravel(fixed)] if fixed is not None else steps
    starts, ends = [], []
    for axis, step in zip(axes, steps, strict=True):
        length = max(dims[axis], 1)
        first = 0 if call.plain else int(call.rng.integers(0, length))
        if step > 0:
            starts.append(first)
            ends.append(first + call.below(length - first))
        else:
            starts.append(first)
            ends.append(int(call.rng.integers(-1, first)) if first else -1)
            ends[-1] = -length - 1 if ends[-1] < 0 else ends[-1]  # -1 is the last one, and not before the first
    return {1: starts, 2: ends, 3: axes, 4: steps}


def _split(call: Call) -> Mapping[int, Any]:
    dims, count = call.dims(), call.size(1)
    axis = int(call.attribute("axis", 0))
    if not dims:
        return {}
    if call.use.op == "SplitToSequence":
        return {1: call.below(dims[axis]) if call.shape(1) == () else call.parts(dims[axis], count, 1)}
    said = [shape[axis] if shape else None for shape in call.use.outputs]
    return {1: said if None not in said and sum(filter(None, said)) == dims[axis] else call.parts(dims[axis], count)}


def _spectrum(call: Call) -> Mapping[int, Any]:
    """STFT: a frame no longer than the signal, of the window's length where there is one."""
    dims = call.dims()
    length = dims[1] if len(dims) > 1 else 1
    window = call.shape(2) if call.use.name(2) else None
    frame = window[0] if window else call.below(min(length, 16))
    return {1: call.below(min(length, 8)), 3: frame}


def _squeezed_axes(call: Call) -> Mapping[int, Any]:
    dims = call.dims()
    return {1: call.axes(1, len(dims), [axis for axis, dim in enumerate(dims) if dim == 1])}


def _top(call: Call) -> Mapping[int, Any]:
    dims = call.dims()
    return {1: call.below(dims[call.attribute("axis", -1)] if dims else 1)}


def _unsqueezed_axes(call: Call) -> Mapping[int, Any]:
    return {1: call.axes(1, len(call.dims()) + call.size(1))}


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
JOINT: dict[str, tuple[tuple[int, ...], Joint]] = {
    "AffineGrid": ((1,), _affine_grid),
    "BlackmanWindow": ((0,), _numbers(0, 16)),
    "CenterCropPad": ((1,), _numbers(1, 8)),
    "Col2Im": ((1, 2), _columns_to_image),
    "ConstantOfShape": ((0,), _numbers(0)),
    "CumProd": ((1,), _axis_of_rank(1)),
    "CumSum": ((1,), _axis_of_rank(1)),
    "DFT": ((2,), _axis_of_rank(2, last=False)),
    "Expand": ((1,), _expand),
    "HammingWindow": ((0,), _numbers(0, 16)),
    "HannWindow": ((0,), _numbers(0, 16)),
    "MaxUnpool": ((2,), _output_size),
    "MelWeightMatrix": ((0, 1, 2, 3, 4), _mel_weights),
    "Pad": ((1, 3), _pad),
    "Range": ((0, 1, 2), _range),
    "Reshape": ((1,), _reshape),
    "Resize": ((1, 2, 3), _resize),
    "STFT": ((1, 3), _spectrum),
    "Slice": ((1, 2, 3, 4), _slice),
    "Split": ((1,), _split),
    "SplitToSequence": ((1,), _split),
    "Squeeze": ((1,), _squeezed_axes),
    "Tile": ((1,), _numbers(1)),
    "TopK": ((1,), _top),
    "Unsqueeze": ((1,), _unsqueezed_axes),
    "Upsample": ((1,), _resize),
    **{f"Reduce{name}": ((1,), _reduced_axes) for name in _REDUCTIONS},
}
"""The slots of an operator's joint parameters, and what makes values for all of them at once."""
