"""Flat names for the arrays in nested inputs and outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from pytest_modelserve.errors import UsageError

_SINGLE = "output"


def named_outputs(result: object) -> dict[str, Any]:
    """Return a model's outputs by name.

    A mapping's keys or a dataclass's fields are the names; a single value is "output", items of a tuple or list are
    "output_0", "output_1". Nested outputs use their last key if it is unique, otherwise the full path; items of a
    sequence are numbered. Values that are None are left out. The exporter uses the same names.

    Raises:
        UsageError: The result is None, is empty or holds nothing but None, or has a key that is not a string.

    Example:
        >>> list(named_outputs({"logits": 1, "states": (2, 3)}))
        ['logits', 'states_0', 'states_1']
        >>> list(named_outputs({"left": {"y": 1}, "right": {"y": 2}}))
        ['left.y', 'right.y']
    """
    if result is None:
        raise UsageError("the model returned None: return its outputs")
    rooted = isinstance(result, (tuple, list)) or not is_nested(result)
    found = list(leaves(result, (_SINGLE,) if rooted else ()))
    if not found:
        raise UsageError(f"the model returned an empty {type(result).__name__}: return its outputs")
    _refuse_nameless(result)
    absent = [path_name(path) for path, value in found if value is None]
    found = [(path, value) for path, value in found if value is not None]
    if not found:
        raise UsageError(f"the model returned nothing but None, as {', '.join(map(repr, absent))}: return its outputs")
    names = flat_names([path for path, _ in found])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"the model returned two outputs named {twice!r}: use unique names")
    return dict(zip(names, (value for _, value in found), strict=True))


def _refuse_nameless(result: object) -> None:
    """Raise UsageError for a mapping, anywhere in `result`, with a key that is not a string."""
    for key, child in children(result) if is_nested(result) else ():
        if isinstance(result, Mapping) and not isinstance(key, str):
            raise UsageError(f"the model returned a mapping with the key {key!r}: use strings as names of outputs")
        _refuse_nameless(child)


Path = tuple[str | int, ...]


def leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield every value in `value` that is not a mapping, sequence or dataclass, with its path below `path`.

    Fields of a dataclass that are None are left out: they are absent optional values.
    """
    if not is_nested(value):
        yield path, value
        return
    for key, child in children(value):
        yield from leaves(child, (*path, key))


def map_leaves(value: Any, path: Path, function: Callable[[Path, Any], Any]) -> Any:
    """Return `value` with every leaf replaced by `function(path, leaf)`, as dicts, tuples, lists and dataclasses."""
    if not is_nested(value):
        return function(path, value)
    if isinstance(value, Mapping):
        return {key: map_leaves(child, (*path, key), function) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        built = [map_leaves(child, (*path, index), function) for index, child in enumerate(value)]
        return built if isinstance(value, list) else tuple(built)
    return replace(value, **{key: map_leaves(child, (*path, key), function) for key, child in children(value)})


def is_nested(value: object) -> bool:
    """Return True for a mapping, sequence or dataclass."""
    return isinstance(value, (Mapping, tuple, list)) or (is_dataclass(value) and not isinstance(value, type))


def children(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a mapping, sequence or dataclass by name or number, without fields that are None."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    else:
        named = ((field.name, getattr(value, field.name)) for field in fields(value))
        yield from ((name, child) for name, child in named if child is not None)


def path_name(path: Path) -> str:
    """Return the full name of a path: "batch.ids", "state_0"."""
    head, *rest = map(str, path)
    return head + "".join(
        f"_{part}" if isinstance(key, int) else f".{part}" for key, part in zip(path[1:], rest, strict=True)
    )


def flat_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the name of each path: its last key ("ids") if unique, otherwise the full path ("batch.ids").

    The index in a sequence is appended to the sequence's key: "state_0", "state_1".
    """
    short = [path_name(_last_key(path)) for path in paths]
    clashing = Counter(short)
    return tuple(path_name(path) if clashing[last] > 1 else last for path, last in zip(paths, short, strict=True))


def split_name(name: str) -> Path | None:
    """Return the path of a full name, ("batch", "ids") for "batch.ids"; None for a name without a path."""
    path: list[str | int] = []
    for part in name.split("."):
        key, *places = re.split(r"_(?=\d+(?:_\d+)*$)", part, maxsplit=1)
        path += [key, *(int(place) for places_ in places for place in places_.split("_"))]
    return tuple(path) if len(path) > 1 and all(path[:1]) else None


def _last_key(path: Path) -> Path:
    """Return the end of `path` from its last key on: ("states", 0) of ("batch", "states", 0)."""
    last = max((place for place, key in enumerate(path) if not isinstance(key, int)), default=0)
    return path[last:]
