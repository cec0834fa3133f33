"""Profiles of parts add up to the profile of all rows, exactly and in any order."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring import reference_profile
from pytest_modelserve.monitoring.dependence import Dependence

ROWS = 60
LIKE_ROWS = {
    "fraction": np.linspace(-2.0, 3.0, ROWS),
    "whole": np.arange(ROWS) % 7,
    "flag": np.arange(ROWS) % 2 == 0,
    "when": np.datetime64("2026-01-01T00:00:00", "s") + np.arange(ROWS),
    "city": np.array(["Bern", "Graz", "Linz"], dtype=object)[np.arange(ROWS) % 3],
    "note": np.array([f"{'very ' * 20}long note {row}" for row in range(ROWS)], dtype=object),
    "face": np.stack([np.linspace(0, 1, ROWS), np.linspace(5, -5, ROWS)], axis=1),
}
LIKE = reference_profile(LIKE_ROWS)


def nulled(values, element):
    return st.lists(st.none() | element, min_size=values, max_size=values)


@st.composite
def data(draw):
    """Columns of every kind, with nulls and infinities, in and out of the range of LIKE, and where they are cut."""
    rows = draw(st.integers(1, 12))
    ends = sorted(draw(st.lists(st.integers(0, rows), max_size=2)))
    columns = {
        "fraction": np.array(draw(nulled(rows, st.floats(allow_nan=False))), dtype=np.float64),
        "whole": np.array(draw(nulled(rows, st.integers(-10, 10))), dtype=np.float64),
        "flag": np.array(draw(nulled(rows, st.booleans())), dtype=np.float64),
        "when": np.array(draw(nulled(rows, st.integers(0, 2**32))), dtype=object).astype("datetime64[s]"),
        "city": np.array(draw(nulled(rows, st.sampled_from(["Bern", "Wien", "x" * 150]))), dtype=object),
        "note": np.array(draw(nulled(rows, st.text(max_size=3))), dtype=object),
        "face": np.array(draw(nulled(2 * rows, st.floats(-10, 10))), dtype=np.float64).reshape(rows, 2),
    }
    return columns, [slice(low, high) for low, high in itertools.pairwise([0, *ends, rows]) if low < high]


def without_neighbors(profile):
    """The columns without what is known of neighboring rows, of which every cut parts two."""
    alone = [dataclasses.replace(column, dependence=Dependence()) for column in profile.columns]
    return [dataclasses.replace(column, backward=0) if column.kind == "datetime" else column for column in alone]


def part(columns, rows):
    return reference_profile({name: values[rows] for name, values in columns.items()}, like=LIKE)


@settings(max_examples=30)
@given(drawn=data())
def test_profiles_of_parts_add_up_to_that_of_all_rows(drawn):
    columns, cuts = drawn
    parts = [part(columns, rows) for rows in cuts]
    merged = parts[0]
    for one in parts[1:]:
        merged = merged.merge(one)
    assert without_neighbors(merged) == without_neighbors(part(columns, slice(None)))


@settings(max_examples=12)
@given(drawn=data())
def test_the_order_of_merging_leaves_no_trace(drawn):
    columns, cuts = drawn
    parts = [part(columns, rows) for rows in cuts] + [LIKE]
    digests = set()
    for order in itertools.permutations(parts):
        left, right = order[0], order[-1]
        for one in order[1:]:
            left = left.merge(one)
        for one in reversed(order[:-1]):
            right = one.merge(right)
        digests |= {left.digest, right.digest}
    assert len(digests) == 1


def test_zero_has_one_sign():
    like = reference_profile({"x": [0.0, 1.0]})
    one, other = (reference_profile({"x": [zero, zero]}, like=like) for zero in (0.0, -0.0))
    assert one.digest == other.digest
    assert one.merge(other).digest == other.merge(one).digest


def test_a_part_without_values_leaves_the_kind_to_the_others():
    like = reference_profile({"x": [0.5, 1.0, 2.0]})
    null, whole = (reference_profile({"x": values}, like=like) for values in ([None], [1, 2]))
    assert [null.merge(whole).columns[0].kind, whole.merge(null).columns[0].kind] == ["integer", "integer"]
    assert reference_profile({"x": [None, 1, 2]}, like=like).columns[0].kind == "integer"


def test_many_rows_merge_to_the_same_bits():
    rng = np.random.default_rng(3)
    columns = {"x": rng.lognormal(0, 2, 100_000), "y": rng.normal(1e9, 1e-3, 100_000)}
    like = reference_profile({name: values[:1000] for name, values in columns.items()})
    shards = [
        reference_profile({name: values[start::7] for name, values in columns.items()}, like=like) for start in range(7)
    ]
    digests = set()
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(7)
        merged = shards[order[0]]
        for index in order[1:]:
            merged = merged.merge(shards[index])
        digests.add(merged.digest)
    assert len(digests) == 1
    assert without_neighbors(merged) == without_neighbors(reference_profile(columns, like=like))
    assert merged.column("y").mean == pytest.approx(1e9, abs=1e-4)
    assert merged.column("y").std == pytest.approx(1e-3, rel=0.02)


def test_profiles_that_an_engine_has_added_up_merge_to_rounding():
    values = np.random.default_rng(4).normal(5, 2, 1000)
    like = reference_profile({"x": values})

    def rounded(rows):
        column = reference_profile({"x": values[rows]}, like=like)
        return dataclasses.replace(column, columns=(dataclasses.replace(column.columns[0], sums=None),))

    merged = rounded(slice(300)).merge(rounded(slice(300, None))).column("x")
    assert merged.sums is None
    assert (merged.mean, merged.std) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    assert rounded(slice(300)).merge(like).column("x").sums is None


def test_dates_do_not_merge_with_numbers():
    dates = np.array(["1970-01-01", "1970-01-02"], dtype="datetime64[s]")
    profile = reference_profile({"x": dates})
    column = dataclasses.replace(profile.columns[0], kind="float")
    with pytest.raises(UsageError, match="column 'x' has kind datetime in one profile and float in the other"):
        profile.merge(dataclasses.replace(profile, columns=(column,)))
