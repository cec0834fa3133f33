"""Each relation has a model that obeys it and one that breaks it; the broken one is found and told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms

r = ms.relations
W = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
V = np.abs(W[:, 0])
Array = NDArray[Any]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def scores(x: Array) -> Array:
    return softmax(x @ W)


def corner(x: Array) -> Array:
    """Rows in a narrow corner of two features."""
    return (x[:, 2] > 1.0) & (x[:, 7] < -1.0)


def planted(y: Array, rows: Array, change: Array | float) -> Array:
    y = y.copy()
    y[rows] = y[rows] + change
    return y


class Stateful:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Array) -> Array:
        self.calls += 1
        return scores(x) + (self.calls % 2) * 1e-7


REFERENCE = ms.serve(scores, name="reference")


def float16_overflow(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return ((x[:, :1] * 60000).astype(np.float16)).astype(np.float32)


def masked_mean(x: Array) -> Array:
    """The mean of the steps that are not 0."""
    return x.sum(axis=1, dtype=np.float32) / np.maximum((x != 0).sum(axis=1), 1)


CASES: dict[str, tuple[Any, Callable[[Array], Array], Callable[[Array], Array]]] = {
    "batch invariance": (r.batch_invariance(), scores, lambda x: softmax((x - x.mean(axis=0)) @ W)),
    "row permutation": (
        r.row_permutation(),
        lambda x: scores(x) + x.mean(dtype=np.float32) * 0,
        lambda x: scores(x) + np.float32(0.1) * np.arange(len(x), dtype=np.float32)[:, None],
    ),
    "determinism": (r.determinism(), scores, Stateful()),
    "finite outputs": (r.finite_outputs(), scores, float16_overflow),
    "simplex": (r.simplex(), scores, lambda x: planted(scores(x), corner(x), 0.01)),
    "simplex, negative": (
        r.simplex(),
        scores,
        lambda x: planted(scores(x), corner(x), np.float32([0.9, -0.45, -0.45])),
    ),
    "padding": (r.padding_invariance(0), masked_mean, lambda x: x.mean(axis=1)),
    "padding, an answer a step": (
        r.padding_invariance(0),
        lambda x: x * 2,
        lambda x: x - x.mean(axis=1, keepdims=True),
    ),
    "increasing": (r.monotone(2), lambda x: x @ V, lambda x: x @ V - (x[:, 7] < -1) * np.maximum(x[:, 2], 0) * 9),
    "decreasing": (r.monotone(2, "decreasing"), lambda x: -(x @ V), lambda x: planted(-(x @ V), corner(x), 1.0)),
    "increasing, a class": (r.monotone(2, element=1), lambda x: x + 1, lambda x: np.sin(3 * x[:, 1:4])),
    "invariant": (r.invariant_to(2), lambda x: x[:, 3:] @ V[3:], lambda x: planted(x[:, 3:] @ V[3:], corner(x), 1.0)),
    "invariant decision": (
        r.invariant_to((2, 7), decision=True),
        lambda x: softmax(x[:, 3:6]) + (x[:, 2:3] > 0) * np.float32(0.2),
        lambda x: planted(softmax(x[:, 3:6]), corner(x), np.float32([2, 0, 0])),
    ),
    "stable": (r.local_stability(1e-3, max_change=0.05), lambda x: x @ V * 0.1, lambda x: np.tanh(1e4 * (x[:, 2] - 1))),
    "stable decision": (
        r.local_stability(1e-6),
        lambda x: np.stack([np.ones(len(x)), np.zeros(len(x))], axis=1),
        lambda x: np.eye(2)[(np.floor(x[:, 2] * 1e7) % 2).astype(int)],
    ),
    "agreement": (
        r.agreement(REFERENCE),
        lambda x: softmax(x.astype(np.float64) @ W).astype(np.float32),
        lambda x: planted(scores(x), corner(x), 0.001),
    ),
    "agreeing decision": (
        r.agreement(REFERENCE, decision=True),
        lambda x: scores(x).round(6),
        lambda x: planted(scores(x), corner(x), np.float32([0, 0, 3])),
    ),
    "agreement within a tolerance": (
        r.agreement(REFERENCE, rtol=0, atol=0.01),
        lambda x: scores(x) + np.float32(0.005),
        lambda x: planted(scores(x), corner(x), 0.02),
    ),
    "own": (
        r.relation("below 2", lambda predictor, rows, base: predictor.predict(rows)["output"].max(axis=1) > 2),
        scores,
        lambda x: planted(scores(x), corner(x), 2.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_keeps_to_it_passes(case: str, rows: Array) -> None:
    relation, obeying, _ = CASES[case]
    evidence = ms.measure_relation(ms.serve(obeying), rows, relation)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.n == 1000
    assert evidence.alpha == 0
    assert evidence.confidence is None


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_breaks_it_is_found_with_few_features_changed(case: str, rows: Array) -> None:
    relation, _, breaking = CASES[case]
    evidence = ms.measure_relation(ms.serve(breaking), rows, relation, save_to=None)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["features_left"] <= 2
    assert evidence.summary == f"{relation.name} is broken"
    assert relation.definition in evidence.findings


@pytest.mark.parametrize("case", [case for case in CASES if case != "own"])
def test_the_sentence_tells_two_answers_that_should_not_differ(case: str, rows: Array) -> None:
    relation, _, breaking = CASES[case]
    evidence = ms.measure_relation(ms.serve(breaking), rows, relation, save_to=None)
    assert "output 'output'" in evidence.findings[1]


def test_every_relation_is_a_value_that_states_what_holds() -> None:
    for relation, _, _ in CASES.values():
        assert relation.name
        assert relation.definition
        assert hash(relation) == hash(relation)
    assert r.monotone(3) == r.monotone(3) != r.monotone(4)


def test_answers_near_zero_are_judged_by_the_size_of_the_others(rows: Array) -> None:
    """The difference of two large sums is rounding, however small the answer itself."""
    model = ms.serve(
        lambda x: (x[:, 0] * 1e3 + 1e4 - x[:, 0] * 1e3 - 1e4 * (1 + 1e-9 * (len(x) % 2))).astype(np.float32)
    )
    reference = ms.serve(lambda x: (x[:, 0] * 1e3).astype(np.float32))
    near = ms.serve(lambda x: (x[:, 0] * 1e3 + 1e-3).astype(np.float32))
    assert ms.measure_relation(near, rows, r.agreement(reference)).verdict is ms.Verdict.PASS
    assert ms.measure_relation(model, rows, r.batch_invariance(rtol=0, atol=1e-3)).verdict is ms.Verdict.PASS


def test_two_classes_within_rounding_are_a_tie_and_no_other_decision(rows: Array) -> None:
    tied = ms.serve(lambda x: np.repeat(x[:, :1], 2, axis=1) + np.float32([1e-7, 0]))
    other = ms.serve(lambda x: np.repeat(x[:, :1], 2, axis=1) + np.float32([0, 1e-7]))
    assert ms.measure_relation(tied, rows, r.agreement(other, decision=True)).verdict is ms.Verdict.PASS


def test_a_nan_on_one_side_is_a_difference_and_on_both_is_none(rows: Array) -> None:
    some = ms.serve(lambda x: np.where(x[:, 0] > 1, np.nan, x[:, 0]))
    none = ms.serve(lambda x: x[:, 0] * 1.0)
    assert ms.measure_relation(some, rows, r.agreement(some)).verdict is ms.Verdict.PASS
    assert ms.measure_relation(some, rows, r.agreement(none), save_to=None).verdict is ms.Verdict.FAIL


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: r.simplex(rtol=1), "unexpected keyword argument"),
        (
            lambda: r.batch_invariance(rtol=1e-3),
            "rtol and atol only mean something together: give both, or neither for rounding alone",
        ),
        (lambda: r.monotone(0, "up"), "unknown direction 'up': Known: 'increasing', 'decreasing'"),
        (lambda: r.monotone("age"), "a feature is a column (int) or an index in one row (tuple of ints), not 'age'"),
        (lambda: r.invariant_to(()), "features is empty: name one or more by their columns"),
        (lambda: r.invariant_to(1, draws=1), "draws is a whole number of at least 2, not 1"),
        (lambda: r.local_stability(0), "eps is a positive number in the units of the inputs, not 0"),
        (lambda: r.local_stability(1, max_change=-1), "max_change is a number of at least 0, not -1"),
        (lambda: r.padding_invariance(0, by=(0,)), "by holds numbers of steps of at least 1, not (0,)"),
        (lambda: r.determinism(repeats=0), "repeats is a whole number of at least 1, not 0"),
        (lambda: r.relation("", print), "a relation has a name and a function of (predictor, rows, base)"),
    ],
)
def test_a_relation_that_cannot_be_meant_is_refused_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((ms.UsageError, TypeError)) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "relation", "message"),
    [
        (scores, r.monotone(0), "output 'output' has 3 numbers a row: say which one by element="),
        (scores, r.monotone(0, element=3), "output 'output' has 3 numbers a row: there is no element 3"),
        (scores, r.monotone(10, element=0), "input 'input' has rows of shape [10]: there is no feature 10"),
        (scores, r.simplex(output="p"), "unknown output 'p': Known: 'output'"),
        (scores, r.simplex(axis=2), "output 'output', float32[1, 3], has no axis 2 of scores"),
        (
            lambda x: x[:, 0],
            r.local_stability(1),
            "a decision is the arg-max of scores (rows, classes), or a label a row",
        ),
        (lambda x: (x, x), r.simplex(), "the model has 2 outputs: name the probabilities by output="),
        (scores, r.invariant_to(0, input="y"), "unknown input 'y': Known: 'input'"),
        (scores, r.padding_invariance({"ids": 0}), "unknown input 'ids': Known: 'input'"),
        (scores, r.relation("number", lambda p, c, b: 3), "answered int64[] for 1 rows: it has to give bool[1]"),
    ],
)
def test_a_relation_that_does_not_fit_the_model_is_a_usage_error(
    model: Any, relation: Any, message: str, rows: Array
) -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(ms.serve(model), rows[:1], relation)
    assert message in str(error.value)


@pytest.mark.parametrize("relation", [r.batch_invariance(rtol=0, atol=0), r.monotone(0, element=0, rtol=0, atol=0)])
def test_nothing_may_be_tolerated(relation: Any, rows: Array) -> None:
    """Any distance is infinitely many times none: a breach, and no warning of a division."""
    model = ms.serve(lambda x: -x + np.float32(1e-6) * np.float32(len(x)))
    assert ms.measure_relation(model, rows, relation, save_to=None).verdict is ms.Verdict.FAIL
    assert ms.measure_relation(ms.serve(lambda x: x), rows, relation).verdict is ms.Verdict.PASS


def test_features_that_never_differ_say_nothing(rows: Array) -> None:
    rows[:, 4] = 1
    with pytest.raises(ms.InputError) as error:
        ms.measure_relation(ms.serve(scores), rows, r.invariant_to(4))
    assert str(error.value) == "every base row has the same values in features 4: add rows that differ there"


def test_an_excess_that_is_no_number_is_a_breach_and_no_warning(rows: Array) -> None:
    relation = r.relation("nan", lambda p, c, b: r.Violations.beyond(np.full(len(c["input"]), np.nan)))
    assert ms.measure_relation(ms.serve(scores), rows, relation, save_to=None).verdict is ms.Verdict.FAIL


def test_a_decision_that_was_clear_on_one_side_and_a_tie_on_the_other_is_a_tie(rows: Array) -> None:
    clear = ms.serve(lambda x: np.float32([1, 0.5]) + 0 * x[:, :2])
    tied = ms.serve(lambda x: np.float32([0.7, 0.7000001]) + 0 * x[:, :2])
    assert ms.measure_relation(tied, rows, r.agreement(clear, decision=True)).verdict is ms.Verdict.PASS


def test_inputs_that_are_not_finite_may_have_answers_that_are_not(rows: Array) -> None:
    model = ms.serve(lambda x: x.clip(-10, 10) + 0)
    passing = ms.measure_relation(model, rows, r.finite_outputs(), domain=("like", "special"))
    assert passing.verdict is ms.Verdict.PASS
