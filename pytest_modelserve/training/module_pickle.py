"""Pickled torch modules and functions for a child process: the user's own code travels by value."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts.hashing import is_installed
from pytest_modelserve.errors import UsageError, require

if TYPE_CHECKING:
    from torch import nn


def pickle_job(job: Any, module: nn.Module, functions: Sequence[Any] = (), *, purpose: str) -> bytes:
    """Return `job` pickled, with the user's own code by value, as a new process may not find a test file.

    Args:
        job: What to pickle.
        module: A module in it, whose classes may be the user's.
        functions: Functions in it that may be the user's.
        purpose: The work of the process, for the message.

    Raises:
        UsageError: There is something that cannot be pickled, such as a lock or an open file.
    """
    from torch.nn.utils.parametrize import is_parametrized

    cloudpickle = require("cloudpickle", purpose)
    stream = BytesIO()

    class JobPickler(cloudpickle.Pickler):  # type: ignore[name-defined,misc]
        def reducer_override(self, value: Any) -> Any:
            return _reduce_operator(value) or super().reducer_override(value)

    try:
        with _by_value(cloudpickle, _modules_of(module, functions)):
            JobPickler(stream).dump(job)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        part = next((path for path, each in module.named_modules() if is_parametrized(each)), None)
        if part is not None:
            raise UsageError(
                f"layer {part!r} has a parametrization, which torch cannot send to the process of the {purpose}: make "
                "its weight plain, by torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
            ) from error
        raise UsageError(
            f"{type(module).__name__}{' or a function' if functions else ''} cannot be sent to the process of the "
            f"{purpose}: {error}. Create what cannot be pickled (locks, files, connections) elsewhere"
        ) from error
    return stream.getvalue()


def _reduce_operator(value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """Return how to register a custom operator of torch.library again; None for any other value."""
    if type(value).__name__ != "CustomOpDef":
        return None
    fields = ("_namespace", "_name", "_schema", "_init_fn", "_abstract_fn", "_backend_fns")
    if not all(hasattr(value, field) for field in fields):  # private, as seen with torch 2.13
        return None
    namespace, name, schema, function, fake, kernels = (getattr(value, field) for field in fields)
    return _define_operator, (type(value), namespace, name, schema, function, fake, tuple(kernels))


def _define_operator(
    kind: type[Any], namespace: str, name: str, schema: str, function: object, fake: object, devices: Sequence[str]
) -> Any:
    operator = kind(namespace, name, schema, function)
    for device in devices:
        operator.register_kernel(device)(function)
    if fake is not None:
        operator.register_fake(fake)
    return operator


def _modules_of(module: nn.Module, functions: Sequence[Any]) -> set[ModuleType]:
    """Return the user's own modules that define the classes in `module` and the functions."""
    code = {cls for each in module.modules() for cls in type(each).__mro__}
    for function in functions:
        while isinstance(function, partial):
            function = function.func
        code.add(function if hasattr(function, "__qualname__") else type(function))
    modules = {sys.modules.get(each.__module__) for each in code}
    return {each for each in modules if each is not None and each.__name__ != "__main__" and not _is_installed(each)}


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names
    return is_installed(module.__name__, Path(file))


@contextmanager
def _by_value(cloudpickle: ModuleType, modules: set[ModuleType]) -> Iterator[None]:
    added = [each for each in modules if each.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
