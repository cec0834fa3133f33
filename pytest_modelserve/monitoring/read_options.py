"""Options of reading data, which a profile keeps, and the kinds that they give columns."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column, Kind, as_column
from pytest_modelserve.settings import is_redacted, shown_value

LeadingZeros = Literal["number", "text"]
MOSTLY_NUMBERS = 0.95
"""A column of text with at least this proportion of numbers is not profiled as text, unless `types` says so."""


@dataclass(frozen=True)
class ReadOptions:
    """How data are read: columns left out, declared types, and the format of numbers and nulls in text.

    `separator` is None if it was not given: CSV files then have commas. `thousands` is "" for numbers without one.
    `only` are the columns that one comparison reads, None for all; profiles do not store it.
    """

    exclude: tuple[str, ...] = ()
    types: Mapping[str, Kind] = field(default_factory=dict, hash=False)
    separator: str | None = None
    decimal: str = "."
    thousands: str = ""
    null_values: tuple[str, ...] = ()
    leading_zeros: LeadingZeros = "number"
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.types, Mapping):
            raise UsageError(f"types must map names of columns to kinds; got {self.types!r}")
        for column, kind in self.types.items():
            if kind not in get_args(Kind):
                raise UsageError(f"types: column {column!r}: {unknown_choice('kind', kind, get_args(Kind))}")
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise UsageError(f"separator must be one character (';', for example); got {self.separator!r}")
        if self.decimal not in (".", ","):
            raise UsageError(f"decimal must be '.' or ','; got {self.decimal!r}")
        if self.thousands and (len(self.thousands) != 1 or self.thousands in f"+-{self.decimal}" + "0123456789eE"):
            raise UsageError(
                f"thousands must be one character that no number has and that differs from decimal; got "
                f"{self.thousands!r}"
            )
        if self.leading_zeros not in get_args(LeadingZeros):
            raise UsageError(unknown_choice("leading_zeros", self.leading_zeros, get_args(LeadingZeros)))

    def content(self) -> dict[str, Any]:
        """Return all options but `only` as JSON builtins."""
        stored = {**asdict(self), "exclude": list(self.exclude), "null_values": list(self.null_values)}
        del stored["only"]
        return stored

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> ReadOptions:
        """Return the options that `content` was made of."""
        return cls(**{**data, "exclude": tuple(data["exclude"]), "null_values": tuple(data["null_values"])})

    def reads(self, column: str) -> bool:
        """Return whether the column `column` is read."""
        return column not in self.exclude and (self.only is None or column in self.only)

    @property
    def plain_numbers(self) -> bool:
        """Whether numbers are written as CSV parsers expect them."""
        return self.decimal == "." and not self.thousands and self.leading_zeros == "number"

    @cached_property
    def whole_pattern(self) -> str:
        """A regular expression of whole numbers in text, for Python and for Polars."""
        first = r"\d" if self.leading_zeros == "number" else "[1-9]"
        grouped = rf"|{first}\d{{0,2}}(?:{re.escape(self.thousands)}\d{{3}})+" if self.thousands else ""
        return rf"(?:{first}\d*|0{grouped})"

    @cached_property
    def number_pattern(self) -> str:
        """A regular expression of numbers in text, for Python and for Polars."""
        point = re.escape(self.decimal)
        return (
            rf"[+-]?(?:{self.whole_pattern}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
            r"|[+-]?(?i:inf(?:inity)?)|(?i:nan)"
        )

    def number(self, text: str) -> int | float | None:
        """Return the number that `text` is, or None."""
        text = text.strip()
        if not self._number.fullmatch(text):
            return None
        plain = text.replace(self.thousands, "") if self.thousands else text
        try:
            return int(plain)
        except ValueError:
            return float(plain.replace(self.decimal, "."))

    @cached_property
    def _number(self) -> re.Pattern[str]:
        return re.compile(self.number_pattern)


def names_of(given: Collection[str], argument: str) -> tuple[str, ...]:
    """Return a collection of texts as a tuple; UsageError for anything else."""
    if isinstance(given, str) or not all(isinstance(item, str) for item in given):
        raise UsageError(f"{argument} must be a collection of texts; got {given!r}: pass ({given!r},)")
    return tuple(given)


# Conversion of columns to the kinds that a user or a profile declares.

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def converted(column: Column, kind: Kind | None, options: ReadOptions) -> Column:
    """Return the column as one of this kind, if there is one: text becomes numbers, numbers become text.

    Raises InputError, naming the row and the value, if a value is none of this kind.
    """
    if kind is None or column.kind is None or column.source is not None or column.error:
        return column
    if kind == column.kind:
        return replace(column, declared=True)
    if kind == "category":
        exact = column.values if column.exact is None else column.exact
        null = np.zeros(len(exact), dtype=np.bool_) if column.values.dtype.kind != "f" else np.isnan(column.values)
        texts = np.array([None if gone else str(value) for value, gone in zip(exact.tolist(), null, strict=True)])
        return Column(column.name, kind, texts.astype(object), declared=True)
    if column.kind == "category":
        return _parsed(column, kind, options)
    if {kind, column.kind} <= {"float", "integer"}:
        invalid = np.flatnonzero(np.isfinite(column.values) & (column.values != np.floor(column.values)))
        if kind == "float" or not invalid.size:
            return replace(column, kind=kind)
    elif kind in ("float", "integer") and column.kind == "boolean":
        return Column(column.name, kind, column.values.astype(np.float64))
    elif kind == "boolean":
        values = column.values
        invalid = np.flatnonzero(~np.isnan(values) & (values != 0) & (values != 1))
        if not invalid.size:
            return replace(column, kind=kind)
    else:
        invalid = np.arange(len(column.values))
    raise _misfit(column, int(invalid[0]), len(invalid), kind)


def _parsed(column: Column, kind: Kind, options: ReadOptions) -> Column:
    parse: dict[Kind, Callable[[str], Any]] = {
        "float": options.number,
        "integer": lambda text: _whole(options.number(text)),
        "boolean": lambda text: _TRUTH.get(text.strip().lower()),
        "datetime": _time,
    }
    texts = column.values.tolist()
    values = {text: parse[kind](text) for text in set(texts) if text is not None}
    invalid = [row for row, text in enumerate(texts) if text is not None and values[text] is None]
    if invalid:
        raise _misfit(column, invalid[0], len(invalid), kind)
    found = as_column(column.name, np.array([None if text is None else values[text] for text in texts], dtype=object))
    return found if found.kind is None else replace(found, kind=kind)


def _whole(number: float | None) -> float | None:
    return number if isinstance(number, int) or number is None or number.is_integer() or number != number else None


def _time(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _misfit(column: Column, row: int, rows: int, kind: Kind) -> InputError:
    value = shown_value(column.name, f"{column.values[row : row + 1].tolist()[0]!r:.60}")
    return InputError(
        f"column {column.name!r} holds {value} in row {row} ({rows:,} of {len(column.values):,} "
        f"rows), expected {KIND_NAMES[kind]}"
    )


# Text that is nearly all numbers.

_FORMATS: tuple[tuple[str, str], ...] = (
    (r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", "pass thousands=','"),
    (r"[+-]?\d{1,3}(?:\.\d{3})+,\d+", "pass decimal=',' and thousands='.'"),
    (r"[+-]?\d{1,3}(?: \d{3})+(?:[.,]\d+)?", "pass thousands=' ', and decimal=',' if it has a comma"),
    (r"[+-]?\d{1,3}(?:'\d{3})+(?:\.\d+)?", 'pass thousands="\'"'),
    (r"[+-]?\d*,\d+", "pass decimal=','"),
    (r"[+-]?[$€£¥]?\s?[+-]?\d[\d.,]*\s?[%$€£¥]", "remove the sign"),
    (r"[+-]?[$€£¥]\s?[+-]?\d[\d.,]*", "remove the sign"),
)
_SAMPLE_SIZE = 200
"""Texts that are looked at first, so that a column of names costs nothing."""


def text_of_numbers(counts: Mapping[str, int], options: ReadOptions) -> tuple[str, str] | None:
    """Return a text and what to do if nearly all rows of these texts are numbers; otherwise None.

    The text is the one that prevents the column from being numbers: a marker such as "NA", or a foreign format.
    """
    likely = [text for text, _ in zip(counts, range(_SAMPLE_SIZE), strict=False)]
    if sum(_is_nearly_numeric(text, options) for text in likely) < len(likely) / 2:
        return None
    zeros = re.compile(r"[+-]?0\d+")
    if options.leading_zeros == "text" and any(zeros.match(text.strip()) for text in counts):
        return None
    other = {text: rows for text, rows in counts.items() if not _is_nearly_numeric(text, options)}
    if sum(other.values()) > (1 - MOSTLY_NUMBERS) * sum(counts.values()):
        return None
    if other:
        text = max(other, key=lambda text: other[text])
        return text, f"pass null_values=({text!r},) if it means a missing value, or repair it"
    for text in counts:
        if options.number(text) is None:
            return text, _remedy(text)
    return next(iter(counts)), "convert them"


def describe_text_of_numbers(column: str, where: str, text: str, remedy: str) -> str:
    """Return the message for a column of text that is nearly all numbers."""
    if is_redacted(column):
        remedy = remedy.replace(repr(text), "...")
    return (
        f"column {column!r} is text, but nearly all of it are numbers; it holds "
        f"{shown_value(column, f'{text!r:.60}')}{where}: {remedy}, or pass "
        f"types={{{column!r}: 'float'}} for numbers, types={{{column!r}: 'category'}} for text, or exclude it"
    )


def _is_nearly_numeric(text: str, options: ReadOptions) -> bool:
    return options.number(text) is not None or _remedy(text) != ""


def _remedy(text: str) -> str:
    return next((remedy for pattern, remedy in _FORMATS if re.fullmatch(pattern, text.strip())), "")
