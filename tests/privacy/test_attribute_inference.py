"""A sensitive column, guessed with a model and without it."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.privacy import measure_attribute_leak

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(500, 4)).astype(np.float32)
ROWS[:, 3] = RNG.integers(0, 3, 500)
WEIGHTS = np.array([[1.0], [0.5], [0.0], [0.8]])


def measure(model=lambda rows: rows @ WEIGHTS, rows=ROWS, labels=None, attribute=3, max_gain=0.1, **given):
    with ms.serve(model) as served:
        return measure_attribute_leak(served, rows, labels, attribute=attribute, max_gain=max_gain, **given)


def test_a_score_that_depends_on_a_column_gives_it_away():
    evidence = measure()
    assert evidence.verdict is ms.Verdict.FAIL
    gain, without, having = (quantity.value for quantity in evidence.quantities)
    assert having == 1
    assert without == pytest.approx(1 / 3, abs=0.1)
    assert gain == pytest.approx(having - without)
    assert evidence.n == 250
    assert evidence.findings[0].startswith("column 3 as one of 3 values (0.0, 1.0, 2.0); the most frequent has 3")


def test_a_score_without_the_column_gives_nothing_away():
    blind = measure(lambda rows: rows[:, :3] @ WEIGHTS[:3], max_gain=0.15)
    assert blind.verdict is ms.Verdict.PASS


def test_what_the_other_columns_give_away_is_not_the_models_fault():
    """Without the comparison, an attribute that is guessed from the other columns alone would count."""
    rows = ROWS.copy()
    rows[:, 3] = rows[:, 0] > 0
    evidence = measure(rows=rows)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.quantities[1].value > 0.95


def test_rounded_answers_give_less_away():
    fine, coarse = (measure(lambda rows, unit=unit: np.round(rows @ WEIGHTS / unit) * unit) for unit in (0.01, 4.0))
    assert coarse.value < fine.value - 0.3


def test_a_column_of_numbers_is_guessed_as_its_bin():
    evidence = measure(attribute=1, bins=4)
    assert evidence.details["values"][0].startswith("to -0.")
    assert len(evidence.details["values"]) == 4
    assert evidence.quantities[2].value > 0.9
    assert evidence.quantities[1].value < 0.4


def test_the_true_label_alone_gives_away_what_the_model_remembers():
    """The model is sure of a label only where the row has the value that it was trained with."""

    def overfitted(rows):
        known = {row[:3].tobytes(): row[3] for row in ROWS}
        right = np.array([known.get(row[:3].tobytes()) == row[3] for row in rows])
        positive = np.where(right, 0.99, 0.5)
        label = (rows[:, 0] > 0).astype(int)
        found = np.empty((len(rows), 2))
        found[np.arange(len(rows)), label], found[np.arange(len(rows)), 1 - label] = positive, 1 - positive
        return found

    labels = (ROWS[:, 0] > 0).astype(int)
    evidence = measure(overfitted, labels=labels, sees_answer=False)
    assert evidence.quantities[2].value == 1
    assert evidence.findings[1] == (
        "the attacker has the other columns, 250 whole rows, the true label of each row, and may ask the model"
    )


def test_columns_of_mappings_go_by_name_and_missing_values_are_left_out():
    sex = np.array(["f", "m"], dtype=object)[(ROWS[:, 1] > 0).astype(int)]
    feed = {"x": ROWS[:, :1], "sex": sex}
    by_name = measure(lambda feed: feed["x"] + 2.0 * (feed["sex"] == "f")[:, None], feed, attribute="sex")
    assert by_name.quantities[2].value == 1
    sex[:100] = None
    assert measure(lambda feed: feed["x"], feed, attribute="sex", max_gain=0.2).n == 200


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_frames_go_by_name(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"age": ROWS[:, 0], "group": np.array(["a", "b", "c"])[ROWS[:, 3].astype(int)]})
    found = measure(
        lambda frame: (np.asarray(frame["age"]) + 3 * (np.asarray(frame["group"]) == "b"))[:, None],
        frame,
        attribute="group",
    )
    assert found.quantities[2].value > 0.55
    with pytest.raises(UsageError, match="unknown attribute 'grup'"):
        measure(rows=frame, attribute="grup")


def test_few_rows_are_inconclusive():
    evidence = measure(rows=ROWS[:60], max_gain=0.4)
    assert evidence.verdict is ms.Verdict.INCONCLUSIVE
    assert "attacked rows, with which the verdict is reached 9 times in 10" in evidence.advice


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attribute": 4}, r"attribute 4 is no column of inputs of shape \(500, 4\)"),
        ({"attribute": "age"}, "attribute must be the number of a column of the array, got 'age'"),
        ({"attribute": True}, "attribute must be the number or the name of a column, got True"),
        ({"max_gain": 1}, "max_gain must be between 0 and 1"),
        ({"bins": 1}, "bins must be an integer of at least 2"),
        ({"known": 0}, "known must be between 0 and 1"),
        ({"sees_answer": False}, "sees_answer=False needs labels"),
        ({"sees_answer": False, "labels": ROWS[:, 0] > 0}, "gives no score of the true label"),
    ],
)
def test_invalid_arguments_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        measure(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": ROWS[:30]}, "at least 20 must be known and as many attacked"),
        ({"rows": np.ones_like(ROWS)}, "column 3 has one value in all known rows: there is nothing to guess"),
        ({"rows": np.column_stack([ROWS[:, :3], np.arange(500) % 50 == 0])}, "one value in 98.0 % of the rows"),
        ({"model": lambda rows: rows[:, :1] * np.nan}, "hold NaN in 500 rows"),
        ({"rows": {"x": ROWS, "id": np.arange(500).astype(str)}, "attribute": "id"}, "has 250 categories"),
    ],
)
def test_rows_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        measure(**given)


def test_infinite_values_of_a_column_belong_to_its_last_bin():
    rows = ROWS.copy()
    rows[::5, 1] = np.inf
    evidence = measure(lambda rows: np.minimum(rows, 9) @ WEIGHTS, rows=rows, attribute=1, bins=3)
    assert evidence.details["values"][-1].startswith("over 0.")
    assert evidence.quantities[2].value > 0.9


def test_equal_rows_count_as_one_on_one_side():
    """60 rows that are repeated tell no more about the gain than 60."""
    once = measure(rows=ROWS[:60], max_gain=0.4)
    often = measure(rows=np.repeat(ROWS[:60], 5, axis=0), max_gain=0.4)
    assert once.verdict is often.verdict is ms.Verdict.INCONCLUSIVE
    assert (once.n, often.n, often.n_unit) == (30, 30, "groups")
    assert "150 attacked rows are 30 groups" in often.findings[-1]
    assert "groups of attacked rows, with which the verdict is reached" in often.advice
    hidden = measure(rows=np.repeat(ROWS[:60], 5, axis=0), max_gain=0.4, sampling=ms.Sampling())
    assert (hidden.n, hidden.verdict) == (150, ms.Verdict.PASS)  # copies among the known rows tell the column
