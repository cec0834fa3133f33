"""Rules of torch's operators: how each of them carries labels of channels from its inputs to its outputs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.compact_models.channel_labels import Call, Labels, Parameter, describe, flat, owner_of, varies

if TYPE_CHECKING:
    import torch

Rule = Callable[[Labels, Call], Any]
_INPUT = "it reads values that no layer writes, such as the inputs of the model"


def apply_rule(labels: Labels, node: Any) -> Any:
    """Return the labels of the outputs of an operator of the traced graph, and note what it joins and freezes."""
    import torch

    if node.target is operator.getitem:
        source = labels.value(node.args[0])
        return source[node.args[1]] if isinstance(source, (list, tuple)) else source
    schema = getattr(node.target, "_schema", None)
    name = schema.name.removeprefix("aten::").rstrip("_") if schema else str(node.target)
    names = [argument.name for argument in schema.arguments] if schema else []
    call = Call(node, name, dict(zip(names, node.args, strict=False)) | node.kwargs, labels)
    if name.startswith("_assert"):
        return None
    if name in _RULES:
        return _RULES[name](labels, call)
    if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in _POINTWISE:
        return _pointwise(labels, call)
    return _move(labels, call) if name in _MOVEMENT else _unknown(labels, call)


def _unknown(labels: Labels, call: Call) -> Any:
    """Freeze all that an operator without a rule reads."""
    inputs = [labels.values[each] for each in call.node.all_input_nodes]
    labels.freeze(inputs, f"it feeds {describe(call.node)}")


def _pointwise(labels: Labels, call: Call) -> Any:
    """Join what meets elementwise, with broadcasting."""
    return labels.combine(call.node.all_input_nodes, call.shape, call.reason)


def _weighted(rows_dim: int, columns_dim: int) -> Rule:
    """Return the rule of a matrix product with a weight whose outputs lie along `rows_dim`."""

    def rule(labels: Labels, call: Call) -> Any:
        names = {"linear": ("input", "weight", "bias"), "addmm": ("mat1", "mat2", "self")}
        data, weight, bias = names.get(call.name, ("self", "mat2" if call.name == "mm" else "other", ""))
        parameter = call.parameter(weight)
        if parameter is None or parameter.tensor.ndim != 2:
            return _product(labels, call) if call.name == "matmul" else _unknown(labels, call)
        rows = labels.axis(parameter, rows_dim)
        labels.read(call.labels(data), -1, labels.axis(parameter, columns_dim), _INPUT)
        _join_vector(labels, call, bias, rows)
        labels.producers[parameter.name, rows_dim] = _layer(parameter)
        return rows.expand(call.shape)

    return rule


def _convolution(labels: Labels, call: Call) -> Any:
    parameter = call.parameter("weight")
    if parameter is None:
        return _unknown(labels, call)
    groups, transposed = int(call.bound.get("groups", 1)), call.name.startswith("conv_transpose")
    if transposed and groups > 1:
        return _unknown(labels, call)
    dim = -(parameter.tensor.ndim - 1)
    rows, columns = labels.axis(parameter, int(transposed)), labels.axis(parameter, int(not transposed))
    by_group = rows.reshape(groups, -1)
    if groups > 1 and len(columns) == 1:  # depthwise: an input channel is a group, removed with its outputs
        labels.join(by_group, by_group[:, :1].expand_as(by_group), call.reason)
        columns = by_group[:, 0]
    elif groups > 1:  # the same place of every group
        labels.join(by_group, by_group[:1].expand_as(by_group), call.reason)
        columns = columns.repeat(groups)
    labels.read(call.labels("input"), dim, columns, _INPUT)
    _join_vector(labels, call, "bias", rows)
    labels.producers[parameter.name, int(transposed)] = _layer(parameter)
    return rows.reshape(-1, *(1,) * (-dim - 1)).expand(call.shape)


def _join_vector(labels: Labels, call: Call, name: str, rows: torch.Tensor) -> None:
    vector = call.parameter(name)
    if vector is not None and vector.tensor.shape == rows.shape:
        labels.join(labels.axis(vector, 0), rows, call.reason)
    elif call.bound.get(name) is not None:
        labels.freeze(rows, f"{describe(call.node)} has a bias of another form")


def _per_channel(labels: Labels, call: Call) -> Any:
    """Apply to batch and instance normalization and PReLU: one value of each parameter a channel (axis 1)."""
    data = "self" if call.name == "prelu" else "input"
    channels = call.labels(data)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.parameter(name)
        if parameter is not None and parameter.tensor.numel() > 1:
            labels.read(channels, 1, labels.axis(parameter, 0), _INPUT)
        elif parameter is None and call.bound.get(name) is not None:
            labels.freeze(channels, call.reason)
    return channels


def _normalization(labels: Labels, call: Call) -> Any:
    """Freeze channels over which a statistic is computed: layer, group and root-mean-square normalization, softmax."""
    channels = call.labels("self" if "softmax" in call.name else "input")
    if channels is None:
        return None
    where = f"{describe(call.node)} computes a statistic over it"
    if "softmax" in call.name:
        dims = [call.bound["dim"]]
    elif call.name == "group_norm":
        dims = list(range(1, channels.ndim))
    else:
        dims = list(range(-len(call.bound["normalized_shape"]), 0))
    if any(varies(channels, dim) for dim in dims):
        labels.freeze(channels, where)
    labels.freeze([call.parameter("weight"), call.parameter("bias")], where)
    return channels


def _embedding(labels: Labels, call: Call) -> Any:
    parameter = call.parameter("weight")
    if parameter is None:
        return _unknown(labels, call)
    labels.producers[parameter.name, 1] = _layer(parameter)
    return labels.axis(parameter, 1).expand(call.shape)


def _gate(labels: Labels, call: Call) -> Any:
    """Join the halves of a gated linear unit."""
    channels = call.labels("self")
    if channels is None:
        return None
    first, second = channels.chunk(2, dim=call.bound.get("dim", -1))
    labels.join(first, second, call.reason)
    return first


def _reduction(labels: Labels, call: Call) -> Any:
    """Remove the reduced axes; a reduction over channels freezes them."""
    if "other" in call.bound:  # the larger of two tensors
        return _pointwise(labels, call)
    channels = call.labels("self")
    if channels is None:
        return None
    dims = call.bound.get("dim")
    dims = list(range(channels.ndim)) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    if any(varies(channels, dim) for dim in dims):
        labels.freeze(channels, f"{describe(call.node)} reduces over it")
    for dim in sorted((dim % channels.ndim for dim in dims), reverse=True):
        channels = channels.narrow(dim, 0, 1)
        channels = channels if call.bound.get("keepdim", False) else channels.squeeze(dim)
    return [channels] * 2 if isinstance(call.node.meta["val"], (list, tuple)) else channels


def _pooling(labels: Labels, call: Call) -> Any:
    """Give every position the label of its channel: pooling and resizing over the last axes."""
    channels = call.labels("self" if "self" in call.bound else "input")
    if channels is None:
        return None
    spatial = next(int(letter) for letter in reversed(call.name) if letter.isdigit())
    dims = range(channels.ndim - spatial, channels.ndim)
    if any(varies(channels, dim) for dim in dims):
        labels.freeze(channels, f"{describe(call.node)} mixes its positions")
    for dim in dims:
        channels = channels.narrow(dim, 0, 1)
    shapes = call.node.meta["val"]
    if isinstance(shapes, (list, tuple)):
        return [channels.expand(each.shape) for each in shapes]
    return channels.expand(shapes.shape)


def _product(labels: Labels, call: Call) -> Any:
    """Apply to a product of two activations, such as the scores of attention.

    A product over channels that differ from batch entry to batch entry, as from head to head, keeps one channel an
    entry: that head.
    """
    a = call.labels("self")
    b = call.labels("mat2" if call.name in ("bmm", "mm") else "other")
    shapes = [tuple(node.meta["val"].shape) for node in call.node.all_input_nodes]
    if any(len(shape) < 2 for shape in shapes) or (a is None and b is None):
        labels.freeze([a, b], call.reason)
        return None
    contracted = (a is not None and varies(a, -1)) or (b is not None and varies(b, -2))
    if not contracted:
        parts = [channels.narrow(dim, 0, 1) for channels, dim in ((a, -1), (b, -2)) if channels is not None]
        unlabeled = a is None or b is None
        joined = labels.combine(parts, call.shape, call.reason)
        # An unlabeled matrix for each batch entry has no entry to lose with a head.
        if joined is not None and unlabeled and any(varies(joined, dim) for dim in range(len(call.shape) - 2)):
            labels.freeze(joined, call.reason)
        return joined
    if a is None or b is None or varies(a, -2) or varies(b, -1):
        labels.freeze([a, b], call.reason)
        return None
    left, right = a.narrow(-2, 0, 1).squeeze(-2), b.narrow(-1, 0, 1).squeeze(-1)
    labels.join(left, right.expand_as(left), call.reason)
    if not any(varies(left, dim) for dim in range(left.ndim - 1)):
        return None
    _join_head(labels, call, left)
    return left[..., :1, None].expand(call.shape)


def _attention(labels: Labels, call: Call) -> Any:
    """Join all that one head computes: its queries, keys and values."""
    query, key, value = (call.labels(name) for name in ("query", "key", "value"))
    parts = [channels for channels in (query, key, value) if channels is not None]
    if len(parts) < 3 or any(varies(channels, -2) for channels in parts):
        labels.freeze(parts, call.reason)
        return None
    firsts = [channels.narrow(-2, 0, 1).squeeze(-2) for channels in parts]
    if any(first.shape[:-1] != firsts[0].shape[:-1] for first in firsts):  # grouped queries
        labels.freeze(parts, f"{call.reason}, whose heads share keys")
        return None
    if varies(firsts[0], -2):
        for first in firsts:
            labels.join(first[..., :1], firsts[0][..., :1], call.reason)
            _join_head(labels, call, first)
    else:
        labels.join(firsts[0], firsts[1], call.reason)
    return firsts[2][..., None, :].expand(call.shape)


def _join_head(labels: Labels, call: Call, channels: torch.Tensor) -> None:
    labels.join(channels, channels[..., :1].expand_as(channels), call.reason)
    labels.heads.append((np.unique(flat(channels)), owner_of(call.node)))


def _move(labels: Labels, call: Call) -> Any:
    """Return the labels moved by the operator itself."""
    import torch

    node = call.node
    inputs = {each: labels.values[each] for each in node.all_input_nodes}
    parameters = [value for value in inputs.values() if isinstance(value, Parameter)]
    if all(value is None for value in inputs.values()):
        return None
    if parameters and len(inputs) == 1 and call.name not in ("expand", "unsqueeze", "slice", "select", "repeat"):
        labels.freeze(parameters, f"{describe(node)} computes a weight from it")
        return None

    def moved(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return type(argument)(moved(item) for item in argument)
        if type(argument).__name__ != "Node":
            return argument
        value = inputs[argument]
        if isinstance(value, Parameter):
            return labels.as_data(value)
        return torch.full(argument.meta["val"].shape, -1.0, dtype=torch.float64) if value is None else value

    arguments = {name: moved(argument) for name, argument in call.bound.items()}
    arguments = {name: value for name, value in arguments.items() if name not in ("dtype", "memory_format")}
    if call.name in ("pad", "constant_pad_nd"):
        arguments["value"] = -1.0 if arguments.get("mode", "constant") == "constant" else None
    # Labels share memory where they are equal, so they have no view of another shape.
    target = torch.ops.aten.reshape.default if call.name in ("view", "_unsafe_view") else node.target
    if target is not node.target:
        arguments = {"self": arguments["self"], "shape": arguments["size"]}
    try:
        return target(**arguments)
    except Exception:  # an operator that has no kernel for labels
        return _unknown(labels, call)


def _layer(parameter: Parameter) -> str:
    return parameter.name.rpartition(".")[0] or parameter.name


_POINTWISE = {
    "dropout", "feature_dropout", "alpha_dropout", "hardswish", "log_sigmoid", "contiguous", "_to_copy", "to",
    "type_as", "alias", "detach", "lift_fresh_copy",
}  # fmt: skip
_MOVEMENT = {
    "view", "reshape", "_unsafe_view", "transpose", "permute", "t", "unsqueeze", "squeeze", "select", "slice", "expand",
    "expand_as", "flatten", "unflatten", "cat", "stack", "chunk", "split", "split_with_sizes", "unbind", "narrow",
    "flip", "roll", "repeat", "repeat_interleave", "movedim", "pad", "constant_pad_nd", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "swapaxes", "unfold", "tile", "view_as", "numpy_T", "index_select",
}  # fmt: skip
_REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "logsumexp", "linalg_vector_norm")
_KINDS_OF_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
_POOLS = [
    *(f"{kind}{rank}d" for kind in _KINDS_OF_POOLS for rank in (1, 2, 3)),
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
]
_RULES: dict[str, Rule] = {
    "linear": _weighted(0, 1),
    **dict.fromkeys(("mm", "matmul", "addmm"), _weighted(1, 0)),
    "bmm": _product,
    "scaled_dot_product_attention": _attention,
    **{f"conv{kind}{rank}d": _convolution for kind in ("", "_transpose") for rank in (1, 2, 3)},
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), _per_channel),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "_softmax"), _normalization),
    "embedding": _embedding,
    "glu": _gate,
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_POOLS, _pooling),
}
