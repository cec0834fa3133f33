"""A gate of a contract is the call that a test in Python makes."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve import scanning
from pytest_modelserve.contracts.gate_runner import GateRunner
from pytest_modelserve.scanning import refuse_unsafe

HEAD = 'subject = "candidate.onnx"\nreference = "champion.onnx"\ndata = "{data}"\nlabels = "y"\nslices = ["site"]\n'


@pytest.fixture
def run(contract):
    """Run the one gate of a contract."""
    runners = []

    def call(text, data="holdout.npz"):
        (gate,) = contract(HEAD.replace("{data}", data) + text)
        runners.append(GateRunner())
        return runners[-1].run(gate)

    yield call
    for runner in runners:
        runner.close()


def figures(evidence):
    return evidence.verdict, evidence.quantities, evidence.n, evidence.reference, evidence.findings


@pytest.mark.parametrize("data", ["holdout.npz", "holdout.csv"])
def test_accuracy_parity_has_the_figures_of_the_call_in_python(run, project, data):
    with np.load(project / "holdout.npz") as arrays:
        x, y, site = (arrays[name] for name in ("x", "y", "site"))
    models = project / "candidate.onnx", project / "champion.onnx"
    expected = ms.measure_accuracy_parity(*models, x, y, max_drop=0.01, slices={"site": site})
    assert figures(run('[gates.accuracy_parity]\nmax_drop = "1 %"\n', data)) == figures(expected)


def test_rows_of_one_value_are_judged_alone_and_named(run, project):
    with np.load(project / "holdout.npz") as arrays:
        x, y, north = arrays["x"], arrays["y"], arrays["site"] == "a"
    evidence = run('[gates.accuracy]\nmin_value = 0.5\nwhere = { site = "a" }\n')
    assert evidence.value == ms.measure_accuracy(project / "candidate.onnx", x[north], y[north], min_value=0.5).value
    assert (evidence.n, evidence.label) == (1000, "site=a")


def test_failing_gate_raises_its_failure(run):
    with pytest.raises(ms.GateFailure, match=r"budget     at most × 0.10 \(max_ratio=0.1\)"):
        run("[gates.size]\nmax_ratio = 0.1\n")


def test_subject_is_scanned_without_being_opened(run, project):
    project.joinpath("candidate.onnx").write_bytes(b"no model")
    with pytest.raises(ms.GateFailure, match="malformed"):
        run("[gates.artifact_safe]\n")


def test_file_that_is_exchanged_after_its_scan_is_refused(run, monkeypatch):
    def scan_before_it_changes(path, *arguments, **options):
        report = refuse_unsafe(path, *arguments, **options)
        os.utime(path, ns=(0, 0))
        return report

    monkeypatch.setattr(scanning, "refuse_unsafe", scan_before_it_changes)
    with pytest.raises(ms.ArtifactError, match=r"candidate\.onnx has changed since it was scanned"):
        run("[gates.size]\nmax_ratio = 2\n")


def test_attacks_are_named_with_their_arguments(run):
    table = 'min_accuracy = "60 %"\neps = 0.01\nattacks = [{ type = "boundary", queries = 5 }, { type = "square", queries = 5 }]\n'
    evidence = run(f"[gates.robust]\n{table}")
    assert list(evidence.details["attacks"]) == ["boundary", "square"]
    assert evidence.passed


def test_ready_outputs_need_no_inputs(run, project):
    with np.load(project / "holdout.npz") as arrays:
        np.save(project / "ready.npy", np.eye(2)[arrays["y"]])
    evidence = run('[gates.accuracy]\nsubject = "ready.npy"\nmin_value = "99 %"\n')
    assert evidence.value == 1.0


def test_model_can_be_a_function_and_have_settings(run, project, monkeypatch):
    (project / "my_model.py").write_text(
        "import numpy as np\ndef ones(x):\n    return np.ones((len(x), 2), np.float32)\n"
    )
    monkeypatch.syspath_prepend(project)
    evidence = run('[gates.accuracy]\nsubject = { path = "my_model:ones", name = "ones" }\nmin_value = 0.01\n')
    assert evidence.subject.name == "ones"


def test_model_can_have_the_interpreter_of_an_environment_beside_the_contract(run, project):
    (project / "venv").symlink_to(Path(sys.executable).parents[1])
    model = '{ path = "candidate.onnx", interpreter = "venv/bin/python", variant = "next" }'
    evidence = run(f"[gates.accuracy]\nsubject = {model}\nmin_value = 0.5\n")
    assert str(evidence.subject) == "candidate / next"
    with pytest.raises(ms.UsageError, match="interpreter 'venv/python' does not exist"):
        run(f"[gates.accuracy]\nsubject = {model.replace('bin/', '')}\nmin_value = 0.5\n")


def test_data_gates_read_their_file_by_themselves(run, project):
    profile = ms.reference_profile(str(project / "holdout.csv"))
    profile.save(project / "profile.json")
    evidence = run('[gates.no_drift]\nprofile = "profile.json"\nmax_distance = "10 %"\n', "holdout.csv")
    assert evidence.passed


def test_labels_of_a_file_are_read(run, project):
    with np.load(project / "holdout.npz") as arrays:
        np.save(project / "labels.npy", arrays["y"])
    assert run('[gates.accuracy]\nlabels = "labels.npy"\nmin_value = "90 %"\ncolumns = ["x"]\n').n == 2000
    with pytest.raises(ms.InputError, match="where and rows need the labels as a column"):
        run('[gates.accuracy]\nlabels = "labels.npy"\nmin_value = "90 %"\nrows = 5\n')


def test_feature_can_be_named_by_its_column(run, project, monkeypatch):
    monkeypatch.chdir(project)
    text = '[gates.relation]\nrelation = {{ type = "invariant_to", features = "{}" }}\ncandidates = 5\nrows = 20\n'
    with pytest.raises(ms.GateFailure, match="invariance to 2 is violated"):
        run(text.format("c2"), "holdout.csv")
    with pytest.raises(ms.InputError, match="unknown column of the model 'c9': known: 'c0'"):
        run(text.format("c9"), "holdout.csv")


def test_attribute_of_a_leak_is_a_column_of_the_data_and_labels_may_be_missing(contract, project):
    table = "[gates.no_attribute_leak]\nattribute = {}\nmax_gain = 0.1\n"
    for attribute in ('"c2"', "2"):
        (gate,) = contract('data = "holdout.csv"\nsubject = "candidate.onnx"\n' + table.format(attribute))
        runner = GateRunner()
        assert runner.arguments(replace(gate, no_inputs=frozenset({"y", "site"})))["attribute"] == 2
        runner.close()


def test_misspelt_column_is_an_error_with_the_nearest_name(run):
    with pytest.raises(ms.InputError, match=r"holdout.npz: unknown column 'sites': did you mean 'site'"):
        run('[gates.accuracy]\nmin_value = 0\nslices = ["sites"]\n')


def test_subject_is_the_first_parameter_whatever_its_name(run):
    text = "[gates.calibrated]\nmax_error = 0.9\noutput = { name = 'logits', scores = 'logits' }\n"
    assert run(text).subject.name == "candidate"


def test_more_rows_than_there_are_is_an_error(run):
    with pytest.raises(ms.InputError, match=r"rows = 9,999, and .* has 2,000 of them"):
        run('[gates.accuracy]\nmin_value = "50 %"\nrows = 9999\n')


def test_gates_under_load_are_said_as_others(contract, project):
    """The arguments are those of the call; the verdict of a load on this host is not the point."""
    (gate,) = contract(
        HEAD.replace("{data}", "holdout.npz")
        + '[gates.latency_under_load]\nrate_qps = 300\nmax_ms = "40 ms"\nduration_s = "0.5 s"\nmax_failed = "1 %"\n'
    )
    runner = GateRunner()
    arguments = runner.arguments(gate)
    assert {name: arguments[name] for name in ("rate_qps", "max_ms", "duration_s", "max_failed")} == {
        "rate_qps": 300,
        "max_ms": 40,
        "duration_s": 0.5,
        "max_failed": 0.01,
    }
    evidence = ms.measure_latency_under_load(**{**arguments, "max_ms": 1e6})
    assert evidence.details["load"] == "300 requests/s, Poisson arrivals"
    runner.close()


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_membership_reads_members_and_non_members_from_files(run, project, kind):
    with np.load(project / "holdout.npz") as arrays:
        parts = {"seen": slice(0, 500), "other": slice(500, None)}
        rows = {name: {key: array[part] for key, array in arrays.items()} for name, part in parts.items()}
    header, *lines = (project / "holdout.csv").read_text().splitlines()
    for name, part in parts.items():
        np.savez(project / f"{name}.npz", **rows[name])
        (project / f"{name}.csv").write_text("\n".join([header, *lines[part]]) + "\n")
    evidence = run(f"""
[gates.no_membership_leak]
members = "seen.{kind}"
non_members = "other.{kind}"
label_column = "y"
reference_models = ["champion.onnx"]
max_tpr = "8 %"
""")
    pairs = [(rows[name]["x"], rows[name]["y"]) for name in parts]
    expected = ms.measure_membership_leak(
        project / "candidate.onnx", *pairs, max_tpr=0.08, reference_models=project / "champion.onnx"
    )
    assert evidence.details["attacks"] == expected.details["attacks"]
    assert evidence.verdict is ms.Verdict.PASS
