"""A text that breaks a relation is brought back, character by character, to the text that it came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

import pytest_modelserve as ms
from pytest_modelserve.robustness.minimizer import apply_edits, minimize, simpler_texts, text_edits


@given(st.text(), st.text())
def test_all_edits_together_make_the_one_text_of_the_other(origin: str, current: str) -> None:
    assert apply_edits(origin, text_edits(origin, current)) == current
    assert apply_edits(origin, []) == origin


@given(st.text(max_size=30), st.text(max_size=30))
def test_neither_of_the_two_texts_is_offered_and_none_twice(origin: str, current: str) -> None:
    offered = simpler_texts(current, origin)
    assert current not in offered
    assert origin not in offered
    assert len(set(offered)) == len(offered)


@pytest.mark.parametrize(
    ("origin", "current", "needle", "least"),
    [
        ("basic plan", "xyz basic!! plan\x1b[31m and more", "!", "basic! plan"),
        ("a note", "ÅßΩ漢 a note", "ß", "ßa note"),
        ("a note", "something else ! entirely ? of course", "!", None),
        ("", "0123456789" * 30 + "?", "?", None),
    ],
)
def test_few_characters_are_left(origin: str, current: str, needle: str, least: str | None) -> None:
    row = {"text": np.array([[current, "same"]], object)}
    base = {"text": np.array([[origin, "same"]], object)}
    found = minimize(row, base, lambda rows: np.array([needle in text for text in rows["text"][:, 0]]))
    left = found.row["text"][0, 0]
    assert needle in left
    assert found.coordinates == (0,)
    assert left == least if least is not None else len(left) <= len(origin) + 10


def test_odd_characters_become_plain_where_the_model_does_not_mind_them() -> None:
    row, base = {"t": np.array([["漢漢"]], object)}, {"t": np.array([[""]], object)}
    found = minimize(row, base, lambda rows: np.array([len(text) == 2 for text in rows["t"][:, 0]]))
    assert found.row["t"][0, 0] == "aa"


def test_a_relation_about_text_tells_a_plain_one() -> None:
    texts = np.array([["basic"], ["plus"]], object)
    model = ms.serve(lambda x: np.array([np.nan if len(row[0]) > 5 else 1.0 for row in x]))
    evidence = ms.measure_relation(
        model, texts, ms.relations.finite_outputs(), domain=("like", "special"), save_to=None
    )
    (told,) = [line for line in evidence.findings if "→" in line and line.startswith("  ")]
    before, after = told.split("   ")[-1].split(" → ")
    assert before in ("'basic'", "'plus'")
    assert after.strip("'").isascii()
