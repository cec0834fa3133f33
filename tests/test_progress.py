"""Bars appear on a terminal, for work that takes long, and nowhere else."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from pytest_modelserve.performance.timing import host_lock
from pytest_modelserve.progress import progress, progress_to

pytest.importorskip("tqdm")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def slow(n=8):
    for item in range(n):
        time.sleep(0.1)
        yield item


def test_long_work_is_told_on_a_terminal_and_cleared():
    terminal = Terminal()
    with progress_to(terminal):
        assert list(progress(slow(), "training", total=8)) == list(range(8))
    assert "training" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_wait_for_the_host_lock_is_told_on_a_terminal(tmp_path):
    terminal = Terminal()
    with progress_to(terminal), host_lock(tmp_path), host_lock(tmp_path, timeout_s=1.0) as held:
        assert not held
    assert "waiting for a timed gate of another process" in terminal.getvalue()


def test_short_work_and_other_streams_stay_silent():
    terminal, file = Terminal(), io.StringIO()
    with progress_to(terminal):
        list(progress(range(3), "training"))
    with progress_to(file):
        list(progress(slow(), "training"))
    assert terminal.getvalue() == file.getvalue() == ""


@pytest.mark.parametrize(("arguments", "is_shown"), [(("-q",), True), (("-qq",), False), (("-p", "no:capture"), True)])
def test_bar_reaches_the_terminal_through_pytests_capture(tmp_path, arguments, is_shown):
    (tmp_path / "test_slow.py").write_text(
        "import time\n"
        "from pytest_modelserve.progress import progress\n"
        "def test_it(modelserve):\n"
        "    for _ in progress(range(8), 'training', total=8):\n"
        "        time.sleep(0.1)\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=False)
    os.close(theirs)
    os.set_blocking(ours, False)
    try:
        shown = os.read(ours, 65536).decode()
    except (BlockingIOError, OSError):  # nothing was written, told differently by Linux and macOS
        shown = ""
    os.close(ours)
    assert done.returncode == 0
    assert ("training" in shown) is is_shown
    assert b"training" not in done.stdout
