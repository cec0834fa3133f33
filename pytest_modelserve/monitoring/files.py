"""Columns of CSV and Parquet files, of folders and of Hive partitions, by Polars."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, MissingDependencyError, unknown_choice
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column, Kind, integer_column, unreadable
from pytest_modelserve.monitoring.frames import NoRowsError, frame_columns, index_names, read_names
from pytest_modelserve.monitoring.read_options import ReadOptions
from pytest_modelserve.progress import progress

if TYPE_CHECKING:
    import polars

Kinds = Mapping[str, Kind] | None
"""The kinds of a profile, or None when a profile is made."""

_SUFFIXES = (".csv", ".parquet")
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
"""Dates in ISO 8601, as logs write them; 03/04/2026 is ambiguous."""


def read_files(path: str | os.PathLike[str], options: ReadOptions, kinds: Kinds) -> list[Column]:
    """Read a .csv file with a header, a .parquet file, all files of a folder or of a pattern, as one data set.

    Empty fields of a CSV file are null, and a column of ISO dates only holds dates. A part without rows adds nothing.
    Folders called "key=value" add a column. Raises NoRowsError if there are no rows.
    """
    paths = matching_files(path)
    files = progress(paths, "reading files", total=len(paths)) if len(paths) > 1 else paths
    parts = [(file, _read_file(file, options, kinds)) for file in files]
    full = [(file, part) for file, part in parts if part is not None]
    if not full:
        raise NoRowsError(f"{path}: there are no rows")
    columns = _concatenated([(str(file), part) for file, part in full], profiling=kinds is None)
    rows = [len(part[0].values) if part else 0 for _, part in full]
    return [*columns, *_partition_columns([file for file, _ in full], rows, columns, options, kinds)]


def matching_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that `path` is, contains or matches, sorted; InputError if none matches, or of another type.

    The name of an existing file is that file, whatever characters it has. Files of a folder whose names start with "_"
    or ".", and other types, are left out, as other engines do.
    """
    if re.match(r"[a-z][a-z0-9+]+://", str(path)):
        raise InputError(f"{path} is not a local file: pass a query, such as polars.scan_parquet({str(path)!r})")
    found = [Path(path)]
    if not found[0].exists() and glob.has_magic(str(path)):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not found:
            raise InputError(f"no file matches {path}")
    files: list[Path] = []
    for file in found:
        if file.is_dir():
            files += _files_of(file)
        elif file.suffix.lower() not in _SUFFIXES:
            raise InputError(f"{file}: {unknown_choice('kind of file', file.suffix, _SUFFIXES)}")
        elif not file.is_file():
            raise InputError(f"{file} is not a file")
        else:
            files.append(file)
    return list(dict.fromkeys(files))


def _files_of(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and file.is_file()
        and not any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts)
    )


def _read_file(path: Path, options: ReadOptions, kinds: Kinds) -> list[Column] | None:
    """Read one file; None if it has no rows."""
    try:
        import polars
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading {path} needs polars, which is not installed: pip install 'pytest-modelserve[data]'"
        ) from error
    is_csv = path.suffix.lower() == ".csv"
    if is_csv and not path.stat().st_size:
        return None
    try:
        frame = _read_csv(path, options, kinds) if is_csv else _read_parquet(path)
    except (polars.exceptions.PolarsError, UnicodeDecodeError, csv.Error, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as {'CSV' if is_csv else 'Parquet'}: {reason}") from error
    if not frame.height and frame.width:
        return None
    if kinds is None:
        read_names([*frame.columns, *_partitions([path])], options, profiling=True)
    columns = frame_columns(frame, options, profiling=kinds is None, source=str(path), kinds=kinds if is_csv else None)
    assert columns is not None
    if not columns and not frame.width:
        raise InputError(f"{path}: there are no columns")
    return columns


def _read_parquet(path: Path) -> polars.DataFrame:
    """Read a Parquet file without the index that pandas stored."""
    import polars

    frame = polars.read_parquet(path, glob=False, hive_partitioning=False)
    return frame.drop(index_names(polars.read_parquet_metadata(path).get("pandas")), strict=False)


# CSV files: Polars infers the types of plain numbers, and text may be numbers in another format.


def _read_csv(path: Path, options: ReadOptions, kinds: Kinds) -> polars.DataFrame:
    import polars

    names = _header(path, options)
    declared = {**(kinds or {}), **options.types}
    # The type depends on the whole column: a fraction may follow a million integers.
    frame = polars.read_csv(
        path,
        separator=options.separator or ",",
        null_values=list(options.null_values) or None,
        infer_schema=options.plain_numbers,
        infer_schema_length=None,
        schema_overrides={name: polars.String for name in names if declared.get(name) == "category"},
        glob=False,
    )
    frame = frame.head(frame.height - _blank_lines(path))
    if frame.width > 1 and frame.height and frame.to_series(-1).null_count():
        _check_lines(path, frame, options)
    return frame.with_columns(
        _typed(series, declared.get(series.name), options) for series in frame if series.dtype == polars.String
    )


def _header(path: Path, options: ReadOptions) -> list[str]:
    """Return the names in the header; InputError for repeated ones, which Polars would rename, and one long name."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=options.separator or ","), [])
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"{path}: {times} columns are called {name!r}: give each its own name")
    if options.separator is None and len(names) == 1:
        for separator in ";\t|":
            if separator in names[0]:
                raise InputError(
                    f"{path}: the header is one column {names[0]!r:.80}: profile with separator={separator!r}, or "
                    "separator=',' if that is its name"
                )
    return names


def _blank_lines(path: Path) -> int:
    """Return the number of blank lines at the end, which Polars reads as rows of nulls."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 4096, 0))
        data = file.read()
    tail = data[len(data.rstrip(b"\r\n")) :]
    return max((tail.count(b"\n") or tail.count(b"\r")) - 1, 0)


def _check_lines(path: Path, frame: polars.DataFrame, options: ReadOptions) -> None:
    """Refuse a line with fewer fields than the header, which Polars would fill with nulls.

    Only a file with a null in the last column can have one. A file without quotes is complete if it has as many
    separators as its rows need; counting them costs less than reading the file did.
    """
    separator = options.separator or ","
    data = path.read_bytes()
    if b'"' not in data and data.count(separator.encode()) == (frame.width - 1) * (frame.height + 1):
        return
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        next(reader)
        for _, fields in zip(range(frame.height), reader, strict=False):
            if len(fields) < frame.width:
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(fields)} fields, expected {frame.width} as in the "
                    "header: write an empty field as nothing between two commas"
                )


def _typed(series: polars.Series, kind: Kind | None, options: ReadOptions) -> polars.Series:
    """Return numbers, dates or booleans if all values of a text column are, otherwise the column unchanged.

    A column of another `kind` is not tried.
    """
    import polars

    if kind == "category" or series.null_count() == len(series):
        return series
    plain = series.str.strip_chars()
    if kind in (None, "float", "integer") and plain.str.contains(f"^(?:{options.number_pattern})$").all(
        ignore_nulls=True
    ):
        return _numbers(plain, options)
    if kind in (None, "boolean") and plain.str.to_lowercase().is_in(["true", "false"]).all(ignore_nulls=True):
        return plain.str.to_lowercase() == "true"
    if kind in (None, "datetime") and plain.str.contains(_ISO).all(ignore_nulls=True):
        try:
            return plain.str.to_datetime(time_unit="us")
        except polars.exceptions.PolarsError:  # 2026-02-30, or forms that differ from row to row
            return series
    return series


def _numbers(texts: polars.Series, options: ReadOptions) -> polars.Series:
    import polars

    if options.thousands:
        texts = texts.str.replace_all(options.thousands, "", literal=True)
    for dtype in (polars.Int64, polars.UInt64):
        whole = texts.cast(dtype, strict=False)
        if whole.null_count() == texts.null_count():
            return whole
    return texts.str.replace(options.decimal, ".", literal=True).cast(polars.Float64)


# Hive partitions: folders called "key=value".

_PARTITION = re.compile(r"([^=]+)=(.*)")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def _partitions(paths: Sequence[Path]) -> dict[str, list[str | None]]:
    """Return the values of each partition key by file; None for null, and for a file without the key."""
    of_files = [
        {match[1]: match[2] for part in path.parent.parts if (match := _PARTITION.fullmatch(part))} for path in paths
    ]
    keys = dict.fromkeys(key for found in of_files for key in found)
    values = {key: [found.get(key) for found in of_files] for key in keys}
    return {
        key: [None if value in (None, _NULL_PARTITION) else unquote(str(value)) for value in found]
        for key, found in values.items()
    }


def _partition_columns(
    paths: Sequence[Path], rows: Sequence[int], columns: Sequence[Column], options: ReadOptions, kinds: Kinds
) -> list[Column]:
    import polars

    present = {column.source or column.name for column in columns}
    declared = {**(kinds or {}), **options.types}
    frame = polars.DataFrame(
        {
            key: _typed(polars.Series(key, values, dtype=polars.String), declared.get(key), options).gather(
                np.repeat(np.arange(len(paths)), rows)
            )
            for key, values in _partitions(paths).items()
            if key not in present
        }
    )
    if not frame.width:
        return []
    found = frame_columns(frame, options, profiling=kinds is None, source=str(paths[0].parent), kinds=kinds)
    assert found is not None
    return found


# Several files as one data set.


def _concatenated(parts: Sequence[tuple[str, list[Column]]], *, profiling: bool) -> list[Column]:
    """Concatenate the columns of all files, each with its name; those of one file are not copied.

    Raises InputError if a file has other columns, or a column of another kind. Integers and floats fit each other, and
    a column that is all null fits every kind. Unless `profiling`, a column of several kinds holds its error.
    """
    first_name, first = parts[0]
    if len(parts) == 1:
        return first
    found = [(name, {column.name: column for column in columns}) for name, columns in parts]
    wanted = {column.name for column in first}
    for name, columns in found[1:]:
        for missing in [column.name for column in first if column.name not in columns]:
            raise InputError(f"{name} has no column {missing!r}, but {first_name} has")
        for extra in [column for column in columns if column not in wanted]:
            raise InputError(f"{name} has a column {extra!r}, but {first_name} has not")
    concatenated = []
    for column in first:
        pieces = [(name, columns[column.name]) for name, columns in found]
        try:
            concatenated.append(_concatenated_column(pieces))
        except InputError as error:
            if profiling:
                raise
            concatenated.append(unreadable(column.name, sum(len(c.values) for _, c in pieces), str(error)))
    return concatenated


def _concatenated_column(parts: Sequence[tuple[str, Column]]) -> Column:
    first = parts[0][1]
    for name, column in parts:
        if column.error:
            return unreadable(first.name, sum(len(part.values) for _, part in parts), f"{name}: {column.error}")
    kind = _common_kind(first.name, [(name, column.kind) for name, column in parts if column.kind is not None])
    if kind == "integer" and (whole := _concatenated_integers([column for _, column in parts])) is not None:
        return integer_column(first.name, *whole)
    nulls = np.nan if kind != "category" else None
    values = [np.full(len(c.values), nulls) if c.kind is None else c.values for _, c in parts]
    declared = any(column.declared for _, column in parts)
    return Column(first.name, kind, np.concatenate(values), first.source, declared=declared)


def _concatenated_integers(parts: Sequence[Column]) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Return the integers of all parts and where they are null; None if no type of 64 bits holds all of them."""
    whole, null = [], []
    for part in parts:
        values = part.values if part.exact is None else part.exact
        null.append(np.isnan(part.values) if part.values.dtype.kind == "f" else np.zeros(len(values), dtype=np.bool_))
        if values.dtype.kind == "f":
            values = np.where(null[-1], 0, values)
            if np.abs(values).max(initial=0) >= 2**63:
                return None
            values = values.astype(np.int64)
        whole.append(values)
    low, high = min(int(v.min()) for v in whole if len(v)), max(int(v.max()) for v in whole if len(v))
    dtype = np.int64 if high < 2**63 else np.uint64 if low >= 0 else None
    if dtype is None:
        return None
    return np.concatenate([v.astype(dtype) for v in whole]), np.concatenate(null)


def _common_kind(column: str, known: Sequence[tuple[str, Kind]]) -> Kind | None:
    """Return the kind of a column with these kinds in the files so named; None if there are none."""
    kinds = {kind for _, kind in known}
    if not kinds:
        return None
    if kinds <= {"integer", "float"}:
        return "float" if "float" in kinds else "integer"
    name, kind = known[0]
    for other_name, other in known[1:]:
        if other != kind:
            raise InputError(
                f"column {column!r} holds {KIND_NAMES[kind]} in {name} and {KIND_NAMES[other]} in {other_name}"
            )
    return kind
