"""Digests of torch modules: of all that decides their outputs, and of their weights."""

from __future__ import annotations

import hashlib
import pickle
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts import digest_of
from pytest_modelserve.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_NO_PATHS: Mapping[int, str] = {}


def module_digest(module: nn.Module) -> str:
    """Return the sha256 of everything that determines the outputs of `module`.

    For it and every submodule: the class with its source files, parameters, buffers (persistent or not), hooks, and
    the attributes that `__init__` set. An attribute that neither `digest_of` nor pickle accepts makes the digest new at
    every call: a repeated export is slow, another module's result would be wrong.
    """
    paths = {id(each): path for path, each in module.named_modules()}
    return digest_of({path: _own(each, paths) for path, each in module.named_modules(remove_duplicate=False)})


def weights_digest(module: nn.Module) -> str:
    """Return the sha256 of the state dict, which equals `TrainedModel.sha256` for the module of a TrainedModel."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state dict, whose values need not be tensors (`get_extra_state`)."""
    return digest_of({name: digestible(value) for name, value in state.items()})


def _own(module: nn.Module, paths: Mapping[int, str]) -> dict[str, Any]:
    from torch import nn

    attributes = {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return {
        "class": type(module),
        "tensors": {**module._parameters, **module._buffers},
        "hooks": digestible(hooks, paths),
        "attributes": {name: digestible(value, paths) for name, value in attributes.items()},
    }


def digestible(value: Any, paths: Mapping[int, str] = _NO_PATHS) -> Any:
    """Return `value` in a form that has a digest; `paths` names the modules that are digested anyway."""
    import torch

    if isinstance(value, torch.nn.Module):
        return ("module", paths[id(value)] if id(value) in paths else module_digest(value))
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return (type(value).__name__, str(value))
    if isinstance(value, weakref.ReferenceType):
        return digestible(value(), paths)
    if type(value) in (list, tuple):
        return [type(value).__name__, *(digestible(item, paths) for item in value)]
    if isinstance(value, Mapping):
        return {"mapping": [(digestible(key, paths), digestible(item, paths)) for key, item in value.items()]}
    try:
        digest_of(value)
    except UsageError:
        return ("pickle", _pickled(value))
    return value


def _pickled(value: Any) -> str:
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # whatever a user's __reduce__ raises
        return uuid.uuid4().hex
