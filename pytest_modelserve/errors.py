"""What this package raises on purpose, apart from verdicts; what is none of these is a bug of ours."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from types import ModuleType


class ModelServeError(Exception):
    """A request that could not be carried out; the message names what is wrong and what to do."""


class UsageError(ModelServeError, ValueError):
    """A call that cannot be meant: an unknown choice, half of a pair, a budget out of range."""


class InputError(UsageError):
    """Data that do not fit the model or the gate: the message names the input, what was expected and what came."""


class ArtifactError(ModelServeError):
    """A model file, or the store that keeps it, cannot be read or written."""


class ExportError(ModelServeError):
    """A torch model did not become a faithful ONNX artifact."""


class BakedAxisError(ExportError):
    """An axis that was to stay free is fixed in the exported model; the message names the axis and the input."""


class ControlFlowError(ExportError):
    """The module's code goes by values that only the data decide; the message names the source line."""


class UnsupportedOperatorError(ExportError):
    """An operator that ONNX or onnxruntime does not have; the message names it, and the source line that calls it."""


class RecipeError(ModelServeError):
    """A compression recipe could not be applied, or applied nothing."""


class MissingDependencyError(ModelServeError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class ModelServeWarning(UserWarning):
    """Something that a user should know and that stops nothing."""


def unknown_choice(what: str, given: object, choices: Iterable[str]) -> str:
    """The sentence for a wrong string choice, with the nearest right one.

    >>> unknown_choice("recipe", "simplfy", ["simplify", "int8-dynamic"])
    "unknown recipe 'simplfy': did you mean 'simplify'? Known: 'simplify', 'int8-dynamic'"
    """
    import difflib  # only for a user who has mistyped: every pytest run of the environment imports this file

    known = list(choices)
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {given!r}: {hint}Known: {', '.join(map(repr, known))}"


# The packages that only this room needs: loaded at use, and named with their extra where they are missing.


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
