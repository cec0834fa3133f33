"""Types of arguments, resolved from the annotations of a function, for values in TOML.

Some types have no counterpart in TOML, such as models and arrays. Annotations name them, and these names stand for
`Model`, `DataFile`, `Column` and `Features`, which a contract gives as paths and names of columns.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin


class Model:
    """The path of a model file or of ready outputs, or a function of the user."""


class DataFile:
    """The path of a data file, of a folder or a pattern."""


class Column:
    """The name of a column; a list of values; or a table with `column` and `bins`."""

    def __class_getitem__(cls, _: object) -> type[Column]:
        return cls


class Features:
    """Columns of the model's input, by number or by name."""


class PythonObject:
    """A value that TOML has no words for: an object of the user, as "module:name"."""

    def __class_getitem__(cls, _: object) -> type[PythonObject]:
        return cls


_WORDS: Mapping[str, object] = {
    **dict.fromkeys(("Servable", "Model", "Predictor", "Artifact"), Model),
    **dict.fromkeys(("Inputs", "Batches", "InputStream", "Data"), DataFile),
    **dict.fromkeys(("ArrayLike", "NDArray", "Column"), Column),
    **dict.fromkeys(("Feature", "Features"), Features),
    **dict.fromkeys(("ModelSource", "ReferenceProfile", "SearchStrategy", "TrainedModel"), PythonObject),
}
_FAMILIES = {"Relation": "relations", "Corruption": "corruptions", "Attack": "attacks"}
"""Classes whose values a public module has constructors for, with its name."""


class _Names(dict[str, Any]):
    """The names in annotations, from the modules that use them, also those that only type checkers import."""

    def __init__(self, modules: Iterable[str]) -> None:
        super().__init__(_WORDS)
        self.modules = list(modules)

    def __missing__(self, name: str) -> Any:
        for module in self.modules:
            if hasattr(sys.modules[module], name):
                return getattr(sys.modules[module], name)
            if name in (imported := _type_checking_imports(module)):
                found, attribute = imported[name]
                try:
                    return getattr(importlib.import_module(found), attribute)
                except ImportError:  # of an extra that is not installed
                    return PythonObject
        return getattr(builtins, name)


@functools.cache
def _type_checking_imports(module: str) -> Mapping[str, tuple[str, str]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}


@functools.cache
def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the type of each parameter of a function or dataclass, with the words of this module."""
    original = inspect.unwrap(function)
    classes = original.__mro__ if isinstance(original, type) else (original,)
    names = _Names(dict.fromkeys(each.__module__ for each in classes if each.__module__ != "builtins"))
    found = {name: each.annotation for name, each in inspect.signature(function).parameters.items()}
    hints = {
        name: eval(hint, {"__builtins__": {}}, names) if isinstance(hint, str) else hint for name, hint in found.items()
    }
    return hints | dict.fromkeys(hints.keys() & {"features", "attribute"}, Features)


def subject_of(function: Callable[..., Any]) -> str | None:
    """Return the name of the first parameter if it is a model: the subject of an assertion."""
    name, hint = next(iter(hints_of(function).items()))
    return name if Model in union_members(hint) else None


def required_by(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters without a default."""
    parameters = inspect.signature(function).parameters
    return [name for name, each in parameters.items() if each.default is each.empty]


def budgets_of(function: Callable[..., Any]) -> list[str]:
    """Return the budgets of an assertion: numbers called "min" or "max" that are required or may be None."""
    return [
        name
        for name, each in inspect.signature(function).parameters.items()
        if name.startswith(("min_", "max_"))
        and (each.default is each.empty or each.default is None)
        and not {int, float}.isdisjoint(union_members(hints_of(function)[name]))
    ]


def union_members(hint: Any) -> list[Any]:
    """Return the members of a union, in order, without None."""
    if get_origin(hint) in (Union, types.UnionType):
        found = [member for each in get_args(hint) for member in union_members(each)]
        return [member for member in dict.fromkeys(found) if member is not type(None)]
    return [hint]


def mapping_item(member: Any) -> Any:
    """Return the type of the values of a mapping; None for any other type."""
    return get_args(member)[1] if get_origin(member) in _MAPPINGS else None


def sequence_item(member: Any) -> Any:
    """Return the type of the items of a sequence; None for any other type."""
    if get_origin(member) not in _SEQUENCES:
        return None
    return Union[tuple(each for each in get_args(member) if each is not Ellipsis)]  # noqa: UP007


_MAPPINGS = (get_origin(Mapping[str, int]), dict)
_SEQUENCES = (get_origin(Sequence[int]), get_origin(Collection[int]), get_origin(Iterable[int]), list, tuple)


def is_callable(member: Any) -> bool:
    """Return True for a type of functions."""
    return member is Callable or get_origin(member) is get_origin(Callable[[], None])


def is_object(member: Any) -> bool:
    """Return True for a class of this package that TOML has no words for."""
    of_package = isinstance(member, type) and member.__module__.startswith("pytest_modelserve.")
    is_said = member in (Model, DataFile, Column, Features) or is_dataclass(member) or is_family(member)
    return of_package and not is_said


def is_family(member: Any) -> bool:
    """Return True for a class whose values a public module has constructors for."""
    return (
        isinstance(member, type) and member.__name__ in _FAMILIES and member.__module__.startswith("pytest_modelserve.")
    )


def constructors_of(family: type) -> Mapping[str, Callable[..., Any]]:
    """Return the constructors of a family by name: those of `ms.relations`, for example."""
    module = importlib.import_module(f"pytest_modelserve.robustness.{_FAMILIES[family.__name__]}")

    def makes(value: Any) -> bool:
        if isinstance(value, type):
            return issubclass(value, family) and not inspect.isabstract(value)
        return inspect.isfunction(value) and value.__annotations__.get("return") == family.__name__

    return {name: value for name, value in sorted(vars(module).items()) if not name.startswith("_") and makes(value)}
