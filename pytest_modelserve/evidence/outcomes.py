"""How a gate speaks when it does not pass."""

from __future__ import annotations

from pytest_modelserve.evidence.model import Evidence


class GateFailure(AssertionError):  # noqa: N818 (a verdict, not an error)
    """A subject lies outside its budget; `evidence` holds everything that was measured."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateFailure], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)


class GateInconclusive(Exception):  # noqa: N818 (an outcome, like GateFailure, and deliberately not one)
    """The evidence decides neither way. Not a GateFailure, so that no `raises=GateFailure` takes it for a catch."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[type[GateInconclusive], tuple[str, Evidence]]:
        return type(self), (str(self), self.evidence)
