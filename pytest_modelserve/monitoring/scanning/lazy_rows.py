"""Rows that an engine holds, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError, ModelServeError
from pytest_modelserve.monitoring.frames import Frame, is_lazy

if TYPE_CHECKING:
    import narwhals
    import polars


@dataclass(frozen=True, slots=True)
class LazyRows:
    """A lazy frame, and what messages call it."""

    frame: narwhals.LazyFrame[Any]
    name: str

    @classmethod
    def of(cls, frame: Frame, name: str) -> LazyRows:
        """The rows of a lazy frame of any library that narwhals knows; InputError for anything else."""
        if not is_lazy(frame):
            raise InputError(f"{type(frame).__name__} is no lazy frame: reference_profile reads what lies in memory")
        import narwhals

        return cls(narwhals.from_native(frame), name)

    def schema(self) -> dict[str, Any]:
        """The type of each column, by its name."""
        with self._told():
            return dict(self.frame.collect_schema())

    def answer(self, query: narwhals.LazyFrame[Any]) -> polars.DataFrame:
        """The rows of `query`, which is one over these rows; InputError with the first line of what the engine says."""
        with self._told():
            answer: polars.DataFrame = query.collect(backend="polars").to_native()
            return answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (ModelServeError, MemoryError):
            raise
        except Exception as error:  # each engine has errors of its own, and none of their classes is known here
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name} cannot be scanned: {reason}") from error
