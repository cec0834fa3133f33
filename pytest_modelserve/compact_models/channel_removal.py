"""Removal of channels and heads from a module, checked against the module with the same channels set to zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.compact_models.channel_groups import ChannelGroup
from pytest_modelserve.compact_models.channel_labels import Axis
from pytest_modelserve.errors import first_line
from pytest_modelserve.serving.pytree import leaves

if TYPE_CHECKING:
    import torch
    from torch import nn

Kept = Mapping[Axis, NDArray[np.intp]]
"""The indices that stay along each axis that becomes shorter."""

# Of the largest output, in float64 and, for a module that does not run in it, in its own dtype. Sums of fewer terms
# round differently by some units in the last place; a wrong channel changes outputs by percents.
_TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True, slots=True)
class Selection:
    """The channels of one group to remove, by number."""

    group: ChannelGroup
    removed: tuple[int, ...]

    @property
    def slices(self) -> dict[Axis, NDArray[np.intp]]:
        """The removed indices of each axis."""
        chosen = [self.group.channels[number] for number in self.removed]
        return {axis: np.sort(np.concatenate([slices[axis] for slices in chosen])) for axis in chosen[0]}


def removed_slices(selections: Sequence[Selection]) -> dict[Axis, NDArray[np.intp]]:
    """Return the removed indices of each axis over all `selections`."""
    total: dict[Axis, NDArray[np.intp]] = {}
    for selection in selections:
        for axis, indices in selection.slices.items():
            total[axis] = np.union1d(total.get(axis, np.zeros(0, np.intp)), indices)
    return total


def remaining_indices(module: nn.Module, selections: Sequence[Selection]) -> dict[Axis, NDArray[np.intp]]:
    """Return what stays of every axis of the split `module` that loses something."""
    tensors = dict(_tensors(module))
    return {
        (name, dim): np.setdiff1d(np.arange(tensors[name].shape[dim]), indices)
        for (name, dim), indices in removed_slices(selections).items()
    }


def remove_channels(module: nn.Module, kept: Kept) -> None:
    """Shorten the parameters and buffers of the split `module` in place, and the sizes that its layers state."""
    import torch
    from torch import nn

    by_name: dict[str, list[tuple[int, NDArray[np.intp]]]] = {}
    for (name, dim), indices in kept.items():
        by_name.setdefault(name, []).append((dim, indices))
    originals = dict(_tensors(module))
    shorter: dict[int, torch.Tensor] = {}
    for name, cuts in by_name.items():
        tensor = originals[name].detach()
        for dim, indices in cuts:
            tensor = tensor.index_select(dim, torch.from_numpy(np.asarray(indices, np.int64)))
        is_parameter = isinstance(originals[name], nn.Parameter)
        shorter[id(originals[name])] = (
            nn.Parameter(tensor.clone(), requires_grad=originals[name].requires_grad) if is_parameter else tensor
        )
    for part in module.modules():
        changed = False
        for store in (part._parameters, part._buffers):
            for key, value in store.items():
                if value is not None and id(value) in shorter:
                    store[key], changed = shorter[id(value)], True  # type: ignore[assignment]
        if changed:
            _restate_sizes(part)


def _restate_sizes(part: nn.Module) -> None:
    """Set the sizes that a layer of torch states to those of its parameters."""
    from torch import nn

    weight: Any = getattr(part, "weight", None)
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.modules.conv._ConvNd):
        outputs, inputs = (1, 0) if part.transposed else (0, 1)
        if part.groups == part.in_channels and part.groups > 1:  # depthwise
            multiplier = part.out_channels // part.groups
            part.groups = part.in_channels = weight.shape[0] // multiplier
        else:
            part.in_channels = weight.shape[inputs] * part.groups
        part.out_channels = weight.shape[outputs]
    elif isinstance(part, (nn.modules.batchnorm._NormBase,)):
        vector = part.running_mean if weight is None else weight
        part.num_features = len(vector)  # type: ignore[arg-type]
    elif isinstance(part, nn.Embedding):
        part.embedding_dim = weight.shape[1]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = weight.numel()


def zero_channels(module: nn.Module, selections: Sequence[Selection]) -> None:
    """Set every slice of the removed channels to zero in place; buffers stay, as they may divide."""
    import torch

    tensors = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, dim), indices in removed_slices(selections).items():
            if name in tensors:
                tensors[name].index_fill_(dim, torch.from_numpy(np.asarray(indices, np.int64)), 0)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


@dataclass(frozen=True, slots=True, eq=False)
class RemovalCheck:
    """The comparison of removed channels with channels set to zero, in all layers of one call of `forward`."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def problem(self, selections: Sequence[Selection]) -> str:
        """Return how removing the channels differs from setting them to zero; "" if it does not.

        Both modules run in float64, or in their own dtype if `forward` does not run in float64.
        """
        try:
            return self._compare(selections, in_double=True)
        except Exception:  # a constant of another dtype inside forward; the other run has the user's own error
            return self._compare(selections, in_double=False)

    def _compare(self, selections: Sequence[Selection], *, in_double: bool) -> str:
        masked = copy.deepcopy(self.module)
        zero_channels(masked, selections)
        expected = self._run(masked, in_double=in_double)
        smaller = copy.deepcopy(self.module)
        remove_channels(smaller, remaining_indices(self.module, selections))
        try:
            got = self._run(smaller, in_double=in_double)
        except Exception as error:
            return f"forward fails without its channels: {first_line(error)}"
        tolerance = _TOLERANCES["float64" if in_double else "float32"]
        for (where, one), (_, other) in zip(expected, got, strict=True):
            if one.shape != other.shape:
                if where.startswith("layer"):
                    continue  # channels of its own were removed
                return f"{where} changes its shape from {list(one.shape)} to {list(other.shape)}"
            finite = np.isfinite(one)
            largest = float(np.abs(one[finite]).max(initial=0.0))
            same_places = bool((finite == np.isfinite(other)).all())
            if not same_places or float(np.abs(one - other)[finite].max(initial=0.0)) > tolerance * max(largest, 1e-3):
                return f"without its channels {where} is not what it is with the same channels at zero"
        return ""

    def _run(self, module: nn.Module, *, in_double: bool) -> list[tuple[str, NDArray[np.float64]]]:
        """Return what every layer and the module return, with the name of each, in the order of the calls.

        The outputs alone may hide a wrong channel, if they are classes or saturated probabilities.
        """
        import torch

        found: list[tuple[str, NDArray[np.float64]]] = []

        def keep(where: str, value: Any) -> None:
            tensors = [each for _, each in leaves(value, ()) if isinstance(each, torch.Tensor)]
            found.extend((where, tensor.detach().double().numpy()) for tensor in tensors)

        for path, part in module.named_modules():
            if path and not any(part.children()):
                part.register_forward_hook(lambda _, __, output, path=path: keep(f"layer {path!r}", output))

        def converted(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.double() if in_double and value.is_floating_point() else value
            if isinstance(value, (list, tuple)):
                return type(value)(converted(item) for item in value)
            if isinstance(value, Mapping):
                return {key: converted(item) for key, item in value.items()}
            return value

        module = module.double() if in_double else module
        with torch.no_grad():
            keep("an output", module(*converted(self.args), **converted(dict(self.kwargs))))
        return found


def rebuild(module: nn.Module, kept: Kept, split: Sequence[str]) -> nn.Module:
    """Return `module`, changed in place, as it is after a removal: attention at `split` in parts, then shortened."""
    if split:
        from pytest_modelserve.compact_models.head_attention import split_attention

        split_attention(module, split)
    remove_channels(module, kept)
    return module
