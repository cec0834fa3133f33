"""Names for what a model returns that has none of its own: a torch module's or a callable's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_modelserve.errors import UsageError
from pytest_modelserve.serving.leaves import children, flat_names, is_nest, leaves, whole_name

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
    rooted = isinstance(result, (tuple, list)) or not is_nest(result)
    found = list(leaves(result, (_SINGLE,) if rooted else ()))
    if not found:
        raise UsageError(f"the model returned an empty {type(result).__name__}: it has to return its outputs")
    _refuse_nameless(result)
    for path, value in found:
        if value is None:
            where = repr(whole_name(path))
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
    for key, child in children(result) if is_nest(result) else ():
        if isinstance(result, Mapping) and not isinstance(key, str):
            raise UsageError(f"the model returned a mapping with the key {key!r}: outputs are named by strings")
        _refuse_nameless(child)
