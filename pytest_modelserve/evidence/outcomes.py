"""Exceptions of gates that do not pass; pytest's hooks look for them in every run, so that nothing is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_modelserve.evidence.evidence import Evidence


class GateFailure(AssertionError):  # noqa: N818 (it reports a verdict)
    """A gate failed: the subject is outside its budget. `evidence` holds the measurements."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateFailure], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)


class GateInconclusive(Exception):  # noqa: N818 (it reports a verdict)
    """A gate could not decide. It is not a GateFailure, so `xfail(raises=GateFailure)` does not accept it."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateInconclusive], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)


# Tracebacks show the name that users import.
GateFailure.__module__ = GateInconclusive.__module__ = "pytest_modelserve"
