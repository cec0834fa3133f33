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
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, NumericColumn, ProfiledColumn, hash_key
from pytest_modelserve.monitoring.columns import Kind, is_length
from pytest_modelserve.monitoring.correlations import Associations
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.duplicates import RepeatedRows
from pytest_modelserve.monitoring.read_options import ReadOptions
from pytest_modelserve.monitoring.row_digests import RowDigests
from pytest_modelserve.monitoring.sketch import Sketch
from pytest_modelserve.settings import saw_names

SCHEMA_VERSION = 5
_READ_VERSIONS = (4, 5)
"""1: the first. 2: rows outside a range, exact sums, dates, lengths of texts and embeddings, and associations, sketch
and duplicates. 3: options of reading, and duplicates by the number of rows. 4: block length and
variance inflation instead of an autocorrelation. 5: `min_count`, keyed hash buckets, and the rows at both ends. A
release reads its own version and the one before, and refuses any other by name."""
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
        min_count: The smallest count of rows in it, if it was saved with `min_count=`; else 1.
        left_out: What was left out then: "associations", "sketch", "duplicates", "row digests".
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
    min_count: int = 1
    left_out: tuple[str, ...] = ()
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.columns or len({column.rows for column in self.columns}) != 1:
            raise UsageError("columns of a profile must exist, and have the same number of rows")
        if len(set(self.names)) != len(self.columns):
            raise UsageError("columns of a profile must have different names")
        object.__setattr__(self, "digest", _digest(self.content()))
        saw_names(self.names)

    def __repr__(self) -> str:
        """Return one line: the counts of the columns fill pages."""
        shown = ", ".join(f"{column.name!r} {column.kind}" for column in self.columns[:_SHOWN_COLUMNS])
        more = ", …" if len(self.columns) > _SHOWN_COLUMNS else ""
        columns = f"{len(self.columns)} column{'' if len(self.columns) == 1 else 's'}"
        suppressed = f"no count below {self.min_count}, " if self.min_count > 1 else ""
        return (
            f"<ReferenceProfile {self.name!r}: {self.rows:,} rows, {columns} ({shown}{more}), {suppressed}"
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
            UsageError: The profiles differ in columns, kinds, edges or block, or one was saved with `min_count`.

        Example:
            >>> import pytest_modelserve as ms
            >>> monday = ms.reference_profile({"age": [31.0, 45.0, 52.0]})
            >>> tuesday = ms.reference_profile({"age": [28.0, 63.0]}, like=monday)
            >>> monday.merge(tuesday).rows
            5
        """
        if self.min_count > 1 or other.min_count > 1:
            raise UsageError(
                "other and this profile cannot be merged, because one was saved with min_count: its small counts are "
                "missing. Merge profiles first, and save the result with min_count="
            )
        if self.names != other.names or self.block != other.block:
            raise UsageError("other must have the same columns in the same order, and the same block, to be merged")
        one, two = self, other
        columns = tuple(map(_merged, self.columns, other.columns))
        keys = [
            hash_key(each.name, each.key_check) if isinstance(each, CategoricalColumn) else None for each in columns
        ]
        return replace(
            self,
            columns=columns,
            associations=one.associations.merged(two.associations) if one.associations and two.associations else None,
            sketch=one.sketch.merged(two.sketch, keys) if one.sketch and two.sketch else None,
            duplicates=one.duplicates.merged(two.duplicates) if one.duplicates and two.duplicates else None,
            row_digests=one.row_digests.merged(two.row_digests) if one.row_digests and two.row_digests else None,
        )

    def suppressed(self, min_count: int) -> ReferenceProfile:
        """Return the profile as `save(path, min_count=...)` writes it: no count of fewer than `min_count` rows.

        Counts are those of four fifths of the rows, at random. Rare categories are one category "(other)"; bins and
        ends have at least `min_count` rows; fewer nulls and infinities than that count as other rows; texts that were
        hashed without a project key keep only their lengths. Mean and std follow from the bins. Sums, associations,
        sketch, duplicates and row digests are left out.

        Args:
            min_count: The smallest count, at least 2 (10, for example).

        Raises:
            UsageError: `min_count` is out of range, or the profile has too few rows or is suppressed already.

        Example:
            >>> import numpy as np
            >>> import pytest_modelserve as ms
            >>> ages = np.random.default_rng(0).integers(18, 90, 1000)
            >>> whole = ms.reference_profile({"age": ages})
            >>> profile = whole.suppressed(10)
            >>> min(count for count in profile.column("age").counts if count) >= 10
            True
        """
        from pytest_modelserve.monitoring.suppression import suppressed_columns

        if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 2:
            raise UsageError(f"min_count must be a number of rows of at least 2 (10, for example); got {min_count!r}")
        if self.min_count > 1:
            raise UsageError(
                f"min_count={min_count}: the profile was saved with min_count={self.min_count} already. Save the "
                "profile that it was made of"
            )
        dropped = {
            "associations": self.associations,
            "sketch": self.sketch,
            "duplicates": self.duplicates,
            "row digests": self.row_digests,
        }
        return replace(
            self,
            columns=suppressed_columns(self.columns, min_count=min_count, digest=self.digest),
            associations=None,
            sketch=None,
            duplicates=None,
            row_digests=None,
            min_count=min_count,
            left_out=tuple(name for name, part in dropped.items() if part is not None),
        )

    @property
    def identity(self) -> str:
        """The sha256 of what schema version 4 held: monitors recognize by it the profile that they began with."""
        columns = [
            replace(each, at_minimum=0, at_maximum=0) if isinstance(each, NumericColumn) else each
            for each in self.columns
        ]
        return _digest(self.content() | {"columns": list(map(_column_content, columns))})

    def content(self) -> dict[str, Any]:
        """Return everything but the digest as JSON builtins."""
        return {
            "name": self.name,
            "block": self.block,
            "reading": self.reading.content(),
            "columns": list(map(_column_content, self.columns)),
            "associations": self.associations.content() if self.associations else None,
            "sketch": self.sketch.content() if self.sketch else None,
            "duplicates": asdict(self.duplicates) if self.duplicates else None,
            **({"row_digests": self.row_digests.content()} if self.row_digests else {}),
            **({"min_count": self.min_count, "left_out": list(self.left_out)} if self.min_count > 1 else {}),
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
        if version not in _READ_VERSIONS:
            raise ArtifactError(
                f"{source} has schema version {version!r}, and this release reads "
                f"{' and '.join(map(str, _READ_VERSIONS))}: "
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
            min_count=data.get("min_count", 1),
            left_out=tuple(data.get("left_out", ())),
        )

    def save(self, path: str | Path, *, min_count: int = 1) -> Path:
        """Write the profile to `path` as JSON, replacing the file in one step, and return the path; make the folder.

        Args:
            path: The path of the file.
            min_count: The smallest number of rows that a count of the file may have, for files that leave the place of
                the data; 10 is usual. See `suppressed`. With 1 the file holds every count, sum and end as it is.

        Raises:
            ArtifactError: The folder cannot be made or written.
            UsageError: As `suppressed`.
        """
        from pytest_modelserve._files import write_file

        path = Path(path)
        written = self if min_count == 1 and min_count is not True else self.suppressed(min_count)
        try:
            write_file(path, [written.to_json().encode()])
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


_ABSENT = {"key_check": "", "min_count": 1, "at_minimum": 0, "at_maximum": 0}
"""Fields of columns that are written only if they say something, so that digests of older profiles stay."""


def _column_content(column: ProfiledColumn) -> dict[str, Any]:
    return {key: value for key, value in asdict(column).items() if key not in _ABSENT or value != _ABSENT[key]}


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
