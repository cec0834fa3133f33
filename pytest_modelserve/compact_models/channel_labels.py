"""Labels of the elements of activations: which index of which parameter wrote them, and which labels are one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.training.export_errors import innermost_line

if TYPE_CHECKING:
    import torch

Axis = tuple[str, int]
"""The name of a parameter or buffer, and one of its dimensions."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer by its name, as an operand that may have a label for each index of each axis."""

    name: str
    tensor: torch.Tensor


@dataclass(slots=True, eq=False)
class Labels:
    """Labels, which of them are one, and which must stay.

    Labels of an activation are a float64 tensor of its shape, so that every operator of torch that moves values moves
    them; -1 stands for an element that no parameter wrote, and None for an activation of such elements.

    Attributes:
        count: Number of labels.
        offsets: First label of each axis of a parameter; index i has the label `offset + i`.
        sizes: Number of indices of each axis.
        elements: First label and shape of each parameter that is used as an activation, with a label an element.
        edges: Pairs of labels that are one.
        frozen: Labels that must stay, and why.
        producers: Axes whose indices are written by a layer, with its path.
        heads: Labels of attention heads, with the path of the layer.
        values: Labels of the nodes of the graph.
    """

    count: int = 0
    offsets: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    elements: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    edges: list[NDArray[np.int64]] = field(default_factory=list)
    frozen: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    producers: dict[Axis, str] = field(default_factory=dict)
    heads: list[tuple[NDArray[np.int64], str]] = field(default_factory=list)
    values: dict[Any, Any] = field(default_factory=dict)

    def axis(self, parameter: Parameter, dim: int) -> torch.Tensor:
        """Return the labels of the indices of `parameter` along `dim`."""
        import torch

        key, size = (parameter.name, dim), parameter.tensor.shape[dim]
        if key not in self.offsets:
            self.offsets[key], self.sizes[key] = self.count, size
            self.count += size
        return torch.arange(size, dtype=torch.float64) + self.offsets[key]

    def as_data(self, parameter: Parameter) -> torch.Tensor:
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
        a, b = flat(first), flat(second)
        both = (a >= 0) & (b >= 0)
        self.edges.append(np.stack([a[both], b[both]]))
        for labels, other in ((a, b), (b, a)):
            self.freeze_labels(labels[(labels >= 0) & (other < 0)], reason)

    def freeze(self, value: Any, reason: str) -> None:
        """Forbid the removal of whatever `value` (labels, a parameter, or a sequence of them) depends on."""
        if isinstance(value, Parameter):
            for dim in range(value.tensor.ndim):
                self.freeze_labels(flat(self.axis(value, dim)), reason)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.freeze(item, reason)
        elif value is not None:
            self.freeze_labels(flat(value), reason)

    def freeze_labels(self, labels: NDArray[np.int64], reason: str) -> None:
        """Forbid the removal of `labels`."""
        labels = np.unique(labels[labels >= 0])
        if labels.size:
            self.frozen.append((labels, reason))

    def read(self, labels: torch.Tensor | None, dim: int, columns: torch.Tensor, reason: str) -> None:
        """Join index i of the activation's `dim` with `columns[i]`; unlabeled indices freeze their columns."""
        if labels is None:
            self.freeze_labels(flat(columns), reason)
            return
        axis = dim % labels.ndim
        for other in range(labels.ndim):
            if other != axis and not varies(labels, other):
                labels = labels.narrow(other, 0, 1)
        rows = labels.movedim(axis, 0).flatten(1) if labels.ndim > 1 else labels[:, None]
        known = rows.amax(dim=1)
        self.freeze_labels(flat(columns[known < 0]), reason)
        rows = rows.where(rows >= 0, known[:, None])
        self.join(rows, columns[:, None].where(known[:, None] >= 0, known[:, None]).expand_as(rows), reason)

    def value(self, argument: Any) -> Any:
        """Return the labels of an argument that is a node, and of nodes in a sequence; others as they are."""
        if isinstance(argument, (list, tuple)):
            return type(argument)(self.value(item) for item in argument)
        return self.values[argument] if type(argument).__name__ == "Node" else argument

    def combine(self, operands: Sequence[Any], shape: Sequence[int], reason: str) -> Any:
        """Join the labels of `operands`, which are broadcast to `shape`; each is a node or a tensor of labels.

        An operand that is broadcast over the channels of another one, and has no channels in common with it, is read
        by all of them and has to stay. What is unlabeled freezes the channels that it has an element for each of.
        """
        labeled: list[torch.Tensor] = []
        unlabeled: list[tuple[int, ...]] = []
        for each in operands:
            value = self.values[each] if type(each).__name__ == "Node" else each
            value = self.as_data(value) if isinstance(value, Parameter) else value
            if value is None:
                own = getattr(each.meta.get("val"), "shape", ()) if type(each).__name__ == "Node" else ()
                unlabeled.append((1,) * (len(shape) - len(own)) + tuple(own))
            elif value.numel() == 1:
                self.freeze(value, reason)
            else:
                labeled.append(value.reshape((1,) * (len(shape) - value.ndim) + tuple(value.shape)))
        if not labeled:
            return None
        labeled.sort(key=lambda each: math.prod(size for d, size in enumerate(each.shape) if varies(each, d)))
        base = labeled[0]
        for labels in labeled[1:]:
            fewer = [d for d in range(len(shape)) if labels.shape[d] == 1 < shape[d] and varies(base, d)]
            more = [d for d in range(len(shape)) if base.shape[d] == 1 < shape[d] and varies(labels, d)]
            shared = any(varies(base, d) and varies(labels, d) for d in range(len(shape)))
            if shared or not (fewer or more):  # scores of a head meet all of its values
                self.join(base.expand(tuple(shape)), labels.expand(tuple(shape)), reason)
            else:
                self.freeze([labels] * bool(fewer) + [base] * bool(more), reason)
            base = labels if more and not fewer else base
        for own in unlabeled:
            if any(own[d] > 1 and varies(base, d) for d in range(len(shape))):
                self.freeze(base, reason)
        return base.expand(tuple(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operator of the graph with its arguments by name."""

    node: Any
    name: str
    bound: Mapping[str, Any]
    known: Labels

    @property
    def reason(self) -> str:
        """Why a channel stays that meets an element without one here."""
        return f"it meets other values in {describe(self.node)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return tuple(self.node.meta["val"].shape)

    def labels(self, name: str) -> Any:
        """Return the labels of the argument `name`; a parameter in the place of an activation has one an element."""
        value = self.known.value(self.bound.get(name))
        return self.known.as_data(value) if isinstance(value, Parameter) else value

    def parameter(self, name: str) -> Parameter | None:
        """Return the argument `name` if it is a parameter itself."""
        value = self.known.value(self.bound.get(name))
        return value if isinstance(value, Parameter) else None


def flat(labels: torch.Tensor) -> NDArray[np.int64]:
    """Return labels as one row of integers."""
    return labels.reshape(-1).numpy().astype(np.int64)


def varies(labels: torch.Tensor, dim: int) -> bool:
    """Return True if labels differ along `dim`; elements without a label count as one more label."""
    if labels.shape[dim] == 1 or labels.stride(dim) == 0:
        return False
    return not bool((labels == labels.narrow(dim, 0, 1)).all())


def _without_constant_axes(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tensors with index 0 alone of each axis along which neither changes."""
    for dim in range(first.ndim):
        if not varies(first, dim) and not varies(second, dim):
            first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
    return first, second


def owner_of(node: Any) -> str:
    """Return the path of the innermost module whose forward calls the operator; "" for the whole."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def describe(node: Any) -> str:
    """Return the operator with the module and the source line that call it."""
    name = str(
        (getattr(node.target, "_schema", None) and node.target._schema.name.removeprefix("aten::")) or node.target
    )
    owner = owner_of(node)
    if owner:
        return f"{name} of {owner!r}"
    line = innermost_line(node.meta.get("stack_trace") or "")
    return f"{name} ({line})" if line else name
