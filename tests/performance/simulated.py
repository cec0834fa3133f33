"""Models whose cost is drawn on a simulated clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest_modelserve as ms
from pytest_modelserve.evidence import Subject


class Host:
    """A clock that moves by what calls cost; its speed wanders, and now and then it does something else."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.speed = 1.0

    def clock(self) -> int:
        return int(self.now)

    def spend(self, cost_ns: float) -> None:
        self.speed = min(3.0, max(0.5, self.speed * self.rng.lognormvariate(0, 0.02)))
        burst = 2_000_000 if self.rng.random() < 0.01 else 0
        self.now += cost_ns * self.speed * self.rng.lognormvariate(0, 0.05) + burst

    def call(self, cost_ns: float) -> Callable[..., Any]:
        def run(x: Any) -> Any:
            self.spend(cost_ns)
            return x

        return run


class Served(ms.Predictor):
    """A model file in onnxruntime, as far as the gates can see: each session of it has a speed of its own."""

    transport = "in-process"

    def __init__(self, host: Host, cost_ns: float, *, session_spread: float = 0.0, name: str = "model") -> None:
        super().__init__(Subject(name))
        self.artifact = artifact(name)
        self.host, self.cost_ns, self.session_spread = host, cost_ns, session_spread
        self.of_session = host.rng.lognormvariate(0, session_spread)

    def predict(self, inputs: Any) -> dict[str, Any]:
        self.host.spend(self.cost_ns * self.of_session)
        return {"y": inputs}

    def describe(self) -> str:
        return str(self.subject)

    def again(self) -> Served:
        """Another session of the same model."""
        return Served(self.host, self.cost_ns, session_spread=self.session_spread, name=self.subject.name)


def artifact(name: str) -> ms.Artifact:
    return ms.Artifact(
        path=Path("nowhere.onnx"), external=(), sha256="0" * 64, signature=ms.Signature((), ()), lineage=(), name=name,
        variant="", file_bytes=1, initializer_bytes=1,
    )  # fmt: skip
