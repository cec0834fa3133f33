"""Shapes of the outputs of operators, as far as they follow from shapes and small constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_modelserve.scanning.abstract_values import UNKNOWN, Shape, Value, names_in

_SAME_SHAPE = names_in(
    "Identity Cast CastLike Relu LeakyRelu Sigmoid Tanh Softmax LogSoftmax Exp Log Sqrt Neg Abs Floor Ceil Round Sign "
    "Erf Gelu Elu Selu Celu Softplus Softsign HardSigmoid HardSwish Mish Not IsNaN IsInf Clip Dropout "
    "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization CumSum Sin Cos Tan Asin Acos Atan "
    "Sinh Cosh Reciprocal QuantizeLinear DequantizeLinear LRN Hardmax Trilu BitwiseNot ScatterElements ScatterND "
    "Scaler Normalizer Imputer Binarizer Bernoulli RandomNormalLike RandomUniformLike EyeLike"
)
BROADCASTS = names_in(
    "Add Sub Mul Div Mod Pow And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual Min Max Mean Sum Where PRelu "
    "BitShift BitwiseAnd BitwiseOr BitwiseXor StringConcat"
)


def shape_of(op: str, inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    """Return the shape of the first output; None for an operator or a shape that is not known."""
    try:
        if op in _SAME_SHAPE:
            return inputs[0].shape if inputs else None
        if op in BROADCASTS:
            return broadcast([value.shape for value in inputs])
        rule = _SHAPES.get(op)
        return None if rule is None else rule(inputs, attributes)
    except (IndexError, TypeError, ValueError, KeyError, OverflowError, AttributeError):
        return None  # an invalid node: the runtime refuses it


def broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape of an elementwise result."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known:
        return None
    rank = max(map(len, known))
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(
        max((size for size in sizes if size is not None and size != 1), default=None if None in sizes else 1)
        for sizes in zip(*padded, strict=True)
    )


def _ints(value: Value) -> Shape:
    """Return a constant as sizes; as many free axes if the content is unknown and the number is not."""
    if value.const is not None:
        return tuple(int(each) for each in value.const.ravel())
    if value.shape is not None and len(value.shape) == 1 and value.shape[0] is not None:
        return (None,) * min(value.shape[0], 64)
    raise ValueError


def _known(value: Value) -> Shape:
    if value.shape is None:
        raise ValueError
    return value.shape


def _times_each(sizes: Shape, factors: Sequence[float | None]) -> Shape:
    return tuple(None if a is None or b is None else int(a * b) for a, b in zip(sizes, factors, strict=True))


def _expand(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    target = _ints(inputs[1])
    return broadcast([inputs[0].shape if inputs[0].shape is not None else (), target])


def _tile(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    repeats = _ints(inputs[1])
    sizes = _known(inputs[0]) if inputs[0].shape is not None else (1,) * len(repeats)
    # A free axis has at least one element, unless the tensor is empty.
    return _times_each(
        tuple(1 if axis is None and repeat != 1 else axis for axis, repeat in zip(sizes, repeats, strict=True)), repeats
    )


def _range(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    if any(value.const is None for value in inputs[:3]):
        return (None,)
    start, limit, delta = (float(value.const.item()) for value in inputs[:3])  # type: ignore[union-attr]
    return (max(0, math.ceil((limit - start) / delta)),) if delta else (None,)


def _pad(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    pads = attributes["pads"] if "pads" in attributes else _ints(inputs[1])
    sizes = _known(inputs[0])
    axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3].const is not None else range(len(sizes))
    found = list(sizes)
    for place, axis in enumerate(axes):
        before, after = pads[place], pads[place + len(pads) // 2]
        found[int(axis or 0)] = (sizes[int(axis or 0)] or 1) + int(before or 0) + int(after or 0)
    return tuple(found)


def _resize(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    sizes = inputs[0].shape
    if len(inputs) > 3 and inputs[3].const is not None:
        return _ints(inputs[3])
    scales = inputs[2] if len(inputs) > 2 else inputs[1] if len(inputs) > 1 else UNKNOWN
    factors = attributes.get("scales") or (None if scales.const is None else scales.const.ravel().tolist())
    if factors is None:
        return None
    known = sizes if sizes is not None else (1,) * len(factors)
    return _times_each(
        tuple(1 if axis is None and f > 16 else axis for axis, f in zip(known, factors, strict=True)), factors
    )


def _one_hot(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    sizes = list(inputs[0].shape or ())
    depth = inputs[1].const
    axis = attributes.get("axis", -1)
    sizes.insert(axis if axis >= 0 else len(sizes) + 1 + axis, None if depth is None else int(depth.item()))
    return tuple(sizes)


def _concat(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    shapes = [_known(value) for value in inputs]
    axis = attributes["axis"] % max(len(shapes[0]), 1)
    sizes = [shape[axis] for shape in shapes]
    total = None if sizes.count(None) == len(sizes) == 1 else sum(1 if size is None else size for size in sizes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


def _reshape(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    target = attributes["shape"] if "shape" in attributes else _ints(inputs[1])
    sizes = inputs[0].shape
    found = [
        (sizes[place] if sizes is not None and place < len(sizes) else None) if each == 0 else each
        for place, each in enumerate(target)
    ]
    if -1 in found:
        rest = math.prod(each for each in found if each not in (-1, None))
        all_known = sizes is not None and None not in sizes and None not in found and rest
        found[found.index(-1)] = math.prod(each or 0 for each in sizes or ()) // rest if all_known else None
    return tuple(found)


def _matmul(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    a, b = _known(inputs[0]), _known(inputs[1])
    batch = broadcast([a[:-2], b[:-2]]) or ()
    return (*batch, *([a[-2]] if len(a) > 1 else []), *([b[-1]] if len(b) > 1 else []))


def _gather(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    data, indices = _known(inputs[0]), _known(inputs[1])
    axis = attributes.get("axis", 0) % max(len(data), 1)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _transpose(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    sizes = _known(inputs[0])
    return tuple(sizes[axis] for axis in attributes.get("perm", range(len(sizes) - 1, -1, -1)))


def _unsqueeze(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    axes = attributes["axes"] if "axes" in attributes else [axis or 0 for axis in _ints(inputs[1])]
    sizes = list(_known(inputs[0]))
    rank = len(sizes) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        sizes.insert(axis, 1)
    return tuple(sizes)


def _squeeze(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    sizes = _known(inputs[0])
    if "axes" in attributes or len(inputs) > 1:
        axes = {a % len(sizes) for a in attributes.get("axes", None) or [axis or 0 for axis in _ints(inputs[1])]}
    else:
        axes = {place for place, size in enumerate(sizes) if size == 1}
    return tuple(size for place, size in enumerate(sizes) if place not in axes)


def _slice(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    sizes = _known(inputs[0])
    return tuple(None for _ in sizes)


def _split(inputs: Sequence[Value], _: Mapping[str, Any]) -> Shape | None:
    return tuple(None for _ in _known(inputs[0]))


def _windows(attributes: Mapping[str, Any], kernel: Sequence[int | None]) -> list[tuple[int, int, int]]:
    """Return stride, reach of the kernel and padding of each spatial axis."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or None in kernel:
        raise ValueError
    rank = len(kernel)
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = attributes.get("pads") or [0] * 2 * rank
    reaches = [step * ((each or 1) - 1) + 1 for step, each in zip(dilations, kernel, strict=True)]
    return [(strides[i], reaches[i], pads[i] + pads[i + rank]) for i in range(rank)]


def _conv(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    sizes, weight = _known(inputs[0]), _known(inputs[1])
    found = [
        None if size is None else (size + pad - reach) // stride + 1
        for size, (stride, reach, pad) in zip(sizes[2:], _windows(attributes, weight[2:]), strict=True)
    ]
    return (sizes[0], weight[0], *found)


def _conv_transpose(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    if "output_shape" in attributes:
        return (None, None, *attributes["output_shape"])
    sizes, weight = _known(inputs[0]), _known(inputs[1])
    found = [
        None if size is None else (size - 1) * stride + reach - pad
        for size, (stride, reach, pad) in zip(sizes[2:], _windows(attributes, weight[2:]), strict=True)
    ]
    return (sizes[0], None if weight[1] is None else weight[1] * attributes.get("group", 1), *found)


def _einsum(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    left, _, right = attributes["equation"].decode().replace(" ", "").partition("->")
    axes: dict[str, int | None] = {}
    for letters, value in zip(left.split(","), inputs, strict=True):
        axes.update(zip(letters, _known(value), strict=True))  # not with "...": of another length
    return tuple(axes[letter] for letter in right) if right else None


def _dft(inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Shape | None:
    found = list(_known(inputs[0]))
    length = inputs[1].const if len(inputs) > 1 else None
    given = inputs[2].const if len(inputs) > 2 else None
    axis = attributes.get("axis", -2 if given is None else int(given.item()))
    found[axis] = None if length is None else int(length.item())
    return (*found[:-1], 2)


_SHAPES: dict[str, Callable[[Sequence[Value], Mapping[str, Any]], Shape | None]] = {
    "ConstantOfShape": lambda inputs, _: _ints(inputs[0]),
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "OneHot": _one_hot,
    "Concat": _concat,
    "Reshape": _reshape,
    "MatMul": _matmul,
    "Gemm": lambda inputs, a: (
        _known(inputs[0])[1 if a.get("transA") else 0],
        _known(inputs[1])[0 if a.get("transB") else 1],
    ),
    "Gather": _gather,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Split": _split,
    "RandomNormal": lambda _, a: tuple(a["shape"]),
    "RandomUniform": lambda _, a: tuple(a["shape"]),
    "Multinomial": lambda _, a: (None, a.get("sample_size", 1)),
    "RoiAlign": lambda _, a: (None, None, a.get("output_height", 1), a.get("output_width", 1)),
    "MaxRoiPool": lambda _, a: (None, None, *a["pooled_shape"]),
    "MaxUnpool": lambda inputs, _: _ints(inputs[2]),
    "AffineGrid": lambda inputs, _: (*_ints(inputs[1])[:1], *_ints(inputs[1])[2:], len(_ints(inputs[1])) - 2),
    "CenterCropPad": lambda inputs, _: _ints(inputs[1]),
    "Col2Im": lambda inputs, _: (None, None, *_ints(inputs[1])),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "DFT": _dft,
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), lambda inputs, _: _ints(inputs[0])),
    "MelWeightMatrix": lambda inputs, _: (*_ints(inputs[1]), *_ints(inputs[0])),
    # Of a sequence the elements of all its tensors.
    "SequenceConstruct": lambda inputs, _: (sum(value.elements() for value in inputs),),
    "SequenceInsert": lambda inputs, _: (sum(value.elements() for value in inputs[:2]),),
    "NonZero": lambda inputs, _: (len(_known(inputs[0])), None),
}
