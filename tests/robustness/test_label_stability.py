"""The proportion of rows that keep their label: exact bounds, seeded copies, and groups as trials."""

import numpy as np
import pytest
from scipy.stats import beta

import pytest_modelserve as ms
from pytest_modelserve.robustness import measure_label_stability

MODEL = ms.serve(lambda x: x[:, :2], name="scores")
NAMED = {"x": np.zeros((2, 2))}


def noise(x, rng):
    return (x + rng.normal(0, 0.1, x.shape)).astype(x.dtype)


def swap(count):
    """Returns a transformation that changes the label of the first `count` rows."""

    def transform(x):
        x[:count, :2] = x[:count, 1::-1]
        return x

    return transform


@pytest.fixture
def many():
    return np.random.default_rng(0).standard_normal((400, 10)).astype(np.float32)


@pytest.mark.parametrize(("changed", "verdict"), [(0, "PASS"), (38, "INCONCLUSIVE"), (100, "FAIL"), (400, "FAIL")])
def test_bounds_are_those_of_clopper_and_pearson_and_decide_the_verdict(changed, verdict, many):
    evidence = measure_label_stability(MODEL, many, swap(changed), min_agreement=0.9)
    (proportion,) = evidence.quantities
    stable = 400 - changed
    assert proportion.interval is not None
    assert proportion.value == stable / 400
    assert proportion.interval.low == pytest.approx(beta.ppf(0.05, stable, changed + 1) if stable else 0)
    assert proportion.interval.high == pytest.approx(beta.ppf(0.99, stable + 1, changed) if changed else 1)
    assert (evidence.n, evidence.n_unit, evidence.confidence, evidence.alpha) == (400, "rows", 0.95, 0.01)
    assert (evidence.verdict, bool(evidence.advice)) == (ms.Verdict[verdict], verdict != "PASS")
    assert evidence.details["changed_rows"] == list(range(min(changed, 50)))


def test_the_rows_that_changed_are_listed(many):
    many[:5, :2] = [[1, 0], [0, 1], [1, 0], [1, 0], [1, 0]]
    evidence = measure_label_stability(MODEL, many, swap(5), min_agreement=0.5)
    assert evidence.findings == ("other labels: row 0 0 → 1, row 1 1 → 0, row 2 0 → 1, and 2 more",)
    assert evidence.summary == "as many rows keep their label as required"
    assert evidence.method.name == "exact binomial bounds, one copy of each row"


def test_copies_follow_from_the_seed_and_a_row_counts_if_every_copy_keeps_its_label(many):
    one, again, other = (measure_label_stability(MODEL, many, noise, min_agreement=0.5, seed=s) for s in (1, 1, 2))
    assert one.details == again.details
    assert one.details["changed_rows"] != other.details["changed_rows"]
    several = measure_label_stability(MODEL, many, noise, min_agreement=0.5, seed=1, draws=5)
    assert several.n == one.n == 400
    assert several.quantities[0].value < one.quantities[0].value
    assert several.details["copies_agreeing"] > several.quantities[0].value
    assert several.method.name == "exact binomial bounds, 5 generated copies of each row, seed 1"


def test_each_group_or_block_is_one_trial(many):
    groups = np.arange(400) // 4
    evidence = measure_label_stability(MODEL, many, swap(6), min_agreement=0.9, sampling=ms.Sampling(groups=groups))
    assert (evidence.n, evidence.n_unit, evidence.quantities[0].value) == (100, "groups", 0.98)
    assert evidence.details["changed_rows"] == list(range(6))
    blocks = measure_label_stability(MODEL, many, swap(6), min_agreement=0.9, sampling=ms.Sampling(block=4))
    assert (blocks.n, blocks.n_unit, blocks.quantities) == (100, "blocks", evidence.quantities)


def test_scores_that_hold_nan_keep_no_label(many):
    broken = ms.serve(lambda x: np.where(x[:, :2] > 2, np.nan, x[:, :2]))
    bad = (many[:, :2] > 2).any(axis=1)
    evidence = measure_label_stability(broken, many, lambda x: x, min_agreement=0.5)
    assert evidence.quantities[0].value == pytest.approx(1 - bad.mean())
    assert evidence.findings[0].startswith(f"other labels: row {np.flatnonzero(bad)[0]} none → none")
    assert evidence.findings[1] == f"{2 * bad.sum()} outputs hold NaN and have no label: counted as another one"


def test_inputs_by_name_and_models_in_onnxruntime(classifier, rows):
    def scaled(feed):
        return {"x": feed["x"] * np.float32(2)}

    evidence = measure_label_stability(classifier, {"x": rows}, scaled, min_agreement=0.5)
    assert evidence.quantities[0].value == 1
    np.testing.assert_array_equal(rows, rows.round(2))
    assert ms.Evidence.from_json(evidence.to_json()).findings == evidence.findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_agreement": 1}, "min_agreement must be a proportion between 0 and 1 (0.95, say), got 1"),
        ({"confidence": 0.4}, "confidence"),
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"draws": 2}, "draws must be 1 for a transform without a generator, got 2: use transform(rows, rng)"),
        ({"transform": "blur"}, "transform must be a function of rows, got a str"),
        ({"transform": lambda x: x[:5]}, "transform must return all 400 rows, got rows of shape [5, 10]"),
        ({"transform": lambda x: x.astype(float)}, "transform must return rows as float32, got float64: convert back"),
        ({"transform": lambda x: x.tolist()}, "transform must return rows as a numpy array, got list"),
        ({"sampling": ms.Sampling(groups=[1, 2])}, "groups have shape (2,)"),
        ({"sampling": ms.Sampling(sample_weight=[1])}, "sample_weight is not supported by exact binomial bounds"),
        ({"inputs": np.zeros((0, 10), np.float32)}, "inputs must have rows, and there are none"),
        ({"inputs": NAMED, "transform": lambda x: {}}, "transform must return the inputs x, got none"),
        ({"inputs": NAMED, "transform": lambda x: 3}, "transform must return the type of its rows, dict, got int"),
        ({"output": "p"}, "unknown output 'p': known: 'output'"),
    ],
)
def test_invalid_arguments_are_refused(options, message, many):
    arguments = {"inputs": many, "transform": lambda x: x, "min_agreement": 0.9, **options}
    inputs, transform = arguments.pop("inputs"), arguments.pop("transform")
    model = ms.serve(lambda feed: feed["x"]) if inputs is NAMED else MODEL
    with pytest.raises(ms.UsageError) as error:
        measure_label_stability(model, inputs, transform, **arguments)
    assert message in str(error.value)


def test_a_second_parameter_is_a_generator_if_it_is_required_or_called_rng(many):
    def blur(x, sigma=0.0):
        return x + np.float32(sigma)

    def drawn(x, rng=None):
        assert isinstance(rng, np.random.Generator)
        return x

    for transform in (blur, drawn, np.ascontiguousarray):
        assert measure_label_stability(MODEL, many, transform, min_agreement=0.9).verdict is ms.Verdict.PASS
