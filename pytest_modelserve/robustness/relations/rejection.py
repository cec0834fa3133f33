"""Inputs that do not fit the model are refused, by an exception that a caller can catch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pytest_modelserve.errors import UsageError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, row_count
from pytest_modelserve.robustness.malformed import faults_of, malformed
from pytest_modelserve.robustness.sources import source_for
from pytest_modelserve.robustness.violations import Violations
from pytest_modelserve.serving.isolated import ProcessEndedError

_NAMED = (": missing", ": another name", "an input more")
"""Faults that a function which takes its one array without a name cannot be given."""


@dataclass(frozen=True, slots=True)
class CleanRejection:
    """See `clean_rejection`."""

    errors: tuple[type[Exception], ...]
    name: str = "clean rejection"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"malformed inputs raise {', '.join(error.__name__ for error in self.errors)}, and have no answer"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """All rows or none: the faults are those of every row."""
        like = base if predictor.batch != 0 else {name: array[0, ...] for name, array in base.items()}
        source = source_for(predictor.predictor, like=like, max_batch=1, domain="like", empty=False)
        bare = predictor.signature is None and predictor.bare
        faults = [fault for fault in faults_of(source) if not (bare and fault.endswith(_NAMED))]
        wrong = [told for fault in faults if (told := self._amiss(predictor, malformed(source, fault), fault, bare))]
        return Violations(np.full(row_count(candidates), bool(wrong)), None, "; ".join(wrong))

    def _amiss(self, predictor: Answering, inputs: Any, fault: str, bare: bool) -> str:
        """What happened instead of a refusal, nothing where the model refuses."""
        try:
            predictor.predictor.predict(next(iter(inputs.values())) if bare else dict(inputs))
        except ProcessEndedError as error:
            return f"{fault}: {error}"
        except self.errors:
            return ""
        except Exception as error:  # what a model raises in place of a refusal is what is asked
            return f"{fault}: {type(error).__name__}: {error}"
        return f"{fault}: it was answered"


def clean_rejection(
    errors: type[Exception] | tuple[type[Exception], ...] = (ValueError, TypeError, KeyError),
) -> CleanRejection:
    """Inputs with one fault each raise one of `errors`: no answer, no other exception, and no end of the process.

    The faults are those of `strategies.malformed_inputs`: an input that is missing, unknown, misnamed, of another
    dtype, of one axis more or less, or longer along a fixed axis. InputError is a ValueError. Nothing is tolerated.
    Holds for every model in onnxruntime as this package serves it; broken by functions that cast, broadcast or ignore
    what they are given. What ends the process is seen with `isolate=True`.
    """
    held = errors if isinstance(errors, tuple) else (errors,)
    if not held or not all(isinstance(error, type) and issubclass(error, Exception) for error in held):
        raise UsageError("errors are classes of exceptions, such as InputError")
    return CleanRejection(held)
