"""Pickled torch modules for the exporter's process: the user's own classes travel by value."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts.hashing import is_installed
from pytest_modelserve.errors import ExportError, require
from pytest_modelserve.training.export_request import ExportJob

if TYPE_CHECKING:
    from torch import nn


def pickle_job(job: ExportJob) -> bytes:
    """Return `job` pickled, with the user's own classes by value: a new process may not find a test file.

    Raises:
        ExportError: The module holds something that cannot be pickled, such as a lock or an open file.
    """
    cloudpickle = require("cloudpickle", "export")
    stream = BytesIO()

    class JobPickler(cloudpickle.Pickler):  # type: ignore[name-defined,misc]
        def reducer_override(self, value: Any) -> Any:
            return _reduce_operator(value) or super().reducer_override(value)

    try:
        with _by_value(cloudpickle, _modules_of(job.module)):
            JobPickler(stream).dump(job)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(
            f"{type(job.module).__name__} cannot be sent to the process that exports it: {error}. "
            "Create what cannot be pickled (locks, files, connections) outside the module"
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


def _modules_of(module: nn.Module) -> set[ModuleType]:
    """Return the user's own modules that define the classes in `module`."""
    classes = {cls for each in module.modules() for cls in type(each).__mro__}
    modules = {sys.modules.get(cls.__module__) for cls in classes}
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
