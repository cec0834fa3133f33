from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from pytest_modelserve import _processes as child, _processes as forking
from pytest_modelserve._processes import CAUSE_FILE, LOG_FILE, Cause, run_in_child
from pytest_modelserve.errors import ControlFlowError, ExportError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def run(work, folder, *, limit=20.0):
    started = []

    def start():
        started.append(forking.fork(work, folder / LOG_FILE))
        return started[0]

    try:
        run_in_child(start, folder=folder, time_limit_s=limit, what="the job")
    finally:
        with pytest.raises(ProcessLookupError):  # it never outlives the call
            os.kill(started[0].pid, 0)


def status_of(running):
    deadline = time.monotonic() + 20
    while running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    return running.wait()


def test_results_of_the_child_are_there_when_the_call_returns(tmp_path):
    run(lambda: (tmp_path / "result").write_text("done"), tmp_path)
    assert (tmp_path / "result").read_text() == "done"


def test_child_prints_warns_and_logs_into_its_log_alone(tmp_path, capfd, recwarn):
    def noisy():
        print("printed")
        os.write(1, b"written\n")
        warnings.warn("warned", UserWarning, stacklevel=1)
        logging.getLogger("torch.onnx").warning("logged")
        logging.getLogger("some.library").error("failed a bit")

    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger("torch.onnx").addHandler(handler)
    try:
        run(noisy, tmp_path)
    finally:
        logging.getLogger("torch.onnx").removeHandler(handler)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert (tmp_path / LOG_FILE).read_text() == "printed\nwritten\nlogged\nfailed a bit\n"


def test_failure_is_told_with_the_end_of_the_log(tmp_path):
    def fail():
        for line in range(100):
            print("line", line)
        Cause("ExportError", "KeyError: 'c'").leave_in(tmp_path)
        raise KeyError("c")

    with pytest.raises(ExportError) as caught:
        run(fail, tmp_path)
    told = str(caught.value).splitlines()
    assert told[:2] == ["the job failed: KeyError: 'c'", "The end of its log:"]
    assert "  line 99" in told
    assert "  line 50" not in told


def test_cause_decides_about_the_class_and_keeps_the_detail(tmp_path):
    def fail():
        Cause("ControlFlowError", "it goes by the data at model.py:3", "GuardError: u0").leave_in(tmp_path)
        os._exit(1)

    with pytest.raises(ControlFlowError) as caught:
        run(fail, tmp_path)
    assert str(caught.value) == (
        "the job failed: it goes by the data at model.py:3\nGuardError: u0\nIt printed nothing."
    )


def test_half_a_cause_of_a_child_that_was_ended_is_none(tmp_path):
    def fail():
        (tmp_path / CAUSE_FILE).write_text('{"error": "Contr')
        os._exit(1)

    with pytest.raises(ExportError) as caught:
        run(fail, tmp_path)
    assert str(caught.value) == "the job failed\nIt printed nothing."


def test_failure_without_a_word_is_told(tmp_path):
    with pytest.raises(ExportError) as caught:
        run(lambda: os._exit(3), tmp_path)
    assert str(caught.value) == "the job failed\nIt printed nothing."


def test_child_that_takes_too_long_is_ended(tmp_path):
    began = time.monotonic()
    with pytest.raises(ExportError) as caught:
        run(lambda: time.sleep(60), tmp_path, limit=0.1)
    assert time.monotonic() - began < 10
    assert str(caught.value) == "the job took longer than its time limit of 0.1 s and was ended\nIt printed nothing."


def test_death_by_a_signal_is_told_with_the_place_of_the_crash(tmp_path):
    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(ExportError) as caught:
        run(crash, tmp_path)
    told = str(caught.value).splitlines()
    assert told[:3] == ["the job: its process died of SIGSEGV", "Its log:", "  Fatal Python error: Segmentation fault"]
    assert any("in crash" in line for line in told[:6])


def test_kill_from_outside_is_told(tmp_path):
    with pytest.raises(ExportError, match="its process died of SIGKILL\nIt printed nothing"):
        run(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path)


def test_ctrl_c_ends_the_child(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(child.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(lambda: signal.pause(), tmp_path)


KILLED = """
import os, signal
from pathlib import Path
from pytest_modelserve import _processes as forking

child = forking.fork(signal.pause, Path("log.txt"))
while not Path("log.txt").exists():
    pass
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_child_ends_when_its_parent_is_killed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    status = Path(f"/proc/{int(done.stdout)}/status")
    deadline = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "the child lives on, with the locks that it inherited"
        time.sleep(0.01)


def test_handlers_of_the_parent_do_not_run_in_the_child(tmp_path):
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:
        running = forking.fork(lambda: signal.pause(), tmp_path / LOG_FILE)
        while not (tmp_path / LOG_FILE).exists():
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(running.pid, signal.SIGTERM)
        assert status_of(running) == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not caught


def test_finally_clauses_of_the_parent_do_not_run_in_the_child(tmp_path):
    marks = tmp_path / "marks"
    try:
        run(lambda: None, tmp_path)
    finally:
        with open(marks, "a") as file:
            file.write("x")
    assert marks.read_text() == "x"


def test_process_that_throws_away_the_status_of_its_children_gets_the_result(tmp_path):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(lambda: (tmp_path / "result").write_text("done"), tmp_path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (tmp_path / "result").exists()
