"""Faults of a small table."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.selftest.data_faults import data_faults

TABLE = read_table(
    {
        "age": np.arange(10.0),
        "count": np.arange(10) // 2,
        "fixed": np.zeros(10),
        "city": ["Bern"] * 6 + ["Graz"] * 4,
    }
)


def faulty(kind, where):
    """Return the values of the column that a fault changes."""
    (fault,) = [each for _, each in data_faults(TABLE, 9) if (each.kind, each.where) == (kind, where)]
    columns = {column.name: column.values.tolist() for column in fault.apply(TABLE).columns}
    return columns[where.split(" and ")[0].strip("'")]


@pytest.mark.parametrize(
    ("kind", "where", "values"),
    [
        ("unit error", "'age'", [1000.0 * age for age in range(10)]),
        ("stuck column", "'age'", [0.0] * 10),
        ("lost category", "'city'", ["Graz"] * 10),
        ("swapped columns", "'age' and 'fixed'", None),
        ("shifted column", "'count'", [round(count // 2 + 2 * np.sqrt(2)) for count in range(10)]),
    ],
)
def test_fault_changes_its_column(kind, where, values):
    if values is None:
        assert not [each for _, each in data_faults(TABLE, 9) if each.where == where]  # no neighbors
    else:
        assert faulty(kind, where) == values


def test_a_share_of_the_rows_becomes_null_or_another_category():
    assert np.isnan(faulty("nulls", "'age'")).sum() == 3
    assert faulty("nulls", "'city'").count(None) == 3
    assert faulty("new category", "'city'").count("another category") == 3


def test_fault_that_changes_too_little_is_not_made():
    found = {(fault.kind, fault.where) for _, fault in data_faults(TABLE, 9)}
    assert ("shifted column", "'fixed'") not in found
    assert ("stuck column", "'fixed'") not in found
    assert ("unit error", "'fixed'") not in found


def test_columns_are_spread_over_the_table():
    table = read_table({f"c{index}": np.arange(10.0) for index in range(9)})
    where = [fault.where for _, fault in data_faults(table, 3) if fault.kind == "stuck column"]
    assert where == ["'c0'", "'c4'", "'c8'"]


def test_rows_are_duplicated_next_to_each_other():
    (fault,) = [each for _, each in data_faults(TABLE, 9) if each.kind == "duplicated rows"]
    assert fault.apply(TABLE).columns[0].values.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9]
