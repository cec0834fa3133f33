"""Nested inputs and outputs as flat, named leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from pytest_modelserve.errors import UsageError

_SINGLE = "output"


def named_outputs(result: object) -> dict[str, Any]:
    """What a model returned, by name: a mapping's own keys or a dataclass's fields, "output" for a single value,
    "output_0", "output_1" and so on for a tuple or list.

    What is nested is named by its last key where no other output is called so, else by all of them, and by its place
    in a sequence: {"logits": a, "states": (b, c)} gives "logits", "states_0" and "states_1", and {"left": {"y": a},
    "right": {"y": b}} gives "left.y" and "right.y". Fields of a dataclass that are None are left out.

    The exporter names an artifact's outputs by the same rule, so that both sides of a comparison agree. Values are not
    looked at. UsageError for None, for something empty and for names that are not strings.
    """
    if result is None:
        raise UsageError("the model returned None: it has to return its outputs")
    rooted = isinstance(result, (tuple, list)) or not is_nested(result)
    found = list(leaves(result, (_SINGLE,) if rooted else ()))
    if not found:
        raise UsageError(f"the model returned an empty {type(result).__name__}: it has to return its outputs")
    _refuse_nameless(result)
    for path, value in found:
        if value is None:
            where = repr(path_name(path))
            raise UsageError(
                f"the model returned a NoneType as {where}: leave that output out, or return an array for it"
            )
    names = flat_names([path for path, _ in found])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"the model returned two outputs called {twice!r}: give each a name of its own")
    return dict(zip(names, (value for _, value in found), strict=True))


def _refuse_nameless(result: object) -> None:
    """UsageError for a mapping, anywhere in `result`, with a key that is no string."""
    for key, child in children(result) if is_nested(result) else ():
        if isinstance(result, Mapping) and not isinstance(key, str):
            raise UsageError(f"the model returned a mapping with the key {key!r}: outputs are named by strings")
        _refuse_nameless(child)


Path = tuple[str | int, ...]


def leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every value in `value` that is no mapping, sequence or dataclass, with its path, which begins with `path`.

    Fields of a dataclass that are None are left out, for that is how an optional one says that it is not there.
    """
    if not is_nested(value):
        yield path, value
        return
    for key, child in children(value):
        yield from leaves(child, (*path, key))


def map_leaves(value: Any, path: Path, function: Callable[[Path, Any], Any]) -> Any:
    """`value` with `function(path, leaf)` in the place of every leaf; it comes back as dicts, tuples, lists and
    dataclasses."""
    if not is_nested(value):
        return function(path, value)
    if isinstance(value, Mapping):
        return {key: map_leaves(child, (*path, key), function) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        built = [map_leaves(child, (*path, index), function) for index, child in enumerate(value)]
        return built if isinstance(value, list) else tuple(built)
    return replace(value, **{key: map_leaves(child, (*path, key), function) for key, child in children(value)})


def is_nested(value: object) -> bool:
    """Whether `value` holds others, each under a name or a number."""
    return isinstance(value, (Mapping, tuple, list)) or (is_dataclass(value) and not isinstance(value, type))


def children(value: Any) -> Iterator[tuple[Any, Any]]:
    """What `value`, a mapping, sequence or dataclass, holds, by name or number; no fields that are None."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    else:
        named = ((field.name, getattr(value, field.name)) for field in fields(value))
        yield from ((name, child) for name, child in named if child is not None)


def path_name(path: Path) -> str:
    """The name that tells all of `path`: "batch.ids", "state_0"."""
    head, *rest = map(str, path)
    return head + "".join(
        f"_{part}" if isinstance(key, int) else f".{part}" for key, part in zip(path[1:], rest, strict=True)
    )


def flat_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The name of each path: its last key ("ids"), where no other path ends in that, else all of it ("batch.ids").

    The place in a sequence is appended to the key that holds the sequence: "state_0", "state_1".
    """
    short = [path_name(_last_key(path)) for path in paths]
    clashing = Counter(short)
    return tuple(path_name(path) if clashing[last] > 1 else last for path, last in zip(paths, short, strict=True))


def split_name(name: str) -> Path | None:
    """The path that a whole name tells: ("batch", "ids") for "batch.ids"; None for one that tells none."""
    path: list[str | int] = []
    for part in name.split("."):
        key, *places = re.split(r"_(?=\d+(?:_\d+)*$)", part, maxsplit=1)
        path += [key, *(int(place) for places_ in places for place in places_.split("_"))]
    return tuple(path) if len(path) > 1 and all(path[:1]) else None


def _last_key(path: Path) -> Path:
    """The end of `path` from its last key on: ("states", 0) of ("batch", "states", 0)."""
    last = max((place for place, key in enumerate(path) if not isinstance(key, int)), default=0)
    return path[last:]
