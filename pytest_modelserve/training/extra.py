"""The packages that only this room needs: loaded at use, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from pytest_modelserve.errors import MissingDependencyError


def require(package: str, purpose: str) -> ModuleType:
    """The imported `package`; MissingDependencyError, with the command that installs it, where there is none.

    What the package warns of while it loads is no business of the test that happens to load it first: under
    `-W error` it would end that test.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {package}, which is not installed: pip install 'pytest-modelserve[torch]'"
        ) from error
