"""Strategies generate valid inputs, replay from what is printed, and respect the user's settings."""

import datetime
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.serving.inputs import checked_feed

r = ms.relations
DTYPES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)]
DTYPES += ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "str"]
DIMS = st.sampled_from([0, 1, 3, "batch", "time", None])


@st.composite
def signatures(draw):
    shapes = st.none() | st.lists(DIMS, max_size=3).map(tuple)
    specs = draw(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=3))
    return Signature(tuple(TensorSpec(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs)), ())


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), signatures())
def test_any_signature_gets_valid_inputs(data, signature):
    feed = data.draw(ms.strategies.inputs(signature, domain=("like", "edges", "far", "special")))
    checked_feed(dict(feed), signature)  # names, dtypes, ranks, dims, and sizes shared by a symbol


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), signatures())
def test_every_malformed_input_is_rejected(data, signature):
    bad = data.draw(ms.strategies.malformed_inputs(signature))
    with pytest.raises(ms.InputError):
        checked_feed(dict(bad), signature)
    assert bad.fault


def examples_of(strategy, count=80):
    seen = []
    settings(max_examples=count, deadline=None, database=None, derandomize=True)(
        given(strategy)(lambda feed: seen.append(feed))
    )()
    return seen


def test_rows_number_one_to_the_limit_and_zero_if_the_model_accepts_an_empty_batch(classifier):
    assert {len(feed["x"]) for feed in examples_of(ms.strategies.inputs(classifier, max_batch=3))} == {0, 1, 2, 3}
    counts = {len(feed["x"]) for feed in examples_of(ms.strategies.inputs(classifier, max_batch=3, empty=False))}
    assert counts == {1, 2, 3}
    assert classifier.artifact is not None
    assert 0 not in {len(feed["x"]) for feed in examples_of(ms.strategies.inputs(classifier.artifact))}


def test_no_empty_batch_is_generated_if_onnxruntime_would_crash(onnx_model):
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=2)]
    model = ms.serve(
        onnx_model(
            nodes,
            {"x": ("float32", ["batch", "time", 3])},
            {"y": ("float32", None)},
            w=np.zeros((1, 6, 3), np.float32),
            r=np.zeros((1, 6, 2), np.float32),
        )
    )
    found = examples_of(ms.strategies.inputs(model), 50)
    assert min(feed["x"].size for feed in found) > 0
    for feed in found:
        model.predict(feed)


def test_a_path_has_the_inputs_of_its_model(classifier):
    for feed in examples_of(ms.strategies.inputs(str(classifier.artifact.path)), 10):
        checked_feed(feed, classifier.signature)


def test_arrays_have_every_memory_layout(classifier):
    arrays = [feed["x"] for feed in examples_of(ms.strategies.inputs(classifier, max_batch=4))]
    assert any(not array.flags.writeable for array in arrays)
    assert any(not array.flags.c_contiguous and array.flags.f_contiguous for array in arrays)
    assert any(not array.flags.c_contiguous and not array.flags.f_contiguous for array in arrays)
    for array in arrays:
        plain = classifier.predict({"x": np.ascontiguousarray(array)})["p"]
        np.testing.assert_array_equal(classifier.predict({"x": array})["p"], plain)


def test_the_repr_generates_the_same_inputs_again(classifier, rows):
    INPUTS = ms.strategies.inputs(classifier, like=rows)
    for feed in examples_of(INPUTS, 30):
        again = eval(repr(feed))
        np.testing.assert_array_equal(again["x"], feed["x"])
        assert again["x"].flags.c_contiguous == feed["x"].flags.c_contiguous


def test_a_failing_property_shrinks_to_one_row_without_mutations(classifier, rows):
    INPUTS = ms.strategies.inputs(classifier, like=rows, empty=False)

    @settings(deadline=None, database=None, derandomize=True)
    @given(INPUTS)
    def fails(feed):
        assert len(feed["x"]) == 0

    with pytest.raises(AssertionError) as error:
        fails()
    assert "INPUTS.at(" in "".join(error.value.__notes__)
    assert "edits=0" in "".join(error.value.__notes__)
    assert "rows=1" in "".join(error.value.__notes__)


def test_integers_stay_in_the_range_of_the_rows_and_are_zero_and_one_without_rows():
    signature = Signature((TensorSpec("ids", "int64", ("batch", 4)),), ())
    ids = np.random.default_rng(0).integers(2, 7, (10, 4))
    like = np.concatenate([feed["ids"] for feed in examples_of(ms.strategies.inputs(signature, like=ids))])
    assert set(np.unique(like)) == {2, 3, 4, 5, 6}
    alone = np.concatenate([feed["ids"] for feed in examples_of(ms.strategies.inputs(signature))])
    assert set(np.unique(alone)) == {0, 1}


def test_a_relation_is_searched_from_a_strategy_and_from_each_example(classifier, rows):
    strategy = ms.strategies.inputs(classifier, like=rows)
    assert ms.measure_relation(classifier, strategy, r.simplex()).n == 1000
    (feed,) = examples_of(strategy, 1)
    evidence = ms.measure_relation(classifier, feed, r.simplex())
    assert evidence.n == 100
    assert f"seed {feed.seed}" in evidence.method.name


def test_an_example_without_rows_starts_a_search_from_the_rows_of_the_strategy(classifier, rows):
    empty = ms.strategies.inputs(classifier, like=rows).at(rows=0)
    assert ms.measure_relation(classifier, empty, r.finite_outputs()).n == 100


def test_a_domain_for_a_strategy_that_has_its_own_is_rejected(classifier):
    with pytest.raises(ms.UsageError, match=r"domain is that of the strategy, \('like', 'edges'\)"):
        ms.measure_relation(classifier, ms.strategies.inputs(classifier), r.simplex(), domain="far")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Signature((TensorSpec("x", "sequence(complex64)", ()),), ()), {}, "input 'x[0]' has type complex64"),
        (Signature((TensorSpec("x", "float32", (1,)),), ()), {"max_batch": 0}, "max_batch must be at least 1, got 0"),
        (Signature((TensorSpec("x", "float32", (1,)),), ()), {"domain": "lik"}, "unknown domain 'lik': did you mean 'like'? "),
        (
            Signature((TensorSpec("x", "float32", ("n", 2)),), ()),
            {"like": np.zeros((3, 2))},
            "like= has dtype float64 for input 'x': expected float32",
        ),
        (Signature((TensorSpec("x", "float32", ("n",)),), ()), {"like": {"y": np.zeros(3)}}, "like= has no input 'x'"),
        (ms.serve(len, name="f"), {}, "f has no signature: pass like=, rows that the model accepts"),
        (7, {}, "source is a int: expected the path of an ONNX file, an Artifact, a Predictor or a Signature"),
    ],
)  # fmt: skip
def test_an_unsupported_source_is_rejected(source, options, message):
    with pytest.raises(ms.UsageError) as error:
        ms.strategies.inputs(source, **options)
    assert str(error.value).startswith(message)


def test_without_hypothesis_the_extra_is_named_and_the_search_still_works(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "hypothesis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    rows, model = np.ones((2, 3), np.float32), ms.serve(lambda x: x)
    ms.assert_relation(model, rows, r.finite_outputs())
    with pytest.raises(ms.MissingDependencyError, match="strategies require hypothesis, which is not installed"):
        ms.strategies.inputs(model, like=rows)


def test_settings_have_no_deadline_and_the_users_values_win():
    assert ms.strategies.settings().deadline is None
    assert ms.strategies.settings(max_examples=7).max_examples == 7
    assert ms.strategies.settings(deadline=500).deadline == datetime.timedelta(milliseconds=500)
    assert HealthCheck.too_slow in ms.strategies.settings().suppress_health_check


def test_a_loaded_profile_of_the_user_wins():
    before = settings.get_current_profile_name()
    settings.register_profile("mine", max_examples=3, deadline=123)
    settings.load_profile("mine")
    try:
        ours = ms.strategies.settings()
    finally:
        settings.load_profile(before)
    assert ours.max_examples == 3
    assert ours.deadline == datetime.timedelta(milliseconds=123)


def test_hypothesis_receives_the_excess_of_each_search(rows, monkeypatch):
    targets = []
    monkeypatch.setattr("hypothesis.target", lambda excess, label: targets.append((excess, label)))
    model = ms.serve(lambda x: np.ones((len(x), 2), np.float32) / 2, name="half")

    @settings(max_examples=3, deadline=None, database=None)
    @given(ms.strategies.seeds())
    def search(seed):
        ms.measure_relation(model, rows, r.simplex(), seed=seed, candidates=20)

    search()
    assert set(targets) == {(0.0, "probability simplex of half")}
    targets.clear()
    ms.measure_relation(model, rows, r.simplex(), candidates=20)
    assert targets == []


PROJECT = """
import numpy as np
import pytest
import pytest_modelserve as ms
from hypothesis import given

ROWS = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
MODEL = ms.serve(lambda x: np.where((x[:, 2] > 1) & (x[:, 7] < -1), np.inf, x[:, 0]), name="planted")
GOOD = ms.serve(lambda x: x[:, 0], name="good")
DIVIDER = ms.serve("divider.onnx")
CRASH = np.array([[np.iinfo(np.int64).min, -1]])

@ms.strategies.settings(max_examples=10)
@given(seed=ms.strategies.seeds())
def test_found(seed):
    ms.assert_relation(MODEL, ROWS, ms.relations.finite_outputs(), seed=seed, candidates=200)

@ms.strategies.settings(max_examples=10)
@given(ms.strategies.inputs(GOOD, like=ROWS, ranges={0: ms.strategies.Range(-9, 9)}))
def test_holds(inputs):
    assert abs(inputs["input"][:, 0]).max(initial=0) <= 9
    ms.assert_relation(GOOD, inputs, ms.relations.batch_invariance())

@pytest.mark.parametrize("test", range(2))
def test_crashes(test):
    ms.assert_relation(DIVIDER, CRASH, ms.relations.finite_outputs())
"""


def test_xdist_workers_run_gates_under_given_and_survive_crashes(pytester, onnx_model):
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Div", ["a", "b"], ["y"]),
    ]
    onnx_model(nodes, {"x": ("int64", ["n", 2])}, {"y": ("int64", ["n", 1])}).rename(pytester.path / "divider.onnx")
    pytester.makepyfile(PROJECT)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider --modelserve-json evidence.json\n")
    result = pytester.runpytest_subprocess("-n", "1", "--hypothesis-seed=1")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "*relation: finite outputs is violated*",
            "*features differ* from base row*",
            "*seed=0*",
            "*the process that serves divider was killed by SIGFPE*",
            "*relation*batch invariance: violations 0*PASS*",
        ]
    )
    assert list(Path(pytester.path, ".modelserve", "counterexamples").glob("planted-finite-outputs-*.npz"))
    assert not list(pytester.path.glob("core*"))


def test_first_example_of_a_process_imports_nothing(tmp_path: Path) -> None:
    """Hypothesis would report its duration as flaky, because the repetition is fast."""
    code = f"""
import sys
import numpy as np, onnx
from onnx import helper
import pytest_modelserve as ms
values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.save(model, {str(tmp_path / "a.onnx")!r})
onnx.save(model, {str(tmp_path / "b.onnx")!r})
one, other = ms.serve({str(tmp_path / "a.onnx")!r}), ms.serve({str(tmp_path / "b.onnx")!r})
feed = ms.strategies.inputs(one, like=np.ones((50, 4), np.float32)).at(rows=3, edits=1, seed=7)
loaded = set(sys.modules)
ms.assert_relation(one, feed, ms.relations.finite_outputs())
ms.assert_output_parity(one, other, feed)
assert set(sys.modules) == loaded, sorted(set(sys.modules) - loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
