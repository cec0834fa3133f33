"""What pytest collects and reports of model files and contracts."""

import json
import multiprocessing.popen_spawn_posix  # noqa: F401 (a module that pytester would load a second time)
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from tests.plugin.conftest import installed_modules_stay_loaded  # noqa: F401 (an automatic fixture)

SCHEMA = Path(ms.__file__).parent / "evidence" / "schema.json"
CHECKS = [
    "safe",
    "opens",
    "deterministic",
    "finite",
    "batch_invariance",
    "row_permutation",
    "malformed_inputs",
    "simplify",
    "optimize",
    "int8_dynamic",
    "latency",
    "memory",
    "size",
    "operators",
    "providers",
]
FAST = "not (memory or latency or simplify or optimize or int8)"


@pytest.fixture
def run(pytester, files):
    """Run pytest in a project with the models and rows."""
    for path in files.iterdir():
        (pytester.path / path.name).write_bytes(path.read_bytes())
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider --modelserve-json evidence.json\n")
    return pytester.runpytest_inprocess


@pytest.fixture
def document(pytester):
    return lambda: json.loads((pytester.path / "evidence.json").read_text())


def save(path, nodes, outputs, inputs=(), constants=()):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def test_model_file_is_judged_and_measured_without_a_test(run, document):
    result = run("candidate.onnx", "-k", "not memory")  # which starts six processes
    result.assert_outcomes(passed=len(CHECKS) - 1, deselected=1)
    result.stdout.fnmatch_lines(["7 gates: 7 PASS, 0 FAIL, 0 INCONCLUSIVE * 7 measured*"])
    found = {gate["node_id"]: gate for gate in document()["gates"]}
    assert sorted(found) == sorted(f"candidate.onnx::{check}" for check in CHECKS if check != "memory")
    jsonschema.validate(document(), json.loads(SCHEMA.read_text("utf-8")))
    latency = found["candidate.onnx::latency"]
    assert (latency["verdict"], latency["evidence"]["verdict"], latency["evidence"]["alpha"]) == (None, None, 0)
    assert [quantity["budget"] for quantity in latency["evidence"]["quantities"]] == [None] * 4


def test_folder_with_model_files_collects_nothing(run):
    assert run(".").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_rows_labels_champion_and_budgets_of_the_command_line_are_used(run, document):
    result = run(
        "candidate.onnx", "--modelserve-inputs=holdout.csv", "--modelserve-labels=y",
        "--modelserve-against=champion.onnx", "--modelserve-set=accuracy_parity.max_drop=1 %",
        "--modelserve-set=accuracy.slices=['site']", "-k", "accuracy or parity",
    )  # fmt: skip
    result.assert_outcomes(passed=3, deselected=len(CHECKS) + 1)
    accuracy, parity, fidelity = sorted(
        (gate["evidence"] for gate in document()["gates"]), key=lambda evidence: evidence["title"]
    )
    assert (accuracy["verdict"], fidelity["verdict"], parity["verdict"]) == (None, None, "PASS")
    assert parity["quantities"][0]["budget"]["argument"] == "max_drop=0.01"
    assert "site=" in " ".join(accuracy["findings"])


def test_budget_that_is_exceeded_fails_at_the_check(run):
    result = run("candidate.onnx", "--modelserve-set", "size.max_bytes=10 B", "-k", "size")
    result.assert_outcomes(failed=1, deselected=len(CHECKS) - 1)
    result.stdout.fnmatch_lines(
        ["*budget     at most 10 B (max_bytes=10)", "FAILED candidate.onnx::size - size: the artifact is larger *"]
    )
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modelserve-inputs=holdout.csv",), "*--modelserve-inputs is for model files: name one*"),
        (("candidate.onnx", "--modelserve-set=latncy.max_ms=2"), "*unknown check 'latncy': did you mean 'latency'*"),
        (("candidate.onnx", "--modelserve-set=latency.max_s=2"), "*unknown argument 'max_s': did you mean 'max_ms'*"),
        (("candidate.onnx", "--modelserve-set=latency.max_ms=2 MiB"), "*'2 MiB' is not a time*"),
        (("candidate.onnx", "--modelserve-set=latency"), "*expected CHECK.ARGUMENT=VALUE*"),
        (("candidate.onnx", "--modelserve-set=slowdown.max_ratio=2"), "*slowdown: needs --modelserve-against*"),
        (("candidate.onnx", "--modelserve-inputs=gone.csv"), "*--modelserve-inputs: 'gone.csv' is not a file*"),
    ],
)
def test_wrong_option_is_a_usage_error(run, options, message):
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_rows_that_do_not_fit_are_an_error_and_not_a_skip(run, pytester):
    np.savez(pytester.path / "wide.npz", x=np.zeros((5, 9), np.float32))
    result = run("candidate.onnx", "--modelserve-inputs=wide.npz", "-k", "opens or finite")
    result.assert_outcomes(failed=2, deselected=len(CHECKS) - 2)
    result.stdout.fnmatch_lines(["*InputError: *axis 1 is 9 instead of 4*"])


@pytest.fixture
def killer(pytester):
    """onnxruntime folds this division when it opens the file, and the processor raises SIGFPE."""
    least, minus = ("a", np.array([np.iinfo(np.int64).min])), ("b", np.array([-1]))
    save(
        pytester.path / "killer.onnx",
        [helper.make_node("Div", ["a", "b"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        [tensor("y", onnx.TensorProto.INT64, ["n", 1])],
        [tensor("x", onnx.TensorProto.INT64, ["n", 1])],
        [least, minus],
    )


def test_file_that_would_kill_its_process_is_refused_and_the_rest_is_not_judged(run, document, killer):
    result = run("killer.onnx")
    result.assert_outcomes(failed=1, skipped=len(CHECKS) - 1)
    result.stdout.fnmatch_lines(["*compute.integer-division*", "*not judged", "*the scan refuses the file: *"])
    assert len(document()["not_judged"]) == len(CHECKS) - 1


def test_file_that_would_hang_is_refused(run, pytester):
    kinds = onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["go"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [tensor("k", kinds.INT64, []), tensor("c", kinds.BOOL, []), tensor("v", kinds.FLOAT, ["n", 2])],
        [tensor("go", kinds.BOOL, []), tensor("w", kinds.FLOAT, ["n", 2])],
    )
    save(
        pytester.path / "hanging.onnx",
        [helper.make_node("Loop", ["most", "", "x"], ["y"], body=body)],
        [tensor("y", kinds.FLOAT, ["n", 2])],
        [tensor("x", kinds.FLOAT, ["n", 2])],
        [("most", np.array(2**62))],
    )
    result = run("hanging.onnx", "--modelserve-time-limit=2", "-k", FAST)
    result.assert_outcomes(failed=1, skipped=9, deselected=5)
    result.stdout.fnmatch_lines(["*compute.loop-bound*"])


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_file_that_is_no_model_is_refused(run, pytester, content):
    (pytester.path / "broken.onnx").write_bytes(content)
    run("broken.onnx", "-k", "safe or latency").assert_outcomes(failed=1, skipped=1, deselected=len(CHECKS) - 2)


def test_what_cannot_be_judged_is_named_with_its_reason(run, pytester, document):
    save(
        pytester.path / "log.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [tensor("y", onnx.TensorProto.FLOAT, [4, 2])],
        [tensor("x", onnx.TensorProto.FLOAT, [4, 2])],
    )
    run("log.onnx", "-k", "finite or batch or int8").assert_outcomes(skipped=3, deselected=len(CHECKS) - 3)
    reasons = {node_id.partition("::")[2]: reason for node_id, reason in document()["not_judged"].items()}
    assert "give rows with --modelserve-inputs" in reasons["finite"]
    assert reasons["batch_invariance"].startswith("the signature has no batch")
    assert "int8-dynamic" in reasons["int8_dynamic"]


def test_names_with_control_characters_reach_no_report_as_they_are(run, pytester, document):
    name = "a\x1b31mb\nc.onnx"
    (pytester.path / name).write_bytes((pytester.path / "candidate.onnx").read_bytes())
    result = run(name, "-k", "safe", "--junit-xml=junit.xml")
    result.assert_outcomes(failed=1, deselected=len(CHECKS) - 1)
    assert document()["gates"][0]["node_id"] == r"a\x1b31mb\nc.onnx::safe"
    assert "\x1b31mb" not in result.stdout.str()
    assert r"a\x1b31mb\nc.onnx" in (pytester.path / "junit.xml").read_text()


CONTRACT = """
subject = "candidate.onnx"
reference = "champion.onnx"
data = "holdout.csv"
labels = "y"
[gates.accuracy_parity]
max_drop = "1 %"
[gates.size]
max_ratio = 0.5
[gates.memory]
# max_mib = 10
"""


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_contract_passes_fails_and_names_what_is_not_judged(run, pytester, document, processes):
    (pytester.path / "release.modelgate.toml").write_text(CONTRACT)
    result = run("--junit-xml=junit.xml", *processes)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert {gate["node_id"]: gate["verdict"] for gate in document()["gates"]} == {
        "release.modelgate.toml::accuracy_parity": "PASS",
        "release.modelgate.toml::size": "FAIL",
    }
    assert document()["not_judged"] == {
        "release.modelgate.toml::memory": "no budget: set max_mib at release.modelgate.toml:10"
    }
    result.stdout.fnmatch_lines(
        ["size: the artifact is larger than its budget", "release.modelgate.toml:8: GateFailure"]
    )
    junit = (pytester.path / "junit.xml").read_text()
    assert 'name="modelserve"' in junit
    assert "not judged: no budget" in junit


def test_model_that_kills_its_process_is_an_error_of_the_gates_of_a_contract(run, pytester, killer):
    (pytester.path / "release.modelgate.toml").write_text(CONTRACT.replace("candidate.onnx", "killer.onnx"))
    result = run()
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines(["*the scan refuses *killer.onnx, which is not opened: compute.integer-division"])


def test_contract_is_collected_and_selected_as_tests_are(run, pytester):
    (pytester.path / "release.modelgate.toml").write_text(CONTRACT)
    run("--collect-only", "-q").stdout.fnmatch_lines(["release.modelgate.toml::size"])
    run("-k", "parity").assert_outcomes(passed=1, deselected=2)
    run("-m", "modelserve_slow", "--collect-only", "-q").stdout.fnmatch_lines(["release.modelgate.toml::memory"])
    run("release.modelgate.toml::accuracy_parity").assert_outcomes(passed=1)


def test_wrong_contract_is_an_error_at_collection(run, pytester):
    (pytester.path / "release.modelgate.toml").write_text(CONTRACT.replace("max_drop", "max_dorp"))
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["release.modelgate.toml:7: gates.accuracy_parity.max_dorp: unknown key 'max_dorp': did you mean 'max_drop'*"]
    )
    assert "Traceback" not in result.stdout.str()


def test_error_of_a_gate_names_the_line_of_its_table(run, pytester):
    (pytester.path / "release.modelgate.toml").write_text(
        CONTRACT.replace('labels = "y"', 'labels = "yy"\ncolumns = ["c0", "c1", "c2", "c3"]')
    )
    result = run("-k", "accuracy")
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(["*unknown column 'yy'*", "release.modelgate.toml:7: InputError"])


@pytest.mark.parametrize("label", [r"</script>\n::error::", r"\u001b[31mred", "]]>&<"])
def test_labels_with_control_characters_are_escaped_in_node_ids(run, pytester, document, label):
    (pytester.path / "release.modelgate.toml").write_text(
        f'subject = "candidate.onnx"\n[gates.size]\nmax_bytes = "1 MiB"\nlabel = "{label}"\n'
    )
    result = run("--junit-xml=junit.xml")
    result.assert_outcomes(passed=1)
    assert document()["gates"][0]["node_id"].isprintable()
    assert not any(line.startswith("::error") for line in result.outlines)
