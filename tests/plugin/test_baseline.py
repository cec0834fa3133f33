"""A champion in the repository: replaced on purpose, never in CI, and missed in words that can be typed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

PROJECT = """
    import hashlib
    from pathlib import Path
    import onnx, pytest
    import numpy as np
    from onnx import helper
    import pytest_modelserve as ms

    def candidate(path, factor=2.0):
        constant = onnx.numpy_helper.from_array(np.float32(factor), "factor")
        values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", values[:1], values[1:], [constant])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return ms.open_artifact(path)

    def test_it(modelserve, tmp_path):
        champion = modelserve.baseline("champion", candidate(tmp_path / "model.onnx"))
        print("champion:", champion.sha256)

    def test_later(modelserve):
        assert modelserve.baseline("champion").path.name == "champion.onnx"
"""


@pytest.fixture
def repository(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    pytester.makepyfile(test_release=PROJECT)
    return pytester


def test_missing_baseline_fails_with_the_command_that_stores_it(repository: pytest.Pytester) -> None:
    result = repository.runpytest_inprocess()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E*ArtifactError: baseline 'champion' does not exist (*/baselines/champion.onnx). Store one from the test "
            "that has the candidate, modelserve.baseline('champion', candidate), with",
            "E*  pytest test_release.py::test_it --modelserve-update",
        ]
    )


def test_that_command_stores_it_and_later_runs_find_it(repository: pytest.Pytester) -> None:
    stored = Path(repository.path, "baselines", "champion.onnx")
    repository.runpytest_inprocess("test_release.py::test_it", "--modelserve-update").assert_outcomes(passed=1)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    result = repository.runpytest_inprocess("-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"*champion: {digest}*"])
    assert [path.name for path in stored.parent.iterdir()] == ["champion.onnx"]


def test_stored_baseline_is_kept_until_an_update_replaces_it(repository: pytest.Pytester) -> None:
    stored = Path(repository.path, "baselines", "champion.onnx")
    repository.runpytest_inprocess("--modelserve-update").assert_outcomes(passed=2)
    first = stored.read_bytes()
    repository.makepyfile(test_release=PROJECT.replace("factor=2.0", "factor=3.0"))
    repository.runpytest_inprocess().assert_outcomes(passed=2)
    assert stored.read_bytes() == first
    repository.runpytest_inprocess("--modelserve-update").assert_outcomes(passed=2)
    assert stored.read_bytes() != first


def test_update_is_refused_in_ci(repository: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = repository.runpytest_inprocess("--modelserve-update")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: --modelserve-update: refused because the environment variable CI is set, and CI compares against "
            "these baselines; run it on your machine and commit the files"
        ]
    )
    assert not Path(repository.path, "baselines").exists()


def test_folder_comes_from_the_ini_file(repository: pytest.Pytester) -> None:
    settings = ("-o", "modelserve_baselines=models/champions")
    repository.runpytest_inprocess(*settings, "--modelserve-update").assert_outcomes(passed=2)
    assert Path(repository.path, "models", "champions", "champion.onnx").exists()
