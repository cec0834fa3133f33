"""Records: evidence with the test or fixture that it belongs to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pytest_modelserve.evidence.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Record:
    """Evidence with its owner. `attempt` counts reruns from 1, `examples` those of `@given`."""

    owner: str
    node_id: str
    index: int
    attempt: int
    examples: int
    evidence: Evidence

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """The key that is equal if the same call is made again, in another process or on a rerun."""
        reference = self.evidence.reference
        return (self.owner, self.evidence.gate, key_of(self.evidence.subject), key_of(reference), self.index)

    def to_json(self) -> str:
        """Return the record as one JSON object of printable characters: JUnit writes it as it is."""
        return json.dumps(
            {
                "owner": self.owner,
                "node_id": self.node_id,
                "index": self.index,
                "attempt": self.attempt,
                "examples": self.examples,
                "evidence": json.loads(self.evidence.to_json(max_bytes=15 * 1024)),
            },
            ensure_ascii=not (self.owner + self.node_id).isprintable(),
        )

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Return the record that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "evidence": Evidence.from_json(json.dumps(data["evidence"]))})


def key_of(subject: Any) -> str:
    """Return what tells a subject from another: the digest of its file, or its name."""
    return "" if subject is None else (subject.sha256 or str(subject))


def worse_of(first: Record, second: Record) -> Record:
    """Return the record with the worse verdict, with the sums of the examples and of the alphas."""
    worse = second if second.evidence.severity > first.evidence.severity else first
    alpha = min(first.evidence.alpha + second.evidence.alpha, 1.0)
    return replace(
        worse,
        examples=first.examples + second.examples,
        evidence=replace(worse.evidence, alpha=alpha),
    )
