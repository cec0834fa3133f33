"""What the first pass of a self-test saw: the subjects of the gates, the tests that had them, and their verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pytest_modelserve.evidence import Record, Verdict
from pytest_modelserve.serving.inputs import batch_size, is_one_batch, slice_rows
from pytest_modelserve.serving.predictor import Predictor
from pytest_modelserve.serving.ready_outputs import ReadyOutputs, RowPredictor
from pytest_modelserve.serving.substitution import Substitution

DATA_GATES = ("drift", "data quality", "results")
_BATCHES, _ROWS, _BYTES = 4, 1000, 16 * 2**20


@dataclass(slots=True, eq=False)
class ModelSubject:
    """A model that gates had as their subject, with some of the rows that they gave it."""

    key: str
    title: str
    predictor: Predictor
    tests: set[str] = field(default_factory=set)
    batches: list[Any] = field(default_factory=list)

    @property
    def has_inputs(self) -> bool:
        """Whether it is called with inputs, and is no ready outputs."""
        return not isinstance(self.predictor, (ReadyOutputs, RowPredictor))

    def add_rows(self, inputs: Any) -> None:
        """Keep a copy of a batch of another shape than those before."""
        if not is_one_batch(inputs) or not self.has_inputs or len(self.batches) == _BATCHES:
            return
        batch: Any = slice_rows(inputs, _ROWS)
        arrays = list(batch.values()) if isinstance(batch, dict) else [batch]
        if any(not isinstance(array, np.ndarray) for array in arrays) or sum(a.nbytes for a in arrays) > _BYTES:
            return
        copy: Any = {name: a.copy() for name, a in batch.items()} if isinstance(batch, dict) else arrays[0].copy()
        if not any(_is_same(copy, other) for other in self.batches) and batch_size(copy) != 0:
            self.batches.append(copy)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) or isinstance(other, dict):
        pair = isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys()
        return pair and all(_is_same(one[name], other[name]) for name in one)
    return bool(one.shape == other.shape and np.array_equal(one, other))


@dataclass(slots=True, eq=False)
class DataSubject:
    """Data that gates compared with one profile."""

    key: str
    title: str
    tests: set[str] = field(default_factory=set)


def model_key(subject: Any) -> str:
    """Return the digest of a subject's file, or its name without one."""
    return subject.sha256 or str(subject)


def data_key(data: object, profile: Any, name: str | None) -> str:
    """Return the name of the data and the digest of the profile."""
    return f"{name or (data if isinstance(data, str) else 'data')}|{profile.digest}"


class Observer(Substitution):
    """Notes of the first pass: which test served what."""

    replaces = False

    def __init__(self) -> None:
        self.node_id = ""
        self.models_seen: dict[str, ModelSubject] = {}
        self.data_seen: dict[str, DataSubject] = {}

    def subjects(self) -> list[ModelSubject | DataSubject]:
        """Return all subjects; those of one title get the beginning of their digests."""
        titles = Counter(each.title for each in self.models_seen.values())
        for each in self.models_seen.values():
            if titles[each.title] > 1:
                each.title = f"{each.title} {each.key[:8]}"
        return [*self.models_seen.values(), *self.data_seen.values()]

    def models(self, inputs: Any, served: list[Predictor]) -> list[Predictor]:
        """Note the subject of a gate."""
        subject = served[0]
        key = model_key(subject.subject)
        entry = self.models_seen.setdefault(key, ModelSubject(key, str(subject.subject), subject))
        entry.tests.add(self.node_id)
        entry.add_rows(inputs)
        return served

    def data(self, data: Any, profile: Any, whole: Any, name: str | None) -> tuple[Any, Any]:
        """Note the data of a gate."""
        key = data_key(data, whole, name)
        entry = self.data_seen.setdefault(key, DataSubject(key, f"{name or 'data'} vs {profile.name}"))
        entry.tests.add(self.node_id)
        return data, profile


@dataclass(frozen=True, slots=True)
class TestRun:
    """One run of a test: its evidence, whether a phase failed, and the first line of the error."""

    __test__ = False

    records: tuple[Record, ...]
    failed: bool
    error: str
    seconds: float

    def verdicts(self) -> dict[tuple[str, int], Verdict | None]:
        """Return the verdicts by gate and place among the calls of the gate."""
        found: dict[tuple[str, int], Verdict | None] = {}
        counts = Counter[str]()
        for record in self.records:
            gate = record.evidence.gate
            found[gate, counts[gate]] = record.evidence.verdict
            counts[gate] += 1
        return found
