"""The A/A test of a suite: gates that compare get the same model, or halves of the same rows, many times."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.evidence import Evidence, Verdict
from pytest_modelserve.monitoring.frames import is_lazy
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names
from pytest_modelserve.monitoring.profiler import profile_again
from pytest_modelserve.monitoring.readers import read_table
from pytest_modelserve.selftest.data_faults import take_rows
from pytest_modelserve.selftest.observation import DATA_GATES, model_key
from pytest_modelserve.serving.predictor import Predictor
from pytest_modelserve.serving.substitution import Substitution
from pytest_modelserve.stats import binomial_bounds

if TYPE_CHECKING:
    from pytest_modelserve.selftest.hooks import SelfTestHooks

LEVEL = 0.95
"""Level of the upper bound of a rate."""


@dataclass(slots=True)
class GateCount:
    """Verdicts of one gate in one test, and the values that it measured."""

    gate: str
    test: str
    runs: int = 0
    fails: int = 0
    inconclusive: int = 0
    errors: int = 0
    values: set[float] = field(default_factory=set)

    def add(self, evidence: Evidence) -> None:
        """Count one verdict."""
        self.runs += 1
        self.fails += evidence.verdict is Verdict.FAIL
        self.inconclusive += evidence.verdict is Verdict.INCONCLUSIVE
        self.values.add(evidence.value)


def rate_bound(fails: int, runs: int) -> float:
    """Return the exact upper bound of a rate (Clopper and Pearson 1934), 1 without runs."""
    return binomial_bounds(fails, runs, low_level=LEVEL, high_level=LEVEL).high if runs else 1.0


class SameTwice(Substitution):
    """The reference in the place of the candidate; for data, one half of its rows against a profile of the other."""

    replaces = True

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.is_used = False
        self._opened: list[Predictor] = []

    def models(self, inputs: Any, served: list[Predictor]) -> list[Predictor]:  # noqa: ARG002 (of the hook)
        """Serve the reference twice: a file in another session, anything else as the same object."""
        if len(served) < 2:
            return served
        self.is_used = True
        return [self._again(served[1]), *served[1:]]

    def _again(self, reference: Predictor) -> Predictor:
        if reference.artifact is None or reference.transport != "in-process":
            return reference
        from pytest_modelserve.serving import OnnxPredictor

        assert isinstance(reference, OnnxPredictor)
        predictor = OnnxPredictor(
            reference.artifact,
            providers=reference.providers,
            threads=reference.threads,
            optimize=reference.optimize,
        )
        self._opened.append(predictor)
        return predictor

    def data(self, data: Any, profile: Any, whole: Any, name: str | None) -> tuple[Any, Any]:
        """Split the rows of the window at random, and profile one half as the profile was made."""
        if isinstance(data, ReferenceProfile) or is_lazy(data):
            return data, profile
        table = read_table(data, names=array_names(whole), name=name, options=profile.reading, kinds=profile.kinds)
        if table.rows < 4:
            return data, profile
        self.is_used = True
        order = np.random.default_rng(self._seed).permutation(table.rows)
        half = table.rows // 2
        sketch = 0 if profile.sketch is None else max(2, min(profile.sketch.rows, half))
        reference = profile_again(take_rows(table, np.sort(order[half:])), profile, sketch_rows=sketch)
        return take_rows(table, np.sort(order[:half])), reference

    def close(self) -> None:
        """Release the sessions."""
        for predictor in self._opened:
            predictor.close()


@dataclass(slots=True, eq=False)
class _Repeated:
    """A test with its repeats so far, and whether it has a gate that compares."""

    item: Any
    repeats: int = 0
    compares: bool = True
    counts: dict[tuple[str, int], GateCount] = field(default_factory=dict)


class GateRepeats:
    """Counts of each gate that compares over `wanted` repeats of its test, or as many as the time allows."""

    def __init__(self, hooks: SelfTestHooks, wanted: int, deadline: float) -> None:
        self._hooks, self.wanted, self._deadline = hooks, wanted, deadline
        self.counts: list[GateCount] = []
        self.seconds = 0.0

    @property
    def false_alarms(self) -> int:
        """The number of FAIL verdicts, and of tests that ended with an error."""
        return sum(count.fails + count.errors for count in self.counts)

    def run(self) -> None:
        """Repeat every test with a gate that compares; each gets its share of the time, and then of what is left."""
        began = time.monotonic()
        seen = {node_id for each in self._hooks.observer.subjects() for node_id in each.tests}
        waiting = [_Repeated(item) for node_id, item in self._hooks.items.items() if node_id in seen]
        while waiting and time.monotonic() < self._deadline:
            for index, test in enumerate(waiting):
                now = time.monotonic()
                self._repeat(test, now + max(0.0, self._deadline - now) / (len(waiting) - index))
            waiting = [test for test in waiting if test.compares and test.repeats < self.wanted]
        self.seconds = time.monotonic() - began
        self._hooks.progress("")

    def _repeat(self, test: _Repeated, until: float) -> None:
        while test.compares and test.repeats < self.wanted and time.monotonic() < until:
            self._hooks.progress(
                f"A/A: {test.repeats} of {self.wanted} repeats, {self.false_alarms} false alarms · {test.item.nodeid}"
            )
            same = SameTwice(test.repeats)
            test.repeats += 1
            run = self._hooks.rerun(test.item, same)
            same.close()
            test.compares = same.is_used
            if not test.compares:
                return
            compared = [record.evidence for record in run.records if _compares_the_same(record.evidence)]
            places = Counter[str]()
            for evidence in compared:
                self._count(test, evidence.gate, places[evidence.gate]).add(evidence)
                places[evidence.gate] += 1
            if run.failed and not any(each.verdict is not Verdict.PASS for each in compared):
                count = self._count(test, f"error: {run.error}", 0)
                count.runs, count.errors = count.runs + 1, count.errors + 1

    def _count(self, test: _Repeated, gate: str, place: int) -> GateCount:
        if (gate, place) not in test.counts:
            test.counts[gate, place] = GateCount(gate, test.item.nodeid)
            self.counts.append(test.counts[gate, place])
        return test.counts[gate, place]


def _compares_the_same(evidence: Evidence) -> bool:
    """Return whether the gate had what `SameTwice` put in: gates on size, for example, read the files themselves."""
    if evidence.reference is None:
        return False
    return evidence.gate in DATA_GATES or model_key(evidence.subject) == model_key(evidence.reference)
