"""The command that replays a recording against a model file."""

import numpy as np
import pytest
from onnx import numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.parity.replay import main

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def model(build, save):
    """up = x + x, and down = -x"""
    nodes = [("Add", ["x", "x"], "up", {}), ("Neg", ["x"], "down", {})]
    return str(save(build(nodes, outputs=("up", "down")), "model"))


@pytest.fixture
def recording(tmp_path):
    """Two requests; in the second one `down` is off by 0.5."""
    reference = ms.serve(lambda x: {"up": x + x, "down": -x + np.float32(0.5) * (x[0, 0] > 0)}, name="reference")
    ms.record_answers(reference, [X, X + 1], tmp_path / "answers.npz")
    return str(tmp_path / "answers.npz")


def test_outputs_that_agree_exit_with_zero(model, recording, capsys):
    assert main([model, recording, "--rtol", "0", "--atol", "0.6"]) == 0
    assert capsys.readouterr().out == "model agrees with reference / recorded: 2 requests\n"


def test_each_difference_is_printed_with_its_request(model, recording, capsys):
    assert main([model, recording, "--rtol", "0", "--atol", "0.1"]) == 1
    assert capsys.readouterr().out == (
        "request 1: output 'down': 6 of 6 elements are beyond rtol 0, atol 0.1; the worst is 5 × its tolerance at "
        "[0, 0] (candidate -1.0, reference -0.5)\n"
        "model differs from reference / recorded: 2 requests\n"
    )


def test_tolerance_can_be_given_for_each_output(model, recording):
    command = [model, recording, "--rtol", "0"]
    assert main([*command, "--atol", "up=0", "--atol", "down=0.6"]) == 0
    assert main([*command, "--atol", "up=0.6", "--atol", "down=0"]) == 1


def test_nan_is_a_difference_if_asked_for(model, tmp_path):
    nan = np.full((1, 3), np.nan, np.float32)
    ms.record_answers(ms.serve(lambda x: {"up": x, "down": x}), nan, tmp_path / "nan.npz")
    command = [model, str(tmp_path / "nan.npz"), "--rtol", "0", "--atol", "0"]
    assert (main(command), main([*command, "--no-equal-nan"])) == (0, 1)


def test_folder_of_onnx_test_data_is_replayed_by_the_models_names(model, tmp_path):
    folder = tmp_path / "data" / "test_data_set_0"
    folder.mkdir(parents=True)
    for name, array in (("input_0", X), ("output_0", X + X), ("output_1", -X)):
        (folder / f"{name}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    assert main([model, str(folder.parent), "--rtol", "0", "--atol", "0"]) == 0


@pytest.mark.parametrize(
    ("tolerances", "error"),
    [
        (["--rtol", "few", "--atol", "0"], "--rtol must be a number or OUTPUT=NUMBER, got 'few'"),
        (["--rtol=-1", "--atol", "0"], "rtol"),
        (["--rtol", "0", "--atol", "0", "--atol", "up=1"], "--atol must be one number for all outputs or"),
    ],
    ids=["word", "negative", "both"],
)
def test_invalid_tolerance_exits_with_two(tolerances, error, model, recording, capsys):
    assert main([model, recording, *tolerances]) == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")


def test_missing_file_and_missing_option_exit_with_two(model, tmp_path, capsys):
    missing = tmp_path / "gone.npz"
    assert main([model, str(missing), "--rtol", "0", "--atol", "0"]) == 2
    assert capsys.readouterr().err == f"error: cannot read the recording {missing}: there is no such file or folder\n"
    with pytest.raises(SystemExit, match="2"):
        main([model, str(missing), "--rtol", "0"])
    assert "the following arguments are required: --rtol and --atol, or --tolerances" in capsys.readouterr().err
