"""Keyed digests of rows: which rows stand in another data set, without storing its values."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.monitoring.columns import Column, is_length
from pytest_modelserve.monitoring.duplicates import number_keys

MAX_DIGESTS = 1 << 20
"""Digests that a profile keeps, the smallest: 8 MiB, and 11 MiB of JSON."""
_SCHEME = 1
"""How rows become digests; a profile of another scheme is refused."""
_CHUNK = 1 << 21
"""Values of rows in one piece: 16 MiB."""

Digests = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class RowDigests:
    """The different digests of the rows of a data set, ascending: all of them, or the `MAX_DIGESTS` smallest.

    A digest is 64 bits of BLAKE2b (RFC 7693) with a secret key, of a row's values in the order of the column names.
    Without the key nobody can test whether a row is among them. The smallest digests are a random sample of the
    different rows, in any order of rows and of merging (bottom-k sketch, Cohen and Kaplan 2007).

    `check` recognizes the key, `is_complete` says that no digest was left out.
    """

    columns: tuple[str, ...]
    check: str
    digests: Digests
    is_complete: bool

    @classmethod
    def of(cls, columns: Sequence[Column], key: str) -> RowDigests:
        """Return the digests of the rows of these columns (n,)."""
        digests = np.unique(row_digests(columns, key))
        names = tuple(sorted(column.name for column in columns))
        return cls(names, _check(key), digests[:MAX_DIGESTS], digests.size <= MAX_DIGESTS)

    def find(self, digests: Digests) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which digests (n,) are among these, and for which that is known, (n,) each."""
        places = np.minimum(np.searchsorted(self.digests, digests), self.digests.size - 1)
        known = np.ones(digests.size, dtype=np.bool_) if self.is_complete else digests <= self.digests[-1]
        return self.digests[places] == digests, known

    def has_key(self, key: str) -> bool:
        """Return whether the digests were made with this key."""
        return hmac.compare_digest(self.check, _check(key))

    def merged(self, other: RowDigests) -> RowDigests:
        """Return the digests of both data sets' rows; UsageError for another key or other columns."""
        if self.check != other.check or self.columns != other.columns:
            raise UsageError("row digests must have the same row_digest_key and columns to be merged")
        limits = [each.digests[-1] for each in (self, other) if not each.is_complete]
        digests = np.union1d(self.digests, other.digests)
        digests = digests[digests <= min(limits)] if limits else digests
        return RowDigests(self.columns, self.check, digests[:MAX_DIGESTS], not limits and digests.size <= MAX_DIGESTS)

    def content(self) -> dict[str, Any]:
        """Return everything as JSON builtins."""
        return {
            "scheme": _SCHEME,
            "columns": list(self.columns),
            "check": self.check,
            "is_complete": self.is_complete,
            "digests": base64.b64encode(self.digests.astype("<u8").tobytes()).decode(),
        }

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> RowDigests:
        """Return the digests that `content` made JSON of; InputError for another scheme."""
        if data["scheme"] != _SCHEME:
            raise InputError(
                f"row digests have scheme {data['scheme']!r}, and this release reads {_SCHEME}: profile the data again"
            )
        digests = np.frombuffer(base64.b64decode(data["digests"]), dtype="<u8").astype(np.uint64)
        return cls(tuple(data["columns"]), data["check"], digests, data["is_complete"])


def row_digests(columns: Sequence[Column], key: str) -> Digests:
    """Return the digest of each row, (n,): equal for equal values, whatever their dtype and the columns' order.

    Null equals null, 0 equals −0, and 3 equals 3.0. Takes about 1 µs a row and 10 ns a value.
    """
    secret = _secret(key)
    ordered = sorted(columns, key=lambda column: column.name)
    n = len(ordered[0].values)
    texts: dict[Any, int] = {None: 0}
    found = np.empty(n, dtype="<u8")
    step = max(_CHUNK // len(ordered), 1)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        values = np.stack([_keys(column, rows, secret, texts) for column in ordered], axis=1).astype("<u8")
        width, data = values.shape[1] * 8, values.tobytes()
        pieces = (
            hashlib.blake2b(data[at : at + width], digest_size=8, key=secret).digest()
            for at in range(0, len(data), width)
        )
        found[rows] = np.frombuffer(b"".join(pieces), dtype="<u8")
    return found.astype(np.uint64)


def read_from_data(columns: Sequence[Column]) -> list[Column]:
    """Return the columns without the lengths of texts, which follow from the texts."""
    return [column for column in columns if not is_length(column)]


def _keys(column: Column, rows: slice, secret: bytes, texts: dict[Any, int]) -> Digests:
    """Return 64 bits for each value of some rows, equal only for equal values."""
    values = column.values[rows]
    if values.dtype.kind != "O":
        return number_keys(values, None if column.exact is None else column.exact[rows])
    found = np.empty(len(values), dtype=np.uint64)
    for row, text in enumerate(values.tolist()):
        if text not in texts:
            digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=secret).digest()
            texts[text] = int.from_bytes(digest, "little")
        found[row] = texts[text]
    return found


def _secret(key: str) -> bytes:
    if not isinstance(key, str) or not key:
        raise UsageError("row_digest_key must be a text that is not empty")
    return hashlib.blake2b(key.encode(), digest_size=32, person=b"row digests").digest()


def _check(key: str) -> str:
    return hashlib.blake2b(b"", digest_size=16, key=_secret(key), person=b"key check").hexdigest()
