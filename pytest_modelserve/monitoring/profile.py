"""A data set to hold later ones against, and the file it is kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import is_length
from pytest_modelserve.monitoring.correlations import Associations
from pytest_modelserve.monitoring.sketch import Sketch
from pytest_modelserve.stats.autocorrelation import LagOne

# What is kept of one column to hold later ones against: counts and a few sums, and no row.


SCHEMA_VERSION = 2
"""1: the first. 2: rows outside a range, exact sums, dates, lengths of texts and embeddings, and what is kept of all
columns together. A release reads its own version and says of any other that it does not."""
_FORMAT = "pytest_modelserve reference profile"


@dataclass(frozen=True, slots=True)
class ReferenceProfile:
    """A data set to hold later ones against: its columns' counts, the rows it had, and a digest over all of it.

    `block` is the number of neighbouring rows that may depend on each other, None where nobody has said. `associations`
    tell how columns go together, `sketch` holds raw rows where they were asked for, and `duplicates` counts
    the rows that equal an earlier one; each is None where it was not made. Made by `reference_profile`; `save` and
    `load` keep it in a file of JSON, `merge` adds another one's rows.
    """

    name: str
    columns: tuple[ProfiledColumn, ...]
    block: int | None = None
    associations: Associations | None = None
    sketch: Sketch | None = None
    duplicates: RepeatedRows | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.columns or len({column.rows for column in self.columns}) != 1:
            raise UsageError("a profile has columns, all of the same number of rows")
        if len(set(self.names)) != len(self.columns):
            raise UsageError("a profile has columns of different names")
        object.__setattr__(self, "digest", _digest(self.content()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns in order."""
        return tuple(column.name for column in self.columns)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the columns that data bring along: all but the lengths of texts."""
        return tuple(column.name for column in self.columns if not is_length(column))

    @property
    def rows(self) -> int:
        """The number of rows profiled."""
        return self.columns[0].rows

    def column(self, name: str) -> ProfiledColumn:
        """The column called `name`; KeyError where there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def merge(self, other: ReferenceProfile) -> ReferenceProfile:
        """The profile of both data sets' rows together; counts are exactly those of profiling them at once.

        What one of the two does not have (associations, a sketch, duplicates), the merged profile does not have; rows
        that equal one of the other data set's are not among its duplicates.

        Raises UsageError for other columns or kinds of columns, other edges (profile one of them with `like=` the
        other) or another `block`.
        """
        if self.names != other.names or self.block != other.block:
            raise UsageError("profiles merge where they have the same columns in the same order and the same block")
        one, two = self, other
        return replace(
            self,
            columns=tuple(map(_merged, self.columns, other.columns)),
            associations=one.associations.merged(two.associations) if one.associations and two.associations else None,
            sketch=one.sketch.merged(two.sketch) if one.sketch and two.sketch else None,
            duplicates=one.duplicates.merged(two.duplicates) if one.duplicates and two.duplicates else None,
        )

    def content(self) -> dict[str, Any]:
        """Everything but the digest, as JSON builtins."""
        return {
            "name": self.name,
            "block": self.block,
            "columns": [asdict(column) for column in self.columns],
            "associations": self.associations.content() if self.associations else None,
            "sketch": self.sketch.content() if self.sketch else None,
            "duplicates": self.duplicates.content() if self.duplicates else None,
        }

    def to_json(self) -> str:
        """One JSON object with a schema version and the digest; about 5 KB a column of numbers."""
        head = {"format": _FORMAT, "schema_version": SCHEMA_VERSION, "digest": self.digest}
        return json.dumps({**head, **self.content()}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "the profile") -> ReferenceProfile:
        """The profile that `to_json` wrote; `source` is what errors call it.

        Raises ArtifactError for text that is no profile, one of another schema version, and one that was edited.
        """
        try:
            data = json.loads(text, parse_constant=_no_number)
        except ValueError as error:
            raise ArtifactError(f"{source} is not JSON ({error}): write it anew with ReferenceProfile.save") from None
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ArtifactError(f"{source} is no reference profile: ReferenceProfile.save writes one")
        version, digest = data.pop("schema_version", None), data.pop("digest", None)
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{source} has schema version {version!r} and this release reads {SCHEMA_VERSION}: "
                "install the release that wrote it, or profile the data anew"
            )
        if _digest(data) != digest:
            raise ArtifactError(
                f"{source} was changed after it was written: its content does not have the digest that it states. "
                "Profile the data anew"
            )
        associations, sketch = data["associations"], data["sketch"]
        return cls(
            name=data["name"],
            columns=tuple(map(_column, data["columns"])),
            block=data["block"],
            associations=Associations.of_content(associations) if associations else None,
            sketch=Sketch.of_content(sketch) if sketch else None,
            duplicates=RepeatedRows(**data["duplicates"]) if data["duplicates"] else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write the profile to `path` in one step, replacing what is there, and return the path.

        Raises ArtifactError where the folder is missing or cannot be written.
        """
        from pytest_modelserve._files import write_file

        path = Path(path)
        try:
            write_file(path, [self.to_json().encode()])
        except OSError as error:
            raise ArtifactError(f"the profile cannot be written to {path}: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> ReferenceProfile:
        """The profile that `save` wrote; ArtifactError, naming the file, as `from_json` and for a missing file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"the profile {path} cannot be read: {error}") from error
        return cls.from_json(text, source=str(path))


def _merged(one: ProfiledColumn, other: ProfiledColumn) -> ProfiledColumn:
    if isinstance(one, NumericColumn) and isinstance(other, NumericColumn):
        return one.merged(other)
    if isinstance(one, CategoricalColumn) and isinstance(other, CategoricalColumn):
        return one.merged(other)
    raise UsageError(f"column {one.name!r} is of kind {one.kind} in one profile and {other.kind} in the other")


def _column(data: Mapping[str, Any]) -> ProfiledColumn:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    fields["lag"] = LagOne(**data["lag"])
    return CategoricalColumn(**fields) if data["kind"] == "category" else NumericColumn(**fields)


def _no_number(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RepeatedRows:
    """How many `rows` equal an earlier one in every column, of `among` rows, within which they were sought.

    `among` is that of the smallest part where profiles were merged.
    """

    rows: int
    among: int

    def merged(self, other: RepeatedRows) -> RepeatedRows:
        """Those of both data sets: rows of one are not sought in the other."""
        return RepeatedRows(self.rows + other.rows, min(self.among, other.among))

    def content(self) -> dict[str, int]:
        """JSON builtins, of which `RepeatedRows(**content)` makes it again."""
        return {"rows": self.rows, "among": self.among}
