"""The histograms that a drift gate leaves for reports."""

import json

import numpy as np
import pytest

import pytest_modelserve as ms


def histograms(before, after, **settings):
    evidence = ms.measure_drift(after, ms.reference_profile(before), max_distance=0.1, **settings)
    return evidence.details.get("histograms")


def test_numbers_are_counted_in_few_even_bins_of_both_sides():
    rng = np.random.default_rng(0)
    before, after = rng.normal(40, 12, 10_000), rng.normal(52, 12, 3_000)
    found = histograms({"age": before}, {"age": after})["age"]
    edges = [float(edge) for edge in found["edges"]]
    assert 8 <= len(edges) <= 13
    widths = np.diff(edges)
    assert max(widths) < 1.5 * min(widths)
    for values, shares in ((before, found["profile"]), (after, found["data"])):
        expected = np.diff([0, *(np.mean(values < edge) for edge in edges), 1])
        assert np.abs(np.array(shares) - expected).max() < 0.02


def test_categories_integers_and_booleans_have_the_names_of_their_values():
    rng = np.random.default_rng(0)
    before = {"c": rng.choice(list("abcdefghijkl"), 9000), "n": rng.poisson(3, 9000), "b": rng.random(9000) < 0.3}
    after = {"c": rng.choice(list("ab"), 3000), "n": rng.poisson(6, 3000), "b": rng.random(3000) < 0.8}
    found = histograms(before, after)
    assert set(found["c"]["categories"]) > {"a", "b", "4 others"}
    assert found["c"]["data"][:2] == pytest.approx([0.5, 0.5], abs=0.03)
    assert found["n"]["edges"][:4] == ["1", "2", "3", "4"]
    assert found["n"]["profile"][0] == pytest.approx(np.mean(before["n"] == 0), abs=1e-4)
    assert found["b"]["categories"] == ["false", "true"]
    assert found["b"]["data"] == pytest.approx([0.2, 0.8], abs=0.03)


def test_data_without_drift_leave_none_and_many_columns_leave_six():
    rng = np.random.default_rng(0)
    assert histograms({"x": rng.normal(size=9000)}, {"x": rng.normal(size=9000)}) is None
    before = {f"x{i}": rng.normal(size=9000) for i in range(40)}
    found = histograms(before, {name: values[:3000] + 1 for name, values in before.items()})
    assert len(found) == 6
    assert len(json.dumps(found)) < 4000


def test_evidence_that_is_too_long_loses_its_drawings_first():
    rng = np.random.default_rng(0)
    before = {f"a column with a name of some length {i}": rng.normal(size=2000) for i in range(100)}
    evidence = ms.measure_drift(
        {name: values[:1000] + 1 for name, values in before.items()}, ms.reference_profile(before), max_distance=0.1
    )
    size = len(json.dumps(evidence.details["histograms"]))
    whole = len(evidence.to_json(max_bytes=10**6).encode())
    kept = json.loads(evidence.to_json(max_bytes=whole - size // 2))
    assert kept["shortened"] == ["drawings"]
    assert "histograms" not in kept["details"]
    assert kept["details"]["distances"]
