"""Unusual data that have not changed: no crash, and no more FAIL than alpha."""

import numpy as np
import pytest

from benchmarks.unusual_data import judge
from pytest_modelserve.errors import InputError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile


def test_unchanged_unusual_data_neither_crash_the_gate_nor_fail():
    verdicts = [judge(seed, 0.0, max_rate=1e-9, alpha=0.001) for seed in range(40)]
    assert [text for verdict, text in verdicts if verdict in ("crash", "FAIL")] == []


def categories(seed, rows):
    rng = np.random.default_rng(seed)
    return {f"c{index}": rng.choice(np.array(list("abcde"), dtype=object), rows) for index in range(4)}


def discrete(seed, rows):
    rng = np.random.default_rng(seed)
    return {"children": rng.poisson(1.5, rows), "plan": rng.integers(0, 3, rows), "active": rng.random(rows) < 0.5}


@pytest.mark.parametrize(
    ("draw", "profile_rows", "rows", "max_rate"),
    [
        (categories, 500, 10_000, 0.02),
        (categories, 5000, 6000, 0.02),
        (discrete, 10_000, 100_000, 0.01),
        (discrete, 10_000, 600_000, 0.01),
        (discrete, 10_000, 1000, 0.01),
    ],
)
def test_discrete_rows_pass_whatever_the_number_of_rows(draw, profile_rows, rows, max_rate):
    profile = reference_profile(draw(0, profile_rows))
    assert measure_data_quality(draw(1, rows), profile, max_rate=max_rate).verdict is Verdict.PASS


@pytest.mark.parametrize("rows", [4000, 6000, 20_000, 100_000])
def test_a_fault_of_discrete_rows_is_found_whatever_the_number_of_rows(rows):
    profile = reference_profile(categories(0, 5000))
    nulls, constant = categories(1, rows), categories(1, rows)
    nulls["c0"][np.random.default_rng(2).random(rows) < 0.2] = None
    constant["c0"][:] = "a"
    for data in (nulls, constant):
        assert measure_data_quality(data, profile, max_rate=0.02).verdict is Verdict.FAIL


def test_a_column_with_categories_that_are_rarely_seen_again_passes():
    def cities(seed, rows):
        rng, weights = np.random.default_rng(seed), 1 / np.arange(1, 91) ** 1.1
        return {"city": np.array([f"n{i}" for i in rng.choice(90, rows, p=weights / weights.sum())], dtype=object)}

    profile = reference_profile(cities(0, 300))
    assert profile.column("city").counts.count(1) > 5
    evidence = measure_data_quality(cities(1, 20_000), profile, max_rate=0.1)
    assert evidence.verdict is Verdict.PASS


@pytest.mark.parametrize("value", [999.0, -5.0])
def test_a_rare_value_among_few_breaks_no_rule(value):
    rng = np.random.default_rng(0)
    profile = reference_profile({"x": rng.integers(0, 5, 5000).astype(float)})
    window = rng.integers(0, 5, 5000).astype(float)
    window[7] = value
    assert measure_data_quality({"x": window}, profile, max_rate=0.01).verdict is Verdict.PASS


def test_data_without_rows_fail(tmp_path):
    import polars

    profile = reference_profile({"x": [1.0, 2.0]})
    (tmp_path / "header.csv").write_text("x\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "folder").mkdir()
    empty = polars.DataFrame({"x": polars.Series([], dtype=polars.Float64)})
    feeds = (
        {"x": []},
        np.zeros((0, 1)),
        empty,
        empty.lazy(),
        tmp_path / "header.csv",
        tmp_path / "nothing.csv",
        tmp_path / "folder",
    )
    for data in feeds:
        if isinstance(data, np.ndarray):
            evidence = measure_data_quality(data, reference_profile(np.ones((2, 1))), max_rate=0.1)
        else:
            evidence = measure_data_quality(data, profile, max_rate=0.1)
        assert (evidence.verdict, evidence.n) == (Verdict.FAIL, 0)
        assert evidence.findings == ("there are no rows",)
        with pytest.raises(InputError, match="there are no rows"):
            reference_profile(data)
    with pytest.raises(InputError, match="there are no rows"):
        measure_drift({"x": []}, profile, max_distance=0.1)
