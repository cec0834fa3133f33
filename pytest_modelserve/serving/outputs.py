"""Names for what a model returns that has none of its own: a torch module's or a callable's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_modelserve.errors import UsageError


def named_outputs(result: object) -> dict[str, Any]:
    """What a model returned, by name: a mapping's own keys, "output" for a single value, "output_0", "output_1" and so
    on for a tuple or list.

    The exporter names an artifact's outputs by the same rule, so that both sides of a comparison agree. Values are not
    looked at, except that nesting is refused: UsageError for it, for None, for an empty result and for names that are
    not strings.
    """
    if result is None:
        raise UsageError("the model returned None: it has to return its outputs")
    if isinstance(result, Mapping):
        outputs = dict(result)
    elif isinstance(result, (tuple, list)):
        outputs = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        outputs = {"output": result}
    if not outputs:
        raise UsageError(f"the model returned an empty {type(result).__name__}: it has to return its outputs")
    for name, value in outputs.items():
        if not isinstance(name, str):
            raise UsageError(f"the model returned a mapping with the key {name!r}: outputs are named by strings")
        if value is None or isinstance(value, (Mapping, tuple, list)):
            raise UsageError(
                f"the model returned a {type(value).__name__} as {name!r}: return every output as one array or tensor "
                "in a flat mapping or tuple"
            )
    return outputs
