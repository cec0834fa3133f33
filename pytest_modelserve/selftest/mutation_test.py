"""The mutation test of a suite: the tests of each subject run again for each of its mutants."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.frames import is_lazy
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names
from pytest_modelserve.monitoring.readers import Table, read_table
from pytest_modelserve.selftest.data_faults import DataFault, data_faults
from pytest_modelserve.selftest.model_mutants import (
    SLOWDOWNS,
    SLOWER,
    UNCHANGED,
    Alteration,
    AlteredPredictor,
    Effect,
    GraphSource,
    alterations,
    graph_source,
    slower_twin,
)
from pytest_modelserve.selftest.observation import DATA_GATES, DataSubject, ModelSubject, TestRun, data_key, model_key
from pytest_modelserve.serving.substitution import Substitution

if TYPE_CHECKING:
    import pytest

    from pytest_modelserve.selftest.graph_mutations import Mutant
    from pytest_modelserve.selftest.hooks import SelfTestHooks
    from pytest_modelserve.serving import OnnxPredictor
    from pytest_modelserve.serving.predictor import Predictor

PER_KIND = 3
"""Mutants of each kind and subject."""
TIMED = ("latency", "slowdown", "throughput")
UNTRIED = ("size", "cold start", "memory")
"""Gates that no mutant concerns: they read a file or start a process, and open no subject here."""

Outcome = Literal["equivalent", "noticed", "undecided", "missed", "not tried"]


@dataclass(frozen=True, slots=True)
class MutantResult:
    """What became of a mutant: `gate` of `test` noticed it, or left it undecided; `effect` is how much it changes."""

    subject: str
    kind: str
    where: str
    settings: str
    outcome: Outcome
    gate: str = ""
    test: str = ""
    effect: str = ""
    gates: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.kind} {self.where}".strip(), self.settings)))


class Replacement(Substitution):
    """The subject of this key, or the data of this key, replaced wherever a gate opens it."""

    replaces = True

    def __init__(
        self,
        key: str,
        *,
        model: Callable[[Predictor], Predictor] | None = None,
        table: Callable[[Table], Table] | None = None,
    ) -> None:
        self._key, self._model, self._table = key, model, table
        self.table: Table | None = None
        self.reason = ""
        self.opened = 0

    def models(self, inputs: Any, served: list[Predictor]) -> list[Predictor]:  # noqa: ARG002 (of the hook)
        """Replace the subject; a reference with the same file stays."""
        if self._model is None or model_key(served[0].subject) != self._key:
            return served
        self.opened += 1
        return [self._model(served[0]), *served[1:]]

    def data(self, data: Any, profile: Any, whole: Any, name: str | None) -> tuple[Any, Any]:
        """Replace the rows of the window."""
        if self._table is None or data_key(data, whole, name) != self._key:
            return data, profile
        if isinstance(data, ReferenceProfile) or is_lazy(data):
            self.reason = "its rows were counted elsewhere"
            return data, profile
        read = read_table(data, names=array_names(whole), name=name, options=profile.reading, kinds=profile.kinds)
        self.table = read if self.table is None else self.table
        self.opened += 1
        return self._table(read), profile


@dataclass(slots=True, eq=False)
class _Candidate:
    """A mutant that was not run yet; `place` is its place among those of its kind."""

    subject: ModelSubject | DataSubject
    kind: str
    where: str
    settings: str
    place: int
    form: Literal["graph", "altered", "data"]
    change: Mutant | Alteration | DataFault


class MutationTest:
    """Mutants of every subject and what the suite made of them; `notes` names what was not mutated, and why."""

    def __init__(self, hooks: SelfTestHooks, deadline: float) -> None:
        self._hooks, self._deadline = hooks, deadline
        self.results: list[MutantResult] = []
        self.notes: dict[str, list[str]] = {}
        self._controls: dict[tuple[str, str, str], bool] = {}
        self._sources: dict[str, GraphSource | str] = {}
        self.seconds = 0.0

    @property
    def survivors(self) -> int:
        """The number of mutants that change an output and that no gate noticed."""
        return sum(result.outcome == "missed" for result in self.results)

    @property
    def tried(self) -> int:
        """The number of mutants that change an output and were tried."""
        return sum(result.outcome not in ("equivalent", "not tried") for result in self.results)

    def run(self) -> None:
        """Test mutants until all are tried or the time is up; each subject gets its share of the time left."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
            subjects = list(self._subjects())
            waiting = []
            for index, subject in enumerate(subjects):
                until = self._until(len(subjects) - index)
                if time.monotonic() >= self._deadline:
                    self._note("the time was up before its mutants were drawn", subject.title)
                    continue
                candidates = sorted(self._candidates(subject, Path(folder)), key=lambda each: each.place)
                waiting.append(self._try(candidates, until))
                if not waiting[-1]:  # the tensors of a large model take room
                    self._sources.pop(subject.key, None)
            for left in filter(None, waiting):
                for candidate in self._try(left, self._deadline):
                    self._add(candidate, "not tried")
        self.seconds = time.monotonic() - began
        self._hooks.progress("")

    def _until(self, shares: int) -> float:
        now = time.monotonic()
        return now + max(0.0, self._deadline - now) / shares

    def _note(self, reason: str, title: str) -> None:
        titles = self.notes.setdefault(reason, [])
        if title not in titles:
            titles.append(title)

    def _subjects(self) -> Iterable[ModelSubject | DataSubject]:
        """Yield the subjects of which some gate passed."""
        for subject in self._hooks.observer.subjects():
            if self.tests_of(subject):
                yield subject
            else:
                self._note("no gate that it can fail passed", subject.title)
        for run in self._hooks.first.values():
            for record in run.records:
                if record.evidence.gate.startswith(UNTRIED):
                    self._note("no mutant concerns this gate", record.evidence.gate)

    def tests_of(self, subject: ModelSubject | DataSubject, *, timed: bool | None = None) -> list[pytest.Item]:
        """Return the tests with a gate that passed for the subject, the fastest first.

        `timed` selects those with gates on time, or those with others.
        """
        found = []
        for node_id in subject.tests & self._hooks.first.keys():
            gates = self._passed_gates(subject, self._hooks.first[node_id])
            kinds = {gate.startswith(TIMED) for gate in gates if not gate.startswith(UNTRIED)}
            if kinds if timed is None else timed in kinds:
                found.append(node_id)
        found.sort(key=lambda node_id: (self._hooks.first[node_id].seconds, node_id))
        return [self._hooks.items[node_id] for node_id in found]

    def _passed_gates(self, subject: ModelSubject | DataSubject, run: TestRun) -> set[str]:
        passed = [record.evidence for record in run.records if record.evidence.verdict is Verdict.PASS]
        if isinstance(subject, ModelSubject):
            return {each.gate for each in passed if model_key(each.subject) == subject.key}
        digest = subject.key.rpartition("|")[2]
        return {
            each.gate
            for each in passed
            if each.gate in DATA_GATES and each.reference is not None and each.reference.sha256 == digest
        }

    def _candidates(self, subject: ModelSubject | DataSubject, folder: Path) -> Iterable[_Candidate]:
        if isinstance(subject, DataSubject):
            yield from self._data_candidates(subject)
            return
        if self.tests_of(subject, timed=True):
            yield _Candidate(subject, SLOWER, "", "", 0, "altered", slower_twin(1))
        else:
            self._note("no gate measures its time, so it has no slower twin", subject.title)
        if not self.tests_of(subject, timed=False):
            self._note("only its time is measured", subject.title)
            return
        source = graph_source(subject.predictor, subject.batches, folder)
        self._sources[subject.key] = source
        if isinstance(source, str):
            self._note(f"its graph was not mutated: {source}", subject.title)
        else:
            for place, mutant in source.mutants(PER_KIND):
                yield _Candidate(subject, mutant.kind, mutant.node, mutant.settings, place, "graph", mutant)
        places: dict[str, int] = {}
        for each in alterations(has_graph=not isinstance(source, str), count=PER_KIND):
            if each.before is None or subject.has_inputs:
                place = places[each.kind] = places.get(each.kind, -1) + 1
                yield _Candidate(subject, each.kind, "", each.settings, place, "altered", each)

    def _data_candidates(self, subject: DataSubject) -> Iterable[_Candidate]:
        control = Replacement(subject.key, table=lambda table: table)
        self._hooks.rerun(self.tests_of(subject)[0], control)
        if control.table is None:
            self._note(control.reason or "its rows could not be read again", subject.title)
            return
        for place, fault in data_faults(control.table, PER_KIND):
            yield _Candidate(subject, fault.kind, fault.where, fault.settings, place, "data", fault)

    def _try(self, candidates: list[_Candidate], until: float) -> list[_Candidate]:
        """Run candidates until the time is up and return the others."""
        for index, candidate in enumerate(candidates):
            if time.monotonic() >= until:
                return candidates[index:]
            left = max(0.0, self._deadline - time.monotonic())
            self._hooks.progress(
                f"self-test: {len(self.results)} mutants, {self.survivors} missed, at most {left:.0f} s left: "
                f"{candidate.kind} · {candidate.subject.title}"
            )
            self._run(candidate)
        return []

    def _add(self, candidate: _Candidate, outcome: Outcome, **more: str) -> None:
        gates: set[str] = set()
        for item in self.tests_of(candidate.subject):
            gates |= self._passed_gates(candidate.subject, self._hooks.first[item.nodeid])
        named = {"where": candidate.where, "settings": candidate.settings, **more}
        self.results.append(
            MutantResult(candidate.subject.title, candidate.kind, outcome=outcome, gates=tuple(sorted(gates)), **named)
        )

    def _run(self, candidate: _Candidate) -> None:
        change, subject = candidate.change, candidate.subject
        if candidate.kind == SLOWER:
            self._run_slower(candidate)
        elif isinstance(change, DataFault):
            self._judge(candidate, Replacement(subject.key, table=change.apply), None)
        elif isinstance(change, Alteration):
            self._judge(candidate, *self._altered(subject, change))
        else:
            source = self._sources[subject.key]
            assert isinstance(source, GraphSource)
            try:
                predictor, effect = source.served(change)
            except ModelServeError:
                return  # it opens without optimizations alone, so no gate can be asked
            with predictor:
                if effect.changed:
                    self._judge(candidate, Replacement(subject.key, model=lambda _: predictor), effect)
                else:
                    self._add(candidate, "equivalent")
            predictor.artifact.path.unlink()

    def _altered(self, subject: ModelSubject | DataSubject, change: Alteration) -> tuple[Replacement, Effect]:
        effect, source = Effect(), self._sources.get(subject.key)
        floor = source.floor_db if isinstance(source, GraphSource) else None
        return Replacement(subject.key, model=lambda model: AlteredPredictor(model, change, effect, floor)), effect

    def _judge(self, candidate: _Candidate, replacement: Replacement, effect: Effect | None) -> None:
        gate = test = ""
        timed = None if isinstance(candidate.subject, DataSubject) else candidate.kind == SLOWER
        for item in self.tests_of(candidate.subject, timed=timed):
            outcome, found = self._verdict(item, self._hooks.rerun(item, replacement))
            if outcome == "noticed" and self._passes_unchanged(candidate, item):
                self._add(candidate, "noticed", gate=found, test=item.nodeid, effect=effect.text if effect else "")
                return
            if outcome == "undecided":
                gate, test = found, item.nodeid
        if not replacement.opened:
            self._note("its tests did not open it again", candidate.subject.title)
        elif effect is not None and not effect.called:
            self._note(
                "its gates run the file in another process, past altered inputs and outputs", candidate.subject.title
            )
        elif effect is not None and not effect.changed:
            self._add(candidate, "equivalent")
        else:
            text = effect.text if effect else ""
            self._add(candidate, "undecided" if gate else "missed", gate=gate, test=test, effect=text)

    def _run_slower(self, candidate: _Candidate) -> None:
        """Find the smallest slowdown that is noticed."""
        for factor in SLOWDOWNS:
            candidate.settings = f"× {factor:g}"
            before = len(self.results)
            self._judge(candidate, *self._altered(candidate.subject, slower_twin(factor)))
            added = self.results[before:]
            if not added or added[0].outcome == "noticed" or factor == SLOWDOWNS[-1]:
                return
            del self.results[before:]

    def _verdict(self, item: pytest.Item, run: TestRun) -> tuple[Outcome, str]:
        first, again = self._hooks.first[item.nodeid].verdicts(), run.verdicts()
        for key, verdict in again.items():
            if verdict is Verdict.FAIL and first.get(key) is Verdict.PASS:
                return "noticed", key[0]
        undecided = [key[0] for key, v in again.items() if v is Verdict.INCONCLUSIVE and first.get(key) is Verdict.PASS]
        if undecided:
            return "undecided", undecided[0]
        return ("noticed", f"error: {run.error}") if run.failed else ("missed", "")

    def _passes_unchanged(self, candidate: _Candidate, item: pytest.Item) -> bool:
        """Return whether the test passes with an unchanged copy in the place of the mutant; asked once."""
        subject = candidate.subject
        key = (subject.key, item.nodeid, SLOWER if candidate.kind == SLOWER else candidate.form)
        if key not in self._controls:
            predictor: OnnxPredictor | None = None
            if candidate.form == "data":
                control = Replacement(subject.key, table=lambda table: table)
            elif candidate.kind == SLOWER:  # the wrapper of an unchanged copy would take time, too
                control = Replacement(subject.key)
            elif candidate.form == "altered":
                control, _ = self._altered(subject, UNCHANGED)
            else:
                source = self._sources[subject.key]
                assert isinstance(source, GraphSource)
                predictor, _ = source.served(None)
                control = Replacement(subject.key, model=lambda _: predictor)
            self._controls[key] = not self._hooks.rerun(item, control).failed
            if predictor is not None:
                predictor.close()
                predictor.artifact.path.unlink()
            if not self._controls[key]:
                self._note("its verdicts do not count: the test fails with an unchanged copy, too", item.nodeid)
        return self._controls[key]
