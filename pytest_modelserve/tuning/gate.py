"""The gates of a search: functions of a candidate that call assertions, or the gates of a contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_modelserve.errors import UsageError, check_call
from pytest_modelserve.evidence import Evidence, Verdict
from pytest_modelserve.evidence.recorder import Recorder, recording
from pytest_modelserve.parity.accuracy.evaluation import JudgedFigure, judged_figures
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.substitution import substituting

GateFunction = Callable[[Predictor], object]
GateChoice = GateFunction | str | os.PathLike[str]
"""A function of a candidate that calls assertions or returns evidence, or the path of a contract."""

Kind = Literal["rows", "file", "other"]


@dataclass(frozen=True, slots=True, eq=False)
class GateResult:
    """What one gate found of one candidate.

    `figures` are those that its accuracy gates judged. `problem` is the message of an error that is no verdict.
    """

    evidence: tuple[Evidence, ...]
    figures: tuple[JudgedFigure, ...]
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether every verdict is PASS."""
        return not self.problem and all(each.passed for each in self.evidence)

    @property
    def failed(self) -> bool:
        """Whether a verdict is FAIL, or the gate raised an error."""
        return bool(self.problem) or any(each.verdict is Verdict.FAIL for each in self.evidence)

    @property
    def decisive(self) -> Evidence | None:
        """The evidence with the worst verdict."""
        return max(self.evidence, key=lambda each: each.severity, default=None)

    @property
    def kind(self) -> Kind:
        """What the gate reads: labeled "rows", the model's "file" alone, or "other"."""
        if self.figures:
            return "rows"
        return "file" if all(each.gate == "size" for each in self.evidence) else "other"


def run_gate(gate: GateFunction, candidate: Predictor) -> GateResult:
    """Call a gate to its end, whatever its verdicts; its evidence goes into no report.

    Errors that are no verdict pass through. UsageError for a gate that neither asserts nor returns evidence, and for
    one whose evidence is about other models alone.
    """
    # A self-test of the suite replaces what its own gates read, and not each candidate of a search.
    silent = Recorder("tuning", "", raises=False)
    with recording(silent) as recorder, judged_figures() as figures, substituting(None):
        returned = gate(candidate)
    evidence = [record.evidence for record in recorder.records()]
    if isinstance(returned, Evidence) and all(returned is not each for each in evidence):
        evidence.append(returned)
    if not evidence:
        raise UsageError(
            f"gate {getattr(gate, '__name__', gate)!r} made no evidence: call an assertion in it, such as "
            "lambda candidate: ms.assert_accuracy_parity(candidate, reference, x, y, max_drop=0.01)"
        )
    unjudged = next((each for each in evidence if each.verdict is None), None)
    if unjudged is not None:
        raise UsageError(f"gate {unjudged.gate!r} has no budget: give it one")
    subjects = {each.subject.sha256 for each in evidence}  # None: a function around the candidate, or data
    references = {each.reference.sha256 for each in evidence if each.reference is not None}
    if None not in subjects and candidate.subject.sha256 not in subjects | references:
        raise UsageError(
            f"gate {evidence[0].gate!r} judged {evidence[0].subject}, not the candidate {candidate.subject} that it "
            "got: pass its argument to the assertion"
        )
    return GateResult(tuple(evidence), tuple(figures))


@contextmanager
def opened_gates(gates: GateChoice | Iterable[GateChoice]) -> Iterator[tuple[GateFunction, ...]]:
    """Yield the gates as functions; models that a contract serves are closed at the end.

    UsageError for none, and for anything but functions and paths.
    """
    if callable(gates) or isinstance(gates, (str, os.PathLike)):
        gates = (gates,)
    if isinstance(gates, Mapping) or not isinstance(gates, Iterable):
        raise UsageError(f"gates must be a function of a candidate, the path of a contract or a list, got {gates!r}")
    runners: list[Any] = []
    functions: list[GateFunction] = []
    try:
        for gate in gates:
            if isinstance(gate, (str, os.PathLike)):
                from pytest_modelserve.contracts.gate_runner import GateRunner

                runner = GateRunner()
                runners.append(runner)
                functions += _gates_of_contract(Path(gate), runner)
            elif callable(gate):
                check_call("gate", gate, "candidate")
                functions.append(gate)
            else:
                raise UsageError(
                    f"gates must hold functions of a candidate or paths of contracts, got {type(gate).__name__}: write "
                    "lambda candidate: ms.assert_...(candidate, ...)"
                )
        if not functions:
            raise UsageError("gates is empty: without a gate every variant would pass")
        yield tuple(functions)
    finally:
        for runner in runners:
            runner.close()


def _gates_of_contract(path: Path, runner: Any) -> Iterator[GateFunction]:
    """Yield the active gates of a contract that are about a model, each with the candidate in place of its subject."""
    import pytest_modelserve as ms
    from pytest_modelserve.contracts.annotations import subject_of
    from pytest_modelserve.contracts.contract import read_contract

    for call in read_contract(path.absolute()):
        assertion = getattr(ms, call.assertion)
        subject = subject_of(assertion)
        if subject is None or call.inactive:
            continue

        def gate(candidate: Predictor, call: Any = call, assertion: Any = assertion, subject: str = subject) -> object:
            judged: Any = candidate
            if call.assertion == "assert_artifact_safe":  # scans a file, and no predictor
                judged = getattr(candidate, "artifact", candidate)
            return assertion(**{**runner.arguments(call), subject: judged})

        gate.__name__ = call.name
        yield gate
