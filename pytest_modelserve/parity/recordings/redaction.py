"""Redaction: inputs that saved requests must not hold, left out or hashed with the project key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve import settings
from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.serving import Inputs

Redact = Collection[str] | Mapping[str, str]
"""Names of inputs to leave out, or "leave out" or "hash" by name."""
_COLUMN = re.compile(r"(?P<input>.*)\[(?P<column>\d+)\]", re.DOTALL)
_UNNAMED = "input"
"""What a single array without a name is called."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """The inputs to leave out or to hash: "leave out" or "hash" by name, pattern ("id*") or column ("x[3]")."""

    rules: Mapping[str, str] = field(default_factory=dict)
    required: Collection[str] = ()
    """Rules that must name an input: a misspelled one would leave a secret in the file."""

    @classmethod
    def of(cls, redact: Redact = ()) -> Redaction:
        """Return the redaction of an argument `redact` and of the setting `modelserve_redact`; UsageError as there."""
        if isinstance(redact, str):
            raise UsageError(f"redact must be a collection of names, or a mapping; got a text: pass ({redact!r},)")
        if not all(isinstance(name, str) for name in redact):
            raise UsageError(f"redact must hold names of inputs, got {list(redact)!r}")
        lines = [f"{name}: {how}" for name, how in redact.items()] if isinstance(redact, Mapping) else list(redact)
        rules = settings.redact_rules(lines, "redact")
        return cls({**settings.REDACT, **rules}, tuple(rules))

    def exchanges(self, exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
        """Yield the exchanges with redacted inputs; UsageError for one of which no input is left."""
        for exchange in exchanges:
            yield self.exchange(exchange) if self.rules else exchange

    def exchange(self, exchange: Exchange) -> Exchange:
        """Return one exchange with redacted inputs."""
        self._check_names(exchange.inputs, exchange.redacted)
        inputs, redacted = self.inputs(exchange.inputs, done=exchange.redacted)
        return Exchange(inputs, exchange.outputs, {**exchange.redacted, **redacted})

    def inputs(self, inputs: Inputs, *, done: Collection[str] = ()) -> tuple[Inputs, dict[str, str]]:
        """Return the inputs without what is redacted, and how each part was; `done` are redacted already."""
        if not self.rules:
            return inputs, {}
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        kept: dict[str, NDArray[Any]] = {}
        redacted: dict[str, str] = {}
        for name, array in named.items():
            how = "" if (name or _UNNAMED) in done else self._rule(name or _UNNAMED)
            if how == "leave out":
                redacted[name or _UNNAMED] = how
                continue
            if how == "hash":
                redacted[name or _UNNAMED] = how
                kept[name] = hashed(array)
                continue
            kept[name] = array
            for column in self._columns(name, array):
                kept[name] = _without_column(kept[name], column)
                redacted[f"{name or _UNNAMED}[{column}]"] = "leave out"
        if not kept:
            raise UsageError(f"redact leaves no input: {', '.join(redacted)}")
        return (kept if isinstance(inputs, Mapping) else kept[""]), redacted

    def hides(self, inputs: Iterable[str], columns: Iterable[str] = ()) -> bool:
        """Return whether any of these inputs, or of the names of their columns, is redacted."""
        names = {name or _UNNAMED for name in inputs}
        return any(
            self._rule(name) or ((match := _COLUMN.fullmatch(rule)) and (match["input"] or _UNNAMED) == name)
            for name in names
            for rule in self.rules
        ) or any(map(self._rule, columns))

    def _check_names(self, inputs: Inputs, done: Collection[str]) -> None:
        known = [name or _UNNAMED for name in inputs] if isinstance(inputs, Mapping) else [_UNNAMED]
        known += [name for name in done if name not in known]
        for rule in self.required:
            match = _COLUMN.fullmatch(rule)
            if not any(settings.names(rule, name) or (match and match["input"] == name) for name in known):
                raise UsageError(unknown_choice("input of redact", rule, known))

    def _rule(self, name: str) -> str:
        return next((how for rule, how in self.rules.items() if settings.names(rule, name)), "")

    def _columns(self, name: str, array: NDArray[Any]) -> list[int]:
        found = []
        for rule in self.rules:
            match = _COLUMN.fullmatch(rule)
            if match and (match["input"] or _UNNAMED) == (name or _UNNAMED):
                column = int(match["column"])
                if np.ndim(array) < 2 or column >= array.shape[-1]:
                    raise UsageError(f"redact: input {name!r} has shape {np.shape(array)} and no column {column}")
                found.append(column)
        return found


def check_complete(redacted: Mapping[str, str], source: str) -> None:
    """Raise InputError, with what is missing, if saved inputs were redacted and therefore cannot be replayed."""
    if redacted:
        words = {"hash": "hashed", "leave out": "left out"}
        parts = ", ".join(f"{name!r} ({words.get(how, how)})" for name, how in redacted.items())
        raise InputError(
            f"{source} was saved without {parts} (redact): it cannot be replayed from the file; give complete inputs"
        )


def hashed(array: NDArray[Any]) -> NDArray[Any]:
    """Return 16 hexadecimal digits for each value, the same for the same value; UsageError without a project key."""
    key = settings.project_key()
    if key is None:
        raise UsageError(
            f"redact: hashes need a secret in {settings.PROJECT_KEY_VARIABLE}, or every guess could be tried: set it, "
            "or leave the input out"
        )
    values = [
        hashlib.blake2b(repr(value).encode(), digest_size=8, key=key, person=b"redacted value").hexdigest()
        for value in np.ravel(array).tolist()
    ]
    return np.array(values, dtype=object).reshape(np.shape(array))


def _without_column(array: NDArray[Any], column: int) -> NDArray[Any]:
    """Return the array with a column (…, column) of NaN, 0 or empty text."""
    copied = np.array(array)
    kind = copied.dtype.kind
    copied[..., column] = "" if kind in "OUT" else np.nan if kind == "f" else 0
    return copied
