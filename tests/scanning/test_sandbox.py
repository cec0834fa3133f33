"""What a child of the sandbox can do, and how its end is told."""

import signal
import sys

import pytest

from pytest_modelserve.scanning import sandbox
from pytest_modelserve.scanning.sandbox import run_in_sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are those of Linux")


def run(target, path, **request):
    return run_in_sandbox(
        f"tests.scanning.hostile:{target}", {"path": str(path), **request}, readable=[path],
        memory_bytes=1 << 30, cpu_s=0.2, deadline_s=20,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"content")
    return tmp_path / "a.onnx"


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("read its own file", "done"),
        ("read another file", "PermissionError"),
        ("list a folder", "PermissionError"),
        ("write a file", "PermissionError"),
        ("write its own file", "PermissionError"),
        ("open a socket", "PermissionError"),
        ("fork", "PermissionError"),
        ("start a program", "PermissionError"),
        ("signal its parent", "PermissionError"),
        ("take memory", "MemoryError"),
    ],
)
def test_child_can_read_its_file_and_nothing_else(path, what, outcome):
    found = run("tries", path, what=what)
    if found.missing:
        pytest.skip(f"this system has no limit on {', '.join(found.missing)}")
    assert (found.value, found.events) == (outcome, ("trying",))
    assert path.read_bytes() == b"content"


def test_end_of_a_child_is_told_and_the_next_one_works(path):
    assert run("ends", path, how="abort").signal == signal.SIGABRT
    assert run("ends", path, how="spin").timed_out
    assert run("ends", path, how="exit").error == "the process exited with status 3"
    assert run("ends", path, how="raise").error == "MemoryError: no more"
    assert run("ends", path, how="raise").events == ("raise",)


def test_child_that_waits_is_killed_at_the_deadline(path):
    found = run_in_sandbox(
        "tests.scanning.hostile:ends", {"how": "wait"}, readable=[path], memory_bytes=1 << 30, cpu_s=5, deadline_s=0.2
    )
    assert (found.timed_out, found.value) == (True, None)


def test_killed_scanner_process_is_an_error_and_starts_again(path):
    assert run("tries", path, what="read its own file").value == "done"
    warm = sandbox._warm["tests.scanning.hostile:tries"]
    warm._process.kill()
    warm._process.wait()
    assert run("tries", path, what="read its own file").value == "done"


def test_system_without_fork_server_gets_a_new_process_for_each_file(path, monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "other")
    found = run("tries", path, what="read its own file")
    assert (found.value, found.events) == ("done", ("trying",))
    assert run("tries", path, what="read another file").value == "PermissionError" or found.missing
