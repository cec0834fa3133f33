"""The comparisons of one data set with its profile, in families that share one alpha: columns, pairs, whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.comparing import Blocks, Comparison, compare_categories, compare_numbers
from pytest_modelserve.monitoring.drift.classifying import ClassifierChange, compare_rows, rows_to_compare
from pytest_modelserve.monitoring.drift.correlating import PairChange, compare_associations, rows_to_read
from pytest_modelserve.monitoring.profiled import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.reference import ReferenceProfile
from pytest_modelserve.monitoring.scoring import associate
from pytest_modelserve.monitoring.sketch import sketch_of, spread
from pytest_modelserve.monitoring.windows import Pairs, RowsColumn, Window, WindowColumn

SHARE = 0.25
"""Of alpha, for each of the families that look at columns together; the columns themselves take the rest."""

AnyComparison = Comparison | PairChange | ClassifierChange


@dataclass(frozen=True, slots=True)
class Families:
    """All comparisons, of those that could not be made a sentence each, and the numbers of up to five rows of the data
    that look least like the profile's.
    """

    columns: tuple[Comparison, ...]
    pairs: tuple[PairChange, ...] = ()
    rows: ClassifierChange | None = None
    left_out: tuple[str, ...] = ()
    newest: tuple[int, ...] = ()

    def shares(self) -> list[tuple[float, Sequence[AnyComparison]]]:
        """The families that were compared, each with its share of alpha."""
        others = [family for family in (self.pairs, (self.rows,) if self.rows else ()) if family]
        return [(1 - SHARE * len(others), self.columns), *((SHARE, family) for family in others)]


def compare_families(
    window: Window, profile: ReferenceProfile, blocks: Blocks, *, max_distance: float, alpha: float
) -> Families:
    """Every comparison that the profile has something for; InputError for a column of which nothing is known."""
    columns = tuple(_compare(column, reference, blocks) for column, reference in without_times(window.pairs))
    if not columns:
        raise InputError(f"{window.name} has no column but times, which always move on: there is nothing to compare")
    pairs, no_pairs = _compare_pairs(window, profile, blocks, max_distance)
    rows, no_rows = _compare_rows(window, profile, blocks, alpha * SHARE)
    newest: tuple[int, ...] = ()
    if rows is not None and window.table is not None and profile.sketch is not None:
        read = spread(window.rows, rows_to_compare(profile.sketch.kept))
        newest = tuple(read[list(rows.newest)].tolist())
    times = [reference.name for _, reference in window.pairs if reference.kind == "datetime"]
    no_times = f"times were not compared, as they always move on: {', '.join(map(repr, times))}" if times else ""
    left_out = tuple(sentence for sentence in (no_times, no_pairs, no_rows) if sentence)
    return Families(columns, pairs, rows, left_out, newest)


def without_times(pairs: Pairs) -> Pairs:
    """The pairs of columns but those of times: a later window is of later times, which is no drift."""
    return tuple(pair for pair in pairs if pair[1].kind != "datetime")


def _compare(column: WindowColumn, reference: ProfiledColumn, blocks: Blocks) -> Comparison:
    if column.kind is None:
        raise InputError(f"column {column.name!r} is null in every row: there is nothing to compare with the profile")
    if isinstance(reference, CategoricalColumn):
        _, then, now = column.beside(reference)
        return compare_categories(column.name, then, now, blocks=blocks)
    counts = column.counts(reference)
    if not counts[1:-1].any() and not column.facts(reference).finite:
        raise InputError(f"column {column.name!r} is infinite in every row that is not null: mend it or leave it out")
    return compare_numbers(column.name, reference.counts, counts, blocks=blocks)


def _compare_pairs(
    window: Window, profile: ReferenceProfile, blocks: Blocks, max_distance: float
) -> tuple[tuple[PairChange, ...], str]:
    if profile.associations is None:
        return (), ""
    if window.profile is not None:
        current = window.profile.associations
        if current is None or current.features != profile.associations.features:
            return (), f"correlations were not compared: {window.name} has none that were made like {profile.name!r}"
    else:
        current = associate(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            profile.associations.features,
            at_most=rows_to_read(max_distance, profile.associations, block=blocks.current),
        )
    # Rows that were read of far more lie apart, and fewer of them share a block.
    read, of_window = profile.associations.rows / profile.rows, current.rows / window.rows
    pairs = compare_associations(
        profile.associations,
        current,
        reference_block=max(blocks.reference * read, 1.0),
        current_block=max(blocks.current * of_window, 1.0),
    )
    return pairs, ""


def _compare_rows(
    window: Window, profile: ReferenceProfile, blocks: Blocks, level: float
) -> tuple[ClassifierChange | None, str]:
    if profile.sketch is None:
        return None, ""
    if window.profile is not None:
        current = window.profile.sketch
        if current is None:
            return None, f"whole rows were not compared: {window.name} has no sketch"
    else:
        current = sketch_of(
            [column.column for column, _ in window.pairs if isinstance(column, RowsColumn)],
            [reference for _, reference in window.pairs],
            wanted=rows_to_compare(profile.sketch.kept),
        )
    return compare_rows(profile.sketch, current, profile.columns, blocks=blocks, level=level), ""
