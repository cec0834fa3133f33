"""The smallest failing input: which it is, that it is saved, and that what is told replays it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pytest_modelserve as ms
from pytest_modelserve.evidence import Subject
from pytest_modelserve.parity import failing_inputs as failing_input

X = np.arange(120, dtype=np.float32).reshape(40, 3)


def saved_model(path: Path, operator: str, rows: str | int = "n") -> Path:
    """y = operator(x)"""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="last")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def off_by(errors: dict[int, float]) -> Any:
    """x, with an error in some rows, which it knows by their first value."""

    def answer(x: Any) -> Any:
        y = x.copy()
        for row, error in errors.items():
            y[x[:, 0] == X[row, 0], 1] += error
        return y

    return answer


def judged(candidate: Any, inputs: Any = X, **options: Any) -> ms.Evidence:
    reference = ms.serve(lambda x: x, name="reference")
    return ms.measure_output_parity(ms.serve(candidate), reference, inputs, rtol=0, atol=1e-3, **options)


def only(failures: Path) -> ms.Recording:
    (path,) = failures.glob("*.npz")
    return ms.open_recording(path)


def test_text_carries_a_command_that_replays_the_failure(tmp_path: Path, failures: Path) -> None:
    candidate, reference = saved_model(tmp_path / "it's.onnx", "Relu"), saved_model(tmp_path / "ref.onnx", "Identity")
    x = np.ones((40, 3), np.float32)
    x[(7, 30), 2] = -1
    with (
        ms.serve(candidate) as served,
        ms.serve(reference) as expected,
        pytest.raises(ms.GateFailure) as failure,
    ):
        ms.assert_output_parity(served, expected, x, rtol=0.001, atol=0)
    (path,) = failures.glob("*.npz")
    command = f"python -m pytest_modelserve.parity.replay {shlex.quote(str(candidate))} {path} --rtol 0.001 --atol 0"
    digests = [served.subject.sha256[:12], expected.subject.sha256[:12]]
    assert (
        str(failure.value)
        == f"""\
output parity: outputs differ from the reference's

  error      1000 × tolerance
  method     every element compared, rtol 0.001, atol 0, n = 40 rows
  budget     at most 1.00 × tolerance
  verdict    FAIL: the value lies above the budget

  output 'y': 2 of 120 elements are beyond rtol 0.001, atol 0; the worst is 1e+03 × its tolerance at [7, 2] (candidate 0.0, reference -1.0)
  first diverging node: Relu 'last', given the reference's inputs to it; tensor 'y' at [0, 2] is 0 where the reference has -1; operator is Relu where the reference has Identity
  the smallest failing input, row 7 alone, is saved; replay it by: {command}
  candidate  it's  sha256 {digests[0]}…
  reference  ref  sha256 {digests[1]}…
  next       begin at that place: correct the candidate, or allow for the difference with rtol and atol"""
    )
    assert failure.value.evidence.details["failing_input"] == {
        "path": str(path),
        "rows": [7, 8],
        "command": command,
    }
    _, *arguments = shlex.split(command)
    replayed = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert replayed.returncode == 1
    assert replayed.stdout == (
        "output 'y': 1 of 3 elements are beyond rtol 0.001, atol 0; the worst is 1e+03 × its tolerance at [0, 2] "
        "(candidate 0.0, reference -1.0)\n"
        "it's differs from ref / recorded: 1 request\n"
    )


def test_nothing_is_written_where_outputs_agree(failures: Path) -> None:
    assert judged(lambda x: x).verdict is ms.Verdict.PASS
    assert not failures.exists()


@pytest.mark.parametrize("size", [40, 10, 1])
def test_the_row_with_the_largest_error_of_all_batches_is_saved_with_the_references_answer(
    size: int, failures: Path
) -> None:
    batches = (X[start : start + size] for start in range(0, 40, size))
    evidence = judged(off_by({3: 0.5, 25: 2.0, 31: -1.0}), batches)
    assert "row 25 alone, is saved" in evidence.findings[1]
    assert evidence.details["failing_input"]["rows"] == [25, 26]
    recording = only(failures)
    (exchange,) = recording.exchanges
    np.testing.assert_array_equal(exchange.inputs, X[25:26])
    np.testing.assert_array_equal(exchange.outputs["output"], X[25:26])
    assert recording.subject.name == "reference"
    assert (failures / ".gitignore").read_text() == "*\n"


def test_nan_is_worse_than_any_error(failures: Path) -> None:
    evidence = judged(off_by({3: 1e6, 9: np.nan}))
    assert any("row 9 alone, is saved" in finding for finding in evidence.findings)


def test_a_difference_in_kind_is_worse_than_any_error(failures: Path) -> None:
    def answer(x: Any) -> Any:
        return x.astype(np.float64) if x[0, 0] else x + 1000

    evidence = judged(answer, [X[:20], X[20:]])
    assert "row 20 alone, is saved" in evidence.findings[-1]


def test_the_same_failure_has_the_same_file(failures: Path) -> None:
    for _ in range(2):
        judged(off_by({3: 0.5}))
    judged(off_by({4: 0.5}))
    assert len(list(failures.glob("*.npz"))) == 2


def test_rows_that_fail_only_together_are_saved_together(failures: Path) -> None:
    def answer(x: Any) -> Any:
        both = {X[17, 0], X[19, 0]} <= set(x[:, 0])
        return x + np.float32(both)

    evidence = judged(answer)
    assert "the smallest failing input, rows 17 to 19 together, is saved" in evidence.findings[1]
    np.testing.assert_array_equal(only(failures).exchanges[0].inputs, X[17:20])


def test_a_model_of_one_batch_size_has_its_whole_batch_saved(tmp_path: Path, failures: Path) -> None:
    x = -X[:8]
    candidate = ms.serve(saved_model(tmp_path / "relu.onnx", "Relu", 4))
    reference = ms.serve(saved_model(tmp_path / "identity.onnx", "Identity", 4))
    with candidate, reference:
        evidence = ms.measure_output_parity(candidate, reference, [x[:4], x[4:]], rtol=0, atol=1)
    assert "the smallest failing input, rows 4 to 7 together, is saved" in evidence.findings[-1]


def test_inputs_without_rows_are_saved_as_they_are(failures: Path) -> None:
    calls = [{"x": X, "by": np.array(1.0)}, {"x": X, "by": np.array(2.0)}]
    candidate, reference = ms.serve(lambda given: given["x"] * int(given["by"])), ms.serve(lambda given: given["x"])
    evidence = ms.measure_output_parity(candidate, reference, calls, rtol=0, atol=0)
    assert "the smallest failing input, batch 1, is saved" in evidence.findings[1]
    assert only(failures).exchanges[0].inputs["by"] == 2.0


def test_what_does_not_fail_again_is_said_to(failures: Path) -> None:
    errors = iter([1.0])
    evidence = judged(lambda x: x + np.float32(next(errors, 0.0)))
    assert "batch 0, which did not fail a second time, is saved" in evidence.findings[1]
    np.testing.assert_array_equal(only(failures).exchanges[0].inputs, X)


def test_another_number_of_rows_than_was_recorded_fails_as_a_whole(failures: Path) -> None:
    recording = ms.Recording(Subject("model"), [ms.Exchange(X, {"y": X})])
    evidence = ms.measure_output_parity(ms.serve(lambda x: x[1:]), recording, recording.inputs, rtol=0, atol=0)
    assert "the smallest failing input, rows 0 to 39 together, is saved" in evidence.findings[1]


def test_what_a_recording_answered_stays_the_answer_of_its_model(tmp_path: Path, failures: Path) -> None:
    recording = ms.record_answers(ms.serve(lambda x: x, name="model", variant="v1"), X, tmp_path / "answers.npz")
    for _ in range(2):
        evidence = ms.measure_output_parity(ms.serve(lambda x: -x), recording, recording.inputs, rtol=0, atol=0)
        recording = ms.open_recording(evidence.details["failing_input"]["path"])
    assert str(recording.subject) == "model / v1, recorded"


def test_one_row_of_a_recording_keeps_the_keys_of_its_maps(failures: Path) -> None:
    """Three rows and three keys: nothing but the candidate's answer tells which of both first axes are rows."""
    x, keys, scores = X[:3], np.array([10, 20, 30]), np.eye(3, dtype=np.float32)
    recording = ms.Recording(Subject("scores"), [ms.Exchange(x, {"keys": keys, "scores": scores})])
    wide = ms.Recording(Subject("scores"), [ms.Exchange(X, {"keys": keys, "scores": np.zeros((40, 3), np.float32)})])

    def answer(given: Any) -> Any:
        off = np.zeros((len(given), 3), np.float32)
        off[given[:, 0] == X[1, 0], 0] = 1
        same = scores[: len(given)] if len(given) == 3 else 0
        return {"keys": keys, "scores": same + off}

    evidence = ms.measure_output_parity(ms.serve(answer), recording, recording.inputs, rtol=0, atol=0)
    assert "rows 0 to 2 together, is saved" in evidence.findings[1]
    evidence = ms.measure_output_parity(ms.serve(answer), wide, wide.inputs, rtol=0, atol=0)
    assert "row 1 alone, is saved" in evidence.findings[1]
    one = ms.open_recording(evidence.details["failing_input"]["path"]).exchanges[0]
    np.testing.assert_array_equal(one.inputs, X[1:2])
    np.testing.assert_array_equal(one.outputs["keys"], keys)
    assert one.outputs["scores"].shape == (1, 3)


def test_calibrated_tolerances_go_into_the_command(tmp_path: Path, failures: Path) -> None:
    candidate, reference = saved_model(tmp_path / "neg.onnx", "Neg"), saved_model(tmp_path / "abs.onnx", "Identity")
    with ms.serve(candidate) as served, ms.serve(reference) as expected:
        evidence = ms.measure_output_parity(served, expected, X)
    words = shlex.split(evidence.details["failing_input"]["command"])
    rtol, atol = words[words.index("--rtol") + 1], words[words.index("--atol") + 1]
    assert rtol.startswith("y=")
    assert float(atol.removeprefix("y=")) > 0


def test_a_folder_that_cannot_be_written_hides_no_failure(failures: Path) -> None:
    failures.write_text("a file")
    evidence = judged(off_by({3: 0.5}))
    assert evidence.verdict is ms.Verdict.FAIL
    assert len(evidence.findings) == 2
    assert evidence.findings[1].startswith("could not save the failing input: [Errno")
    assert "failing_input" not in evidence.details


def test_what_would_fill_the_disk_is_not_saved(failures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_input, "_MOST_BYTES", 23)  # a row in and a row out are 24
    evidence = judged(off_by({3: 0.5}))
    assert evidence.findings[1] == "could not save the failing input: nothing smaller than 0 MiB fails"
    assert not failures.exists()


def test_a_search_out_of_time_saves_what_fails_so_far(failures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_input, "_TIME_LIMIT_S", -1.0)
    evidence = judged(lambda x: x + (len(x) > 1))
    assert "rows 0 to 39 together, is saved" in evidence.findings[-1]


def test_without_the_variable_the_folder_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELSERVE_FAILURES")
    monkeypatch.chdir(tmp_path)
    evidence = judged(off_by({3: 0.5}))
    assert Path(evidence.details["failing_input"]["path"]).parent == tmp_path / ".modelserve" / "failures"
