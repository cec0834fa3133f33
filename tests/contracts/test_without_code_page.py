"""The commands and the contract of docs/without_code.md run as they are printed."""

import re
import shlex

import numpy as np
import pytest

from pytest_modelserve import __main__ as command
from pytest_modelserve.contracts import scaffold
from pytest_modelserve.contracts.model_file import CHECKS
from tests.contracts.conftest import columns, linear_model
from tests.plugin.conftest import installed_modules_stay_loaded  # noqa: F401 (an automatic fixture)
from tests.test_docs import blocks

pytest.importorskip("polars")

PAGE = "docs/without_code.md"


@pytest.fixture
def release(pytester):
    """The files that the page names."""
    arrays, weights = columns()
    header = ["a", "b", "c", "d", "label", "site"]
    sites = np.array(["north", "south"])[np.arange(len(arrays["y"])) % 2]
    rows = zip(arrays["x"].astype(float).tolist(), arrays["y"], sites, strict=True)
    lines = [",".join([*map(repr, row), str(label), site]) for row, label, site in rows]
    (pytester.path / "holdout.csv").write_text("\n".join([",".join(header), *lines]) + "\n")
    linear_model(pytester.path / "champion.onnx", weights)
    linear_model(pytester.path / "candidate.onnx", weights * 1.001)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    return pytester


def test_file_is_compared_with_the_champion_by_the_command_of_the_page(release):
    shown = next(block for block in blocks(PAGE, "") if block.startswith("pytest candidate.onnx"))
    program, *arguments = shlex.split(shown)
    result = release.runpytest_inprocess(*arguments, "-k", "accuracy or parity or opens")
    assert program == "pytest"
    result.assert_outcomes(passed=4, deselected=len(CHECKS) - 4)
    result.stdout.fnmatch_lines(["2 gates: 2 PASS, 0 FAIL, 0 INCONCLUSIVE * 2 measured"])


def test_table_of_the_page_lists_every_check():
    shown = next(block for block in blocks(PAGE, "") if block.startswith("$ pytest candidate.onnx"))
    assert re.findall(r"candidate\.onnx::(\w+)", shown) == [check.name for check in CHECKS if not check.needs]


def test_contract_of_the_page_passes(release):
    (text,) = blocks(PAGE, "toml")
    (release.path / "release.modelgate.toml").write_text(text)
    arguments = next(block for block in blocks(PAGE, "") if block.startswith("$ pytest release")).split()[2:]
    release.runpytest_inprocess(*arguments).assert_outcomes(passed=7)


def test_first_contract_is_written_by_the_command_of_the_page(release, monkeypatch, capsys):
    slow = ("memory", "latency", "slowdown")
    monkeypatch.setattr(scaffold, "checks_for", lambda _: [check for check in CHECKS if check.name not in slow])
    shown = next(block for block in blocks(PAGE, "") if block.startswith("python -m pytest_modelserve init"))
    assert command.main(shlex.split(shown)[3:]) == 0
    assert "release.modelgate.toml: 5 active gates, 4 that wait for a budget" in capsys.readouterr().out
