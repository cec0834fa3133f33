import importlib.metadata
import os
import subprocess
import sys

import onnxruntime
import pytest

from pytest_modelserve import __main__ as command
from pytest_modelserve.artifacts import default_store, digest_of


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSERVE_CACHE", str(tmp_path / "cache"))


def run(capsys, *arguments):
    code = command.main(arguments)
    return code, capsys.readouterr()


def test_without_a_command_the_environment_is_printed(capsys):
    code, printed = run(capsys)
    assert code == 0
    assert printed.out.startswith("pytest-modelserve 0.1.0, Python 3.")
    assert f"onnxruntime    {onnxruntime.__version__}\n" in printed.out
    assert "CPUExecutionProvider" in printed.out
    assert "0 entries, 0 bytes of 10.0 GB" in printed.out
    assert "problem" not in printed.out


def test_a_missing_extra_and_two_packages_of_onnxruntime_are_named(capsys, monkeypatch):
    pytest.importorskip("narwhals", reason="without it the extra lacks two packages")
    real = importlib.metadata.version

    def version(name):
        if name == "polars":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    _, printed = run(capsys, "info")
    assert "without polars: pip install 'pytest-modelserve[data]'" in printed.out
    assert "onnxruntime and onnxruntime-gpu overwrite each other's files: uninstall all of them" in printed.out


def test_the_cache_is_listed_and_cleaned(capsys):
    def build(folder):
        (folder / "model.onnx").write_bytes(b"x" * 2500)

    default_store().get_or_build(digest_of("x"), build, what="digits, trained with seed 0")
    assert "    2.5 kB  digits, trained with seed 0\n" in run(capsys, "cache")[1].out
    assert "deleted 1 entries, 2.5 kB, from " in run(capsys, "cache", "clean")[1].out
    assert "0 entries" in run(capsys, "cache", "list")[1].out


def test_an_invalid_setting_is_an_error_of_one_line(capsys, monkeypatch):
    monkeypatch.setenv("MODELSERVE_CACHE_GB", "ten")
    code, printed = run(capsys, "cache")
    assert code == 2
    assert printed.err == "error: MODELSERVE_CACHE_GB must be a positive number of gigabytes; got 'ten'\n"


def test_history_of_a_missing_folder_and_a_wrong_number_are_errors_of_one_line(capsys, tmp_path):
    code, printed = run(capsys, "history", str(tmp_path / "none"))
    assert (code, printed.err) == (2, f"error: {tmp_path / 'none'} cannot be read: No such file or directory\n")
    code, printed = run(capsys, "history", str(tmp_path), "--last=0")
    assert (code, printed.err) == (2, "error: --last must be at least 1, got 0\n")
    code, printed = run(capsys, "history", str(tmp_path), "--error-rate=2")
    assert code == 2
    assert printed.err.startswith("error: error_rate must be above 0")


def test_history_writes_a_page_or_says_why_not(capsys, tmp_path):
    code, printed = run(capsys, "history", str(tmp_path), f"--html={tmp_path / 'page.html'}")
    assert (code, printed.out.splitlines()[-1]) == (0, f"page {tmp_path / 'page.html'}")
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    code, printed = run(capsys, "history", str(tmp_path), f"--html={tmp_path / 'page.html' / 'x.html'}")
    assert code == 2
    assert printed.err.startswith("error: --html: cannot write")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "cache     list the cache" in capsys.readouterr().out


def test_reader_that_closes_the_pipe_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_modelserve"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
