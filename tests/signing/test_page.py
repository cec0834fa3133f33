"""The commands of docs/signing.md, run in order in the folder of a project."""

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pytest_modelserve.__main__ import main
from tests.onnx_models import make_model
from tests.signing.conftest import run_in

pytest.importorskip("model_signing")
onnx = pytest.importorskip("onnx")

PAGE = (Path(__file__).parents[2] / "docs" / "signing.md").read_text(encoding="utf-8")


def without_figures(text):
    """Return the lines without numbers, digests and the versions of packages, which differ from machine to machine."""
    lines = (line.partition(", pytest-modelserve")[0] for line in text.splitlines())
    return [re.sub(r"[0-9a-f]{8,}…?|[-:\d.]+", "0", line) for line in lines]


@pytest.fixture
def project(tmp_path):
    """A folder with models/champion.onnx, its contract and rows."""
    (tmp_path / "models").mkdir()
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(nodes, {"x": ("float32", ["n", 2])}, {"y": ("float32", ["n", 2])}, {"w": np.eye(2, dtype="f4")})
    onnx.save(model, tmp_path / "models" / "champion.onnx")
    rows = np.eye(2, dtype=np.float32)[np.arange(200) % 2]
    np.savez(tmp_path / "rows.npz", x=rows, label=rows.argmax(1))
    (tmp_path / "champion.modelgate.toml").write_text(
        'subject = "models/champion.onnx"\n'
        "[gates.size]\nmax_bytes = 1000\n"
        '[gates.accuracy]\ndata = "rows.npz"\nlabels = "label"\nmin_value = 0.7\n'
    )
    (tmp_path / "conftest.py").touch()
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    return tmp_path


def test_every_command_of_the_page_runs_and_prints_what_it_shows(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL):
        if language == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True) or [""]
            if (program, *arguments[:2]) == ("python", "-m", "pytest_modelserve"):  # in this process, to save its start
                assert main(arguments[2:]) == 0, line
            elif program == "pytest":
                assert run_in(project, *arguments) == 0, line
            elif program:
                subprocess.run([program, *arguments], check=True, capture_output=True)
    printed = capsys.readouterr().out
    (shown,) = (part for part in PAGE.split("```")[1::2] if part.startswith("\n"))
    lines = without_figures(printed)
    for line in without_figures(shown.strip()):
        assert line in lines
    for name in ("modelserve.manifest.json", "champion.onnx.sig", "champion.cdx.json"):
        assert (project / "models" / name).exists()
