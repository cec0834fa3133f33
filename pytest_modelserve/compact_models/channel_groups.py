"""Channels and heads that can only be removed together, found in the graph that torch.export traces.

Every index of every axis of every parameter has a label, and the labels of an activation say which index wrote each of
its elements. Data movement (reshape, concat, flatten) moves labels with torch's own operators; a sum, a convolution or a
normalization joins the labels that meet. Joined labels are one channel: all of its slices are removed, or none. What no
rule covers is frozen with a reason, so that a channel is never removed on a guess.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pytest_modelserve.errors import ControlFlowError, UsageError
from pytest_modelserve.training.export_errors import branch_on_data, innermost_line

if TYPE_CHECKING:
    import torch
    from torch import nn

Axis = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions."""
Slices = Mapping[Axis, NDArray[np.intp]]
"""The indices along each axis that belong to one channel."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Interchangeable channels, or attention heads, that the same layers write and read.

    Attributes:
        layers: The paths of the layers that write them; of an attention layer for heads.
        channels: The slices of each channel.
        kind: "channels" or "heads".
        reason: Why they cannot be removed; "" if they can.
    """

    layers: tuple[str, ...]
    channels: tuple[Slices, ...]
    kind: str = "channels"
    reason: str = ""

    @property
    def name(self) -> str:
        """The layers, as reports name the group."""
        return " + ".join(self.layers)


def find_channel_groups(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[ChannelGroup, ...]:
    """Return the groups of removable channels of `module`, in the order of its layers, traced on one call of `forward`.

    Groups that cannot be removed are returned as well, each with its reason.

    Raises:
        ControlFlowError: `forward` branches on values of the data.
        UsageError: torch cannot trace the module.
    """
    import torch

    try:
        traced = torch.export.export(module, args, dict(kwargs), strict=False)
    except Exception as error:
        branch = branch_on_data(error)
        if branch:
            raise ControlFlowError(f"channels cannot be followed: {branch}") from error
        raise UsageError(
            f"torch.export cannot trace {type(module).__name__}, so its channels cannot be followed: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0]}. structured=False needs no trace"
        ) from error
    interpreter = _Interpreter(module, traced)
    interpreter.run()
    return tuple(interpreter.groups())


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter or buffer by its name, as an operand that may have a label for each index of each axis."""

    name: str
    tensor: torch.Tensor


@dataclass(slots=True, eq=False)
class _Interpreter:
    """One pass over the traced graph that labels every activation and collects which labels are one."""

    module: nn.Module
    traced: Any
    count: int = 0
    offsets: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    elements: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    edges: list[NDArray[np.int64]] = field(default_factory=list)
    frozen: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    producers: dict[Axis, str] = field(default_factory=dict)
    heads: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    values: dict[Any, Any] = field(default_factory=dict)

    # Labels.

    def axis(self, parameter: _Parameter, dim: int) -> torch.Tensor:
        """Return the labels of the indices of `parameter` along `dim`."""
        import torch

        key, size = (parameter.name, dim), parameter.tensor.shape[dim]
        if key not in self.offsets:
            self.offsets[key], self.sizes[key] = self.count, size
            self.count += size
        return torch.arange(size, dtype=torch.float64) + self.offsets[key]

    def as_data(self, parameter: _Parameter) -> torch.Tensor:
        """Return one label for each element of a parameter that is used as an activation."""
        import torch

        if parameter.name not in self.elements:
            self.elements[parameter.name] = self.count, tuple(parameter.tensor.shape)
            self.count += parameter.tensor.numel()
        labels = torch.arange(parameter.tensor.numel(), dtype=torch.float64) + self.elements[parameter.name][0]
        return labels.reshape(parameter.tensor.shape)

    def join(self, first: torch.Tensor, second: torch.Tensor, reason: str) -> None:
        """Make the labels of two tensors of one shape pairwise one; freeze a label that meets an unlabeled element."""
        first, second = _without_constant_axes(first, second)
        a, b = _flat(first), _flat(second)
        both = (a >= 0) & (b >= 0)
        self.edges.append(np.stack([a[both], b[both]]))
        for labels, other in ((a, b), (b, a)):
            self.freeze_labels(labels[(labels >= 0) & (other < 0)], reason)

    def freeze(self, value: Any, reason: str) -> None:
        """Forbid the removal of whatever `value` (labels, a parameter, or a sequence of them) depends on."""
        if isinstance(value, _Parameter):
            for dim in range(value.tensor.ndim):
                self.freeze_labels(_flat(self.axis(value, dim)), reason)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.freeze(item, reason)
        elif value is not None:
            self.freeze_labels(_flat(value), reason)

    def freeze_labels(self, labels: NDArray[np.int64], reason: str) -> None:
        """Forbid the removal of `labels`."""
        labels = np.unique(labels[labels >= 0])
        if labels.size:
            self.frozen.append((labels, reason))

    def read(self, labels: torch.Tensor | None, dim: int, columns: torch.Tensor, reason: str) -> None:
        """Join index i of the activation's `dim` with `columns[i]`; unlabeled indices freeze their columns."""
        if labels is None:
            self.freeze_labels(_flat(columns), reason)
            return
        rows = labels.movedim(dim, 0).flatten(1) if labels.ndim > 1 else labels[:, None]
        known = rows.amax(dim=1)
        self.freeze_labels(_flat(columns[known < 0]), reason)
        rows = rows.where(rows >= 0, known[:, None])
        self.join(rows, columns[:, None].where(known[:, None] >= 0, known[:, None]).expand_as(rows), reason)

    # The pass over the graph.

    def run(self) -> None:
        """Label every node, in order."""
        names = {**self.traced.graph_signature.inputs_to_parameters, **self.traced.graph_signature.inputs_to_buffers}
        tensors = dict(self.module.named_parameters(remove_duplicate=False))
        tensors |= dict(self.module.named_buffers(remove_duplicate=False))
        first_names: dict[int, str] = {}
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                name = names.get(node.name)
                if name is not None and tensors.get(name) is not None:
                    name = first_names.setdefault(id(tensors[name]), name)  # tied parameters have one set of labels
                    self.values[node] = _Parameter(name, tensors[name])
                else:
                    self.values[node] = None
            elif node.op == "output":
                self.freeze(self.value(node.args), "it writes an output of the model")
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            else:
                self.values[node] = None

    def value(self, argument: Any) -> Any:
        """Return the labels of an argument that is a node, and of nodes in a sequence; others as they are."""
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.value(item) for item in argument)
        return self.values[argument] if type(argument).__name__ == "Node" else argument

    def call(self, node: Any) -> Any:
        """Return the labels of the outputs of one operator."""
        import torch

        if node.target is operator.getitem:
            source = self.value(node.args[0])
            return source[node.args[1]] if isinstance(source, (list, tuple)) else source
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return self.unknown(node)
        name = schema.name.removeprefix("aten::").rstrip("_")
        bound = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
        if name.startswith("_assert"):
            return None
        call = _Call(node, name, bound, self)
        rule = _RULES.get(name)
        if rule is not None:
            return rule(self, call)
        if torch.Tag.pointwise in node.target.tags or name in _POINTWISE:
            return self.pointwise(call)
        if name in _MOVEMENT:
            return self.move(call)
        return self.unknown(node)

    def unknown(self, node: Any) -> None:
        """Freeze all that an operator without a rule reads."""
        self.freeze([self.values[each] for each in node.all_input_nodes], f"it feeds {_describe(node)}")

    def pointwise(self, call: _Call) -> torch.Tensor | None:
        """Return the labels of an elementwise operator with broadcasting."""
        return self.combine([argument for argument in call.node.all_input_nodes], call.shape, call.reason)

    def combine(self, operands: Sequence[Any], shape: Sequence[int], reason: str) -> torch.Tensor | None:
        """Join the labels of `operands`, which are broadcast to `shape`; each is a node or a tensor of labels."""
        labeled: list[torch.Tensor] = []
        unlabeled: list[tuple[int, ...]] = []
        for each in operands:
            value = self.values[each] if type(each).__name__ == "Node" else each
            value = self.as_data(value) if isinstance(value, _Parameter) else value
            if value is None:
                own = getattr(each.meta.get("val"), "shape", ()) if type(each).__name__ == "Node" else ()
                unlabeled.append((1,) * (len(shape) - len(own)) + tuple(own))
            elif value.numel() == 1:
                self.freeze(value, reason)
            else:
                labeled.append(value.reshape((1,) * (len(shape) - value.ndim) + tuple(value.shape)))
        if not labeled:
            return None
        labeled.sort(key=lambda labels: len(np.unique(_flat(labels))))
        base = labeled[0]
        for labels in labeled[1:]:
            fewer = [d for d in range(len(shape)) if labels.shape[d] == 1 < shape[d] and _varies(base, d)]
            more = [d for d in range(len(shape)) if base.shape[d] == 1 < shape[d] and _varies(labels, d)]
            shared = any(_varies(base, d) and _varies(labels, d) for d in range(len(shape)))
            if shared or not (fewer or more):  # scores of a head meet all of its values
                self.join(base.expand(tuple(shape)), labels.expand(tuple(shape)), reason)
            else:
                self.freeze([labels] * bool(fewer) + [base] * bool(more), reason)
            base = labels if more and not fewer else base
        for own in unlabeled:
            if any(own[d] > 1 and _varies(base, d) for d in range(len(shape))):
                self.freeze(base, reason)
        return base.expand(tuple(shape))

    def move(self, call: _Call) -> Any:
        """Return the labels moved by the operator itself."""
        import torch

        node = call.node
        inputs = {each: self.values[each] for each in node.all_input_nodes}
        parameters = [value for value in inputs.values() if isinstance(value, _Parameter)]
        if all(value is None for value in inputs.values()):
            return None
        if parameters and len(inputs) == 1 and call.name not in ("expand", "unsqueeze", "slice", "select", "repeat"):
            self.freeze(parameters, f"{_describe(node)} computes a weight from it")
            return None

        def moved(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return type(argument)(moved(item) for item in argument)
            if type(argument).__name__ != "Node":
                return argument
            labels = inputs[argument]
            if isinstance(labels, _Parameter):
                return self.as_data(labels)
            return torch.full(argument.meta["val"].shape, -1.0, dtype=torch.float64) if labels is None else labels

        arguments = {name: moved(argument) for name, argument in call.bound.items()}
        arguments = {name: value for name, value in arguments.items() if name not in ("dtype", "memory_format")}
        if call.name in ("pad", "constant_pad_nd"):
            arguments["value"] = -1.0 if arguments.get("mode", "constant") == "constant" else None
        try:
            return node.target(**arguments)
        except Exception:  # an operator that has no kernel for labels
            return self.unknown(node)

    # The result.

    def groups(self) -> Iterator[ChannelGroup]:
        """Yield the groups in the order in which their first axis was met."""
        classes = self._classes()
        reasons: dict[int, str] = {}
        for labels, reason in self.frozen:
            for found in np.unique(classes[labels]):
                reasons.setdefault(int(found), reason)
        members: dict[int, dict[Axis, NDArray[np.intp]]] = {}
        for axis, offset in self.offsets.items():
            own = classes[offset : offset + self.sizes[axis]]
            for found in np.unique(own):
                members.setdefault(int(found), {})[axis] = np.flatnonzero(own == found)
        for name, (offset, shape) in self.elements.items():
            self._add_elements(members, reasons, name, classes[offset : offset + math.prod(shape)].reshape(shape))
            for axis in (axis for axis in self.offsets if axis[0] == name):  # it is a weight elsewhere
                for found in np.unique(classes[self.offsets[axis] : self.offsets[axis] + self.sizes[axis]]):
                    reasons.setdefault(int(found), f"parameter {name!r} is a weight and an activation")
        owners = {int(classes[label]): path for labels, path in self.heads for label in labels}
        by_signature: dict[tuple[Any, ...], list[int]] = {}
        for found, slices in members.items():
            if any(axis in self.producers for axis in slices):
                key = (*((axis, len(indices)) for axis, indices in slices.items()), found in reasons, owners.get(found))
                by_signature.setdefault(key, []).append(found)
        for key, found in by_signature.items():
            layers = dict.fromkeys(self.producers[axis] for axis, _ in key[:-2] if axis in self.producers)
            channels = tuple(members[each] for each in found)
            reason = reasons.get(found[0], "")
            if not reason and len(found) == 1:
                reason = "all its channels depend on each other"
            head = key[-1]
            yield ChannelGroup(
                tuple(layers) if head is None else (head or type(self.module).__name__,),
                channels,
                "channels" if head is None else "heads",
                reason,
            )

    def _classes(self) -> NDArray[np.int64]:
        first, second = np.concatenate(self.edges, axis=1) if self.edges else np.zeros((2, 0), np.int64)
        graph = coo_array((np.ones(first.size), (first, second)), shape=(self.count, self.count))
        return np.asarray(connected_components(graph, directed=False)[1], np.int64)

    def _add_elements(
        self,
        members: dict[int, dict[Axis, NDArray[np.intp]]],
        reasons: dict[int, str],
        name: str,
        classes: NDArray[np.int64],
    ) -> None:
        """Add the whole slices of a parameter that was used as data; freeze channels that cover anything else."""
        covered: dict[int, int] = {}
        for dim in range(classes.ndim):
            rows = np.moveaxis(classes, dim, 0).reshape(classes.shape[dim], -1)
            if len(rows) == 1:
                continue
            for index in np.flatnonzero((rows == rows[:, :1]).all(axis=1)):
                found = int(rows[index, 0])
                own = members.setdefault(found, {})
                own[name, dim] = np.append(own.get((name, dim), np.zeros(0, np.intp)), index)
                covered[found] = covered.get(found, 0) + rows.shape[1]
        for found, elements in zip(*np.unique(classes, return_counts=True), strict=True):
            if covered.get(int(found)) != elements:
                reasons.setdefault(int(found), f"parameter {name!r} has no slice of its own for each channel")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One operator of the graph with its arguments by name."""

    node: Any
    name: str
    bound: Mapping[str, Any]
    interpreter: _Interpreter

    @property
    def reason(self) -> str:
        return f"it meets other values in {_describe(self.node)}"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.node.meta["val"].shape)

    def labels(self, name: str) -> Any:
        """Return the labels of the argument `name`; a parameter in the place of an activation has one an element."""
        value = self.interpreter.value(self.bound.get(name))
        return self.interpreter.as_data(value) if isinstance(value, _Parameter) else value

    def parameter(self, name: str) -> _Parameter | None:
        value = self.interpreter.value(self.bound.get(name))
        return value if isinstance(value, _Parameter) else None


Rule = Callable[[_Interpreter, _Call], Any]
_INPUT = "it reads values that no layer writes, such as the inputs of the model"


def _weighted(rows_dim: int, columns_dim: int) -> Rule:
    """Return the rule of a matrix product with a weight whose outputs lie along `rows_dim`."""

    def rule(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
        names = {"linear": ("input", "weight", "bias"), "addmm": ("mat1", "mat2", "self")}
        data, weight, bias = names.get(call.name, ("self", "mat2" if call.name == "mm" else "other", ""))
        parameter = call.parameter(weight)
        if parameter is None or parameter.tensor.ndim != 2:
            return _product(interpreter, call) if call.name == "matmul" else interpreter.unknown(call.node)
        rows = interpreter.axis(parameter, rows_dim)
        interpreter.read(call.labels(data), -1, interpreter.axis(parameter, columns_dim), _INPUT)
        _join_vector(interpreter, call, bias, rows)
        interpreter.producers[parameter.name, rows_dim] = _layer(interpreter, call, parameter)
        return rows.expand(call.shape)

    return rule


def _convolution(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    parameter = call.parameter("weight")
    if parameter is None:
        return interpreter.unknown(call.node)
    groups, transposed = int(call.bound.get("groups", 1)), call.name.startswith("conv_transpose")
    if transposed and groups > 1:
        return interpreter.unknown(call.node)
    dim = -(parameter.tensor.ndim - 1)
    rows, columns = interpreter.axis(parameter, int(transposed)), interpreter.axis(parameter, int(not transposed))
    by_group = rows.reshape(groups, -1)
    if groups > 1 and len(columns) == 1:  # depthwise: an input channel is a group, removed with its outputs
        interpreter.join(by_group, by_group[:, :1].expand_as(by_group), call.reason)
        columns = by_group[:, 0]
    elif groups > 1:  # the same place of every group
        interpreter.join(by_group, by_group[:1].expand_as(by_group), call.reason)
        columns = columns.repeat(groups)
    interpreter.read(call.labels("input"), dim, columns, _INPUT)
    _join_vector(interpreter, call, "bias", rows)
    interpreter.producers[parameter.name, int(transposed)] = _layer(interpreter, call, parameter)
    return rows.reshape(-1, *(1,) * (-dim - 1)).expand(call.shape)


def _join_vector(interpreter: _Interpreter, call: _Call, name: str, rows: torch.Tensor) -> None:
    vector = call.parameter(name)
    if vector is not None and vector.tensor.shape == rows.shape:
        interpreter.join(interpreter.axis(vector, 0), rows, call.reason)
    elif call.bound.get(name) is not None:
        interpreter.freeze(rows, f"{_describe(call.node)} has a bias of another form")


def _per_channel(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    """Apply to batch and instance normalization and PReLU: one value of each parameter a channel (axis 1)."""
    data = "self" if call.name == "prelu" else "input"
    labels = call.labels(data)
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = call.parameter(name)
        if parameter is not None and parameter.tensor.numel() > 1:
            interpreter.read(labels, 1, interpreter.axis(parameter, 0), _INPUT)
        elif parameter is None and call.bound.get(name) is not None:
            interpreter.freeze(labels, call.reason)
    return labels


def _normalization(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    """Freeze channels over which a statistic is computed: layer, group and root-mean-square normalization, softmax."""
    labels = call.labels("self" if "softmax" in call.name else "input")
    if labels is None:
        return None
    where = f"{_describe(call.node)} computes a statistic over it"
    if "softmax" in call.name:
        dims = [call.bound["dim"]]
    elif call.name == "group_norm":
        dims = list(range(1, labels.ndim))
    else:
        dims = list(range(-len(call.bound["normalized_shape"]), 0))
    if any(_varies(labels, dim) for dim in dims):
        interpreter.freeze(labels, where)
    interpreter.freeze([call.parameter("weight"), call.parameter("bias")], where)
    return labels


def _embedding(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    parameter = call.parameter("weight")
    if parameter is None:
        return interpreter.unknown(call.node)
    interpreter.producers[parameter.name, 1] = _layer(interpreter, call, parameter)
    return interpreter.axis(parameter, 1).expand(call.shape)


def _gate(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    """Join the halves of a gated linear unit."""
    labels = call.labels("self")
    if labels is None:
        return None
    first, second = labels.chunk(2, dim=call.bound.get("dim", -1))
    interpreter.join(first, second, call.reason)
    return first


def _reduction(interpreter: _Interpreter, call: _Call) -> Any:
    """Remove the reduced axes; a reduction over channels freezes them."""
    if "other" in call.bound:  # the larger of two tensors
        return interpreter.pointwise(call)
    labels = call.labels("self")
    if labels is None:
        return None
    dims = call.bound.get("dim")
    dims = list(range(labels.ndim)) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    if any(_varies(labels, dim) for dim in dims):
        interpreter.freeze(labels, f"{_describe(call.node)} reduces over it")
    for dim in sorted((dim % labels.ndim for dim in dims), reverse=True):
        labels = labels.narrow(dim, 0, 1)
        labels = labels if call.bound.get("keepdim", False) else labels.squeeze(dim)
    return [labels] * 2 if isinstance(call.node.meta["val"], (list, tuple)) else labels


def _pooling(interpreter: _Interpreter, call: _Call) -> Any:
    """Give every position the label of its channel: pooling and resizing over the last axes."""
    labels = call.labels("self" if "self" in call.bound else "input")
    if labels is None:
        return None
    spatial = next(int(letter) for letter in reversed(call.name) if letter.isdigit())
    dims = range(labels.ndim - spatial, labels.ndim)
    if any(_varies(labels, dim) for dim in dims):
        interpreter.freeze(labels, f"{_describe(call.node)} mixes its positions")
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    shapes = call.node.meta["val"]
    if isinstance(shapes, (list, tuple)):
        return [labels.expand(each.shape) for each in shapes]
    return labels.expand(shapes.shape)


def _product(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    """Apply to a product of two activations, such as the scores of attention.

    A product over channels that differ from batch entry to batch entry, as from head to head, keeps one channel an
    entry: that head.
    """
    a = call.labels("self")
    b = call.labels("mat2" if call.name in ("bmm", "mm") else "other")
    shapes = [tuple(node.meta["val"].shape) for node in call.node.all_input_nodes]
    if any(len(shape) < 2 for shape in shapes) or (a is None and b is None):
        interpreter.freeze([a, b], call.reason)
        return None
    contracted = (a is not None and _varies(a, -1)) or (b is not None and _varies(b, -2))
    if not contracted:
        parts = [labels.narrow(dim, 0, 1) for labels, dim in ((a, -1), (b, -2)) if labels is not None]
        unlabeled = a is None or b is None
        joined = interpreter.combine(parts, call.shape, call.reason)
        # An unlabeled matrix for each batch entry has no entry to lose with a head.
        if joined is not None and unlabeled and any(_varies(joined, dim) for dim in range(len(call.shape) - 2)):
            interpreter.freeze(joined, call.reason)
        return joined
    if a is None or b is None or _varies(a, -2) or _varies(b, -1):
        interpreter.freeze([a, b], call.reason)
        return None
    left, right = a.narrow(-2, 0, 1).squeeze(-2), b.narrow(-1, 0, 1).squeeze(-1)
    interpreter.join(left, right.expand_as(left), call.reason)
    if not any(_varies(left, dim) for dim in range(left.ndim - 1)):
        return None
    _join_head(interpreter, call, left)
    return left[..., :1, None].expand(call.shape)


def _attention(interpreter: _Interpreter, call: _Call) -> torch.Tensor | None:
    """Join all that one head computes: its queries, keys and values."""
    query, key, value = (call.labels(name) for name in ("query", "key", "value"))
    parts = [labels for labels in (query, key, value) if labels is not None]
    if len(parts) < 3 or any(_varies(labels, -2) for labels in parts):
        interpreter.freeze(parts, call.reason)
        return None
    firsts = [labels.narrow(-2, 0, 1).squeeze(-2) for labels in parts]
    if any(first.shape[:-1] != firsts[0].shape[:-1] for first in firsts):  # grouped queries
        interpreter.freeze(parts, call.reason)
        return value.narrow(-2, 0, 1).narrow(-1, 0, 1).expand(call.shape)
    if _varies(firsts[0], -2):
        for first in firsts:
            interpreter.join(first[..., :1], firsts[0][..., :1], call.reason)
            _join_head(interpreter, call, first)
    else:
        interpreter.join(firsts[0], firsts[1], call.reason)
    return firsts[2][..., None, :].expand(call.shape)


def _join_head(interpreter: _Interpreter, call: _Call, labels: torch.Tensor) -> None:
    interpreter.join(labels, labels[..., :1].expand_as(labels), call.reason)
    interpreter.heads.append((np.unique(_flat(labels)), _owner(call.node)))


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
_POOLS = tuple(
    f"{kind}{rank}d"
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest",
                 "_upsample_nearest_exact", "max_pool_with_indices")
    for rank in (1, 2, 3)
) + ("max_pool2d_with_indices", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d")  # fmt: skip
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


def _flat(labels: torch.Tensor) -> NDArray[np.int64]:
    return labels.reshape(-1).numpy().astype(np.int64)


def _varies(labels: torch.Tensor, dim: int) -> bool:
    """Return True if labels differ along `dim`; elements without a label count as one more label."""
    if labels.shape[dim] == 1 or labels.stride(dim) == 0:
        return False
    return not bool((labels == labels.narrow(dim, 0, 1)).all())


def _without_constant_axes(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tensors with index 0 alone of each axis along which neither changes."""
    for dim in range(first.ndim):
        if not _varies(first, dim) and not _varies(second, dim):
            first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
    return first, second


def _owner(node: Any) -> str:
    """Return the path of the innermost module whose forward calls the operator; "" for the whole."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _layer(interpreter: _Interpreter, call: _Call, parameter: _Parameter) -> str:
    return parameter.name.rpartition(".")[0] or parameter.name


def _describe(node: Any) -> str:
    """Return the operator with the module and the source line that call it."""
    name = str(getattr(node.target, "_schema", None) and node.target._schema.name.removeprefix("aten::") or node.target)
    owner = _owner(node)
    if owner:
        return f"{name} of {owner!r}"
    line = innermost_line(node.meta.get("stack_trace") or "")
    return f"{name} ({line})" if line else name
