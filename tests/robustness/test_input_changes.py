"""Relations between an input and a changed one: each has a model that obeys it and one that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

import pytest_modelserve as ms

r = ms.relations
Array = NDArray[Any]
W = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
HALF = np.float32(0.5)


def corner(x: Array) -> Array:
    """Rows in a narrow corner of two features."""
    return (x[:, 2] > 1.0) & (x[:, 7] < -1.0)


def planted(y: Array, rows: Array, change: float) -> Array:
    y = y.copy()
    y[rows] += np.float32(change)
    return y


def norm(x: Array) -> Array:
    return np.maximum(np.abs(x).max(axis=1), np.float32(1e-30))


def shape_of(x: Array) -> Array:
    """A row by itself: its features as shares of the largest."""
    return (x / norm(x)[:, None]) @ W


def imputing(x: Array) -> Array:
    return np.where(np.isnan(x), HALF, x) @ W


def in_celsius(x: Array) -> Array:
    """Feature 0 is in °F where feature 5 is 1, and in °C elsewhere."""
    return np.where(x[:, 5] == 1, (x[:, 0].astype(np.float64) - 32) / 1.8, x[:, 0]).astype(np.float32)


CASES: dict[str, tuple[Any, Callable[[Array], Array], Callable[[Array], Array]]] = {
    "set, invariant": (
        r.set_permutation(),
        lambda x: np.maximum(x, 0).sum(axis=1),
        lambda x: x @ W,
    ),
    "set, planted": (
        r.set_permutation(),
        lambda x: x.max(axis=1),
        lambda x: planted(x.max(axis=1), corner(x), 0.1),
    ),
    "set, equivariant": (
        r.set_permutation(answer="equivariant"),
        lambda x: x - x.mean(axis=1, keepdims=True),
        lambda x: x + np.arange(10, dtype=np.float32),
    ),
    "scale": (r.scale_invariant(8.0), shape_of, lambda x: (x / (norm(x)[:, None] + HALF)) @ W),
    "scale, not a power of two": (r.scale_invariant(1000.0), shape_of, lambda x: np.tanh(x) @ W),
    "scale of a feature, decision": (
        r.scale_invariant(100.0, 4, decision=True),
        lambda x: x[:, :3] + np.float32(0.001) * np.sign(x[:, 4:5]),
        lambda x: x[:, :3] + x[:, 4:5] * np.float32([1, 0, 0]),
    ),
    "scale, equivariant": (r.scale_equivariant(1000.0), lambda x: x @ W, lambda x: x @ W + HALF),
    "scale, square": (
        r.scale_equivariant(2.0, (0, 1), degree=2),
        lambda x: x[:, 0] * x[:, 1],
        lambda x: planted(x[:, 0] * x[:, 1], corner(x), 0.1),
    ),
    "unit": (
        r.unit_change(0, factor=1.8, offset=32, declared=5, values=(0.0, 1.0)),
        in_celsius,
        lambda x: np.where((x[:, 5] == 1) & (x[:, 2] < 1), (x[:, 0] - 32) / np.float32(1.8), x[:, 0]),
    ),
    "missing": (r.missing_values((2, 7)), imputing, lambda x: x @ W),
    "missing, all at once": (
        r.missing_values((2, 7)),
        imputing,
        lambda x: np.where(np.isnan(x[:, [2, 7]]).all(axis=1), np.nan, np.nan_to_num(x).sum(axis=1)),
    ),
    "missing, imputed": (
        r.missing_values((2, 7), imputed=0.5),
        imputing,
        lambda x: np.where(np.isnan(x), np.float32(0.0), x) @ W,
    ),
    "missing, little change": (
        r.missing_values(3, max_change=0.5),
        lambda x: np.float32(0.2) * np.tanh(np.where(np.isnan(x[:, 3]), 0, x[:, 3])) + x[:, 0],
        lambda x: np.where(np.isnan(x[:, 3]), 0, x[:, 3]) + x[:, 0],
    ),
    "missing, a value of its own": (
        r.missing_values(3, marker=-999.0, imputed=0.0),
        lambda x: np.where(x[:, 3] == -999, 0, x[:, 3]),
        lambda x: x[:, 3],
    ),
    "up": (r.directional(2, 0.5, "up"), lambda x: x[:, 2] * 3, lambda x: planted(-x[:, 2] * 3, corner(x), 100)),
    "up, planted": (
        r.directional(2, 0.5, "up"),
        lambda x: np.floor(x[:, 2]),
        lambda x: planted(x[:, 2], (x[:, 2] > 1) & (x[:, 7] < -1), -1.0),
    ),
    "down by less": (r.directional(2, -0.5, "down", at_least=0.9), lambda x: x[:, 2] * 2, lambda x: np.tanh(x[:, 2])),
    "down, at least": (
        r.directional(2, 1.0, "down", at_least=0.5, at_most=2.0),
        lambda x: -x[:, 2],
        lambda x: -x[:, 2] * np.where(x[:, 7] < -1, np.float32(0.1), 1),
    ),
    "at_most": (
        r.directional(2, 1.0, "up", at_most=2.0, element=1),
        lambda x: x[:, 1:4] * 2,
        lambda x: x[:, 1:4] * np.where(x[:, 7:8] < -1, np.float32(3), 2),
    ),
}


@pytest.fixture
def rows() -> Array:
    """Twenty rows of ten features, of which number 5 is 0 or 1."""
    found = np.random.default_rng(0).standard_normal((20, 10)).round(2).astype(np.float32)
    found[:, 5] = np.arange(20) % 2
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_keeps_to_it_passes(case: str, rows: Array) -> None:
    relation, obeying, _ = CASES[case]
    evidence = ms.measure_relation(ms.serve(obeying), rows, relation, save_to=None)
    assert evidence.findings == (relation.definition,)
    assert evidence.verdict is ms.Verdict.PASS


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_breaks_it_is_found_with_few_features_changed_and_told(case: str, rows: Array) -> None:
    relation, _, breaking = CASES[case]
    evidence = ms.measure_relation(ms.serve(breaking), rows, relation, save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["features_left"] <= 3
    assert "output 'output'" in evidence.findings[1]


def test_every_relation_is_a_value_that_states_what_holds() -> None:
    for relation, _, _ in CASES.values():
        assert relation.name
        assert relation.definition
        assert hash(relation) == hash(relation)


@pytest.mark.parametrize(
    ("relation", "definition"),
    [
        (
            r.set_permutation("items", answer="equivariant", rtol=0, atol=0.1),
            "another order of the elements along axis 'items' gives the answers in that order, within rtol 0, atol 0.1",
        ),
        (
            r.scale_equivariant(10.0, (1, 2), degree=2, rtol=0, atol=0.1),
            "features 1, 2 times 10 multiply every answer by 10 to the power 2, within rtol 0, atol 0.1",
        ),
        (
            r.unit_change(0, factor=1.8, offset=32, declared=5, values=("C", "F"), rtol=0, atol=0.1),
            "rows with 'C' in feature 5 have the same answer with 'F' there and features 0 times 1.8 plus 32, within "
            "rtol 0, atol 0.1",
        ),
        (
            r.missing_values((1, 2), imputed=(0.5, 1), max_change=2, rtol=0, atol=0.1),
            "without features 1, 2, each and all, every answer is finite, and that of 0.5, 1 in their place within "
            "rtol 0, atol 0.1, and moves by at most 2",
        ),
        (
            r.directional(3, -1, "down", at_least=0.5, at_most=2, rtol=0, atol=0.1),
            "-1 in feature 3 moves the answer down by at least 0.5 and at most 2, within rtol 0, atol 0.1",
        ),
    ],
)
def test_definitions_say_all_that_was_asked(relation: Any, definition: str) -> None:
    assert relation.definition == definition


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("set, equivariant", "with the elements"),
        ("scale", "with real inputs times 8 and"),
        ("scale, equivariant", "with real inputs times 1000 and"),
        ("unit", "with 1.0 in feature 5 and"),
        ("missing", "output 'output' is not finite without features"),
        ("missing, all at once", "output 'output' is not finite without features 2, 7"),
        ("missing, imputed", "with what stands in for them"),
        ("up", "moving feature 2 from"),
    ],
)
def test_the_sentence_says_what_was_changed(case: str, told: str, rows: Array) -> None:
    relation, _, breaking = CASES[case]
    assert told in ms.measure_relation(ms.serve(breaking), rows, relation, save_to=None).findings[1]


def test_elements_with_the_axis_of_one_name_are_permuted_together(onnx_model: Any) -> None:
    """A masked sum: elements without their mask in the same order have another sum."""
    nodes = [helper.make_node("Mul", ["x", "mask"], ["m"]), helper.make_node("ReduceSum", ["m", "one"], ["y"])]
    inputs = {"x": ("float32", ["n", "items"]), "mask": ("float32", ["n", "items"]), "bias": ("float32", ["n", 3])}
    nodes.append(helper.make_node("ReduceSum", ["bias", "one"], ["b"]))
    nodes.append(helper.make_node("Add", ["y", "b"], ["z"]))
    model = ms.serve(onnx_model(nodes, inputs, {"z": ("float32", ["n", 1])}, one=np.array([1])))
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((8, 3 if name == "bias" else 6)).astype(np.float32) for name in inputs}
    assert ms.measure_relation(model, feed, r.set_permutation("items"), save_to=None).verdict is ms.Verdict.PASS
    alone = ms.measure_relation(model, feed, r.set_permutation(1, inputs="x"), save_to=None)
    assert alone.verdict is ms.Verdict.FAIL
    with pytest.raises(ms.UsageError, match="has an axis 'words': give its number"):
        ms.measure_relation(model, feed, r.set_permutation("words"))
    with pytest.raises(ms.InputError, match=r"different numbers of elements: \{'x': 6, 'mask': 6, 'bias': 3\}"):
        ms.measure_relation(model, feed, r.set_permutation(1))


def test_answers_follow_the_axis_that_the_signature_names(onnx_model: Any) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])]
    shapes = {"x": ("float32", ["n", "items", 4])}, {"y": ("float32", ["n", 4, "items"])}
    model = ms.serve(onnx_model(nodes, *shapes))
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    named = ms.measure_relation(model, x, r.set_permutation("items", answer="equivariant"), candidates=100)
    assert named.verdict is ms.Verdict.PASS
    placed = r.set_permutation(1, answer="equivariant", output_axis=2)
    assert ms.measure_relation(model, x, placed, candidates=100).verdict is ms.Verdict.PASS
    with pytest.raises(
        ms.UsageError, match=r"has 4 answers along axis 1 for 3 elements: say which axis by output_axis="
    ):
        ms.measure_relation(model, x, r.set_permutation(1, answer="equivariant"))


def test_rows_that_leave_their_dtype_are_not_judged() -> None:
    """Times 100, int8 keeps 0 and 1: what is beyond its range says nothing."""
    rows = np.array([[0, 1], [1, 1], [50, 100]], np.int8)
    model = ms.serve(lambda x: (x == 0).astype(np.int64))
    assert ms.measure_relation(model, rows, r.scale_invariant(100, (0, 1))).verdict is ms.Verdict.PASS
    with pytest.raises(ms.InputError, match="no base row of input 'input' holds its features times 100 plus 0"):
        ms.measure_relation(model, rows[2:], r.scale_invariant(100, (0, 1)))
    with pytest.raises(ms.InputError, match=r"no base row of input 'input' holds its features times 1 plus 0\.5"):
        ms.measure_relation(model, rows, r.directional(0, 0.5, "up", element=0))


def test_an_overflow_of_the_scaled_features_says_nothing(rows: Array) -> None:
    model = ms.serve(lambda x: (np.abs(x) >= np.finfo(np.float32).max).any(axis=1).astype(np.float32))
    assert ms.measure_relation(model, rows, r.scale_invariant(1e36), domain="far").verdict is ms.Verdict.PASS


def test_a_step_that_vanishes_in_rounding_is_not_held_against_the_model() -> None:
    rows = np.array([[1.0], [1e9]], np.float32)
    model = ms.serve(lambda x: np.float32(2) * x[:, 0])
    found = ms.measure_relation(model, rows, r.directional(0, 1.0, "up", at_least=1.0, rtol=0, atol=0), candidates=0)
    assert found.verdict is ms.Verdict.PASS


def test_text_goes_missing_as_text() -> None:
    names = np.array([["a", "b"], ["b", "a"]], object)
    model = ms.serve(lambda x: (x[:, 0] == "").astype(np.float32) + 0)
    lengths = ms.serve(lambda x: np.array([1 / len(text) if text else np.nan for text in x[:, 0]]))
    relation = r.missing_values(0, marker="")
    assert ms.measure_relation(model, names, relation).verdict is ms.Verdict.PASS
    assert ms.measure_relation(lengths, names, relation, save_to=None).verdict is ms.Verdict.FAIL


def test_integers_have_no_nan_to_be_missing_by() -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(lambda x: x), np.ones((2, 2), np.int64), r.missing_values(0))
    assert str(error.value) == "input 'input' is int64, which has no NaN: say by marker= what is missing"


def test_no_row_in_the_unit_is_an_input_error(rows: Array) -> None:
    relation = r.unit_change(0, factor=2, declared=5, values=(7.0, 1.0))
    with pytest.raises(ms.InputError, match=r"no base row has 7\.0 in feature 5: add rows in that unit"):
        ms.measure_relation(ms.serve(in_celsius), rows, relation)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: r.set_permutation(0), "axis counts from the rows, which are axis 0: give 1 or more, not 0"),
        (lambda: r.set_permutation(answer="same"), "unknown answer 'same': Known: 'invariant', 'equivariant'"),
        (lambda: r.set_permutation(output_axis=1), "output_axis is for answer='equivariant', and at least 1"),
        (lambda: r.set_permutation(inputs=()), "inputs is empty: name one or more, or leave it out"),
        (lambda: r.scale_invariant(1), "factor is a finite number other than 0 and 1, not 1"),
        (lambda: r.scale_equivariant(2, degree=0), "degree is a power other than 0, not 0; for no change"),
        (lambda: r.scale_equivariant(-2, degree=0.5), "a factor below 0 has no power 0.5"),
        (
            lambda: r.unit_change(0, factor=2, declared=1, values=(1, 1)),
            "values are the two units as the feature says them, from and to, not (1, 1)",
        ),
        (lambda: r.missing_values((0, 1), imputed=(1,)), "imputed is one value, or one for each of 2 features, not 1"),
        (lambda: r.missing_values(0, max_change=-1), "max_change is a number of at least 0, not -1"),
        (lambda: r.directional(0, 0, "up"), "by is a finite step in the units of the feature other than 0, not 0"),
        (lambda: r.directional(0, 1, "upp"), "unknown moves 'upp': did you mean 'up'? Known: 'up', 'down'"),
        (
            lambda: r.directional(0, 1, "up", at_least=2, at_most=1),
            "at_least and at_most are moves from 0 on, in this order, not 2 and 1",
        ),
    ],
)
def test_a_relation_that_cannot_be_meant_is_refused_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ms.UsageError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "relation", "message"),
    [
        (lambda x: x[:, 0] > 0, r.scale_equivariant(2.0), "output 'output' is bool, which has no scale"),
        (lambda x: x, r.set_permutation(2), "input 'input' of shape [1, 10] has no axis 2 of elements"),
        (lambda x: x, r.set_permutation("items"), "has an axis 'items': give its number"),
        (lambda x: x, r.set_permutation(inputs="y"), "unknown input 'y': Known: 'input'"),
        (lambda x: x, r.directional(0, 1, "up"), "output 'output' has 10 numbers a row: say which one by element="),
    ],
)
def test_a_relation_that_does_not_fit_the_model_is_a_usage_error(
    model: Any, relation: Any, message: str, rows: Array
) -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(model), rows[:1], relation)
    assert message in str(error.value)


def test_one_element_has_no_other_order(rows: Array) -> None:
    with pytest.raises(ms.InputError, match="rows have 1 element, which has no other order: add some"):
        ms.measure_relation(ms.serve(lambda x: x), rows[:, :1], r.set_permutation())


@pytest.mark.parametrize(
    "relation",
    [
        r.unit_change(0, factor=1 / 3, declared=5, values=(0.0, 1.0)),
        r.scale_invariant(1 / 3),
        r.scale_equivariant(1 / 3),
        r.missing_values(0, imputed=1 / 3),
        r.directional(0, 1 / 3, "up", at_least=1 / 3, at_most=1 / 3),
    ],
    ids=lambda relation: relation.name,
)
def test_a_double_answer_to_single_inputs_has_the_room_of_the_inputs(relation: Any) -> None:
    """A third of a single is rounded as a single; an answer in doubles shows it, and the model is not to blame."""
    rows = np.random.default_rng(0).uniform(1, 2, size=(64, 6)).astype(np.float32)
    rows[:, 5] = 0

    answers = {
        "unit change": lambda x: np.where(x[:, 5] == 1, 3 * x[:, 0], x[:, 0]),
        "scale invariance": lambda x: x[:, 0] / x[:, 1],
        "scale equivariance": lambda x: x[:, 0] + x[:, 1],
        "missing values": lambda x: np.where(np.isnan(x[:, 0]), 1 / 3, x[:, 0]),
        "0 moves it up": lambda x: x[:, 0],
    }

    with ms.serve(lambda x: answers[relation.name](x.astype(np.float64))) as model:
        assert ms.measure_relation(model, rows, relation, candidates=0).verdict is ms.Verdict.PASS
