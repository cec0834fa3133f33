"""A child process as a new interpreter: the model goes there pickled, its class by value."""

from __future__ import annotations

import os
import pickle
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_modelserve.errors import ExportError
from pytest_modelserve.training.extra import require

if TYPE_CHECKING:
    from torch import nn

    from pytest_modelserve.training.export_child import ExportJob


def spawn(job: ExportJob, log: Path, alarm_s: int) -> subprocess.Popen[bytes]:
    """Start `job` in a new interpreter that writes what it prints to `log`; ExportError if it cannot be pickled."""
    job_file = log.with_name("job.pickle")
    job_file.write_bytes(_pickled(job))
    # -W outranks PYTHONWARNINGS, which may make errors of what torch warns of.
    command = [sys.executable, "-W", "ignore", "-m", "pytest_modelserve.training.export_child"]
    with open(log, "ab") as output:
        return subprocess.Popen(
            [*command, str(job_file), str(alarm_s)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def _pickled(job: ExportJob) -> bytes:
    cloudpickle = require("cloudpickle", "export in a new interpreter")
    try:
        with _by_value(cloudpickle, _modules_of(job.module)):
            return bytes(cloudpickle.dumps(job))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(
            f"{type(job.module).__name__} cannot be sent to the process that exports it: {error}"
        ) from error


def _modules_of(module: nn.Module) -> set[ModuleType]:
    """The user's own modules that define the classes in `module`: a new interpreter may not find a test file."""
    classes = {cls for each in module.modules() for cls in type(each).__mro__}
    modules = {sys.modules.get(cls.__module__) for cls in classes}
    return {each for each in modules if each is not None and each.__name__ != "__main__" and not _is_installed(each)}


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names
    keys = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {*map(sysconfig.get_path, keys), *site.getsitepackages(), site.getusersitepackages()}
    return any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


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
