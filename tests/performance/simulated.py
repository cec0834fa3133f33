"""Models whose cost is drawn on a simulated clock."""

import random
from contextlib import nullcontext
from pathlib import Path

import pytest_modelserve as ms
from pytest_modelserve.evidence import Subject
from pytest_modelserve.performance.timing import Clocks


def simulate_clocks(monkeypatch, module, *, run_delay=None, **clocks):
    """Replace the clocks of a gate's module; without `run_delay` this is a system that does not report it."""
    monkeypatch.setattr(module, "Clocks", lambda: Clocks(**{"process_cpu": lambda: 0, "cpu": lambda: 0, **clocks}))
    monkeypatch.setattr(module, "run_delay_clock", lambda: nullcontext(run_delay))


class FakeClock:
    """A clock in nanoseconds that moves only by `spend`."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def spend(self, ns):
        self.now += round(ns)

    def call(self, ns):
        """A model that takes so many nanoseconds and returns its input."""

        def run(x=None):
            self.now += round(ns)
            return x

        return run


class Host(FakeClock):
    """A clock that moves by what calls cost; its speed wanders, and sometimes other processes interrupt."""

    def __init__(self, seed):
        super().__init__()
        self.rng = random.Random(seed)
        self.speed = 1.0

    def spend(self, ns):
        self.speed = min(3.0, max(0.5, self.speed * self.rng.lognormvariate(0, 0.02)))
        burst = 2_000_000 if self.rng.random() < 0.01 else 0
        self.now += round(ns * self.speed * self.rng.lognormvariate(0, 0.05)) + burst

    def call(self, ns):
        def run(x):
            self.spend(ns)
            return x

        return run


class Served(ms.Predictor):
    """A model file in onnxruntime as far as the gates can see; each of its sessions has its own speed."""

    transport = "in-process"

    def __init__(self, host, cost_ns, *, session_spread=0.0, name="model"):
        super().__init__(Subject(name))
        self.artifact = artifact(name)
        self.host, self.cost_ns, self.session_spread = host, cost_ns, session_spread
        self.of_session = host.rng.lognormvariate(0, session_spread)

    def predict(self, inputs):
        self.host.spend(self.cost_ns * self.of_session)
        return {"y": inputs}

    def describe(self):
        return str(self.subject)

    def again(self):
        """Another session of the same model."""
        return Served(self.host, self.cost_ns, session_spread=self.session_spread, name=self.subject.name)


def artifact(name="mlp", *, weights=1, files=1, variant=""):
    return ms.Artifact(
        path=Path("nowhere.onnx"), external=(), sha256="0" * 64, signature=ms.Signature((), ()), lineage=(), name=name,
        variant=variant, file_bytes=files, initializer_bytes=weights,
    )  # fmt: skip
