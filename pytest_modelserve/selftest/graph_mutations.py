"""Kinds of mutation of an ONNX graph: operators, axes, attributes, stored tensors, precision and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from pytest_modelserve.selftest.draft import (
    Change,
    Draft,
    Kind,
    Settings,
    Values,
    attribute,
    changed,
    session,
    set_attribute,
)

_SWAPS = {
    "Add": ("Sub", "Mul"),
    "And": ("Or",),
    "ArgMax": ("ArgMin",),
    "Div": ("Mul",),
    "Equal": ("Less",),
    "Gelu": ("Relu", "Elu"),
    "GreaterOrEqual": ("Greater", "Less"),
    "Mul": ("Div", "Add"),
    "ReduceL2": ("ReduceL1",),
    "ReduceMean": ("ReduceSum", "ReduceMax"),
    "ReduceSum": ("ReduceMean",),
    "Relu": ("LeakyRelu", "Abs"),
    "Softmax": ("LogSoftmax", "Hardmax"),
    "Sub": ("Add",),
    "Tanh": ("Sigmoid", "Softsign"),
}
# Where the operator reads its axes as a stored tensor, and the attribute that holds one axis elsewhere.
_AXES_INPUT = {"ReduceL2": 1, "ReduceMean": 1, "ReduceSum": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
_AXIS_DEFAULT = {"ArgMax": 0, "Concat": None, "Gather": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1}


def _operators(_draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    yield from ({"to": op} for op in _SWAPS.get(node.op_type, ()))


def _swap(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    node.op_type = settings["to"]
    known = onnx.defs.get_schema(node.op_type, draft.opset).attributes
    others = [each for each in node.attribute if each.name in known]
    del node.attribute[:]
    node.attribute.extend(others)
    return changed(node)


def _axes(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    rank = draft.values[node.output[0]].ndim
    if node.op_type == "Transpose":
        yield from ({"swap": f"{i},{j}"} for i in range(rank) for j in range(i + 1, rank))
        return
    stored = draft.array(node, _AXES_INPUT.get(node.op_type, len(node.input)))
    now = None
    if node.op_type in _AXIS_DEFAULT:
        now = attribute(node, "axis", _AXIS_DEFAULT[node.op_type])
    elif stored is not None and stored.size:
        now = int(stored.flat[0])
    if now is not None:
        source = node.input[0]
        ranks = {rank, draft.values[source].ndim if source in draft.values else rank}
        yield from ({"axis": str(axis)} for axis in range(max(ranks)) if axis not in {now % each for each in ranks})


def _turn(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    if node.op_type == "Transpose":
        rank = draft.values[node.output[0]].ndim
        order = list(attribute(node, "perm", range(rank)[::-1]))
        i, j = map(int, settings["swap"].split(","))
        order[i], order[j] = order[j], order[i]
        set_attribute(node, "perm", order)
    elif node.op_type in _AXES_INPUT:
        place = _AXES_INPUT[node.op_type]
        axes = np.array(draft.stored[node.input[place]])
        axes.flat[0] = int(settings["axis"])
        draft.store(node, place, axes)
    else:
        set_attribute(node, "axis", int(settings["axis"]))
    return changed(node)


def _epsilons(_draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    if node.op_type in ("LayerNormalization", "BatchNormalization"):
        yield from ({"epsilon": value} for value in ("0.1", "0.01", "0.001", "0.0001", "1e-12"))


def _set_epsilon(_draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    set_attribute(node, "epsilon", float(settings["epsilon"]))
    return changed(node)


def _attributes(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    match node.op_type:
        case "Gelu":
            yield {"approximate": "tanh"}
        case "GRU":
            yield {"linear_before_reset": "0"}
    if node.op_type in ("GRU", "LSTM") and attribute(node, "direction") == b"forward":
        yield {"direction": "reverse"}
    if node.op_type == "Gemm":
        yield {"alpha": "0.5"}
        yield {"beta": "0.0"}
    if node.op_type == "Conv" and any(attribute(node, "pads", ())):
        yield {"pads": "shifted"}
    if node.op_type == "Clip" and draft.array(node, 2) is not None:
        yield {"max": "0.9"}


def _set_attribute(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    ((name, value),) = settings.items()
    match name:
        case "alpha" | "beta":
            set_attribute(node, name, float(value))
        case "linear_before_reset":
            set_attribute(node, name, int(value))
        case "pads":  # all of the padding at the beginning of each axis
            pads = list(attribute(node, name))
            half = len(pads) // 2
            set_attribute(node, name, [a + b for a, b in zip(pads[:half], pads[half:], strict=True)] + [0] * half)
        case "max":
            draft.store(node, 2, (draft.stored[node.input[2]] * float(value)).astype(np.float32))
        case _:
            set_attribute(node, name, value)
    return changed(node)


def _drops(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    out = draft.values[node.output[0]]
    made = {name for each in draft.model.graph.node for name in each.output}
    for place, name in enumerate(node.input):
        before = draft.values.get(name)
        if name in made and before is not None and (before.dtype, before.shape) == (out.dtype, out.shape):
            yield {"to": str(place)}


def _drop(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    return draft.bypass(node, int(settings["to"]))


# Stored tensors -------------------------------------------------------------------------------------------------------

_BIAS_INPUT = {"Conv": 2, "Gemm": 2, "GRU": 3, "LayerNormalization": 2, "LSTM": 3, "RNN": 3}
_WEIGHT_INPUTS = {"Conv": (1,), "Gather": (0,), "Gemm": (1,), "GRU": (1, 2), "LSTM": (1, 2), "MatMul": (0, 1)}


def _biases(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    places = range(len(node.input)) if node.op_type == "Add" else (_BIAS_INPUT.get(node.op_type, len(node.input)),)
    for place in places:
        stored = draft.array(node, place)
        if stored is not None and stored.dtype == np.float32 and stored.size > 1:
            yield from ({"input": str(place), "size": size} for size in ("0.1", "0.01", "0.001"))


def _shift(draft: Draft, node: NodeProto, settings: Settings, rng: np.random.Generator) -> Change:
    """Shift one element by `size` times the largest."""
    place = int(settings["input"])
    array = np.array(draft.stored[node.input[place]])
    array.flat[rng.integers(array.size)] += np.float32(settings["size"]) * (np.abs(array).max() or np.float32(1))
    draft.store(node, place, array)
    return changed(node)


def _weights(draft: Draft, node: NodeProto) -> Iterator[int]:
    for place in _WEIGHT_INPUTS.get(node.op_type, ()):
        stored = draft.array(node, place)
        if stored is not None and stored.dtype == np.float32 and stored.ndim > 1:
            yield place


def _noises(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    for place in _weights(draft, node):
        yield from ({"input": str(place), "all": size} for size in ("0.1", "0.01", "0.001"))
        yield {"input": str(place), "one": "1"}


def _disturb(draft: Draft, node: NodeProto, settings: Settings, rng: np.random.Generator) -> Change:
    """Add normal noise to all elements, or shift one, by the given number of standard deviations."""
    place = int(settings["input"])
    array = np.array(draft.stored[node.input[place]])
    spread = array.std()
    if "all" in settings:
        array += np.float32(settings["all"]) * spread * rng.standard_normal(array.shape, np.float32)
    else:
        array.flat[rng.integers(array.size)] += np.float32(settings["one"]) * spread
    draft.store(node, place, array)
    return changed(node)


def _transposables(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    for place in _weights(draft, node):
        rows, columns = draft.stored[node.input[place]].shape[-2:]
        if rows % columns == 0 and node.op_type != "Conv":
            yield {"input": str(place)}


def _transpose(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    """Transpose every square block of rows; recurrent weights have one block for each gate."""
    place = int(settings["input"])
    array = draft.stored[node.input[place]]
    size = array.shape[-1]
    blocks = np.swapaxes(array.reshape(*array.shape[:-2], -1, size, size), -1, -2)
    draft.store(node, place, np.ascontiguousarray(blocks).reshape(array.shape))
    return changed(node)


# Precision ------------------------------------------------------------------------------------------------------------

_HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def _float_places(draft: Draft, node: NodeProto) -> Iterator[str]:
    if draft.values[node.output[0]].dtype == np.float32:
        yield "output"
    for place, name in enumerate(node.input):
        if name in draft.values and draft.values[name].dtype == np.float32:
            yield str(place)


def _dtypes(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    for place in _float_places(draft, node):
        yield from ({"at": place, "to": dtype} for dtype in _HALF)


def _cast(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    down = helper.make_node("Cast", [""], [f"{node.name}::half"], f"{node.name}::down", to=_HALF[settings["to"]])
    up = helper.make_node("Cast", [f"{node.name}::half"], [""], f"{node.name}::up", to=TensorProto.FLOAT)
    return _inserted(draft, node, settings["at"], [down, up])


def _inserted(draft: Draft, node: NodeProto, at: str, steps: list[NodeProto]) -> Change:
    return draft.insert_after(node, steps) if at == "output" else draft.insert_before(node, int(at), steps)


def _scales(draft: Draft, node: NodeProto) -> Iterator[dict[str, str]]:
    """Yield each scale of a quantized graph, at the first node that reads it; a pair to insert elsewhere."""
    if any(each.op_type == "QuantizeLinear" for each in draft.model.graph.node):
        if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear":
            first = draft.readers(node.input[1])[0]
            if first.name == node.name and node.input[1] in draft.stored:
                yield from ({"factor": factor} for factor in ("0.1", "0.5", "2", "20"))
        return
    for place in _float_places(draft, node):
        yield from ({"at": place, "factor": factor} for factor in ("0.05", "0.2", "0.5", "30"))


def _rescale(draft: Draft, node: NodeProto, settings: Settings, _rng: np.random.Generator) -> Change:
    """Multiply the scale that spans the values of the tensor by `factor`."""
    factor = np.float32(settings["factor"])
    if "at" not in settings:
        name = node.input[1]
        readers = draft.readers(name)
        stored = next(each for each in draft.model.graph.initializer if each.name == name)
        draft.stored[name] = (draft.stored[name] * factor).astype(np.float32)
        stored.CopyFrom(onnx.numpy_helper.from_array(draft.stored[name], name))
        made = {each.output[0]: each.output[0] for each in readers}
        return Change(tuple(each.name for each in readers), tuple(readers), made)
    at = settings["at"]
    values = draft.values[node.output[0] if at == "output" else node.input[int(at)]]
    spanning = np.abs(values[np.isfinite(values)]).max(initial=0) / np.float32(127) or np.float32(1)
    more = [
        draft.add_constant(f"{node.name}::scale", np.asarray(spanning * factor, np.float32)),
        draft.add_constant(f"{node.name}::zero", np.asarray(0, np.int8)),
    ]
    middle = f"{node.name}::quantized"
    steps = [
        helper.make_node("QuantizeLinear", ["", *more], [middle], f"{node.name}::quantize"),
        helper.make_node("DequantizeLinear", [middle, *more], [""], f"{node.name}::dequantize"),
    ]
    return _inserted(draft, node, at, steps)


# In the order in which the frozen table of fixtures/mutants was drawn.
KINDS: dict[str, Kind] = {
    "operator": Kind(_operators, _swap),
    "axis": Kind(_axes, _turn),
    "attribute": Kind(_attributes, _set_attribute),
    "epsilon": Kind(_epsilons, _set_epsilon),
    "bias": Kind(_biases, _shift),
    "weight noise": Kind(_noises, _disturb),
    "transposed weight": Kind(_transposables, _transpose),
    "dtype": Kind(_dtypes, _cast),
    "dropped node": Kind(_drops, _drop),
    "bad scale": Kind(_scales, _rescale, is_lossy=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """A model before it was broken, and every tensor that it computes from fixed inputs."""

    name: str
    model: onnx.ModelProto
    values: Values


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one node of the model of this name; equal mutants of equal models are equal files."""

    model: str
    node: str
    kind: str
    settings: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}: {self.kind} of {self.node}, {self.settings}"

    def of(self, original: Original) -> tuple[Draft, Change]:
        """Return the broken copy of `original`; KeyError if it has no such node."""
        draft = Draft(original.model, original.values)
        settings = dict(part.split("=", 1) for part in self.settings.split())
        rng = np.random.default_rng(self.seed)
        return draft, KINDS[self.kind].make(draft, draft.node(self.node), settings, rng)


def draw(source: Original, kind: str, wanted: int, rng: np.random.Generator) -> Iterator[Mutant]:
    """Draw mutants of one kind at random, without those that onnxruntime refuses to open."""
    draft = Draft(source.model, source.values)
    every = [
        (node.name, " ".join(f"{k}={v}" for k, v in settings.items()))
        for node in source.model.graph.node
        for settings in KINDS[kind].choices(draft, node)
    ]
    for place in rng.permutation(len(every)):
        node, settings = every[place]
        mutant = Mutant(source.name, node, kind, settings, int(rng.integers(2**31)))
        if wanted and _opens(mutant, source):
            wanted -= 1
            yield mutant


def _opens(mutant: Mutant, source: Original) -> bool:
    broken, _ = mutant.of(source)
    try:
        session(broken.model)
    except Exception:  # the runtime's exceptions share no base class
        return False
    return True
