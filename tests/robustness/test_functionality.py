"""A table of rows with their labels, and the copies of them that have the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms

r = ms.relations
Array = NDArray[Any]
TABLE = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]], np.float32)


def jittered(rows: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    return {"input": (rows["input"] + rng.uniform(-0.04, 0.04, rows["input"].shape)).astype(np.float32)}


def shifted(rows: dict[str, Array]) -> dict[str, Array]:
    return {"input": rows["input"] + np.float32([0, 0.2])}


def measured(relation: Any, model: Any = lambda x: x, rows: Array = TABLE, **options: Any) -> ms.Evidence:
    return ms.measure_relation(ms.serve(model, name="scores"), rows, relation, save_to=None, **options)


def test_a_table_that_is_answered_as_expected_passes_and_nothing_else_is_asked() -> None:
    evidence = measured(r.minimum_functionality([0, 1, 0]))
    assert (evidence.verdict, evidence.n) == (ms.Verdict.PASS, 3)
    assert measured(r.minimum_functionality(np.array([0, 1, 0]), perturb=jittered)).verdict is ms.Verdict.PASS


def test_a_row_with_another_label_is_told_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(ms.GateFailure) as error:
        ms.assert_relation(
            ms.serve(lambda x: x, name="scores"), TABLE, r.minimum_functionality([0, 1, 1]), save_to=None
        )
    assert (
        str(error.value)
        == """\
relation: minimum functionality is broken

  minimum functionality: breaches 1
  method     search without a confidence level, 3 fixed and 0 drawn rows, seed 0, n = 3 candidates
  budget     at most 0
  verdict    FAIL: the value lies above the budget

  every row of the table has its expected label
  the label is 0 and 1 is expected
  base row 2 itself breaks it: nothing had to be changed
  output 'output'  0.6 0.5
  @example({'input': np.array([[0.6, 0.5]], dtype='float32')})
  candidate  scores
  next       ask again with these rows and candidates=0; correct the model, or the relation where it claims too much"""
    )


def test_a_perturbed_copy_with_another_label_is_told_as_that() -> None:
    evidence = measured(r.minimum_functionality([0, 1, 0], perturb=shifted))
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1] == "the label is 1 for perturbed copy 1 and 0 is expected"
    wild = measured(
        r.minimum_functionality(
            [0, 1, 0], perturb=lambda rows, rng: {"input": rows["input"] + rng.normal(size=2).astype("f4")}
        )
    )
    assert wild.verdict is ms.Verdict.FAIL
    assert "for perturbed copy" in wild.findings[1]


def test_labels_of_text_and_of_scores_that_hold_nan() -> None:
    named = r.minimum_functionality(["a", "b", "a"], decode=lambda scores: np.array(["a", "b"])[scores.argmax(axis=1)])
    assert measured(named).verdict is ms.Verdict.PASS
    broken = measured(r.minimum_functionality([0, 1, 0]), lambda x: np.where(x > 0.85, np.nan, x))
    assert broken.verdict is ms.Verdict.FAIL
    assert broken.findings[1] == "the label is None and 0 is expected"


def test_the_same_row_twice_needs_one_label() -> None:
    rows = TABLE[[0, 0]]
    assert measured(r.minimum_functionality([0, 0]), rows=rows).verdict is ms.Verdict.PASS
    with pytest.raises(ms.InputError, match="the table has one row twice, once as 0 and once as 1"):
        measured(r.minimum_functionality([0, 1]), rows=rows)


def test_bad_requests_are_refused_by_name() -> None:
    with pytest.raises(ms.InputError, match="there are 2 labels for a table of 3 rows"):
        measured(r.minimum_functionality([0, 1]))
    with pytest.raises(
        ms.UsageError, match="minimum functionality is about the rows as they stand: leave candidates= out"
    ):
        measured(r.minimum_functionality([0, 1, 0]), candidates=10)
    for labels in ([], [0.5], [True]):
        with pytest.raises(ms.UsageError, match="labels are integers or strings, one for each row of the table"):
            r.minimum_functionality(labels)
    with pytest.raises(ms.UsageError, match="a transformation is a function of rows"):
        r.minimum_functionality([0], perturb=lambda: None)
    with pytest.raises(ms.UsageError, match="draws is a whole number of at least 1, not 0"):
        r.minimum_functionality([0], perturb=jittered, draws=0)
    with pytest.raises(
        ms.InputError, match="the transformation gives input 'input' as float64: convert them back to float32"
    ):
        measured(r.minimum_functionality([0, 1, 0], perturb=lambda rows: {"input": rows["input"] * 1.0 + np.ones(2)}))
