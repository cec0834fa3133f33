"""The hook by which the self-test of a suite replaces what its gates measure; without cost while it does not run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_modelserve.serving.predictor import Predictor


class Substitution(Protocol):
    """What gates get in place of what they were given; `replaces` is False for one that only observes."""

    replaces: bool

    def models(self, inputs: Any, served: list[Predictor]) -> list[Predictor]:
        """Return the predictors of a gate, of which the first is its subject; they stay open while the gate runs."""

    def data(self, data: Any, profile: Any, whole: Any, name: str | None) -> tuple[Any, Any]:
        """Return the data under test and the profile, which has the columns of the `whole` one that a gate chose."""


_active: Substitution | None = None


def active() -> Substitution | None:
    """Return the substitution in force, None in every normal run."""
    return _active


def is_replacing() -> bool:
    """Return whether the subjects of gates are replaced: a FAIL then needs no diagnosis and saves no file."""
    return _active is not None and _active.replaces


@contextmanager
def substituting(substitution: Substitution | None) -> Iterator[None]:
    """Put `substitution` in force, in all threads of this process."""
    global _active
    earlier, _active = _active, substitution
    try:
        yield
    finally:
        _active = earlier
