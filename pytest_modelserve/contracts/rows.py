"""Rows of a contract or a command line: columns of a data file as inputs of a model, labels and slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, unknown_choice
from pytest_modelserve.serving.conversion import cast_checked
from pytest_modelserve.serving.ready_outputs import read_columns

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Signature, TensorSpec

Chosen = Sequence[str] | Mapping[str, str | Sequence[str]] | None
"""The columns of a model with one input, in order; or those of each input by name; or None to find them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The columns of one file by name, each (n, ...), and the name of the file."""

    columns: Mapping[str, NDArray[Any]]
    source: str

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Read a .npy, .npz, .csv or .parquet file; lists of numbers in a column become an array (n, ...).

        Raises:
            ArtifactError: The file cannot be read.
            InputError: There are no rows, or columns of different lengths.
        """
        columns = {name: _stacked(values) for name, values in read_columns(path, what="the data").items()}
        lengths = {name: len(values) if values.ndim else 0 for name, values in columns.items()}
        if not columns or not min(lengths.values()):
            raise InputError(f"{path} has no rows")
        if len(set(lengths.values())) > 1:
            raise InputError(f"{path}: columns have different numbers of rows: {lengths}")
        return cls(columns, path.name)

    @property
    def n(self) -> int:
        """The number of rows, at least 1."""
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> NDArray[Any]:
        """Return one column; InputError with the nearest name if there is none."""
        if name not in self.columns:
            raise InputError(f"{self.source}: {unknown_choice('column', name, self.columns)}")
        return self.columns[name]

    def where(self, conditions: Mapping[str, Any]) -> Rows:
        """Return the rows whose columns have the given value, or one of a list; InputError if there are none."""
        kept = np.ones(self.n, dtype=np.bool_)
        for name, wanted in conditions.items():
            kept &= np.isin(self.column(name), wanted if isinstance(wanted, list) else [wanted])
        if not kept.any():
            raise InputError(f"{self.source}: no row has {', '.join(f'{k} = {v!r}' for k, v in conditions.items())}")
        return self.take(np.flatnonzero(kept))

    def take(self, indices: NDArray[np.intp] | slice) -> Rows:
        """Return the rows with these numbers."""
        return Rows({name: values[indices] for name, values in self.columns.items()}, self.source)

    def inputs(
        self, signature: Signature | None, chosen: Chosen, others: Collection[str] = ()
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Return the columns as inputs of a model.

        Args:
            signature: The model's; None for a function, which takes one array.
            chosen: The columns that are inputs. By default those called like the inputs; else, for a model of one
                input, all but `others`, and but text where the input holds numbers.
            others: Columns that are labels, slices or weights.

        Returns:
            One array of a model with one input, otherwise a mapping. Floats are rounded to the model's dtype; any other
            conversion has to keep every value.

        Raises:
            InputError: Columns are missing, do not fit the inputs, or hold values that the dtype does not.
        """
        if isinstance(chosen, Mapping):
            wanted = {name: [each] if isinstance(each, str) else list(each) for name, each in chosen.items()}
        else:
            wanted = self._found(signature, chosen, others)
        if signature is None:
            arrays = {name: self._joined(names, None) for name, names in wanted.items()}
        else:
            specs = {spec.name: spec for spec in signature.inputs}
            for name in wanted:
                if name not in specs:
                    raise InputError(f"columns: {unknown_choice('input', name, specs)}")
            missing = [name for name in specs if name not in wanted]
            if missing:
                raise InputError(f"columns: input {missing[0]!r} has none; the model takes {signature}")
            arrays = {name: self._joined(names, specs[name]) for name, names in wanted.items()}
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays

    def _found(
        self, signature: Signature | None, chosen: Sequence[str] | None, others: Collection[str]
    ) -> dict[str, list[str]]:
        """Return the columns of each input where none are given by input."""
        names = ["input"] if signature is None else [spec.name for spec in signature.inputs]
        if chosen is None:
            if signature is not None and all(name in self.columns for name in names):
                return {name: [name] for name in names}
            is_text = signature is None or len(names) > 1 or signature.inputs[0].dtype == "str"
            left = [name for name in self.columns if name not in others]
            if len(left) == len(self.columns) and others:  # none of them is a column: a typo
                self.column(min(others))
            chosen = [name for name in left if is_text or self.columns[name].dtype.kind in "biuf"]
        if len(names) == 1:
            return {names[0]: list(chosen)}
        if set(names) <= set(chosen):
            return {name: [name] for name in names}
        raise InputError(
            f"{self.source}: the model has {len(names)} inputs ({', '.join(names)}), and its columns are "
            f"{', '.join(chosen)}: give columns= as a table from inputs to columns"
        )

    def _joined(self, names: Sequence[str], spec: TensorSpec | None) -> NDArray[Any]:
        """Return columns as one input (n, columns), or a single column as it is."""
        parts = [self._cast(name, spec) for name in names]
        if not parts:
            raise InputError(f"{self.source}: no column is left for the model's input: give columns")
        rank = None if spec is None or spec.shape is None else len(spec.shape)
        if len(parts) == 1 and (parts[0].ndim > 1 or rank != 2):
            return parts[0]
        joined = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        width = spec.shape[1] if spec is not None and spec.shape is not None and rank == 2 else None
        if isinstance(width, int) and joined.shape[1] != width:
            raise InputError(
                f"{self.source}: input {spec.name if spec else ''!r} takes {width} columns, and {joined.shape[1]} are "
                f"left ({', '.join(names)}): give columns"
            )
        return joined

    def _cast(self, name: str, spec: TensorSpec | None) -> NDArray[Any]:
        values = self.column(name)
        if spec is None or values.dtype.kind not in "biuf" or spec.dtype == "str" or not spec.is_tensor:
            return values
        if spec.dtype in ("float32", "float16") and values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                rounded = values.astype(spec.dtype)
            if (np.isinf(rounded) & np.isfinite(values)).any():
                raise InputError(f"{self.source}: column {name!r} holds values beyond {spec.dtype}")
            return rounded
        if values.dtype.name == spec.dtype:
            return values
        return cast_checked(f"{self.source}: column {name!r}", values, spec.dtype, how="change the column")


def _stacked(values: NDArray[Any]) -> NDArray[Any]:
    """Return a column of lists of numbers as one array, and any other column as it is."""
    if values.dtype.kind != "O" or not len(values) or not hasattr(values[0], "__len__") or isinstance(values[0], str):
        return values
    try:
        return np.stack([np.asarray(item) for item in values])
    except ValueError:
        return values
