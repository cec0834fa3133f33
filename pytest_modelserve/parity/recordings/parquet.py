"""Recordings as Parquet files, the usual format of logs. Needs Polars (extra `data`).

There is one row for each row and a column `inputs/x` or `outputs/y` for each array. A column holds numbers, text, or
arrays of one shape. The column `request` numbers the request of each row; a file without it is replayed in requests of
a given number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._files import new_file
from pytest_modelserve.errors import ArtifactError, UsageError, require, unknown_choice
from pytest_modelserve.metrics import dtype_name
from pytest_modelserve.parity.recordings.exchange import Exchange, StoredExchanges
from pytest_modelserve.parity.recordings.redaction import Redaction

if TYPE_CHECKING:
    import polars

    from pytest_modelserve.artifacts import Signature

Columns = Mapping[str, str | Sequence[str]]
"""The columns of each array: one, or several that become an array (rows, columns)."""

_REQUEST = "request"
_REDACTED = "redacted/"
"""The beginning of the name of a column that says how an input was redacted."""


def write_parquet(path: Path, exchanges: Iterable[Exchange]) -> None:
    """Write `exchanges`, collected in memory, in one atomic step.

    UsageError for arrays without one row for each row of the request, and for dtypes that Parquet cannot store.
    """
    pl = _import_polars(path)
    frames = [_frame(pl, index, exchange) for index, exchange in enumerate(Redaction.of().exchanges(exchanges))]
    try:
        whole = pl.concat(frames)
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"{path}: requests differ in shapes or names and do not fit one table; record them as .npz"
        ) from error
    with new_file(path) as temporary:
        whole.write_parquet(temporary)


def _frame(pl: Any, index: int, exchange: Exchange) -> polars.DataFrame:
    inputs = exchange.inputs if isinstance(exchange.inputs, Mapping) else {"": exchange.inputs}
    arrays = {f"inputs/{name}".rstrip("/"): array for name, array in inputs.items()}
    arrays |= {f"outputs/{name}": array for name, array in exchange.outputs.items()}
    rows = max((len(array) for array in inputs.values() if array.ndim), default=0)
    columns = [pl.Series(_REQUEST, np.full(rows, index, np.uint32))]
    for name, array in arrays.items():
        if array.shape[:1] != (rows,):
            raise UsageError(
                f"{name} has shape {list(array.shape)} in a request of {rows} rows: Parquet stores one value "
                "for each row; record it as .npz"
            )
        columns.append(_series(pl, name, array))
    for name, how in exchange.redacted.items():
        columns.append(pl.Series(f"{_REDACTED}{name}", [how] * rows))
    frame: polars.DataFrame = pl.DataFrame(columns)
    return frame


def _series(pl: Any, name: str, array: NDArray[Any]) -> polars.Series:
    column: polars.Series
    if array.dtype.kind in "OUT":
        kind = pl.String if array.ndim == 1 else pl.Array(pl.String, array.shape[1:])
        column = pl.Series(name, array.tolist(), dtype=kind)
    elif array.dtype.isbuiltin != 1:
        raise UsageError(f"{name} has dtype {array.dtype.name}, which Parquet cannot store; record it as .npz")
    else:
        column = pl.Series(name, np.ascontiguousarray(array))
    return column


@dataclass(frozen=True, slots=True)
class ParquetExchanges(StoredExchanges):
    """The exchanges of a Parquet file; `slices` holds the first row and the number of rows of each."""

    path: Path
    inputs: Columns
    outputs: Columns
    slices: tuple[tuple[int, int], ...]
    dtypes: Mapping[str, str]
    redacted: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        inputs: Columns | None,
        outputs: Columns | None,
        rows: int | None,
        signature: Signature | None,
    ) -> ParquetExchanges:
        """Open the file at `path`; ArtifactError if it is damaged or has no such column."""
        pl = _import_polars(path)
        try:
            names = pl.read_parquet_schema(path)
            height = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
            requests = pl.read_parquet(path, columns=[_REQUEST], glob=False)[_REQUEST] if _REQUEST in names else None
            marks = [name for name in names if name.startswith(_REDACTED)]
            how = pl.read_parquet(path, columns=marks, n_rows=1, glob=False).to_dicts() if marks else []
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _damaged(path, error) from error
        return cls(
            path,
            inputs=_columns(path, "inputs", inputs, names),
            outputs=_columns(path, "outputs", outputs, names),
            slices=_slices(height, rows) if requests is None or rows is not None else _runs(requests.to_numpy()),
            dtypes={} if signature is None else {s.name: s.dtype for s in (*signature.inputs, *signature.outputs)},
            redacted={name.removeprefix(_REDACTED): value for name, value in (how[0] if how else {}).items()},
        )

    def __len__(self) -> int:
        return len(self.slices)

    def read(self, index: int) -> Exchange:
        """Return the exchange at `index`."""
        pl = _import_polars(self.path)
        wanted = {name for columns in (*self.inputs.values(), *self.outputs.values()) for name in _several(columns)}
        try:
            rows = pl.scan_parquet(self.path, glob=False).select(sorted(wanted)).slice(*self.slices[index]).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _damaged(self.path, error) from error
        inputs = {name: self._array(rows, name, columns) for name, columns in self.inputs.items()}
        outputs = {name: self._array(rows, name, columns) for name, columns in self.outputs.items()}
        return Exchange(inputs[""] if list(inputs) == [""] else inputs, outputs, self.redacted)

    def _array(self, rows: polars.DataFrame, name: str, columns: str | Sequence[str]) -> NDArray[Any]:
        arrays = [_numbers(self.path, rows[column]) for column in _several(columns)]
        array = arrays[0] if isinstance(columns, str) else np.stack(arrays, axis=1)
        dtype = self.dtypes.get(name)
        return array if dtype is None or dtype == dtype_name(array.dtype) else array.astype(dtype)


def _import_polars(path: Path) -> Any:
    return require("polars", f"the recording {path}", extra="data")


def _columns(path: Path, side: str, given: Columns | None, names: Iterable[str]) -> Columns:
    """Return the columns of one side: those given, else those named after it."""
    columns = given or {name.partition("/")[2]: name for name in names if name.partition("/")[0] == side}
    if not columns:
        raise ArtifactError(
            f"cannot read the recording {path}: no column is named {side}/...; give the columns by {side}="
        )
    for column in (one for several in columns.values() for one in _several(several)):
        if column not in names:
            raise ArtifactError(f"cannot read the recording {path}: {unknown_choice('column', column, names)}")
    return columns


def _several(columns: str | Sequence[str]) -> Sequence[str]:
    return (columns,) if isinstance(columns, str) else columns


def _numbers(path: Path, column: polars.Series) -> NDArray[Any]:
    if column.null_count():
        raise ArtifactError(
            f"cannot read the recording {path}: column {column.name!r} has {column.null_count()} nulls, which arrays "
            "cannot hold; fill or drop them"
        )
    array: NDArray[Any] = column.to_numpy()
    return array if array.flags.writeable else array.copy()


def _slices(height: int, rows: int | None) -> tuple[tuple[int, int], ...]:
    step = height if rows is None else rows
    return tuple((start, min(step, height - start)) for start in range(0, height, max(step, 1)))


def _runs(requests: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    """Return the first row and the length of each run of equal numbers."""
    starts = [0, *(np.flatnonzero(requests[1:] != requests[:-1]) + 1).tolist()] if len(requests) else []
    return tuple((start, end - start) for start, end in zip(starts, [*starts[1:], len(requests)], strict=True))


def _damaged(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"cannot read the recording {path}: it is truncated, damaged or no Parquet file ({str(error).splitlines()[0]})"
    )
