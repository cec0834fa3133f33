"""Strategies draw what a model takes, replay from what is printed, and leave the user's settings alone."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from numpy.typing import NDArray
from onnx import helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.serving.inputs import checked_feed

r = ms.relations
DTYPES = [f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)]
DTYPES += ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "str"]
DIMS = st.sampled_from([0, 1, 3, "batch", "time", None])


@st.composite
def signatures(draw: Any) -> Signature:
    shapes = st.none() | st.lists(DIMS, max_size=3).map(tuple)
    specs = draw(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=3))
    return Signature(tuple(TensorSpec(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs)), ())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), signatures())
def test_any_signature_gets_inputs_that_it_takes(data: Any, signature: Signature) -> None:
    feed = data.draw(ms.strategies.inputs(signature, domain=("like", "edges", "far", "special")))
    checked_feed(dict(feed), signature)  # names, dtypes, ranks, dims, and sizes shared by a symbol


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), signatures())
def test_every_malformed_input_is_refused_by_name(data: Any, signature: Signature) -> None:
    bad = data.draw(ms.strategies.malformed_inputs(signature))
    with pytest.raises(ms.InputError):
        checked_feed(dict(bad), signature)
    assert bad.fault


def drawn_from(strategy: Any, count: int = 200) -> list[Any]:
    seen: list[Any] = []
    settings(max_examples=count, deadline=None, database=None, derandomize=True)(
        given(strategy)(lambda feed: seen.append(feed))
    )()
    return seen


def test_rows_number_one_to_the_limit_and_none_where_the_model_answers_none(classifier: ms.Predictor) -> None:
    assert {len(feed["x"]) for feed in drawn_from(ms.strategies.inputs(classifier, max_batch=3))} == {0, 1, 2, 3}
    counts = {len(feed["x"]) for feed in drawn_from(ms.strategies.inputs(classifier, max_batch=3, empty=False))}
    assert counts == {1, 2, 3}
    assert classifier.artifact is not None
    assert 0 not in {len(feed["x"]) for feed in drawn_from(ms.strategies.inputs(classifier.artifact))}


def test_no_empty_batch_where_onnxruntime_would_end_the_process(onnx_model: Any) -> None:
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
    found = drawn_from(ms.strategies.inputs(model), 50)
    assert min(feed["x"].size for feed in found) > 0
    for feed in found:
        model.predict(feed)


def test_arrays_come_in_every_layout(classifier: ms.Predictor) -> None:
    arrays = [feed["x"] for feed in drawn_from(ms.strategies.inputs(classifier, max_batch=4))]
    assert any(not array.flags.writeable for array in arrays)
    assert any(not array.flags.c_contiguous and array.flags.f_contiguous for array in arrays)
    assert any(not array.flags.c_contiguous and not array.flags.f_contiguous for array in arrays)
    for array in arrays:
        plain = classifier.predict({"x": np.ascontiguousarray(array)})["p"]
        np.testing.assert_array_equal(classifier.predict({"x": array})["p"], plain)


def test_what_is_printed_draws_the_same_inputs_again(classifier: ms.Predictor, rows: NDArray[Any]) -> None:
    INPUTS = ms.strategies.inputs(classifier, like=rows)
    for feed in drawn_from(INPUTS, 30):
        again = eval(repr(feed))
        np.testing.assert_array_equal(again["x"], feed["x"])
        assert again["x"].flags.c_contiguous == feed["x"].flags.c_contiguous


def test_a_failing_property_shrinks_to_one_row_without_edits(classifier: ms.Predictor, rows: NDArray[Any]) -> None:
    INPUTS = ms.strategies.inputs(classifier, like=rows, empty=False)

    @settings(deadline=None, database=None, derandomize=True)
    @given(INPUTS)
    def fails(feed: Any) -> None:
        assert len(feed["x"]) == 0

    with pytest.raises(AssertionError) as error:
        fails()
    assert "INPUTS.at(" in "".join(error.value.__notes__)
    assert "edits=0" in "".join(error.value.__notes__)
    assert "rows=1" in "".join(error.value.__notes__)


def test_integers_like_rows_stay_in_the_table_and_without_rows_are_zero_and_one() -> None:
    signature = Signature((TensorSpec("ids", "int64", ("batch", 4)),), ())
    ids = np.random.default_rng(0).integers(2, 7, (10, 4))
    like = np.concatenate([feed["ids"] for feed in drawn_from(ms.strategies.inputs(signature, like=ids))])
    assert set(np.unique(like)) == {2, 3, 4, 5, 6}
    alone = np.concatenate([feed["ids"] for feed in drawn_from(ms.strategies.inputs(signature))])
    assert set(np.unique(alone)) == {0, 1}


def test_a_strategy_is_searched_as_it_stands_and_example_by_example(classifier: ms.Predictor, rows: Any) -> None:
    strategy = ms.strategies.inputs(classifier, like=rows)
    assert ms.measure_relation(classifier, strategy, r.simplex()).n == 1000
    (feed,) = drawn_from(strategy, 1)
    evidence = ms.measure_relation(classifier, feed, r.simplex())
    assert evidence.n == 100
    assert f"seed {feed.seed}" in evidence.method.name


def test_a_domain_beside_a_strategy_that_has_its_own_is_refused(classifier: ms.Predictor) -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.measure_relation(classifier, ms.strategies.inputs(classifier), r.simplex(), domain="far")
    assert str(error.value) == (
        "domain is that of the strategy, ('like', 'edges'): give domain= to strategies.inputs instead"
    )


def test_a_function_that_takes_an_array_is_given_one(rows: NDArray[Any]) -> None:
    model = ms.serve(lambda x: x[:, 0])
    for feed in drawn_from(ms.strategies.inputs(model, like=rows), 5):
        assert ms.measure_relation(model, feed, r.finite_outputs(), candidates=20).verdict is ms.Verdict.PASS


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            Signature((TensorSpec("x", "sequence(complex64)", ()),), ()),
            {},
            "input 'x[0]' has type complex64: supported are real numbers, integers, booleans and text, and sequences, "
            "maps and optionals of them. Write a hypothesis strategy of your own for it",
        ),
        (Signature((TensorSpec("x", "float32", (1,)),), ()), {"max_batch": 0}, "max_batch must be at least 1, got 0"),
        (Signature((TensorSpec("x", "float32", (1,)),), ()), {"domain": "lik"}, "unknown domain 'lik': did you mean 'like'? "),
        (
            Signature((TensorSpec("x", "float32", ("n", 2)),), ()),
            {"like": np.zeros((3, 2))},
            "like= has dtype float64 for input 'x': expected float32",
        ),
        (Signature((TensorSpec("x", "float32", ("n",)),), ()), {"like": {"y": np.zeros(3)}}, "like= has no input 'x'"),
        (ms.serve(len, name="f"), {}, "f has no signature: pass like=, rows that the model accepts"),
        ("model.onnx", {}, "source is a str: expected a Signature, a Predictor or an Artifact"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_by_name(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.UsageError) as error:
        ms.strategies.inputs(source, **options)
    assert str(error.value).startswith(message)


def test_without_hypothesis_the_extra_is_named_and_the_search_still_works() -> None:
    code = """
import sys; sys.modules["hypothesis"] = None
import numpy as np, pytest_modelserve as ms
rows = np.ones((2, 3), np.float32)
model = ms.serve(lambda x: x)
ms.assert_relation(model, rows, ms.relations.finite_outputs())
try:
    ms.strategies.inputs(model, like=rows)
except ms.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    told = "strategies require hypothesis, which is not installed: pip install 'pytest-modelserve[robustness]'\n"
    assert done.stdout == told


def test_settings_give_no_deadline_and_what_the_user_says_wins() -> None:
    assert ms.strategies.settings().deadline is None
    assert ms.strategies.settings(max_examples=7).max_examples == 7
    assert ms.strategies.settings(deadline=500).deadline == datetime.timedelta(milliseconds=500)
    assert HealthCheck.too_slow in ms.strategies.settings().suppress_health_check


def test_hypothesis_is_told_how_near_each_search_came(rows: NDArray[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, str]] = []
    monkeypatch.setattr("hypothesis.target", lambda excess, label: told.append((excess, label)))
    model = ms.serve(lambda x: np.ones((len(x), 2), np.float32) / 2, name="half")

    @settings(max_examples=3, deadline=None, database=None)
    @given(ms.strategies.seeds())
    def search(seed: int) -> None:
        ms.measure_relation(model, rows, r.simplex(), seed=seed, candidates=20)

    search()
    assert set(told) == {(0.0, "probability simplex of half")}
    told.clear()
    ms.measure_relation(model, rows, r.simplex(), candidates=20)
    assert told == []


PROJECT = """
import numpy as np
import pytest_modelserve as ms
from hypothesis import given, strategies as st

ROWS = np.random.default_rng(0).standard_normal((20, 10)).astype(np.float32)
MODEL = ms.serve(lambda x: np.where((x[:, 2] > 1) & (x[:, 7] < -1), np.inf, x[:, 0]), name="planted")
GOOD = ms.serve(lambda x: x[:, 0], name="good")

@ms.strategies.settings(max_examples=20)
@given(seed=ms.strategies.seeds())
def test_found(seed):
    ms.assert_relation(MODEL, ROWS, ms.relations.finite_outputs(), seed=seed, candidates=200)

@ms.strategies.settings(max_examples=20)
@given(ms.strategies.inputs(GOOD, like=ROWS, ranges={0: ms.strategies.Range(-9, 9)}))
def test_kept(inputs):
    assert abs(inputs["input"][:, 0]).max(initial=0) <= 9
    ms.assert_relation(GOOD, inputs, ms.relations.batch_invariance())
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(PROJECT)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider --modelserve-json evidence.json\n")
    return pytester


def test_gates_under_given_work_in_two_processes_and_with_hypothesis_own_seed(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("-n", "2", "--hypothesis-seed=1")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*relation: finite outputs is violated*", "*features differ* from base row*", "*seed=0*"]
    )
    result.stdout.fnmatch_lines(["*relation*batch invariance: violations 0*PASS*"])
    assert list(Path(project.path, ".modelserve", "counterexamples").glob("planted-finite-outputs-*.npz"))


def test_a_profile_of_the_user_wins(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "from hypothesis import settings\n"
        "settings.register_profile('mine', max_examples=3, deadline=123)\nsettings.load_profile('mine')\n"
    )
    pytester.makepyfile("""
        import datetime
        import numpy as np
        import pytest_modelserve as ms
        from hypothesis import given

        SEEN = []

        @given(ms.strategies.inputs(ms.serve(lambda x: x), like=np.ones((2, 3), np.float32)))
        def test_as_often_as_the_user_said(inputs):
            SEEN.append(inputs)

        def test_settings():
            assert len(SEEN) == 3
            ours = ms.strategies.settings()
            assert ours.max_examples == 3
            assert ours.deadline == datetime.timedelta(milliseconds=123)
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)
