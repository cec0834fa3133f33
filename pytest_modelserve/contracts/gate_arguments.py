"""Arguments of gates from TOML, checked against the signature of the assertion.

There is no list of gates or arguments here, so that every assertion of the package can be said. Columns, models and
functions of the user are `Late`: they are read when the gate runs, not when tests are collected.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin

from pytest_modelserve.contracts.annotations import (
    Column,
    DataFile,
    Features,
    Model,
    constructors_of,
    hints_of,
    is_callable,
    is_family,
    is_object,
    mapping_item,
    required_by,
    sequence_item,
    union_members,
)
from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.serving.predictor import is_url
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")
"""A function of the user, as "package.module:name"."""
FileKind = Literal["file", "pattern", "new"]


class Key(Protocol):
    """The place of a value: a key of a contract, or an option of the command line."""

    def child(self, name: str | int) -> Key:
        """Return the place of a value inside this one."""

    def error(self, message: str) -> UsageError:
        """Return the error that names the place."""

    def file(self, text: str, kind: FileKind = "file") -> Path:
        """Return the path of a file that exists, of files of a pattern, or of one to be written; or raise the error."""


class Scope(Protocol):
    """What late values are read from when a gate runs."""

    def column(self, name: str) -> Any:
        """Return a column of the rows."""

    def feature(self, name: str) -> int | str:
        """Return the number of a column in the model's one input, or the name of one of its inputs."""

    def model(self, path: str) -> Any:
        """Return the predictor of a file or function."""


@dataclass(frozen=True, slots=True)
class Late:
    """A value that is made when the gate runs, and the columns that it reads."""

    make: Callable[[Scope], Any]
    columns: tuple[str, ...] = ()


def realized(value: Any, scope: Scope) -> Any:
    """Return `value` with every late value inside it made."""
    if isinstance(value, Late):
        return value.make(scope)
    if isinstance(value, dict):
        return {name: realized(item, scope) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(realized(item, scope) for item in value)
    return value


def columns_in(value: Any) -> set[str]:
    """Return the columns that `value` reads: they are no inputs of the model."""
    if isinstance(value, Late):
        return set(value.columns)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return set().union(*map(columns_in, items))


def convert_arguments(function: Callable[..., Any], table: Mapping[str, Any], key: Key, what: str) -> dict[str, Any]:
    """Return the converted values of `table` as keyword arguments of `function`; unknown keys are errors."""
    hints = hints_of(function)
    for name in table:
        if name not in hints:
            raise key.child(name).error(unknown_choice(what, name, hints))
    return {name: convert(value, hints[name], key.child(name), name=name) for name, value in table.items()}


def convert(value: Any, hint: Any, key: Key, *, name: str = "") -> Any:
    """Return `value` as the type `hint`, or raise the error of `key`.

    `name` is that of the argument: its ending is the unit of a number ("max_ms").
    """
    members = union_members(hint)
    if Any in members:
        return _of_any_type(value, key)
    if isinstance(value, str):
        found = _text(value, members, key, name)
    elif isinstance(value, dict):
        found = _table(value, members, key, name)
    elif isinstance(value, list):
        found = _list(value, members, key, name)
    else:
        found = _scalar(value, members)
    if found is not None:
        return found
    expected = " or ".join(dict.fromkeys(filter(None, map(describe, members))))
    raise key.error(f"expected {expected}; got {shown(value)}")


def is_imported(hint: Any) -> bool:
    """Return True for a type whose values are functions or objects of the user, as "module:name"."""
    return is_callable(hint) or get_origin(hint) is type or is_object(hint) or is_family(hint)


def _of_any_type(value: Any, key: Key) -> Any:
    """Return a value that the signature leaves open, which is one for each row: a text names what holds them."""
    if not isinstance(value, str):
        return value
    if FUNCTION.fullmatch(value):
        return Late(lambda _: imported_function(value, key))
    return str(key.file(value)) if value.lower().endswith(FILE_SUFFIXES) else _column(value)


def describe(hint: Any) -> str:
    """Return in words what a value of one type is in TOML; "" for what cannot be said."""
    if get_origin(hint) is Literal:
        return " or ".join(f'"{each}"' for each in get_args(hint))
    if is_family(hint):
        return f'the name of a {hint.__name__.lower()}, a table with its type and arguments, or "module:name"'
    if is_dataclass(hint):
        return f"a table of {', '.join(hints_of(hint))}"  # type: ignore[arg-type]
    if is_callable(hint) or get_origin(hint) is type:
        return 'a function as "module:name"'
    if is_object(hint):
        return 'an object as "module:name"'
    if mapping_item(hint) is not None:
        return "a table"
    return "a list" if sequence_item(hint) is not None else _DESCRIPTIONS.get(hint, "")


_DESCRIPTIONS: Mapping[Any, str] = {
    Model: 'the path of a model file or of ready outputs, a URL, or a function as "module:name"',
    DataFile: "the path of a data file",
    Any: 'a value, the name of a column, the path of a file of outputs, or an object as "module:name"',
    Column: "the name of a column, a list of values, or a table with column and bins",
    Features: "columns by number or by name",
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    datetime: "a date and time with an offset",
    date: "a date",
    Path: "a path",
}


def _text(value: str, members: Sequence[Any], key: Key, name: str) -> Any:
    """Return what a text means as one of `members`, the more special ones first; None if it is none of them."""
    for member in members:
        if is_family(member) and not FUNCTION.fullmatch(value):
            return _of_family({"type": value}, member, key)
    if Model in members:
        target = value if FUNCTION.fullmatch(value) or is_url(value) else str(key.file(value))
        return Late(lambda scope: scope.model(target))
    if FUNCTION.fullmatch(value) and any(map(is_imported, members)):
        return Late(lambda _: imported_function(value, key))
    if DataFile in members:
        return str(key.file(value, "pattern"))
    if Column in members:
        return _column(value)
    if Features in members:
        return Late(lambda scope: scope.feature(value))
    if any(get_origin(member) is os.PathLike for member in members):
        return str(key.file(value))
    if Path in members:
        return str(key.file(value, "new"))
    if str in members:
        return value
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if choices:
        if value in choices:
            return value
        raise key.error(unknown_choice("choice", value, choices))
    numbers = [member for member in members if member in (int, float)]
    return _with_unit(value, name, numbers, key) if numbers else None


def _table(value: dict[str, Any], members: Sequence[Any], key: Key, name: str) -> Any:
    items = [item for member in members if (item := mapping_item(member)) is not None]
    for member in members:
        if is_family(member):
            return _of_family(value, member, key)
        if is_dataclass(member) and isinstance(member, type) and (not items or value.keys() <= hints_of(member).keys()):
            return _call(member, convert_arguments(member, value, key, "key"))
    if Column in members and value.keys() == {"column", "bins"}:
        return _binned(value["column"], value["bins"], key)
    if not items:
        return None
    found = {each: convert(value[each], items[0], key.child(each), name=name) for each in value}
    return Late(lambda scope: _by_feature(found, scope)) if name in _BY_FEATURE else found


def _list(value: list[Any], members: Sequence[Any], key: Key, name: str) -> Any:
    if Column in members:
        return value
    if Features in members:
        return Late(lambda scope: [_feature(each, scope) for each in value])
    for item in map(sequence_item, members):
        if item is not None:
            return tuple(convert(each, item, key.child(number), name=name) for number, each in enumerate(value))
    if any(mapping_item(member) is Column for member in members) and all(isinstance(each, str) for each in value):
        return {each: _column(each) for each in value}  # slices = ["site", "age"]
    return None


def _scalar(value: Any, members: Sequence[Any]) -> Any:
    accepted: tuple[type, ...] = tuple(member for member in members if member in (bool, int, float, datetime, date))
    if Features in members:
        accepted += (int,)
    if isinstance(value, bool):
        return value if bool in accepted else None
    if isinstance(value, int) and float in accepted:
        return value
    return value if isinstance(value, accepted) else None


def _of_family(value: dict[str, Any], family: type, key: Key) -> Late:
    table = dict(value)
    what, kind = family.__name__.lower(), table.pop("type", None)
    known = constructors_of(family)
    if not isinstance(kind, str):
        raise key.error(f'type is missing: which {what}? For example type = "{next(iter(known))}"')
    if kind not in known:
        raise key.error(unknown_choice(what, kind, known))
    arguments = convert_arguments(known[kind], table, key, f"argument of {kind}")
    needed = [name for name in required_by(known[kind]) if name not in arguments]
    if needed:
        raise key.error(f"{kind} needs {', '.join(needed)}")
    return _call(known[kind], arguments)


def _call(make: Callable[..., Any], arguments: dict[str, Any]) -> Late:
    return Late(lambda scope: make(**realized(arguments, scope)), tuple(columns_in(arguments)))


def imported_function(value: str, key: Key) -> Any:
    """Return the function that a text such as "package.module:name" names."""
    module, _, name = value.partition(":")
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        is_unknown = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        hint = "; name its folder in the setting pythonpath of pytest" if is_unknown else ""
        raise key.error(f"{value!r} cannot be imported: {error}{hint}") from error


def _column(name: str) -> Late:
    return Late(lambda scope: scope.column(name), (name,))


def _binned(name: Any, edges: Any, key: Key) -> Late:
    if not isinstance(name, str) or not isinstance(edges, list):
        raise key.error(f'expected column = "name" and bins = [edges]; got {shown(name)} and {shown(edges)}')

    def binned(scope: Scope) -> Any:
        from pytest_modelserve.metrics import bins

        return bins(scope.column(name), edges)

    return Late(binned, (name,))


def _feature(each: Any, scope: Scope) -> Any:
    if isinstance(each, str):
        return scope.feature(each)
    return tuple(each) if isinstance(each, list) else each


_BY_FEATURE = ("scale", "low", "high", "categories", "dependent")
"""Arguments whose tables have a key for each column of the model's input."""


def _by_feature(table: Mapping[str, Any], scope: Scope) -> dict[Any, Any]:
    return {each if each.isdigit() else scope.feature(each): realized(table[each], scope) for each in table}


# Numbers with units

_TIME_MS = {"µs": 1e-3, "us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_ENDINGS: tuple[tuple[str, str, Mapping[str, float], float, str], ...] = (
    ("_ms", "a time", _TIME_MS, 1.0, "2 ms"),
    ("_s", "a time", _TIME_MS, 1e3, "30 s"),
    ("_mib", "a number of bytes", _BYTES, 1 << 20, "200 MiB"),
    ("_kib_per_call", "a number of bytes", _BYTES, 1 << 10, "4 KiB"),
    ("_bytes", "a number of bytes", _BYTES, 1, "1 MiB"),
    ("_db", "a ratio in decibels", {"dB": 1.0}, 1.0, "25 dB"),
)
_PLAIN = ("max_value", "max_rise", "atol", "by", "eps", "low", "high", "scale", "sigma")
"""Arguments in the unit of a target or an input: a percentage would have no base in the contract."""
_WITH_UNIT = re.compile(r"\s*([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(\S+)\s*")


def _with_unit(text: str, name: str, numbers: Sequence[type], key: Key) -> float:
    """Return the number of `text` in the unit of the argument `name`: "2 ms" for `max_ms` is 2."""
    rest = ("a number", {}, 1.0, "") if name in _PLAIN else ("a proportion", {"%": 0.01}, 1.0, "5 %")
    what, units, own, example = next((each[1:] for each in _ENDINGS if name.endswith(each[0])), rest)
    match = _WITH_UNIT.fullmatch(text)
    if match is None or match[2] not in units:
        known = f", or a text such as {example!r}" if example else ""
        raise key.error(f"{text!r} is not {what}: give a number{known}")
    value = float(f"{float(match[1]) * units[match[2]] / own:.15g}")  # 7 % is 0.07
    if float in numbers:
        return value
    if not value.is_integer():
        raise key.error(f"expected a whole number; got {text!r}, which is {value:g}")
    return int(value)


def shown(value: Any) -> str:
    """Return a value of TOML with its kind, for a message."""
    kinds: Mapping[type, str] = {str: "the text ", list: "the list ", dict: "the table ", int: "", float: ""}
    if isinstance(value, (datetime, date)):
        return f"the date {value}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{kinds.get(type(value), '')}{text if len(text) < 80 else text[:80] + '…'}"
