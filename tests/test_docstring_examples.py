"""The examples in the docstrings of public names run and print what they show."""

import doctest
import inspect
import re
import sys

import pytest

import pytest_modelserve as ms

NAMES = [name for name in ms.__all__ if not name.startswith("assert_")]


def documented(name):
    value = getattr(ms, name)
    members = inspect.getmembers(value) if inspect.ismodule(value) else [(name, value)]
    return [
        (each, found)
        for each, found in members
        if not each.startswith("_") and str(getattr(found, "__module__", "")).startswith("pytest_modelserve")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_and_print_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for each, found in documented(name):
        text = inspect.getdoc(found) or ""
        if re.search(r"^\s*>>> ", text, re.MULTILINE):
            runner.run(parser.get_doctest(text, dict(vars(sys.modules[found.__module__])), each, each, 0))
    assert runner.summarize(verbose=False).failed == 0
