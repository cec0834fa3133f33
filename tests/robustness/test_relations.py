"""Every relation holds for a model that obeys it, and finds the one that violates it with few features changed."""

import numpy as np
import pytest

import pytest_modelserve as ms

r = ms.relations
W = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
V = np.abs(W[:, 0])
HALF = np.float32(0.5)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def scores(x):
    return softmax(x @ W)


def corner(x):
    """Rows in a narrow corner of two features."""
    return (x[:, 2] > 1.0) & (x[:, 7] < -1.0)


def planted(y, rows, change):
    y = y.copy()
    y[rows] = y[rows] + np.float32(change)
    return y


def shares(x):
    return np.asarray(x / np.maximum(np.abs(x).max(axis=1), np.float32(1e-30))[:, None])


def imputing(x):
    return np.where(np.isnan(x), HALF, x) @ W


def in_celsius(x):
    """Feature 0 is in °F where feature 5 is 1, and in °C elsewhere."""
    return np.where(x[:, 5] == 1, (x[:, 0].astype(np.float64) - 32) / 1.8, x[:, 0]).astype(np.float32)


def masked_mean(x):
    """The mean of the steps that are not 0."""
    return x.sum(axis=1, dtype=np.float32) / np.maximum((x != 0).sum(axis=1), 1)


def float16_overflow(x):
    with np.errstate(over="ignore"):
        return ((x[:, :1] * 60000).astype(np.float16)).astype(np.float32)


class Stateful:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return scores(x) + (self.calls % 2) * 1e-7


REFERENCE = ms.serve(scores, name="reference")

CASES = {
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
    "set, invariant": (r.set_permutation(), lambda x: np.maximum(x, 0).sum(axis=1), lambda x: x @ W),
    "set, equivariant": (
        r.set_permutation(equivariant=True),
        lambda x: x - x.mean(axis=1, keepdims=True),
        lambda x: x + np.arange(10, dtype=np.float32),
    ),
    "scale": (
        r.scale_invariant(8.0),
        lambda x: shares(x) @ W,
        lambda x: (x / (np.abs(x).max(axis=1) + HALF)[:, None]) @ W,
    ),
    "scale, not a power of two": (r.scale_invariant(1000.0), lambda x: shares(x) @ W, lambda x: np.tanh(x) @ W),
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
def rows():
    """Twenty rows of ten features, of which number 5 is 0 or 1."""
    found = np.random.default_rng(0).standard_normal((20, 10)).round(2).astype(np.float32)
    found[:, 5] = np.arange(20) % 2
    return found


def measured(model, rows, relation, **options):
    return ms.measure_relation(ms.serve(model), rows, relation, save_to=None, **options)


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_obeys_the_relation_passes(case, rows):
    relation, obeying, _ = CASES[case]
    evidence = measured(obeying, rows, relation, candidates=400)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings == (relation.definition,)
    assert (evidence.n, evidence.alpha, evidence.confidence) == (400, 0, None)
    assert hash(relation) == hash(relation)


@pytest.mark.parametrize("case", CASES)
def test_a_violation_is_found_with_few_features_changed_and_described(case, rows):
    relation, _, violating = CASES[case]
    evidence = measured(violating, rows, relation)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.details["features_left"] <= 3
    assert relation.definition in evidence.findings
    assert case == "own" or "output 'output'" in evidence.findings[1]
    assert DESCRIBED.get(case, "") in evidence.findings[1]


DESCRIBED = {
    "set, equivariant": "with the elements",
    "scale": "with real inputs times 8 and",
    "scale, equivariant": "with real inputs times 1000 and",
    "unit": "with 1.0 in feature 5 and",
    "missing": "output 'output' is not finite without features",
    "missing, all at once": "output 'output' is not finite without features 2, 7",
    "missing, imputed": "with the imputed values",
    "up": "moving feature 2 from",
}


@pytest.mark.parametrize(
    ("relation", "definition"),
    [
        (
            r.missing_values((1, 2), imputed=(0.5, 1), max_change=2, rtol=0, atol=0.1),
            "without features 1, 2, each and all, every output is finite, and that of 0.5, 1 in their place within "
            "rtol 0, atol 0.1, and moves by at most 2",
        ),
        (
            r.directional(3, -1, "down", at_least=0.5, at_most=2, rtol=0, atol=0.1),
            "-1 in feature 3 moves the output down by at least 0.5 and at most 2, within rtol 0, atol 0.1",
        ),
    ],
)
def test_definitions_state_all_parameters(relation, definition):
    assert relation.definition == definition


def test_outputs_near_zero_are_compared_by_the_size_of_the_others(rows):
    """The difference of two large sums is rounding, however small the output itself."""
    model = lambda x: (x[:, 0] * 1e3 + 1e4 - x[:, 0] * 1e3 - 1e4 * (1 + 1e-9 * (len(x) % 2))).astype(np.float32)  # noqa: E731
    reference = ms.serve(lambda x: (x[:, 0] * 1e3).astype(np.float32))
    close = measured(lambda x: (x[:, 0] * 1e3 + 1e-3).astype(np.float32), rows, r.agreement(reference))
    assert close.verdict is ms.Verdict.PASS
    assert measured(model, rows, r.batch_invariance(rtol=0, atol=1e-3)).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("model", "reference"), [(np.float32([1.0000002, 1]), [1, 1.0000002]), (np.float32([0.7, 0.7000001]), [1, 0.5])]
)
def test_classes_within_rounding_on_either_side_are_a_tie(model, reference, rows):
    other = ms.serve(lambda x: np.float32(reference) + 0 * x[:, :2])
    evidence = measured(lambda x: model + 0 * x[:, :2], rows, r.agreement(other, decision=True))
    assert evidence.verdict is ms.Verdict.PASS


def test_a_nan_on_one_side_is_a_difference_and_on_both_is_none(rows):
    some = ms.serve(lambda x: np.where(x[:, 0] > 1, np.nan, x[:, 0]))
    none = ms.serve(lambda x: x[:, 0] * 1.0)
    assert ms.measure_relation(some, rows, r.agreement(some)).verdict is ms.Verdict.PASS
    assert ms.measure_relation(some, rows, r.agreement(none), save_to=None).verdict is ms.Verdict.FAIL


@pytest.mark.parametrize("relation", [r.batch_invariance(rtol=0, atol=0), r.monotone(0, element=0, rtol=0, atol=0)])
def test_with_a_tolerance_of_zero_any_difference_is_a_violation(relation, rows):
    different = measured(lambda x: -x + np.float32(1e-6) * np.float32(len(x)), rows, relation)
    assert different.verdict is ms.Verdict.FAIL
    assert measured(lambda x: x, rows, relation).verdict is ms.Verdict.PASS


def test_an_excess_of_nan_is_a_violation_and_no_warning(rows):
    relation = r.relation("nan", lambda p, c, b: r.Violations.beyond(np.full(len(c["input"]), np.nan)))
    assert measured(scores, rows, relation).verdict is ms.Verdict.FAIL


def test_inputs_that_are_not_finite_may_have_outputs_that_are_not(rows):
    passing = measured(lambda x: x.clip(-10, 10) + 0, rows, r.finite_outputs(), domain=("like", "special"))
    assert passing.verdict is ms.Verdict.PASS


def test_rows_whose_scaled_features_leave_their_dtype_are_skipped(rows):
    small = np.array([[0, 1], [1, 1], [50, 100]], np.int8)
    is_zero = lambda x: (x == 0).astype(np.int64)  # noqa: E731
    overflows = lambda x: (np.abs(x) >= np.finfo(np.float32).max).any(axis=1).astype(np.float32)  # noqa: E731
    assert measured(is_zero, small, r.scale_invariant(100, (0, 1))).verdict is ms.Verdict.PASS
    assert measured(overflows, rows, r.scale_invariant(1e36), domain="far").verdict is ms.Verdict.PASS
    with pytest.raises(ms.InputError, match="input 'input' cannot hold the features of any base row times 100 plus 0"):
        measured(is_zero, small[2:], r.scale_invariant(100, (0, 1)))
    with pytest.raises(ms.InputError, match=r"cannot hold the features of any base row times 1 plus 0\.5"):
        measured(is_zero, small, r.directional(0, 0.5, "up", element=0))


def test_a_step_that_vanishes_in_rounding_is_skipped():
    rows = np.array([[1.0], [1e9]], np.float32)
    relation = r.directional(0, 1.0, "up", at_least=1.0, rtol=0, atol=0)
    assert measured(lambda x: np.float32(2) * x[:, 0], rows, relation, candidates=0).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("relation", "model"),
    [
        (
            r.unit_change(0, factor=1 / 3, declared=5, values=(0.0, 1.0)),
            lambda x: np.where(x[:, 5] == 1, 3 * x[:, 0], x[:, 0]),
        ),
        (r.scale_invariant(1 / 3), lambda x: x[:, 0] / x[:, 1]),
        (r.scale_equivariant(1 / 3), lambda x: x[:, 0] + x[:, 1]),
        (r.missing_values(0, imputed=1 / 3), lambda x: np.where(np.isnan(x[:, 0]), 1 / 3, x[:, 0])),
        (r.directional(0, 1 / 3, "up", at_least=1 / 3, at_most=1 / 3), lambda x: x[:, 0]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_float64_output_of_float32_inputs_has_the_tolerance_of_the_inputs(relation, model):
    """A third is rounded as float32; a float64 output shows it, and that is no fault of the model."""
    rows = np.random.default_rng(0).uniform(1, 2, size=(64, 6)).astype(np.float32)
    rows[:, 5] = 0
    evidence = measured(lambda x: model(x.astype(np.float64)), rows, relation, candidates=0)
    assert evidence.verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: r.simplex(rtol=1), "unexpected keyword argument"),
        (lambda: r.batch_invariance(rtol=1e-3), "rtol and atol"),
        (lambda: r.monotone(0, "up"), "unknown direction 'up': known: 'increasing', 'decreasing'"),
        (
            lambda: r.monotone("age"),
            "features must be columns (int) or indices in one row (tuple of ints), got 'age': for an input of this name pass input='age' and the column in it",
        ),
        (lambda: r.invariant_to(()), "features is empty: give one or more columns"),
        (lambda: r.invariant_to(1, draws=1), "draws must be a whole number of at least 2, got 1"),
        (lambda: r.local_stability(0), "eps must be a finite number above 0, got 0"),
        (lambda: r.local_stability(1, max_change=-1), "max_change must be a finite number of at least 0, got -1"),
        (lambda: r.padding_invariance(0, by=(0,)), "by must be numbers of steps of at least 1, got (0,)"),
        (lambda: r.determinism(repeats=0), "repeats must be a whole number of at least 1, got 0"),
        *(
            (lambda t=t: r.determinism(threads=t), "threads must be whole numbers of at least 1")
            for t in ((0,), (True,), (1.5,))
        ),
        (lambda: r.relation("", print), "relation needs a name and a function of (predictor, rows, base)"),
        (lambda: r.set_permutation(0), "axis must be at least 1, got 0: axis 0 counts rows; see row_permutation"),
        (lambda: r.set_permutation(output_axis=1), "output_axis must be at least 1, and needs equivariant=True"),
        (lambda: r.set_permutation(inputs=()), "inputs is empty: name one or more, or leave it out"),
        (lambda: r.scale_invariant(1), "factor must be a finite number other than 0 and 1, got 1"),
        (lambda: r.scale_equivariant(2, degree=0), "degree must be a power other than 0, got 0: use scale_invariant"),
        (lambda: r.scale_equivariant(-2, degree=0.5), "degree must be a whole number for a negative factor, got 0.5"),
        (lambda: r.unit_change(0, factor=2, declared=1, values=(1, 1)), "values must be two different units"),
        (lambda: r.missing_values((0, 1), imputed=(1,)), "imputed must be one value, or one for each of 2 features"),
        (lambda: r.missing_values(0, max_change=-1), "max_change must be a finite number of at least 0, got -1"),
        (lambda: r.directional(0, 0, "up"), "by must be a finite step other than 0, got 0"),
        (lambda: r.directional(0, 1, "upp"), "unknown moves 'upp': did you mean 'up'? Known: 'up', 'down'"),
        (lambda: r.directional(0, 1, "up", at_least=2, at_most=1), "at_least and at_most must be at least 0"),
        *(
            (lambda e=e: r.clean_rejection(e), "errors must be classes")
            for e in ((), ("ValueError",), (KeyboardInterrupt,))
        ),
        *((lambda g=g: r.minimum_functionality(g), "labels must be integers or strings") for g in ([], [0.5], [True])),
        (lambda: r.minimum_functionality([0], perturb=lambda: None), "transform must be a function of rows"),
        (lambda: r.minimum_functionality([0], perturb=lambda x, rng: x, draws=0), "draws must be a whole number"),
    ],
)
def test_invalid_parameters_are_refused_when_the_relation_is_made(make, message):
    with pytest.raises((ms.UsageError, TypeError)) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "relation", "message"),
    [
        (scores, r.monotone(0), "element= is missing: output 'output' has 3 numbers a row"),
        (scores, r.monotone(0, element=3), "element must be a place among the 3 numbers a row of output 'output'"),
        (scores, r.monotone(10, element=0), "input 'input' has rows of shape [10]: there is no feature 10"),
        (scores, r.simplex(output="p"), "unknown output 'p': known: 'output'"),
        (scores, r.simplex(axis=2), "axis 2 holds no scores of output 'output', float32[1, 3]"),
        (lambda x: x[:, 0], r.local_stability(1), "output must be scores (rows, classes)"),
        (lambda x: (x, x), r.simplex(), "output= is missing: the model has 2 outputs"),
        (scores, r.invariant_to(0, input="y"), "unknown input 'y': known: 'input'"),
        (scores, r.padding_invariance({"ids": 0}), "unknown input 'ids': known: 'input'"),
        (scores, r.relation("number", lambda p, c, b: 3), "must return bool[1] for 1 rows, got int64[]"),
        (lambda x: x[:, 0] > 0, r.scale_equivariant(2.0), "output 'output' is bool, which has no scale"),
        (lambda x: x, r.set_permutation(2), "input 'input' of shape [1, 10] has no axis 2 of elements"),
        (lambda x: x, r.set_permutation("items"), "axis 'items' is in no input of"),
        (lambda x: x, r.set_permutation(inputs="y"), "unknown input 'y': known: 'input'"),
        (scores, r.invariant_to(4), "base rows must differ in features 4"),
        (in_celsius, r.unit_change(0, factor=2, declared=5, values=(7.0, 1.0)), "base rows must include the unit 7.0"),
    ],
)
def test_a_relation_that_does_not_fit_the_model_is_refused(model, relation, message, rows):
    with pytest.raises((ms.UsageError, ms.InputError)) as error:
        measured(model, rows[:1], relation)
    assert message in str(error.value)
