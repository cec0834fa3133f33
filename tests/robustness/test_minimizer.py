"""Minimization of violations and crashes: the needed features, simple numbers and texts, few trials."""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import pytest_modelserve as ms
from pytest_modelserve.robustness import minimizer
from pytest_modelserve.robustness.minimizer import apply_edits, minimize, minimize_crash, simpler_texts, text_edits
from pytest_modelserve.serving.subprocess_predictor import ProcessCrashError

RNG = np.random.default_rng


def minimized(row, base, fails, **options):
    return minimize({"x": row}, {"x": base}, lambda rows: fails(rows["x"]), **options)


def test_two_of_150528_pixels_are_found_alone():
    base = np.zeros((1, 3, 224, 224), np.float32)
    row = RNG(0).uniform(0.2, 1, base.shape).astype(np.float32)
    found = minimized(row, base, lambda images: (images[:, 0, 5, 9] > 0.1) & (images[:, 2, 200, 100] > 0.1))
    assert found.coordinates == (5 * 224 + 9, 2 * 224 * 224 + 200 * 224 + 100)
    assert found.trials < 1000


@pytest.mark.parametrize("features", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [10, 640])
def test_as_many_features_remain_as_the_fault_needs(features, size):
    needed = RNG(features).choice(size, features, replace=False)
    found = minimized(np.ones((1, size)), np.zeros((1, size)), lambda rows: (rows[:, needed] > 0.5).all(axis=1))
    assert found.coordinates == tuple(sorted(needed))


@pytest.mark.parametrize(
    ("fails", "count"),
    [
        pytest.param(lambda rows: (rows[:, 3] > 0) | (rows[:, 30] > 0), 1, id="either of two features"),
        pytest.param(lambda rows: rows.sum(axis=1) > 6.5, 7, id="a sum"),
        pytest.param(lambda rows: np.ones(len(rows), np.bool_), 0, id="the base row too"),
    ],
)
def test_no_feature_remains_without_which_the_row_fails_too(fails, count):
    found = minimized(np.ones((1, 40)), np.zeros((1, 40)), fails)
    assert len(found.coordinates) == count
    assert (found.row["x"] != 0).sum() == count


def test_numbers_become_simple_and_stay_between_base_and_row():
    row, base = np.array([[0.87431286, 7.13]], np.float32), np.array([[0.2, 0.0]], np.float32)
    found = minimized(row, base, lambda rows: (rows[:, 0] > 0.8) & (rows[:, 1] > 2.5))
    assert found.row["x"].tolist() == [[np.float32(0.85), 3.0]]


def test_integers_stay_between_base_and_row():
    tried = []

    def fails(rows):
        tried.append(rows)
        return np.asarray(rows[:, 0] >= 6)

    found = minimized(np.array([[9, 2]]), np.array([[3, 2]]), fails)
    assert found.row["x"].tolist() == [[6, 2]]
    assert set(np.unique(np.concatenate(tried))) <= set(range(2, 10))


def test_a_needed_nan_remains_and_any_other_becomes_a_number():
    row, base = np.array([[np.nan]]), np.array([[0.5]])
    assert np.isnan(minimized(row, base, lambda rows: np.isnan(rows[:, 0])).row["x"]).all()
    assert minimized(row, base, lambda rows: rows[:, 0] != 0.5).row["x"].tolist() == [[0.0]]


def test_text_and_several_inputs_are_minimized_together():
    row = {"s": np.array([["bad", "worse"]], object), "x": np.array([[5.0, 6.0]])}
    base = {"s": np.array([["a", "b"]], object), "x": np.array([[0.0, 0.0]])}
    found = minimize(row, base, lambda rows: (rows["s"][:, 1] == "worse") & (rows["x"][:, 0] > 1))
    assert found.coordinates == (1, 2)
    assert found.row["s"].tolist() == [["a", "worse"]]
    assert found.row["x"].tolist() == [[2.0, 0.0]]


def test_after_the_maximum_of_trials_the_row_still_fails():
    needed = RNG(0).choice(2000, 300, replace=False)
    fails = lambda rows: (rows[:, needed] > 0.5).all(axis=1)  # noqa: E731
    found = minimized(np.ones((1, 2000)), np.zeros((1, 2000)), fails, max_trials=200)
    assert found.trials < 400
    assert set(needed) <= set(found.coordinates)


def test_a_zero_of_the_other_sign_is_a_change_that_can_matter():
    found = minimized(np.array([[-0.0, 1.0]]), np.array([[0.0, 0.0]]), lambda rows: np.signbit(rows[:, 0]))
    assert found.coordinates == (0,)


@settings(max_examples=50)
@given(st.text(max_size=30), st.text(max_size=30))
def test_text_edits_turn_one_text_into_the_other_and_simpler_texts_are_neither(origin, current):
    assert apply_edits(origin, text_edits(origin, current)) == current
    simpler = simpler_texts(current, origin)
    assert not {current, origin} & set(simpler)
    assert len(set(simpler)) == len(simpler)


@pytest.mark.parametrize(
    ("origin", "current", "needle", "expected"),
    [
        ("basic plan", "xyz basic!! plan\x1b[31m and more", "!", "basic! plan"),
        ("a note", "ÅßΩ漢 a note", "ß", "ßa note"),
        ("a note", "something else ! entirely ? of course", "!", None),
        ("", "0123456789" * 30 + "?", "?", None),
    ],
)
def test_few_characters_of_a_text_remain(origin, current, needle, expected):
    row = {"text": np.array([[current, "same"]], object)}
    base = {"text": np.array([[origin, "same"]], object)}
    found = minimize(row, base, lambda rows: np.array([needle in text for text in rows["text"][:, 0]]))
    text = found.row["text"][0, 0]
    assert needle in text
    assert found.coordinates == (0,)
    assert text == expected if expected is not None else len(text) <= len(origin) + 10


def test_characters_beyond_ascii_become_plain_where_they_do_not_matter():
    row, base = {"t": np.array([["漢漢"]], object)}, {"t": np.array([[""]], object)}
    found = minimize(row, base, lambda rows: np.array([len(text) == 2 for text in rows["t"][:, 0]]))
    assert found.row["t"][0, 0] == "aa"


def test_the_counterexample_of_a_text_model_is_plain():
    model = ms.serve(lambda x: np.array([np.nan if len(row[0]) > 5 else 1.0 for row in x]))
    rows, relation = np.array([["basic"], ["plus"]], object), ms.relations.finite_outputs()
    evidence = ms.measure_relation(model, rows, relation, domain=("like", "special"), save_to=None)
    (change,) = [line for line in evidence.findings if "→" in line and line.startswith("  ")]
    before, after = change.split("   ")[-1].split(" → ")
    assert before in ("'basic'", "'plus'")
    assert after.strip("'").isascii()


CRASH = ProcessCrashError("the process that serves m was killed by SIGFPE")


class CrashingProcess:
    """A process that crashes if `rule` holds for one of the rows, and counts its crashes."""

    def __init__(self, rule, *, seconds=0.0):
        self.rule, self.seconds = rule, seconds
        self.crashes = 0

    def __call__(self, rows):
        if not self.rule(rows["x"]).any():
            return None
        self.crashes += 1
        time.sleep(self.seconds)
        return CRASH


def minimized_crash(rows, base, process, error=CRASH):
    return minimize_crash({"x": rows}, {"x": base}, np.arange(len(rows)), process, error=error)


@pytest.mark.parametrize(("size", "most"), [(10, 20), (150_528, 45)])
def test_one_row_of_many_and_two_of_its_features_cost_few_crashes(size, most):
    count = 1000 if size == 10 else 8
    rows = RNG(0).uniform(0.1, 0.4, (count, size)).astype(np.float32)
    rows[count - 3, [1, size - 2]] = 0.87431286
    process = CrashingProcess(lambda x: (x[:, 1] > 0.5) & (x[:, size - 2] > 0.5))
    least, _ = minimized_crash(rows, np.zeros_like(rows), process)
    assert least.changes == ((0, 1), (0, size - 2))
    assert least.base_row == count - 3
    assert least.rows["x"][0, [1, size - 2]].tolist() == pytest.approx([0.8, 0.8], abs=0.3)
    assert (least.crash, least.reproduced, least.message) == ("crashed", True, str(CRASH))
    assert least.initial_changes == size
    assert process.crashes <= most


def test_rows_that_crash_only_together_stay_together():
    rows = np.arange(1, 9, dtype=np.float64)[:, None]
    process = CrashingProcess(lambda x: np.array([{2.0, 7.0} <= set(x[:, 0])]))
    least, _ = minimized_crash(rows, rows.copy(), process)
    assert sorted(least.rows["x"][:, 0]) == [2, 7]
    assert least.base_row == 1


def test_a_base_row_that_crashes_too_has_no_changes():
    process = CrashingProcess(lambda x: np.ones(len(x), np.bool_))
    least, _ = minimized_crash(np.ones((1, 5)), np.zeros((1, 5)), process)
    assert least.changes == ()


def test_a_crash_that_is_not_reproduced_is_reported_unchanged():
    rows = np.ones((3, 4))
    least, trials = minimized_crash(rows, np.zeros((3, 4)), lambda rows: None)
    assert (least.reproduced, trials) == (False, 1)
    assert least.rows["x"] is rows
    assert least.message == str(CRASH)


@pytest.mark.parametrize("needed", [np.arange(0, 400, 2), np.arange(3)], ids=["many", "few"])
def test_minimization_stops_in_time_with_rows_that_still_crash(needed, monkeypatch):
    monkeypatch.setattr(minimizer, "CRASH_TIME_S", 0.05)
    process = CrashingProcess(lambda x: (x[:, needed] > 0.5).all(axis=1), seconds=0.02)
    least, _ = minimized_crash(np.ones((1, 400)), np.zeros((1, 400)), process)
    assert process({"x": least.rows["x"]}) is not None
    assert re.fullmatch(rf"{CRASH}; minimization stopped after \d+ s, simpler rows may crash it too", least.message)
    assert process.crashes < 20


def test_time_limits_of_the_trials_extend_the_time(monkeypatch):
    monkeypatch.setattr(minimizer, "CRASH_TIME_S", 0.0)
    process = CrashingProcess(lambda x: x[:, 3] > 0.5, seconds=0.01)
    error = ProcessCrashError("timed out", time_limit_s=60)
    least, _ = minimized_crash(np.ones((1, 8)), np.zeros((1, 8)), process, error)
    assert least.changes == ((0, 3),)
