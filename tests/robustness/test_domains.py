"""Declared ranges hold for every example, every edge case and every step of the minimization."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.robustness.mutations import edge_cases, mutate
from pytest_modelserve.robustness.strategies import source_of

r = ms.relations
Range = ms.strategies.Range
OUTSIDE = np.array([[0, 0, 0], [7, 0, 0]], np.float32)
NUMBERS = Signature((TensorSpec("x", "float32", ("n", 3)),), ())
MIXED = Signature((TensorSpec("age", "int64", ("n", 2)), TensorSpec("color", "str", ("n", 1))), ())


def searched(strategy, count=1000):
    """Return all rows of a search from this strategy: edge cases and candidates."""
    source = source_of(strategy)
    assert source is not None
    space = source.space()
    blocks = [rows for rows, _ in edge_cases(space, 500)] + [mutate(space, np.random.default_rng(0), count)[0]]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_no_row_leaves_a_range_and_its_ends_are_tried():
    rows = searched(ms.strategies.inputs(NUMBERS, ranges={0: Range(0.5, 0.75), 2: Range(low=1)}))["x"]
    assert rows[:, 0].min() == 0.5
    assert rows[:, 0].max() == 0.75
    assert len(np.unique(rows[:, 0])) > 100
    assert rows[:, 2].min() == 1
    assert rows[:, 1].min() < 0  # no range is declared for it


def test_a_feature_with_choices_has_no_other_values():
    ranges = {
        ("age", 0): Range(18, 99), ("age", 1): Range(choices=(1, 5, 9)), "color": Range(choices=("red", "blue", "teal")),
    }  # fmt: skip
    rows = searched(ms.strategies.inputs(MIXED, ranges=ranges))
    assert set(rows["age"][:, 1]) == {1, 5, 9}
    assert set(rows["color"][:, 0]) == {"red", "blue", "teal"}
    assert rows["age"][:, 0].min() == 18
    assert rows["age"][:, 0].max() == 99


def test_a_range_may_be_wider_than_the_rows_show():
    like = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    rows = searched(ms.strategies.inputs(NUMBERS, like=like, ranges={"x": Range(-5, 5)}))["x"]
    assert rows.min() == -5
    assert rows.max() == 5


def test_a_counterexample_is_minimized_within_the_declared_choices():
    like = np.full((4, 2), 0.37, np.float32)
    model = ms.serve(lambda x: np.where(x[:, 1] > 0.5, np.inf, x[:, 0]))
    strategy = ms.strategies.inputs(model, like=like, ranges={1: Range(choices=(0.37, 0.8125, 0.9375))})
    evidence = ms.measure_relation(model, strategy, r.finite_outputs(), save_to=None)
    change = next(line for line in evidence.findings if line.startswith("  input[1]"))
    assert change in ("  input[1]   0.37 → 0.8125", "  input[1]   0.37 → 0.9375")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Range(3, 1), "Range(3, 1) contains no value: low is above high"),
        (lambda: Range(choices=()), "Range is empty: pass low, high or both, or at least one of choices"),
        (lambda: Range(0, choices=(1,)), "Range(choices=(1,)) has both ends and choices: pass low and high, or choices"),
        (lambda: Range(float("nan"), 1), "Range(nan, 1) has a NaN end: pass numbers"),
    ],
)  # fmt: skip
def test_an_invalid_range_is_rejected(build, message):
    with pytest.raises(ms.UsageError) as error:
        build()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("signature", "options", "message"),
    [
        (NUMBERS, {"ranges": {0: Range(0, 1)}, "domain": "far"}, "domain 'far' has values outside the declared ranges: remove it"),
        (NUMBERS, {"ranges": {0: Range(0, 1)}, "like": OUTSIDE}, "like= has 7.0 at x[0] of row 1, outside Range(0, 1)"),
        (NUMBERS, {"ranges": {"x": Range(0, 1), 2: Range(5, 6)}}, "ranges 'x' and 2 both declare feature 2 of input 'x'"),
        (NUMBERS, {"ranges": {3: Range(0, 1)}}, "input 'x' has rows of shape [3]: there is no feature 3"),
        (NUMBERS, {"ranges": {"y": Range(0, 1)}}, "unknown input 'y': known: 'x'"),
        (NUMBERS, {"ranges": {0: (0, 1)}}, "ranges[0] is a tuple: expected an ms.strategies.Range(low, high)"),
        (MIXED, {"ranges": {0: Range(0, 1)}}, "ranges[0] is ambiguous for a model of 2 inputs: use (input, column)"),
        (MIXED, {"ranges": {"color": Range(0, 1)}}, "input 'color' is text: pass choices of text instead of Range(0, 1)"),
        (MIXED, {"ranges": {"age": Range(0.2, 0.8)}}, "input 'age' is int64, and Range(0.2, 0.8) contains no integer"),
        (MIXED, {"ranges": {"age": Range(choices=(0.5,))}}, "input 'age' is int64, which cannot represent Range(choices=(0.5,))"),
        (MIXED, {"ranges": {"age": Range(choices=("a",))}}, "input 'age' is int64: pass numbers instead of Range(choices=('a',))"),
    ],
)  # fmt: skip
def test_ranges_that_do_not_fit_the_inputs_are_rejected_when_the_strategy_is_created(signature, options, message):
    with pytest.raises(ms.UsageError) as error:
        ms.strategies.inputs(signature, **options)
    assert str(error.value).startswith(message)
