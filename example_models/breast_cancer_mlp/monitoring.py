"""The monitored columns of new tumors: every measurement, and the diagnosis once it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def columns_of(names: Sequence[str], rows: NDArray[np.float32], benign: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the columns of `rows` (n, 30) by name, and the diagnosis as text, each of shape (n,)."""
    diagnosis = np.where(benign == 1, "benign", "malignant")
    return {**dict(zip(names, rows.T, strict=True)), "diagnosis": diagnosis}
