"""Exceptions of pytest-modelserve. Any other exception is a bug; please report it."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

_MOST_CHARACTERS = 2_000
"""The longest line that is shown: names in files may have millions of characters."""


def printable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return `text` with each control character (ANSI escapes, line ends, NUL, bidi overrides) as its escape sequence.

    Names in model and data files may contain them; a terminal would execute ANSI escapes, and JUnit XML cannot hold a
    NUL. The starts of GitHub's workflow commands, "::" at the start of a line and "##[" anywhere, are broken up, too.
    Of more than `most` characters the middle is left out.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > most:
        text = f"{text[: most * 3 // 4]} … {text[len(text) - most // 5 :]}"
    text = text.replace("##[", r"#\x23[")
    return text.replace("::", r"\x3a:", 1) if text.lstrip().startswith("::") else text


def _printable_lines(arguments: tuple[object, ...]) -> tuple[object, ...]:
    """Return the arguments of an exception with each line of a text printable."""
    return tuple(
        "\n".join(printable(line.expandtabs(4)) for line in each.split("\n")) if isinstance(each, str) else each
        for each in arguments
    )


class ModelServeError(Exception):
    """Base class: a request could not be carried out; the message says why and what to do, in printable text."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*_printable_lines(arguments))


class UsageError(ModelServeError, ValueError):
    """Invalid arguments: an unknown option, an incomplete pair of arguments, or a threshold out of range."""


class InputError(UsageError):
    """Data that do not fit the model or the gate; the message names the input, the expected and the given value."""


class ArtifactError(ModelServeError):
    """A model file, or the store of models, cannot be read or written."""


class TrainingError(ModelServeError):
    """A training stopped: its loss became NaN, or one of its processes crashed or made no progress."""


class VerificationError(ArtifactError):
    """A model is not signed, or a file, a signature or a statement is not what was approved."""


class ExportError(ModelServeError):
    """A torch module could not be exported to an ONNX file that computes the same outputs."""


class BakedAxisError(ExportError):
    """A dynamic axis is fixed in the exported model; the message names the axis and the input."""


class ControlFlowError(ExportError):
    """The control flow of the module depends on input values; the message names the source line."""


class UnsupportedOperatorError(ExportError):
    """ONNX or onnxruntime lacks an operator; the message names it and the source line that calls it."""


class RecipeError(ModelServeError):
    """A compression recipe could not be applied, or changed nothing."""


class EndpointError(ModelServeError):
    """An endpoint gave no answer, or one that cannot be used; `status` is that of the HTTP answer if there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MissingDependencyError(ModelServeError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


class ModelServeWarning(UserWarning):
    """A warning of pytest-modelserve: the run continues."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*_printable_lines(arguments))


_MOST_LISTED = 50


def unknown_choice(what: str, given: object, choices: Iterable[str]) -> str:
    """Return the message for an unknown option, with the nearest known one.

    >>> unknown_choice("recipe", "simplfy", ["simplify", "int8-dynamic"])
    "unknown recipe 'simplfy': did you mean 'simplify'? Known: 'simplify', 'int8-dynamic'"
    >>> unknown_choice("recipe", "int8", ["simplify", "int8-dynamic"])
    "unknown recipe 'int8': did you mean 'int8-dynamic'? Known: 'simplify', 'int8-dynamic'"
    """
    import difflib  # imported here because every pytest run imports this module

    known = list(choices)
    near = difflib.get_close_matches(str(given), known, n=1) or [name for name in known if name.startswith(f"{given}-")]
    if near and len(known) > _MOST_LISTED:
        return f"unknown {what} {given!r}: did you mean {near[0]!r}?"
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    return f"unknown {what} {given!r}: {hint}: {', '.join(map(repr, known))}"


def check_call(what: str, function: Callable[..., object], *given: str, **named: object) -> None:
    """Raise UsageError unless `function` can be called with arguments of these names, the first by position."""
    import inspect  # as difflib

    try:
        # Of the function itself: a decorator may pass other arguments to what it wraps.
        inspect.signature(function, follow_wrapped=False).bind(*given, **named)
    except ValueError:  # a builtin without a signature
        return
    except TypeError as error:
        call = f"{what.partition(' ')[0]}({', '.join((*given, *named))})"
        raise UsageError(f"{what} must accept {call}: {error}") from None


def require(package: str, purpose: str, *, extra: str = "torch") -> ModuleType:
    """Return the imported optional `package`, which `extra` of this distribution installs.

    Warnings during the import are suppressed: under `-W error` they would fail the test that imports it first.

    Raises:
        MissingDependencyError: If it is not installed; the message holds the command that installs it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise MissingDependencyError(
            f"{purpose} needs {package}, which is not installed: pip install 'pytest-modelserve[{extra}]'"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of the message of `error`, after the name of a class that is not of this package."""
    line = str(error).strip().partition("\n")[0]
    return line if isinstance(error, ModelServeError) else f"{type(error).__name__}: {line}".removesuffix(": ")


def without_internals(error: ModelServeError) -> ModelServeError:
    """Return `error` for the caller of a public function: without the lines of this package, and without its cause.

    The message holds both. An error in whose traceback, or in that of a cause, there is code of the user keeps them.
    """
    seen: BaseException | None = error
    while seen is not None:
        if any(_is_of_user(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(seen.__traceback__)):
            return error
        seen = seen.__cause__
    error.__cause__, error.__suppress_context__ = None, True
    return error.with_traceback(None)


def _is_of_user(filename: str) -> bool:
    """Return whether a file is of neither this package, nor the standard library, nor an installed package."""
    path = Path(filename)
    if path.is_relative_to(Path(__file__).parent) or {"site-packages", "dist-packages"} & {*path.parts}:
        return False
    return not filename.startswith("<") and not path.is_relative_to(sysconfig.get_path("stdlib"))
