"""The first contract of a model: what was measured, with every budget left to a person."""

import pytest

import pytest_modelserve as ms
from pytest_modelserve import __main__ as command
from pytest_modelserve.contracts import scaffold
from pytest_modelserve.contracts.contract import read_contract
from pytest_modelserve.contracts.model_file import CHECKS

pytest.importorskip("polars")


@pytest.fixture
def init(project, monkeypatch, capsys):
    """Run the command in the project, without the check that starts six processes."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(
        scaffold, "checks_for", lambda _: [c for c in CHECKS if c.name not in ("memory", "latency", "slowdown")]
    )

    def run(*arguments):
        code = command.main(["init", "candidate.onnx", "--data", "holdout.csv", *arguments])
        return code, capsys.readouterr()

    return run


def test_first_contract_holds_relations_and_measured_gates_without_budgets(init, project):
    code, printed = init("--labels", "y", "--against", "champion.onnx")
    assert (code, printed.err) == (0, "")
    assert "candidate.modelgate.toml: 5 active gates, 4 that wait for a budget" in printed.out
    text = (project / "candidate.modelgate.toml").read_text()
    assert '# measured: accuracy 99.95 % [99.76, 100.00]\n# min_value = "… %"' in text
    gates = read_contract(project / "candidate.modelgate.toml", root=project)
    active = [gate.name for gate in gates if not gate.inactive]
    assert active == [
        f"relation[{name}]"
        for name in ("determinism", "finite_outputs", "batch_invariance", "row_permutation", "clean_rejection")
    ]
    assert [gate.name for gate in gates if gate.inactive] == ["size", "output_fidelity", "accuracy", "accuracy_parity"]


def test_placeholder_that_is_only_uncommented_is_refused(init, project):
    init("--labels", "y", "--against", "champion.onnx")
    path = project / "candidate.modelgate.toml"
    path.write_text(path.read_text().replace('# max_drop = "… %"', 'max_drop = "… %"'))
    with pytest.raises(ms.UsageError, match="max_drop: '… %' is not a proportion"):
        read_contract(path, root=project)


def test_contract_of_a_person_is_not_replaced(init, project):
    path = project / "candidate.modelgate.toml"
    path.write_text("mine")
    code, printed = init()
    assert code == 2
    assert printed.err.startswith("error: candidate.modelgate.toml exists: pass --force to replace it")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "gone.onnx"), "error: --against: gone.onnx is not a file"),
        (("--output", "release.toml"), "error: release.toml: the name of a contract ends with .modelgate.toml"),
        (("--labels", "yy", "--output", "a.modelgate.toml"), "unknown column 'yy': did you mean 'y'"),
    ],
)
def test_wrong_argument_is_an_error_of_one_line(init, project, arguments, message):
    code, printed = init(*arguments)
    assert code == 2
    assert message in printed.err
    assert not (project / "a.modelgate.toml").exists()
