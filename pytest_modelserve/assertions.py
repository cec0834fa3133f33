"""Assertions: each `assert_X` is its `measure_X`, recorded, and raised unless the verdict is PASS.

Both take a `label`, which is added here.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec

from pytest_modelserve.errors import ModelServeError, ModelServeWarning, UsageError, unknown_choice, without_internals
from pytest_modelserve.evidence import Evidence, GateFailure, GateInconclusive, Verdict, current_recorder, record
from pytest_modelserve.evidence.failure_text import failure_message

Parameters = ParamSpec("Parameters")
_LABEL = '    label: Name of this check in its failure text and in reports, for example "night images".\n'
_NUMBERS = ("float", "float | None", "int", "int | None", "float | Mapping[str, float]")
_MAX_LABEL = 200  # evidence in a test report has at most 16 KiB


def measurement(measure: Callable[Parameters, Evidence]) -> Callable[Parameters, Evidence]:
    """Return `measure` with one more keyword, `label`, which its evidence carries."""

    signature = inspect.signature(measure)
    hints = {name: str(each.annotation) for name, each in signature.parameters.items()}
    numbers = {name for name, hint in hints.items() if hint in _NUMBERS}

    @functools.wraps(measure)
    def measure_(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Evidence:
        label = _checked_label(kwargs.pop("label", ""))
        _check_call(signature, args, kwargs)
        for name in numbers & kwargs.keys():
            if isinstance(kwargs[name], str):
                raise UsageError(f"{name} must be a number, got the text {kwargs[name]!r}")
            if kwargs[name] is None and "None" not in hints[name]:
                raise UsageError(f"{name} must be a number, got None")
        evidence = measure(*args, **kwargs)
        return replace(evidence, label=label) if label else evidence

    added = inspect.Parameter("label", inspect.Parameter.KEYWORD_ONLY, default="", annotation="str")
    measure_.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), added]
    )
    measure_.__doc__ = (inspect.getdoc(measure) or "").replace("\nReturns:", f"{_LABEL}\nReturns:", 1)
    return measure_


def _check_call(signature: inspect.Signature, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Raise UsageError for an unknown argument, one too many by position, and a missing one."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        names = [*signature.parameters, "label"]
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise UsageError(unknown_choice("argument", unknown[0], names)) from None
        by_position = [name for name, each in signature.parameters.items() if each.kind is not each.KEYWORD_ONLY]
        if len(args) > len(by_position):
            raise UsageError(
                f"{len(args)} arguments by position, at most {len(by_position)} can be ({', '.join(by_position)}): "
                f"give the others by name, such as {names[len(by_position)]}="
            ) from None
        raise UsageError(f"{error}: pass {', '.join(by_position)}, and budgets by name") from None


def _checked_label(label: object) -> str:
    if not isinstance(label, str):
        raise UsageError(f'label must be a string, for example label="night images", got {type(label).__name__}')
    if len(label) > _MAX_LABEL:
        raise UsageError(f"label must have at most {_MAX_LABEL} characters, got {len(label)}")
    return label


def assertion(name: str, measure: Callable[Parameters, Evidence]) -> Callable[Parameters, Evidence]:
    """Return a measurement as an assertion called `name`: it records its evidence, and returns it only if it is PASS.

    The assertion raises GateFailure for FAIL and GateInconclusive for INCONCLUSIVE, each with the failure text as its
    message and the evidence as `.evidence`.
    """

    @functools.wraps(measure)
    def assert_(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Evidence:
        __tracebackhide__ = True
        try:
            evidence = measure(*args, **kwargs)
        except ModelServeError as error:
            raise without_internals(error)  # noqa: B904 (it is the same error)
        record(evidence)
        _raise_unless_passed(evidence)
        return evidence

    assert_.__name__ = assert_.__qualname__ = name
    assert_.__module__ = "pytest_modelserve"
    assert_.__doc__ = (
        f"Assert the budget of `{measure.__name__}` and return its evidence.\n\n"
        "Raises GateFailure if the verdict is FAIL and GateInconclusive if the data do not decide.\n\n"
        f"{measure.__doc__}"
    )
    return assert_


def _raise_unless_passed(evidence: Evidence) -> None:
    __tracebackhide__ = True
    if evidence.verdict is None:  # a measurement must not pass as an assertion
        raise TypeError(f"evidence of {evidence.gate!r} has no quantity with a budget")
    recorder = current_recorder()
    if recorder is not None and not recorder.raises:
        return
    if evidence.verdict is Verdict.FAIL:
        raise GateFailure(failure_message(evidence), evidence)
    if evidence.verdict is Verdict.INCONCLUSIVE:
        if recorder is None or recorder.inconclusive != "warn":
            raise GateInconclusive(failure_message(evidence), evidence)
        warnings.warn(failure_message(evidence), ModelServeWarning, stacklevel=3)
