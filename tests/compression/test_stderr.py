from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_modelserve._processes import native_stderr_held


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
