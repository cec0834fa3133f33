"""Columns made of others: lengths of texts, numbers of embeddings, and what both cost in the file."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring import measure_data_quality, measure_drift, reference_profile


def notes(rows, seed, *, words=8):
    """Texts of a random number of words, about `words`."""
    rng = np.random.default_rng(seed)
    return ["word " * (1 + number) + str(row) for row, number in enumerate(rng.poisson(words, rows).tolist())]


def test_text_has_pools_and_lengths():
    profile = reference_profile({"note": ["x" * 101, "", "añb", None], "city": ["Bern", "Graz", None, None]})
    assert profile.names == ("note", "city", "note (length)")
    assert profile.input_names == ("note", "city")
    length = profile.column("note (length)")
    assert (length.kind, length.source, length.rows, length.nulls) == ("integer", "note", 4, 1)
    assert (length.minimum, length.maximum, length.mean) == (0, 101, pytest.approx(104 / 3))
    assert profile.column("note").hashed


def test_a_column_with_the_name_of_a_length_is_refused():
    with pytest.raises(InputError) as caught:
        reference_profile({"note": ["x" * 101, "y"], "note (length)": [1, 2]})
    assert str(caught.value) == "2 columns are called 'note (length)': give each its own name"


def test_longer_texts_drift_in_their_length():
    profile = reference_profile({"note": notes(3000, 0)})
    same = measure_drift({"note": notes(3000, 1)}, profile, max_distance=0.1)
    assert same.verdict is Verdict.PASS
    longer = measure_drift({"note": notes(3000, 2, words=16)}, profile, max_distance=0.1)
    assert longer.verdict is Verdict.FAIL
    assert any("'note (length)'" in finding for finding in longer.findings)


def test_texts_that_are_few_in_the_data_alone_keep_their_length():
    profile = reference_profile({"note": notes(300, 0)})
    evidence = measure_data_quality({"note": notes(50, 1)}, profile, max_rate=0.2)
    assert evidence.verdict is not Verdict.FAIL
    lost = measure_data_quality({"note": [None] * 50}, profile, max_rate=0.2)
    assert lost.verdict is Verdict.FAIL
    assert any("column 'note' is null in every row" in finding for finding in lost.findings)


def test_an_array_of_texts_fits_its_profile():
    data = np.array([[f"{'long ' * 25}{row}", "a"] for row in range(200)], dtype=object)
    profile = reference_profile(data, columns=["note", "letter"])
    assert profile.names == ("note", "letter", "note (length)")
    assert measure_drift(data, profile, max_distance=0.5, block=1).verdict is not Verdict.FAIL
    assert reference_profile(data, like=profile).columns[2].counts == profile.columns[2].counts


def test_an_embedding_is_counted_in_few_bins():
    rng = np.random.default_rng(0)
    profile = reference_profile({"face": rng.normal(size=(2000, 3)), "x": rng.normal(size=2000)})
    assert profile.names == ("face[0]", "face[1]", "face[2]", "x")
    assert [column.source for column in profile.columns] == ["face"] * 3 + [None]
    assert all(len(column.edges) <= 64 for column in profile.columns[:3])
    assert len(profile.column("x").edges) > 200
    moved = rng.normal((0, 0.3, 0), size=(2000, 3))
    drift = measure_drift({"face": moved, "x": rng.normal(size=2000)}, profile, max_distance=0.05)
    assert drift.verdict is Verdict.FAIL
    assert any("'face[1]'" in finding for finding in drift.findings)


def test_an_embedding_of_768_numbers_fits_into_800_kb():
    embedding = np.random.default_rng(1).normal(size=(2000, 768)).astype(np.float32)
    assert len(reference_profile({"e": embedding}, associations=False).to_json().encode()) <= 800_000
