"""The smallest failing input: which rows it has, that it is saved, and that the printed command replays it."""

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.evidence import Subject
from pytest_modelserve.parity import failing_inputs, replay
from pytest_modelserve.parity.failing_inputs import smallest_failing_rows

X = np.arange(120, dtype=np.float32).reshape(40, 3)


def off_by(errors):
    """x, with an error in some rows, which it knows by their first value."""

    def answer(x):
        y = x.copy()
        for row, error in errors.items():
            y[x[:, 0] == X[row, 0], 1] += error
        return y

    return answer


def measured(candidate, inputs=X, **options):
    reference = ms.serve(lambda x: x, name="reference")
    return ms.measure_output_parity(ms.serve(candidate), reference, inputs, rtol=0, atol=1e-3, **options)


def only(failures):
    (path,) = failures.glob("*.npz")
    return ms.open_recording(path)


def test_failure_text_has_a_command_that_replays_the_failure(operator, failures, capsys, monkeypatch):
    candidate, reference = operator("Relu", "it's"), operator("Identity", "ref")
    x = np.ones((40, 3), np.float32)
    x[(7, 30), 2] = -1
    with ms.serve(candidate) as served, ms.serve(reference) as expected, pytest.raises(ms.GateFailure) as failure:
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
  budget     at most 1.00 × tolerance (rtol 0.001, atol 0)
  verdict    FAIL: the value lies above the budget

  output 'y' channel 2 of axis 1: 2 of 120 elements are beyond rtol 0.001, atol 0; the worst is 1e+03 × its tolerance at [7, 2] (candidate 0.0, reference -1.0)
  first diverging node: Relu 'node_y', given the reference's inputs to it; tensor 'y' at [0, 2] is 0 where the reference has -1; operator is Relu where the reference has Identity
  smallest failing input (row 7) saved; replay it with: {command}
  candidate  it's  sha256 {digests[0]}…
  reference  ref  sha256 {digests[1]}…
  next       begin at that place: correct the candidate, or allow for the difference with rtol and atol"""
    )
    assert failure.value.evidence.details["failing_input"] == {"path": str(path), "rows": [7, 8], "command": command}
    monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(replay.__file__, run_name="__main__")
    assert capsys.readouterr().out == (
        "output 'y' channel 2 of axis 1: 1 of 3 elements are beyond rtol 0.001, atol 0; the worst is 1e+03 × its tolerance at [0, 2] "
        "(candidate 0.0, reference -1.0)\n"
        "it's differs from ref / recorded: 1 request\n"
    )


@pytest.mark.parametrize("size", [40, 10, 1])
def test_worst_row_of_all_batches_is_saved_with_the_references_output(size, failures):
    batches = (X[start : start + size] for start in range(0, 40, size))
    evidence = measured(off_by({3: 0.5, 25: 2.0, 31: -1.0}), batches)
    assert "smallest failing input (row 25) saved" in evidence.findings[1]
    assert evidence.details["failing_input"]["rows"] == [25, 26]
    recording = only(failures)
    (exchange,) = recording.exchanges
    np.testing.assert_array_equal(exchange.inputs, X[25:26])
    np.testing.assert_array_equal(exchange.outputs["output"], X[25:26])
    assert recording.subject.name == "reference"
    assert (failures / ".gitignore").read_text() == "*\n"


def test_nan_and_differences_in_kind_are_worse_than_any_error(failures):
    evidence = measured(off_by({3: 1e6, 9: np.nan}))
    assert any("(row 9) saved" in finding for finding in evidence.findings)
    evidence = measured(lambda x: x.astype(np.float64) if x[0, 0] else x + 1000, [X[:20], X[20:]])
    assert "(row 20) saved" in evidence.findings[-1]


def test_rows_that_fail_only_together_are_saved_together(failures):
    def answer(x):
        return x + np.float32({X[17, 0], X[19, 0]} <= set(x[:, 0]))

    assert "smallest failing input (rows 17 to 19) saved" in measured(answer).findings[1]
    np.testing.assert_array_equal(only(failures).exchanges[0].inputs, X[17:20])


def test_model_of_a_fixed_batch_size_has_its_whole_batch_saved(build, save):
    x = -X[:8]
    candidate, reference = (
        ms.serve(save(build([(op, ["x"], "y", {})], inputs={"x": [4, 3]}), op)) for op in ("Relu", "Identity")
    )
    with candidate, reference:
        evidence = ms.measure_output_parity(candidate, reference, [x[:4], x[4:]], rtol=0, atol=1)
    assert "smallest failing input (rows 4 to 7) saved" in evidence.findings[-1]


def test_inputs_without_rows_are_saved_as_they_are(failures):
    calls = [{"x": X, "by": np.array(1.0)}, {"x": X, "by": np.array(2.0)}]
    candidate, reference = ms.serve(lambda given: given["x"] * int(given["by"])), ms.serve(lambda given: given["x"])
    evidence = ms.measure_output_parity(candidate, reference, calls, rtol=0, atol=0)
    assert "smallest failing input (batch 1) saved" in evidence.findings[1]
    assert only(failures).exchanges[0].inputs["by"] == 2.0


def test_failure_that_does_not_repeat_is_reported_as_such(failures):
    errors = iter([1.0])
    evidence = measured(lambda x: x + np.float32(next(errors, 0.0)))
    assert "(batch 0, which did not fail a second time) saved" in evidence.findings[1]
    np.testing.assert_array_equal(only(failures).exchanges[0].inputs, X)


def test_another_number_of_rows_than_was_recorded_fails_as_a_whole():
    recording = ms.Recording(Subject("model"), [ms.Exchange(X, {"y": X})])
    evidence = ms.measure_output_parity(ms.serve(lambda x: x[1:]), recording, recording.inputs, rtol=0, atol=0)
    assert "smallest failing input (rows 0 to 39) saved" in evidence.findings[1]


def test_outputs_of_a_recording_keep_the_name_of_its_model(tmp_path):
    recording = ms.record_answers(ms.serve(lambda x: x, name="model", variant="v1"), X, tmp_path / "answers.npz")
    for _ in range(2):
        evidence = ms.measure_output_parity(ms.serve(lambda x: -x), recording, recording.inputs, rtol=0, atol=0)
        recording = ms.open_recording(evidence.details["failing_input"]["path"])
    assert str(recording.subject) == "model / v1, recorded"


def test_one_row_of_a_recording_keeps_the_keys_of_its_maps():
    """Three rows and three keys: only the candidate's outputs show which of both first axes are rows."""
    x, keys, scores = X[:3], np.array([10, 20, 30]), np.eye(3, dtype=np.float32)
    recording = ms.Recording(Subject("scores"), [ms.Exchange(x, {"keys": keys, "scores": scores})])
    wide = ms.Recording(Subject("scores"), [ms.Exchange(X, {"keys": keys, "scores": np.zeros((40, 3), np.float32)})])

    def answer(given):
        off = np.zeros((len(given), 3), np.float32)
        off[given[:, 0] == X[1, 0], 0] = 1
        return {"keys": keys, "scores": (scores if len(given) == 3 else 0) + off}

    evidence = ms.measure_output_parity(ms.serve(answer), recording, recording.inputs, rtol=0, atol=0)
    assert "(rows 0 to 2) saved" in evidence.findings[1]
    evidence = ms.measure_output_parity(ms.serve(answer), wide, wide.inputs, rtol=0, atol=0)
    assert "(row 1) saved" in evidence.findings[1]
    one = ms.open_recording(evidence.details["failing_input"]["path"]).exchanges[0]
    np.testing.assert_array_equal(one.inputs, X[1:2])
    np.testing.assert_array_equal(one.outputs["keys"], keys)
    assert one.outputs["scores"].shape == (1, 3)


def test_command_has_the_calibrated_tolerances_and_counts_nan_alike(operator):
    with ms.serve(operator("Neg")) as served, ms.serve(operator("Identity")) as expected:
        evidence = ms.measure_output_parity(served, expected, X, equal_nan=False)
    words = shlex.split(evidence.details["failing_input"]["command"])
    rtol, atol = failing_inputs.load_tolerances(Path(words[words.index("--tolerances") + 1]))
    assert rtol.keys() == atol.keys() == {"y"}
    assert (atol["y"] > 0).all()
    assert words[-1] == "--no-equal-nan"
    assert replay.main(words[3:]) == replay.DIFFERS


def test_folder_that_cannot_be_written_hides_no_failure(failures):
    failures.write_text("a file")
    evidence = measured(off_by({3: 0.5}))
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[1].startswith("could not save the failing input: [Errno")
    assert "failing_input" not in evidence.details


def test_input_that_would_fill_the_disk_is_not_saved(failures, monkeypatch):
    monkeypatch.setattr(failing_inputs, "_MAX_BYTES", 23)  # a row in and a row out are 24
    evidence = measured(off_by({3: 0.5}))
    assert evidence.findings[1] == "could not save the failing input: nothing smaller than 0 MiB fails"
    assert not failures.exists()


def test_search_out_of_time_saves_what_fails_so_far(monkeypatch):
    monkeypatch.setattr(failing_inputs, "_TIME_LIMIT_S", -1.0)
    assert "(rows 0 to 39) saved" in measured(lambda x: x + (len(x) > 1)).findings[-1]


def test_default_folder_is_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELSERVE_FAILURES")
    monkeypatch.chdir(tmp_path)
    evidence = measured(off_by({3: 0.5}))
    assert Path(evidence.details["failing_input"]["path"]).parent == tmp_path / ".modelserve" / "failures"


def needing(first, last, attempts):
    """Fails if all rows from `first` to `last` are there."""

    def fails(start, stop):
        assert start < stop
        attempts.append((start, stop))
        return start <= first and last < stop

    return fails


def test_row_that_fails_alone_is_the_only_attempt():
    attempts = []
    assert smallest_failing_rows(1000, 7, needing(7, 7, attempts)) == (7, 8)
    assert attempts == [(7, 8)]


@pytest.mark.parametrize("rows", [2, 3, 7, 64, 1000])
def test_no_end_of_the_smallest_range_can_be_removed(rows):
    for first, last in {(0, 1), (rows - 2, rows - 1), (rows // 2 - 1, rows // 2), (0, rows - 1)}:
        assert smallest_failing_rows(rows, 0, needing(first, last, [])) == (first, last + 1)


def test_attempts_grow_with_the_logarithm_of_the_rows():
    attempts = []
    assert smallest_failing_rows(2**20, 0, needing(699_050, 699_051, attempts)) == (699_050, 699_052)
    assert len(attempts) <= 4 * 20


@pytest.mark.parametrize("rows", [8, 1])
def test_whole_that_does_not_fail_has_no_smallest_range(rows):
    assert smallest_failing_rows(rows, 0, lambda start, stop: False) is None
