"""Reference profiles: a data set as counts and sums of its columns, and the JSON file of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.columns import Kind, is_length
from pytest_modelserve.monitoring.correlations import Associations
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.duplicates import RepeatedRows
from pytest_modelserve.monitoring.read_options import ReadOptions
from pytest_modelserve.monitoring.row_digests import RowDigests
from pytest_modelserve.monitoring.sketch import Sketch

SCHEMA_VERSION = 4
"""1: the first. 2: rows outside a range, exact sums, dates, lengths of texts and embeddings, and associations, sketch
and duplicates. 3: options of reading, and duplicates by the number of rows. 4: block length and
variance inflation instead of an autocorrelation. A release reads its own version and refuses any other by name."""
_FORMAT = "pytest_modelserve reference profile"
_SHOWN_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class ReferenceProfile:
    """A reference data set as counts and sums of its columns, with a digest over all of it.

    `reference_profile` makes one from data; `save` and `load` store it as JSON, and `merge` adds another one's rows.

    Attributes:
        name: The name of the data set in reports.
        columns: The profile of each column, in order.
        block: The number of neighboring rows that may depend on each other; None if not given.
        associations: Sums over pairs of columns for their correlations; None if not computed.
        sketch: Raw rows for the comparison of whole rows; None if not requested.
        duplicates: The number of rows that equal an earlier one; None if not counted.
        reading: How data were read; later data are read alike.
        row_digests: Keyed digests of the rows, for `assert_no_overlap`; None if not requested.
        digest: A sha256 of everything else.
    """

    name: str
    columns: tuple[ProfiledColumn, ...]
    block: int | None = None
    associations: Associations | None = None
    sketch: Sketch | None = None
    duplicates: RepeatedRows | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
    row_digests: RowDigests | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.columns or len({column.rows for column in self.columns}) != 1:
            raise UsageError("columns of a profile must exist, and have the same number of rows")
        if len(set(self.names)) != len(self.columns):
            raise UsageError("columns of a profile must have different names")
        object.__setattr__(self, "digest", _digest(self.content()))

    def __repr__(self) -> str:
        """Return one line: the counts of the columns fill pages."""
        shown = ", ".join(f"{column.name!r} {column.kind}" for column in self.columns[:_SHOWN_COLUMNS])
        more = ", …" if len(self.columns) > _SHOWN_COLUMNS else ""
        columns = f"{len(self.columns)} column{'' if len(self.columns) == 1 else 's'}"
        return (
            f"<ReferenceProfile {self.name!r}: {self.rows:,} rows, {columns} ({shown}{more}), "
            f"sha256 {self.digest[:12]}…>"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the columns that data must have: all but text lengths."""
        return tuple(column.name for column in self.columns if not is_length(column))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column that data must have."""
        return {column.name: column.kind for column in self.columns if column.source is None}

    @property
    def length_sources(self) -> frozenset[str | None]:
        """The text columns whose lengths are profiled."""
        return frozenset(column.source for column in self.columns if is_length(column))

    @property
    def rows(self) -> int:
        """The number of rows profiled."""
        return self.columns[0].rows

    def column(self, name: str) -> ProfiledColumn:
        """Return the profile of the column `name`; KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def merge(self, other: ReferenceProfile) -> ReferenceProfile:
        """Return the profile of both data sets' rows, with exactly the counts of profiling them at once.

        Associations, sketch, duplicates and row digests are merged if both profiles have them. Rows that equal one of
        the other data set are not counted as duplicates.

        Args:
            other: A profile with the same columns, edges and block: one made with `like=` this one.

        Returns:
            The merged profile, with the name of this one.

        Raises:
            UsageError: The profiles differ in columns, kinds, edges or block.

        Example:
            >>> import pytest_modelserve as ms
            >>> monday = ms.reference_profile({"age": [31.0, 45.0, 52.0]})
            >>> tuesday = ms.reference_profile({"age": [28.0, 63.0]}, like=monday)
            >>> monday.merge(tuesday).rows
            5
        """
        if self.names != other.names or self.block != other.block:
            raise UsageError("other must have the same columns in the same order, and the same block, to be merged")
        one, two = self, other
        return replace(
            self,
            columns=tuple(map(_merged, self.columns, other.columns)),
            associations=one.associations.merged(two.associations) if one.associations and two.associations else None,
            sketch=one.sketch.merged(two.sketch) if one.sketch and two.sketch else None,
            duplicates=one.duplicates.merged(two.duplicates) if one.duplicates and two.duplicates else None,
            row_digests=one.row_digests.merged(two.row_digests) if one.row_digests and two.row_digests else None,
        )

    def content(self) -> dict[str, Any]:
        """Return everything but the digest as JSON builtins."""
        return {
            "name": self.name,
            "block": self.block,
            "reading": self.reading.content(),
            "columns": [asdict(column) for column in self.columns],
            "associations": self.associations.content() if self.associations else None,
            "sketch": self.sketch.content() if self.sketch else None,
            "duplicates": asdict(self.duplicates) if self.duplicates else None,
            **({"row_digests": self.row_digests.content()} if self.row_digests else {}),
        }

    def to_json(self) -> str:
        """Return one JSON object with a schema version and the digest; about 5 KB for each numeric column."""
        head = {"format": _FORMAT, "schema_version": SCHEMA_VERSION, "digest": self.digest}
        return json.dumps({**head, **self.content()}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "the profile") -> ReferenceProfile:
        """Return the profile that `to_json` wrote; `source` is its name in errors.

        Raises:
            ArtifactError: The text is not a profile, has another schema version, or was edited.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise ArtifactError(f"{source} is not JSON ({error}): write it with ReferenceProfile.save") from None
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ArtifactError(f"{source} is not a reference profile: write one with ReferenceProfile.save")
        version, digest = data.pop("schema_version", None), data.pop("digest", None)
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{source} has schema version {version!r}, and this release reads {SCHEMA_VERSION}: "
                "install the release that wrote it, or profile the data again"
            )
        if _digest(data) != digest:
            raise ArtifactError(
                f"{source} was changed after it was written: its content does not match its digest. "
                "Profile the data again"
            )
        associations, sketch = data["associations"], data["sketch"]
        return cls(
            name=data["name"],
            columns=tuple(map(_column, data["columns"])),
            block=data["block"],
            reading=ReadOptions.of_content(data["reading"]),
            associations=Associations.of_content(associations) if associations else None,
            sketch=Sketch.of_content(sketch) if sketch else None,
            duplicates=RepeatedRows.of_content(data["duplicates"]) if data["duplicates"] else None,
            row_digests=RowDigests.of_content(data["row_digests"]) if data.get("row_digests") else None,
        )

    def save(self, path: str | Path) -> Path:
        """Write the profile to `path` as JSON, replacing the file in one step, and return the path; make the folder.

        Raises:
            ArtifactError: The folder cannot be made or written.
        """
        from pytest_modelserve._files import write_file

        path = Path(path)
        try:
            write_file(path, [self.to_json().encode()])
        except OSError as error:
            raise ArtifactError(f"the profile cannot be written to {path}: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceProfile:
        """Read the profile that `save` wrote.

        Raises:
            ArtifactError: The file is missing, or not a valid profile (see `from_json`).
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ArtifactError(f"there is no profile {path}: write it with ReferenceProfile.save") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"the profile {path} cannot be read: {error}") from error
        return cls.from_json(text, source=str(path))


def array_names(profile: ReferenceProfile) -> Sequence[str] | None:
    """Return the names of the columns of an array like the profile's; None for excluded ones that were not named."""
    return None if profile.reading.exclude else profile.input_names


def as_profile(
    profile: ReferenceProfile | str | os.PathLike[str], data: object, *, argument: str = "profile"
) -> ReferenceProfile:
    """Return a profile, loaded if it is a path; UsageError, with what to do, for anything else."""
    if isinstance(profile, ReferenceProfile):
        return profile
    if isinstance(data, ReferenceProfile):
        raise UsageError(f"data and {argument} are in the wrong order: pass the data first, then the profile")
    if isinstance(profile, (str, os.PathLike)):
        return ReferenceProfile.load(profile)
    raise UsageError(
        f"{argument} must be a ReferenceProfile; got {type(profile).__name__}: pass reference_profile(...) of it"
    )


def _merged(one: ProfiledColumn, other: ProfiledColumn) -> ProfiledColumn:
    if isinstance(one, NumericColumn) and isinstance(other, NumericColumn):
        return one.merged(other)
    if isinstance(one, CategoricalColumn) and isinstance(other, CategoricalColumn):
        return one.merged(other)
    raise UsageError(f"column {one.name!r} has kind {one.kind} in one profile and {other.kind} in the other")


def _column(data: Mapping[str, Any]) -> ProfiledColumn:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    fields["dependence"] = Dependence(**data["dependence"])
    return CategoricalColumn(**fields) if data["kind"] == "category" else NumericColumn(**fields)


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
