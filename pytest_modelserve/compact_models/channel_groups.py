"""Channels and heads that can only be removed together, found in the graph that torch.export traces.

Every index of every axis of every parameter has a label, and the labels of an activation say which index wrote each
of its elements. Data movement (reshape, concat, flatten) moves labels with torch's own operators; a sum, a convolution
or a normalization joins the labels that meet. Joined labels are one channel: all of its slices are removed, or none.
What no rule covers is frozen with a reason, so that a channel is never removed on a guess.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pytest_modelserve.compact_models.channel_labels import Axis, Labels, Parameter
from pytest_modelserve.compact_models.channel_rules import apply_rule
from pytest_modelserve.errors import ControlFlowError, UsageError, first_line
from pytest_modelserve.training.export_errors import branch_on_data

if TYPE_CHECKING:
    from torch import nn

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
        with _quiet():
            # A copy: tracing a recurrent layer leaves tensors without values in it.
            traced = torch.export.export(copy.deepcopy(module), args, dict(kwargs), strict=False)
    except Exception as error:
        branch = branch_on_data(error)
        if branch:
            raise ControlFlowError(f"channels cannot be followed: {branch}") from error
        raise UsageError(
            f"torch.export cannot trace {type(module).__name__}, so its channels cannot be followed: "
            f"{first_line(error)}. structured=False needs no trace"
        ) from error
    return tuple(_groups(_label_graph(module, traced), type(module).__name__))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what torch prints, logs and warns of while it traces; its exception says the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _label_graph(module: nn.Module, traced: Any) -> Labels:
    """Return the labels of every node of the traced graph."""
    labels = Labels()
    names = {**traced.graph_signature.inputs_to_parameters, **traced.graph_signature.inputs_to_buffers}
    tensors: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    first_names: dict[int, str] = {}  # tied parameters have one set of labels
    for node in traced.graph.nodes:
        tensor = tensors.get(names.get(node.name, ""))
        if node.op == "call_function":
            labels.values[node] = apply_rule(labels, node)
        elif node.op == "output":
            labels.freeze(labels.value(node.args), "it writes an output of the model")
        elif node.op == "placeholder" and tensor is not None:
            name = first_names.setdefault(id(tensor), names[node.name])
            labels.values[node] = Parameter(name, tensor)
        else:
            labels.values[node] = None
    return labels


def _groups(labels: Labels, default_owner: str) -> Iterator[ChannelGroup]:
    """Yield the groups in the order in which their first axis was met."""
    classes = _classes(labels)
    reasons: dict[int, str] = {}
    for frozen, reason in labels.frozen:
        for found in np.unique(classes[frozen]):
            reasons.setdefault(int(found), reason)
    members: dict[int, dict[Axis, NDArray[np.intp]]] = {}
    for axis, offset in labels.offsets.items():
        own = classes[offset : offset + labels.sizes[axis]]
        for found in np.unique(own):
            members.setdefault(int(found), {})[axis] = np.flatnonzero(own == found)
    for name, (offset, shape) in labels.elements.items():
        _add_elements(members, reasons, name, classes[offset : offset + math.prod(shape)].reshape(shape))
        for axis in (axis for axis in labels.offsets if axis[0] == name):  # it is a weight elsewhere
            for found in np.unique(classes[labels.offsets[axis] : labels.offsets[axis] + labels.sizes[axis]]):
                reasons.setdefault(int(found), f"parameter {name!r} is a weight and an activation")
    owners = {int(classes[label]): path for found, path in labels.heads for label in found}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for found, slices in members.items():
        if any(axis in labels.producers for axis in slices):
            sizes = tuple((axis, len(indices)) for axis, indices in slices.items())
            alike.setdefault((sizes, found in reasons, owners.get(found)), []).append(found)
    for (_, _, owner), numbers in alike.items():
        first = members[numbers[0]]
        layers = tuple(dict.fromkeys(labels.producers[axis] for axis in first if axis in labels.producers))
        reason = reasons.get(numbers[0], "")
        if not reason and len(numbers) == 1:
            reason = "all its channels depend on each other"
        if owner is not None:
            layers = (owner or default_owner,)
        channels = tuple(members[number] for number in numbers)
        yield ChannelGroup(layers, channels, "channels" if owner is None else "heads", reason)


def _classes(labels: Labels) -> NDArray[np.int64]:
    first, second = np.concatenate(labels.edges, axis=1) if labels.edges else np.zeros((2, 0), np.int64)
    graph = coo_array((np.ones(first.size), (first, second)), shape=(labels.count, labels.count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _add_elements(
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
