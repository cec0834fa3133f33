"""Whether a question about performance can be meant, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pytest_modelserve.errors import InputError, UsageError


def check_positive(name: str, value: float, what: str) -> None:
    """UsageError unless `value` is a finite number above 0; `what` says what it counts ("milliseconds")."""
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} is a positive number of {what}, not {value}")


def check_quantile(quantile: float) -> None:
    """UsageError unless `quantile` lies between 0 and 1."""
    if not 0 < quantile < 1:
        raise UsageError(f"quantile lies between 0 and 1 (0.95, say), not {quantile}")


def check_rows(inputs: object) -> None:
    """InputError for an input without rows: what such a call costs is not what the model costs."""
    for name, array in inputs.items() if isinstance(inputs, Mapping) else (("", inputs),):
        if isinstance(array, np.ndarray) and array.size == 0:
            told = f"input {name!r}" if name else "the input"
            raise InputError(f"{told} of shape {array.shape} holds nothing to time: give the batch that is deployed")
