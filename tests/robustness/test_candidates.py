"""What a search tries: in range where it says so, the same for the same seed, and of every dtype."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms
from pytest_modelserve.robustness.coordinates import changed_mask, concat_rows, take_rows
from pytest_modelserve.robustness.mutations import SearchSpace, edge_cases, mutate

RNG = np.random.default_rng


def many(base: dict[str, NDArray[Any]], domain: Any, count: int = 2000) -> dict[str, NDArray[Any]]:
    space = SearchSpace.from_rows(base, domain)
    fixed = [rows for rows, _ in edge_cases(space, 200)]
    return concat_rows([*fixed, mutate(space, RNG(0), count)[0]])


def test_like_stays_within_each_features_range_and_reaches_its_ends() -> None:
    base = RNG(1).normal([0, 100, -5], [1, 10, 0.1], (30, 3)).astype(np.float32)
    found = many({"x": base}, "like")["x"]
    assert (found >= base.min(axis=0)).all()
    assert (found <= base.max(axis=0)).all()
    assert (found.min(axis=0) == base.min(axis=0)).all()
    assert len(np.unique(found[:, 1])) > 500  # and not the values of the rows alone


def test_edges_add_the_neighbours_one_ulp_outside_and_nothing_beyond() -> None:
    base = RNG(1).uniform(1, 2, (30, 3)).astype(np.float32)
    found = many({"x": base}, ("like", "edges"))["x"]
    assert (found.max(axis=0) == np.nextafter(base.max(axis=0), np.float32(np.inf))).all()
    assert (found.min(axis=0) == np.nextafter(base.min(axis=0), np.float32(-np.inf))).all()


def test_identifiers_stay_rows_of_the_table_even_when_there_is_one_row_to_go_by() -> None:
    ids = np.array([[3, 9, 4, 0]])
    found = many({"ids": ids}, ("like", "edges"))["ids"]
    assert set(np.unique(found)) == set(range(10))


def test_far_leaves_the_range_on_both_sides_by_orders_of_magnitude() -> None:
    base = RNG(1).uniform(-1, 1, (30, 2)).astype(np.float32)
    found = np.abs(many({"x": base}, "far")["x"])
    assert (found > 1e5).any()
    assert ((found > 2) & (found < 100)).any()


def test_special_values_come_one_by_one() -> None:
    found = many({"x": np.ones((4, 3), np.float32)}, "special")["x"].ravel()
    assert np.isnan(found).any()
    assert {np.inf, -np.inf, 65504.0, float(np.finfo(np.float32).max)} <= set(found.tolist())
    assert (np.signbit(found) & (found == 0)).any()
    assert ((found != 0) & (np.abs(found) < np.finfo(np.float32).tiny)).any()
    whole = many({"x": np.ones((4, 3), np.int64)}, "special")["x"]
    assert {np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1} <= set(whole.ravel().tolist())


def test_edits_touch_few_features_and_all_of_them() -> None:
    space = SearchSpace.from_rows({"x": RNG(1).standard_normal((30, 1000))}, "like")
    found, origin = mutate(space, RNG(0), 1000)
    counts = changed_mask(found, take_rows(space.base, origin)).sum(axis=1)
    assert (counts == 1).mean() > 0.02
    assert ((counts > 1) & (counts < 100)).mean() > 0.3
    assert (counts > 900).mean() > 0.1


def test_the_same_seed_makes_the_same_candidates_and_another_one_others() -> None:
    space = SearchSpace.from_rows({"x": RNG(1).standard_normal((30, 5))}, "like")
    first, again, other = (mutate(space, RNG(seed), 50)[0]["x"] for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    "dtype",
    [f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)]
    + [f"float{bits}" for bits in (16, 32, 64)]
    + ["bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "object"],
)
def test_every_dtype_is_edited_in_every_domain(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype) if hasattr(ml_dtypes, dtype) else dtype)
    numbers = RNG(1).integers(0, 4, (6, 2, 3))
    base = np.array(list("abcd"), object)[numbers] if kind.kind == "O" else numbers.astype(kind)
    found = many({"x": base}, ("like", "edges", "far", "special"), 300)["x"]
    assert found.dtype == kind
    assert found.shape[1:] == (2, 3)
    assert changed_mask({"x": found}, {"x": np.repeat(base[:1], len(found), axis=0)}).any()


def test_several_inputs_are_edited_each_within_its_own_values() -> None:
    base = {"ids": RNG(1).integers(5, 9, (10, 3)), "x": RNG(1).uniform(0, 1, (10, 2)), "s": np.zeros(10, np.float32)}
    found = many(base, "like")
    assert found["ids"].min() == 5
    assert found["ids"].max() == 8
    assert found["x"].max() < 1
    assert found["s"].shape == (len(found["x"]),)


def test_missing_values_leave_the_range_what_it_is() -> None:
    base = np.array([[np.nan], [1.0], [np.inf], [3.0]])
    found = many({"x": base}, "like")["x"]
    finite = found[np.isfinite(found)]
    assert finite.min() == 1
    assert finite.max() == 3


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("lke", "unknown domain 'lke': did you mean 'like'? Known: 'like', 'edges', 'far', 'special'"),
        ((), "domain is empty: pass one or more of 'like', 'edges', 'far', 'special'"),
        (("far", "far"), "domain contains a name twice: ('far', 'far')"),
    ],
)
def test_a_domain_that_cannot_be_meant_is_refused(domain: Any, message: str) -> None:
    with pytest.raises(ms.UsageError) as error:
        SearchSpace.from_rows({"x": np.zeros((1, 1))}, domain)
    assert str(error.value) == message


def test_single_features_at_the_ends_of_their_range_come_before_anything_is_drawn() -> None:
    base = RNG(1).uniform(1, 2, (5, 20)).astype(np.float32)
    found = concat_rows([rows for rows, _ in edge_cases(SearchSpace.from_rows({"x": base}, ("like", "edges")), 200)])
    counts = changed_mask(found, {"x": np.repeat(base[:1], len(found["x"]), axis=0)})
    singles = found["x"][counts.sum(axis=1) == 1]
    assert set(np.flatnonzero(counts[counts.sum(axis=1) == 1].any(axis=0))) == set(range(20))
    assert (singles == np.nextafter(base.max(axis=0), np.float32(np.inf))).any()
    assert len(found["x"]) <= 200
