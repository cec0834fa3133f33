"""Child processes and the standard error of native code."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_modelserve import _processes
from pytest_modelserve._processes import ChildProcess, Crash, call_in_child, format_log, native_stderr_held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

JOBS = """
import os, signal, sys, time, warnings

def run(payload):
    code = payload.decode()
    exec(code, globals())
    return str(os.getpid()).encode()
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "planted_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return "planted_jobs:run"


@pytest.fixture
def child(jobs):
    with ChildProcess(jobs) as child:
        yield child


def is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_process_takes_call_after_call_in_silence_and_ends_with_its_handle(child, monkeypatch, capfd):
    noisy = "print('printed'); os.write(1, b'written'); warnings.warn('warned'); sys.stderr.write('failed')"
    first, second = (child.call(noisy.encode(), timeout_s=60) for _ in range(2))
    assert first == second == str(child.pid).encode()
    assert child.log_tail() == "printed\nwrittenfailedprinted\nwrittenfailed"
    pid = child.pid
    child.close()
    assert not is_running(pid)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("preload", [False, True], ids=["new interpreter", "fork server"])
def test_a_crash_says_how_the_process_ended_and_shows_the_place(jobs, preload):
    crash = call_in_child(jobs, b"os.kill(os.getpid(), signal.SIGSEGV)", timeout_s=60, preload=preload)
    assert isinstance(crash, Crash)
    assert (crash.signal, str(crash)) == (signal.SIGSEGV, "killed by SIGSEGV")
    log = format_log(crash.log_tail).splitlines()
    assert log[1:3] == ["Its log:", "  Fatal Python error: Segmentation fault"]
    assert any("in run" in line for line in log[3:7])


def test_an_exception_is_a_crash_with_the_end_of_the_log(child):
    crash = child.call(b"for line in range(100): print('line', line)\nraise KeyError('c')", timeout_s=60)
    assert str(crash) == "exited with status 1"
    log = format_log(crash.log_tail)
    assert log.startswith("\nThe end of its log:\n")
    assert "line 99" in log
    assert "line 50" not in log
    assert log.endswith("KeyError: 'c'")


def test_an_exit_without_a_word_is_described(child):
    crash = child.call(b"os._exit(3)", timeout_s=60)
    assert (crash.exit_code, str(crash), format_log(crash.log_tail)) == (
        3,
        "exited with status 3",
        "\nIt printed nothing.",
    )


def test_a_call_beyond_its_time_limit_ends_the_process(child):
    pid = child.pid
    assert isinstance(child.call(b"", timeout_s=60), bytes)
    began = time.monotonic()
    crash = child.call(b"time.sleep(600)", timeout_s=0.1)
    assert (crash.timed_out, str(crash)) == (True, "exceeded its time limit")
    assert time.monotonic() - began < 300
    assert not is_running(pid)


def test_ctrl_c_in_the_parent_ends_the_child(jobs, monkeypatch):
    def interrupt(self, timeout_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(_processes.ChildProcess, "_ticks", interrupt)
    child = ChildProcess(jobs)
    pid = child.pid
    with pytest.raises(KeyboardInterrupt), child:
        child.call(b"time.sleep(600)", timeout_s=60)
    assert not is_running(pid)


def test_a_process_that_ignores_the_end_of_its_children_gets_the_result(jobs):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert isinstance(call_in_child(jobs, b"", timeout_s=60), bytes)
    finally:
        signal.signal(signal.SIGCHLD, before)


KILLED = """
import os, signal
from pytest_modelserve._processes import ChildProcess
children = [ChildProcess("planted_jobs:run", preload=preload) for preload in (False, True)]
print(*(child.call(b"", timeout_s=60).decode() for child in children), flush=True)
for child in children:
    child._connection.send_bytes(b"time.sleep(600)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_children_in_a_call_end_when_their_parent_is_killed_and_do_not_run_its_script_again(jobs, tmp_path):
    (tmp_path / "script.py").write_text(KILLED)
    with open(tmp_path / "out.txt", "w+") as out:
        done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, stdout=out, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL
        out.seek(0)
        (pids,) = (line.split() for line in out)
    deadline = time.monotonic() + 60
    while any(is_running(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, "a child lives on"
        time.sleep(0.01)
    assert len(pids) == 2
    assert os.getpid() not in map(int, pids)


def test_what_is_written_below_python_goes_to_the_log(capfd, caplog):
    with caplog.at_level("DEBUG"), native_stderr_held():
        os.write(2, b"from C++\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
    assert caplog.messages == ["from C++"]


def test_silence_is_not_logged(caplog):
    with caplog.at_level("DEBUG"), native_stderr_held():
        pass
    assert not caplog.messages


def test_standard_error_is_back_after_an_exception(capfd):
    with pytest.raises(ValueError, match="inside"), native_stderr_held():
        raise ValueError("inside")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_a_process_that_is_never_closed_leaves_no_log(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    forgotten = ChildProcess("time:sleep")
    assert [*tmp_path.iterdir()]
    del forgotten
    gc.collect()
    assert not [*tmp_path.iterdir()]


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with native_stderr_held():
            pass
    assert len(os.listdir("/dev/fd")) == before


def test_process_without_standard_error_works():
    code = (
        "import os; os.close(2)\n"
        "from pytest_modelserve._processes import native_stderr_held\n"
        "with native_stderr_held(): print('inside')"
    )
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert ran.stdout == "inside\n"
