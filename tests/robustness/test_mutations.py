"""Generated candidates: within the declared domain, reproducible, and of every dtype."""

import ml_dtypes
import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.robustness.coordinates import changed_mask, concat_rows, take_rows
from pytest_modelserve.robustness.mutations import SearchSpace, edge_cases, mutate

RNG = np.random.default_rng
BASE = RNG(1).uniform(1, 2, (30, 3)).astype(np.float32)


def candidates(base, domain, count=2000):
    space = SearchSpace.from_rows(base, domain)
    fixed = [rows for rows, _ in edge_cases(space, 200)]
    return concat_rows([*fixed, mutate(space, RNG(0), count)[0]])


def test_like_stays_within_each_features_range_and_reaches_its_ends():
    base = RNG(1).normal([0, 100, -5], [1, 10, 0.1], (30, 3)).astype(np.float32)
    found = candidates({"x": base}, "like")["x"]
    assert (found.min(axis=0) == base.min(axis=0)).all()
    assert (found.max(axis=0) == base.max(axis=0)).all()
    assert len(np.unique(found[:, 1])) > 500  # and not the values of the rows alone


def test_edges_add_the_neighbors_one_ulp_outside_and_nothing_beyond():
    found = candidates({"x": BASE}, ("like", "edges"))["x"]
    assert (found.max(axis=0) == np.nextafter(BASE.max(axis=0), np.float32(np.inf))).all()
    assert (found.min(axis=0) == np.nextafter(BASE.min(axis=0), np.float32(-np.inf))).all()


def test_identifiers_stay_in_the_embedding_table_even_with_a_single_base_row():
    found = candidates({"ids": np.array([[3, 9, 4, 0]])}, ("like", "edges"))["ids"]
    assert set(np.unique(found)) == set(range(10))


def test_far_leaves_the_range_by_orders_of_magnitude():
    found = np.abs(candidates({"x": BASE - 1.5}, "far")["x"])
    assert (found > 1e5).any()
    assert ((found > 2) & (found < 100)).any()


def test_special_values_are_tried_one_by_one():
    found = candidates({"x": np.ones((4, 3), np.float32)}, "special")["x"].ravel()
    assert np.isnan(found).any()
    assert {np.inf, -np.inf, 65504.0, float(np.finfo(np.float32).max)} <= set(found.tolist())
    assert (np.signbit(found) & (found == 0)).any()
    assert ((found != 0) & (np.abs(found) < np.finfo(np.float32).tiny)).any()
    integers = candidates({"x": np.ones((4, 3), np.int64)}, "special")["x"]
    assert {np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1} <= set(integers.ravel().tolist())


def test_mutations_change_one_feature_a_few_and_all():
    space = SearchSpace.from_rows({"x": RNG(1).standard_normal((30, 1000))}, "like")
    found, origin = mutate(space, RNG(0), 1000)
    counts = changed_mask(found, take_rows(space.base, origin)).sum(axis=1)
    assert (counts == 1).mean() > 0.02
    assert ((counts > 1) & (counts < 100)).mean() > 0.3
    assert (counts > 900).mean() > 0.1


def test_the_same_seed_gives_the_same_candidates_and_another_seed_others():
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
def test_every_dtype_is_mutated_in_every_domain(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype) if hasattr(ml_dtypes, dtype) else dtype)
    numbers = RNG(1).integers(0, 4, (6, 2, 3))
    base = np.array(list("abcd"), object)[numbers] if kind.kind == "O" else numbers.astype(kind)
    found = candidates({"x": base}, ("like", "edges", "far", "special"), 300)["x"]
    assert found.dtype == kind
    assert found.shape[1:] == (2, 3)
    assert changed_mask({"x": found}, {"x": np.repeat(base[:1], len(found), axis=0)}).any()


def test_several_inputs_are_mutated_each_within_its_own_values():
    base = {"ids": RNG(1).integers(5, 9, (10, 3)), "x": RNG(1).uniform(0, 1, (10, 2)), "s": np.zeros(10, np.float32)}
    found = candidates(base, "like")
    assert (found["ids"].min(), found["ids"].max()) == (5, 8)
    assert found["x"].max() < 1
    assert found["s"].shape == (len(found["x"]),)


def test_missing_and_infinite_values_do_not_extend_a_range():
    found = candidates({"x": np.array([[np.nan], [1.0], [np.inf], [3.0]])}, "like")["x"]
    finite = found[np.isfinite(found)]
    assert (finite.min(), finite.max()) == (1, 3)


def test_single_features_at_the_edges_of_their_range_are_tried_first():
    base = RNG(1).uniform(1, 2, (5, 20)).astype(np.float32)
    found = concat_rows([rows for rows, _ in edge_cases(SearchSpace.from_rows({"x": base}, ("like", "edges")), 200)])
    changed = changed_mask(found, {"x": np.repeat(base[:1], len(found["x"]), axis=0)})
    single = changed.sum(axis=1) == 1
    assert set(np.flatnonzero(changed[single].any(axis=0))) == set(range(20))
    assert (found["x"][single] == np.nextafter(base.max(axis=0), np.float32(np.inf))).any()
    assert len(found["x"]) <= 200


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("lke", "unknown domain 'lke': did you mean 'like'? Known: 'like', 'edges', 'far', 'special'"),
        ((), "domain is empty: pass one or more of 'like', 'edges', 'far', 'special'"),
        (("far", "far"), "domain contains a name twice: ('far', 'far')"),
    ],
)
def test_an_invalid_domain_is_rejected(domain, message):
    with pytest.raises(ms.UsageError) as error:
        SearchSpace.from_rows({"x": np.zeros((1, 1))}, domain)
    assert str(error.value) == message
