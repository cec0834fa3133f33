"""The same values in other layouts in memory."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Layout = Literal["plain", "fortran", "strided", "read-only"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def laid_out(array: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """The same values in another layout in memory."""
    if layout == "fortran":
        return np.array(array, order="F")  # np.asfortranarray gives a scalar an axis
    if layout == "strided" and array.ndim:
        wide = np.repeat(array, 2, axis=-1)
        return wide[..., ::2]
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array
