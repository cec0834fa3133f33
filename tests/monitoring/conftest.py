from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]
DATA = Path(__file__).parents[2] / "fixtures" / "data"


@pytest.fixture
def people() -> Callable[..., Columns]:
    """Rows of five columns of every kind, drawn from one distribution; `shift` moves the age in standard deviations."""

    def draw(rows: int, seed: int, *, shift: float = 0.0) -> Columns:
        rng = np.random.default_rng(seed)
        return {
            "age": rng.normal(40 + 12 * shift, 12, rows),
            "children": rng.poisson(1.4, rows),
            "member": rng.random(rows) < 0.3,
            "city": rng.choice(["Bern", "Graz", "Linz"], rows, p=[0.5, 0.3, 0.2]),
            "street": np.array([f"street {number}" for number in rng.geometric(0.01, rows)]),
        }

    return draw


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return DATA
