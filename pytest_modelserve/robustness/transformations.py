"""Checked calls of a user's function from rows to changed rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError

Transform = Callable[..., Any]
"""`transform(rows)` or `transform(rows, rng)`: an array or a mapping of arrays, and the same back."""


def takes_generator(transform: Transform) -> bool:
    """Return whether `transform` is called as `transform(rows, rng)`.

    A second parameter with a default counts only if it is called `rng`. Raises `UsageError` for what is not a function
    of one or two arguments.
    """
    if not callable(transform):
        raise UsageError(f"transform must be a function of rows, got a {type(transform).__name__}")
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
    raise UsageError("transform must be a function of rows, or of rows and a generator: transform(rows, rng)")


def transformed(transform: Transform, rows: Any, rng: np.random.Generator | None) -> Any:
    """Return `transform` of a copy of rows. Raises `InputError` for other names, numbers of rows or dtypes."""
    copy = {name: np.array(array) for name, array in rows.items()} if isinstance(rows, Mapping) else np.array(rows)
    result = transform(copy) if rng is None else transform(copy, rng)
    if isinstance(rows, Mapping) != isinstance(result, Mapping):
        raise InputError(f"transform must return the type of its rows, {type(rows).__name__}, got {_type(result)}")
    if not isinstance(rows, Mapping):
        _check("rows", rows, result)
        return result
    if set(result) != set(rows):
        raise InputError(f"transform must return the inputs {', '.join(rows)}, got {', '.join(result) or 'none'}")
    for name, array in rows.items():
        _check(f"input {name!r}", array, result[name])
    return {name: result[name] for name in rows}


def _second_is_an_option(signature: inspect.Signature) -> bool:
    """`def blur(rows, sigma=1.0)` takes no generator; `def noise(rows, rng=None)` does."""
    parameters = list(signature.parameters.values())
    if len(parameters) < 2 or parameters[1].kind is inspect.Parameter.VAR_POSITIONAL:
        return False
    return parameters[1].default is not inspect.Parameter.empty and parameters[1].name != "rng"


def _check(what: str, before: NDArray[Any], after: object) -> None:
    if not isinstance(after, np.ndarray):
        raise InputError(f"transform must return {what} as a numpy array, got {_type(after)}")
    if after.shape[:1] != before.shape[:1]:
        raise InputError(f"transform must return all {len(before)} rows, got {what} of shape {list(after.shape)}")
    if after.dtype != before.dtype:
        raise InputError(f"transform must return {what} as {before.dtype.name}, got {after.dtype.name}: convert back")


def _type(value: object) -> str:
    return type(value).__name__
