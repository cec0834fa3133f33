"""The command that replays a recording against a model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.parity.replay import main

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """up = x + x, and down = -x"""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["up"]), helper.make_node("Neg", ["x"], ["down"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("up", "down")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two requests; in the second one `down` is off by 0.5."""
    reference = ms.serve(lambda x: {"up": x + x, "down": -x + np.float32(0.5) * (x[0, 0] > 0)}, name="reference")
    ms.record_answers(reference, [X, X + 1], tmp_path / "answers.npz")
    return tmp_path / "answers.npz"


def test_answers_that_agree_end_well(model: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), str(recording), "--rtol", "0", "--atol", "0.6"]) == 0
    assert capsys.readouterr().out == "model agrees with reference / recorded: 2 requests\n"


def test_each_difference_is_told_with_its_request(
    model: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), str(recording), "--rtol", "0", "--atol", "0.1"]) == 1
    assert capsys.readouterr().out == (
        "request 1: output 'down': 6 of 6 elements are beyond rtol 0, atol 0.1; the worst is 5 × its tolerance at "
        "[0, 0] (candidate -1.0, reference -0.5)\n"
        "model differs from reference / recorded: 2 requests\n"
    )


def test_a_tolerance_can_be_one_outputs(model: Path, recording: Path) -> None:
    command = [str(model), str(recording), "--rtol", "0"]
    assert main([*command, "--atol", "up=0", "--atol", "down=0.6"]) == 0
    assert main([*command, "--atol", "up=0.6", "--atol", "down=0"]) == 1


def test_a_folder_of_onnx_test_data_is_replayed_by_the_models_names(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "test_data_set_0"
    folder.mkdir(parents=True)
    for name, array in (("input_0", X), ("output_0", X + X), ("output_1", -X)):
        (folder / f"{name}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    assert main([str(model), str(folder.parent), "--rtol", "0", "--atol", "0"]) == 0


@pytest.mark.parametrize(
    ("tolerances", "told"),
    [
        (["--rtol", "few", "--atol", "0"], "error: --rtol is a number, or OUTPUT=NUMBER, not 'few'\n"),
        (["--rtol=-1", "--atol", "0"], "error: rtol is a finite number of at least 0, not -1.0\n"),
        (
            ["--rtol", "0", "--atol", "0", "--atol", "up=1"],
            "error: --atol is one number for all outputs, or OUTPUT=NUMBER for each: not both\n",
        ),
    ],
    ids=["word", "negative", "both"],
)
def test_what_is_no_tolerance_is_told(
    tolerances: list[str], told: str, model: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), str(recording), *tolerances]) == 2
    assert capsys.readouterr().err == told


def test_what_is_missing_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "gone.npz"
    assert main([str(model), str(missing), "--rtol", "0", "--atol", "0"]) == 2
    assert capsys.readouterr().err == f"error: cannot read the recording {missing}: there is no such file or folder\n"
    with pytest.raises(SystemExit, match="2"):
        main([str(model), str(missing), "--rtol", "0"])
    assert "the following arguments are required: --atol" in capsys.readouterr().err
