"""The way from an assertion to its arithmetic, counted in modules."""

import sys

import numpy as np

import pytest_modelserve as ms

PACKAGE = "pytest_modelserve."
NOT_COUNTED = ("serving", "evidence")


class StatisticsReachedError(Exception):
    """The first interval is about to be computed."""


def entered_modules(call):
    """Module and calling module of each call into another module of the package, until statistics compute a bound.

    `stats.sampling_design` only holds arguments; creating a value (`__init__`) stores fields and enters nothing.
    """
    entered = []

    def profile(frame, event, _argument):
        if event != "call" or frame.f_code.co_name in ("<module>", "__init__", "__post_init__", "__getattr__"):
            return
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(PACKAGE) or module.split(".")[1] in NOT_COUNTED:
            return
        if module.startswith(f"{PACKAGE}stats.") and not module.endswith(".sampling"):
            sys.setprofile(None)
            raise StatisticsReachedError
        caller = frame.f_back
        while caller is not None and (caller.f_globals.get("__name__", "").split(".")[0] != "pytest_modelserve"):
            caller = caller.f_back
        source = "" if caller is None else caller.f_globals["__name__"]
        if source != module and not module.startswith(f"{PACKAGE}stats."):
            entered.append((module, source))

    try:
        sys.setprofile(profile)
        call()
    except StatisticsReachedError:
        return entered
    finally:
        sys.setprofile(None)
    raise AssertionError("no statistics were computed")


def test_eight_modules_lie_between_an_accuracy_gate_and_its_interval_each_entered_from_one():
    labels = np.arange(200) % 2
    model = ms.serve(lambda x: np.eye(2)[labels])
    rows = np.zeros((200, 1))
    ms.assert_accuracy_parity(model, model, rows, labels, max_drop=0.1)  # everything is imported
    entered = entered_modules(
        lambda: ms.assert_accuracy_parity(model, model, rows, labels, max_drop=0.1, slices={"half": labels})
    )
    modules = list(dict.fromkeys(module for module, _ in entered))
    assert len(modules) <= 8, modules
    assert len(set(entered)) == len(modules), sorted(set(entered))
