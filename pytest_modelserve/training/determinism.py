"""Modules whose outputs change from run to run: which operator is random, or which state is kept."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pytest_modelserve.errors import ExportError
from pytest_modelserve.metrics import compare_outputs
from pytest_modelserve.metrics.channels import channel_scale
from pytest_modelserve.metrics.elementwise import kind_of, machine_epsilon
from pytest_modelserve.metrics.tolerance import OUTPUT_PARITY_EPSILONS
from pytest_modelserve.training.export_errors import innermost_line

if TYPE_CHECKING:
    from torch import nn

Outputs = dict[str, NDArray[Any]]


@contextmanager
def isolated(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of `module` to run, so that a `forward` that writes into its state leaves the caller's as it is.

    If a module cannot be copied, it is yielded itself, and its parameters and buffers are restored afterwards.
    """
    import torch

    try:
        duplicate = copy.deepcopy(module)
    except Exception:  # whatever a user's __deepcopy__ or __reduce__ raises
        buffers = [(part._buffers, dict(part._buffers)) for part in module.modules()]
        values = [(each, each.detach().clone()) for each in (*module.parameters(), *module.buffers())]
        try:
            yield module
        finally:
            for holder, saved in buffers:
                holder.update(saved)
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)
    else:
        yield duplicate


def run_twice(name: str, module: nn.Module, run: Callable[[], Outputs]) -> Outputs:
    """Return the outputs of `run`, which runs `module`, after comparing them with those of a second run.

    Raises:
        ExportError: The two runs differ by more than rounding. The message names the buffers or attributes that the
            first run changed, or the random operator and the source line that calls it.
    """
    before = dict(_state(module))
    first = run()
    changed = [key for key, value in _state(module) if not _same(before.get(key), value)]
    second = run()
    if _agree(first, second):
        return first
    message = f"{name} returns other outputs when it is run again on the same inputs, so no export can be verified"
    if changed:
        raise ExportError(
            f"{message}: forward changes {', '.join(map(repr, changed[:5]))}. Take that state as an input and return "
            "the new value as an output"
        )
    found = _random_operator(run)
    if found:
        raise ExportError(
            f"{message}: {found} is random. Turn it off in eval mode, or take the random numbers as an input"
        )
    raise ExportError(
        f"{message}. No buffer, attribute or random operator of torch explains it: look for random numbers of another "
        "library, the time, or state outside the module"
    )


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a copy of every parameter and buffer, and of every attribute that is a tensor, number or text, by name."""
    import torch

    for path, part in module.named_modules():
        tensors = {**part._parameters, **part._buffers}
        for name, value in {**vars(part), **tensors}.items():
            key = f"{path}.{name}" if path else name
            if isinstance(value, torch.Tensor):
                yield key, value.detach().clone()
            elif isinstance(value, (bool, int, float, str)):
                yield key, value
            elif isinstance(value, (list, tuple, dict)) and not name.startswith("_"):
                yield key, _summary(value)


def _summary(value: Any) -> Any:
    """Return what shows a change of a container: the sums of its tensors, its numbers, and its length."""
    import torch

    items = value.values() if isinstance(value, dict) else value
    leaves = [float(item.double().sum()) if isinstance(item, torch.Tensor) else item for item in items]
    return (len(value), *(leaf for leaf in leaves if isinstance(leaf, (bool, int, float, str))))


def _same(before: Any, after: Any) -> bool:
    import torch

    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            return False
        return bool(((before == after) | ((before != before) & (after != after))).all())
    return type(before) is type(after) and bool(before == after)


def _agree(first: Outputs, second: Outputs) -> bool:
    if {name: array.shape for name, array in first.items()} != {name: array.shape for name, array in second.items()}:
        return False
    tolerances = {
        name: OUTPUT_PARITY_EPSILONS * machine_epsilon(array.dtype.name) * channel_scale(array).for_shape(array.shape)
        for name, array in first.items()
        if kind_of(array.dtype) == "real"
    }
    return compare_outputs(second, first, rtol=dict.fromkeys(tolerances, 0.0), atol=tolerances).agrees


def _random_operator(run: Callable[[], object]) -> str:
    """Return the first random operator of torch that `run` calls, with the user's source line; "" for none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[str] = []

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not found and torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs or {}):
                line = innermost_line("".join(traceback.format_stack()))
                found.append(f"the operator {func}" + (f" at {line}" if line else ""))
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]
        run()
    return found[0] if found else ""


def _draws(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Return False for an operator that can be random but is not asked to be, such as attention without dropout."""
    arguments = func._schema.arguments
    bound = {each.name: each.default_value for each in arguments if each.has_default_value()}
    bound |= dict(zip((each.name for each in arguments), args, strict=False)) | kwargs
    rates = [bound[name] for name in ("dropout_p", "p", "dropout") if isinstance(bound.get(name), (int, float))]
    training = [bound[name] for name in ("train", "training") if isinstance(bound.get(name), bool)]
    return not (rates and not any(rates)) and not (training and not any(training))
