"""A user's function from rows to rows, drawn from a seed or not, and held to what it may change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError

Transform = Callable[..., Any]
"""`transform(rows)` or `transform(rows, rng)`; rows as they were given, an array or a mapping, and the same back."""


def takes_generator(transform: Transform) -> bool:
    """Whether a function is given a generator beside the rows; UsageError for what takes neither one nor two."""
    if not callable(transform):
        raise UsageError(f"a transformation is a function of rows, not a {type(transform).__name__}")
    try:
        signature = inspect.signature(transform)
    except ValueError:  # numpy's own functions have none
        return False
    for count in (2, 1):
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return count == 2 and not _second_is_an_option(signature)
    raise UsageError("a transformation is a function of rows, or of rows and a generator: transform(rows, rng)")


def transformed(transform: Transform, rows: Any, rng: np.random.Generator | None) -> Any:
    """What the function makes of (copies of) rows; InputError for other names, numbers of rows or dtypes."""
    given = {name: np.array(array) for name, array in rows.items()} if isinstance(rows, Mapping) else np.array(rows)
    made = transform(given) if rng is None else transform(given, rng)
    if isinstance(rows, Mapping) != isinstance(made, Mapping):
        raise InputError(f"the transformation gives a {type(made).__name__} for a {type(rows).__name__} of rows")
    if not isinstance(rows, Mapping):
        _check("the rows", rows, made)
        return made
    if set(made) != set(rows):
        names = ", ".join(made) or "none"
        raise InputError(f"the transformation gives the inputs {names} for {', '.join(rows)}")
    for name, array in rows.items():
        _check(f"input {name!r}", array, made[name])
    return {name: made[name] for name in rows}


def _second_is_an_option(signature: inspect.Signature) -> bool:
    """`def blur(rows, sigma=1.0)` takes no generator, and `def noise(rows, rng=None)` does."""
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or parameters[1].kind is inspect.Parameter.VAR_POSITIONAL:
        return False
    return parameters[1].default is not inspect.Parameter.empty and parameters[1].name != "rng"


def _check(what: str, before: NDArray[Any], after: object) -> None:
    if not isinstance(after, np.ndarray):
        raise InputError(f"the transformation gives {what} as a {type(after).__name__}, not as a numpy array")
    if after.shape[:1] != before.shape[:1]:
        raise InputError(f"the transformation gives {what} the shape {list(after.shape)}: it has to keep every row")
    if after.dtype != before.dtype:
        raise InputError(
            f"the transformation gives {what} as {after.dtype.name}: convert them back to {before.dtype.name}"
        )
