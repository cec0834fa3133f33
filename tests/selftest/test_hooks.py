"""The self-test of tiny suites: one MLP in a file, a function as its reference, and a column of data."""

from __future__ import annotations

import itertools
import json
import time
import types
from pathlib import Path

import pytest
from _pytest.pytester import SysModulesSnapshot

MODEL = """
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
import pytest_modelserve as ms

RNG = np.random.default_rng(0)
W1, W2 = RNG.standard_normal((4, 8)).astype("f"), RNG.standard_normal((8, 3)).astype("f")
B1 = RNG.standard_normal(8).astype("f")
X = RNG.standard_normal((64, 4)).astype("f")


def scores(x):
    return np.maximum(x @ W1 + B1, 0) @ W2


Y = scores(X).argmax(axis=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    value = lambda name, width: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "B1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "W2"], ["y"], name="second"),
    ]
    weights = [numpy_helper.from_array(a, n) for n, a in (("W1", W1), ("B1", B1), ("W2", W2))]
    graph = helper.make_graph(nodes, "mlp", [value("x", 4)], [value("y", 3)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    file = tmp_path_factory.mktemp("model") / "mlp.onnx"
    onnx.save(model, file)
    return file


def test_accuracy(path):
    ms.assert_accuracy(path, X, Y, min_value=0.5)
"""
PARITY = """
def test_parity(path):
    ms.assert_output_parity(path, scores, X, rtol=1e-5, atol=1e-5)
"""
DATA = """
import numpy as np
import pytest_modelserve as ms

RNG = np.random.default_rng(0)


def rows(n):
    return {"age": RNG.normal(40, 12, n), "city": RNG.choice(["Bern", "Graz"], n)}


PROFILE = ms.reference_profile(rows(4000), name="training")
DAY = rows(2000)


def test_drift():
    ms.assert_no_drift(DAY, PROFILE, max_distance=0.1)
"""
QUALITY = """
def test_quality():
    ms.assert_data_quality(DAY, PROFILE, max_rate=0.1)
"""


@pytest.fixture(autouse=True)
def modules_stay_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a run in this process imports: no extension loads twice, and `multiprocessing` has one class of each name.

    The modules of the suites have the names of their tests, so none is in the way of another.
    """
    monkeypatch.setattr(SysModulesSnapshot, "restore", lambda _: None)


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project without a cache folder."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    return pytester


def test_suite_with_a_parity_gate_notices_every_mutant(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODEL + PARITY)
    result = suite.runpytest_inprocess("--modelserve-selftest")
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["kind *made *equivalent *noticed*", "operator *output parity*"])
    result.stdout.re_match_lines([r"\d\d mutants change an output, (\d\d) noticed \(100.0 %\), 0 undecided, 0 missed;"])


def test_without_the_parity_gate_the_missed_mutants_are_listed_and_the_run_fails(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODEL + PARITY)
    result = suite.runpytest_inprocess("--modelserve-selftest", "-k", "accuracy")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "missed: no gate failed (*",
            "  mlp: would be noticed by assert_output_parity with the model that it was made from (its gates: accuracy)",
            "    weight noise *SQNR * dB, * of 64 labels change*",
        ]
    )


def test_reference_with_the_same_file_stays_as_it_is(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        MODEL + "\ndef test_same(path):\n    ms.assert_output_parity(path, path, X, rtol=1e-5, atol=1e-5)\n"
    )
    result = suite.runpytest_inprocess("--modelserve-selftest", "-k", "same")
    assert result.ret == 0
    result.stdout.re_match_lines([r".* noticed \(100.0 %\), 0 undecided, 0 missed;"])


def test_reports_and_files_are_those_of_the_normal_run(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODEL + PARITY)
    result = suite.runpytest_inprocess("--modelserve-selftest", "--modelserve-json=evidence.json")
    result.stdout.fnmatch_lines(["2 gates: 2 PASS, 0 FAIL, 0 INCONCLUSIVE*"])
    gates = json.loads(Path(suite.path, "evidence.json").read_text())["gates"]
    assert [gate["verdict"] for gate in gates] == ["PASS", "PASS"]
    assert sorted(path.name for path in suite.path.iterdir() if path.name != "__pycache__") == [
        "evidence.json",
        Path(suite.path, "test_reports_and_files_are_those_of_the_normal_run.py").name,
        "tox.ini",
    ]


def test_fixtures_of_a_module_are_made_once_more_and_torn_down(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        MODEL
        + """
@pytest.fixture(scope="module")
def counted():
    with open("calls.txt", "a") as file: file.write("made ")
    yield
    with open("calls.txt", "a") as file: file.write("gone ")

def test_counted(path, counted):
    ms.assert_output_parity(path, scores, X, rtol=1e-5, atol=1e-5)
"""
    )
    result = suite.runpytest_inprocess("--modelserve-selftest", "-k", "counted")
    assert result.ret == 0
    assert Path(suite.path, "calls.txt").read_text() == "made gone made gone "


def test_function_as_a_subject_is_altered(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        MODEL
        + """
def test_of_no_file():
    ms.assert_output_parity(lambda x: scores(x), scores, X, rtol=1e-5, atol=1e-5)
"""
    )
    result = suite.runpytest_inprocess("--modelserve-selftest", "-k", "of_no_file")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["moved column *", "swapped classes *", "*its graph was not mutated: it is no file*"])


def test_slower_twin_is_as_slow_as_it_takes_to_be_noticed(suite: pytest.Pytester) -> None:
    """The gate counts the readings of a clock, of which the twin makes as many as its factor: 15 allow 2 and 5 times."""
    suite.makepyfile(
        """
        import types
        import numpy as np
        from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, record
        from pytest_modelserve.selftest import model_mutants
        from pytest_modelserve.serving.serve import open_models

        NOW = [0]

        def tick():
            NOW[0] += 1
            return NOW[0]

        def model(x):
            return x

        def test_latency(monkeypatch):
            monkeypatch.setattr(model_mutants, "time", types.SimpleNamespace(perf_counter=tick))
            before = NOW[0]
            with open_models(model, inputs=np.ones((1, 4))) as (rows, (served,)):
                served.predict(rows)
            ticks = Quantity("p95", NOW[0] - before, "ms", budget=Budget.of("max_ms", 15))
            evidence = Evidence(
                gate="latency p95", subject=served.subject, quantities=(ticks,), n=1, n_unit="calls",
                method=Method("readings of a clock"), summary="",
            )
            record(evidence)
            assert evidence.passed
        """
    )
    result = suite.runpytest_inprocess("--modelserve-selftest")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["slower twin *1 * latency p95 from × 20 1", "*only its time is measured"])


def test_faults_of_data_are_noticed_by_both_data_gates(suite: pytest.Pytester) -> None:
    suite.makepyfile(DATA + QUALITY)
    result = suite.runpytest_inprocess("--modelserve-selftest")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["shifted column *", "nulls *data quality 2", "lost category *", "9 mutants * 9 noticed (100.0 %), *"]
    )


def test_nulls_are_missed_without_the_quality_gate(suite: pytest.Pytester) -> None:
    suite.makepyfile(DATA)
    result = suite.runpytest_inprocess("--modelserve-selftest")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["  data vs training: would be noticed by assert_data_quality", "    nulls 'age', 30% of the rows"]
    )


def test_mutants_that_the_time_leaves_out_are_counted(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by a second each time that it is read: half a minute is enough for some of the mutants."""
    now = itertools.count(time.monotonic())
    clock = types.SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr("pytest_modelserve.selftest.mutation_test.time", clock)
    suite.makepyfile(MODEL + PARITY)
    result = suite.runpytest_inprocess("--modelserve-selftest", "--modelserve-selftest-minutes=0.5")
    assert result.ret == 0
    result.stdout.re_match_lines([r"\d+ mutants change an output, .* \d+ not tried: raise --modelserve-selftest-minut"])


def test_suite_of_which_no_mutant_was_tried_fails(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODEL + PARITY)
    result = suite.runpytest_inprocess("--modelserve-selftest", "--modelserve-selftest-minutes=0.0000001")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*  mlp: the time was up before its mutants were drawn"])


def test_suite_whose_gates_cannot_fail_fails(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_nothing(): pass")
    result = suite.runpytest_inprocess("--modelserve-selftest")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["no subject could be mutated, so nothing shows that this suite can fail:"])


def test_same_model_twice_raises_no_alarm(suite: pytest.Pytester) -> None:
    suite.makepyfile(MODEL + PARITY + DATA.replace("RNG = ", "RNG2 = ").replace("RNG.", "RNG2."))
    result = suite.runpytest_inprocess("--modelserve-aa", "4")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["gate *runs*", "output parity *4 *0 *", "drift *4 *0 *"])
    result.stdout.fnmatch_lines(["0 false alarms in 8 runs of 2 gates, a rate of at most 31.23 % a gate (95 %);*"])


def test_gate_that_fails_on_the_same_model_is_a_false_alarm(suite: pytest.Pytester) -> None:
    """The reference returns other scores from the fifth call on: after the normal run, which makes one call."""
    suite.makepyfile(
        MODEL
        + """
CALLS = []

def unstable(x):
    CALLS.append(1)
    return scores(x) + (len(CALLS) > 4)

def test_unstable(path):
    ms.assert_output_parity(path, unstable, X, rtol=1e-5, atol=1e-5)
"""
    )
    result = suite.runpytest_inprocess("--modelserve-aa", "3", "-k", "unstable")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["output parity *3 *1 *33.3 %*", "1 false alarms in 3 runs of 1 gates*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modelserve-selftest", "-n", "1"), "--modelserve-selftest runs the tests again in this process: add -n 0"),
        (("--modelserve-aa", "2", "-n", "1"), "--modelserve-aa runs the tests again in this process: add -n 0"),
        (("--modelserve-selftest", "--pdb"), "--modelserve-selftest makes tests fail on purpose: remove --pdb"),
        (("--modelserve-aa", "-1"), "--modelserve-aa must be a number of repeats, got -1"),
        (
            ("--modelserve-selftest", "--modelserve-selftest-minutes=0"),
            "--modelserve-selftest-minutes must be a positive number, got 0",
        ),
    ],
)
def test_what_it_cannot_run_with_is_refused_in_one_line(
    suite: pytest.Pytester, arguments: tuple[str, ...], message: str
) -> None:
    suite.makepyfile("def test_nothing(): pass")
    result = suite.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_stopped_run_has_no_self_test(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_fails(): assert False")
    result = suite.runpytest_inprocess("--modelserve-selftest", "-x")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["modelserve self-test: not run, because the run of the suite was stopped"])
