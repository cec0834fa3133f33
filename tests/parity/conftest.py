from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pytest_modelserve as ms

Answering = Callable[..., ms.Predictor]


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where failing inputs are saved."""
    monkeypatch.setenv("MODELSERVE_FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


@pytest.fixture
def answering() -> Answering:
    """A predictor that gives the same outputs whatever it is asked."""

    def make(outputs: NDArray[Any] | dict[str, NDArray[Any]], name: str = "candidate") -> ms.Predictor:
        return ms.serve(lambda x: outputs, name=name)

    return make


@pytest.fixture
def voting(answering: Answering) -> Answering:
    """A predictor whose scores (n, 2) are right except in the given rows."""

    def make(labels: NDArray[Any], wrong: Any = (), name: str = "candidate") -> ms.Predictor:
        answers = labels.copy()
        answers[list(wrong)] = 1 - answers[list(wrong)]
        return answering(np.eye(2, dtype=np.float32)[answers], name)

    return make
