"""Why a child process failed, as it crosses to its parent: the class of the error and its words."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_modelserve.errors import (
    ArtifactError,
    BakedAxisError,
    ControlFlowError,
    ExportError,
    ModelServeError,
    UnsupportedOperatorError,
)

CAUSE_FILE = "cause.json"
_CLASSES: dict[str, type[ModelServeError]] = {
    each.__name__: each
    for each in (ArtifactError, BakedAxisError, ControlFlowError, ExportError, UnsupportedOperatorError)
}


@dataclass(frozen=True, slots=True)
class Cause:
    """`error` is the name of the class to raise in the parent; `told` says why in a sentence, `detail` what else is
    known."""

    error: str
    told: str
    detail: str = ""

    def leave_in(self, folder: Path) -> None:
        """Write it where `found_in` of the parent looks for it."""
        (folder / CAUSE_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    def raised(self, message: str) -> ModelServeError:
        """The error to raise in the parent, with `message`."""
        return _CLASSES[self.error](message)


def found_in(folder: Path) -> Cause | None:
    """What a child left in `folder`; None where it left nothing, or was ended while it wrote."""
    try:
        return Cause(**json.loads((folder / CAUSE_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None
