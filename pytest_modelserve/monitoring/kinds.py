"""What a column can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Number = Literal["float", "integer", "boolean", "datetime"]
Kind = Literal["float", "integer", "boolean", "datetime", "category"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column (n,): numbers, of which NaN is null, or str objects, of which None is null.

    `kind` is None where every row is null, which is then all that is known of it. Times are numbers too: seconds since
    the start of 1970 in UTC. `source` is the column of the data that this one was made of, if it was: the text whose
    lengths it holds, or the embedding that it is one number of.
    """

    name: str
    kind: Kind | None
    values: NDArray[Any]
    source: str | None = None
