"""Adversarial rows as files: what an assertion found, saved with labels, to be replayed on this or another model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import Output, class_labels, decode
from pytest_modelserve.serving.inputs import select_output
from pytest_modelserve.serving.serve import open_models

if TYPE_CHECKING:
    from pytest_modelserve.serving import Servable

ADVERSARIAL_FOLDER = Path(".modelserve", "adversarial")
_LABELS, _ROWS, _BASE = "labels", "rows", "base "


@dataclass(frozen=True, slots=True, eq=False)
class AdversarialRows:
    """Rows that a model predicted wrong, each an admissible change of a row that it predicted right.

    Attributes:
        inputs: The inputs by name, (n, ...); "" is the name of an array alone.
        labels: Class labels (n,).
        rows: Numbers of the changed rows among the rows of the assertion, (n,).
        base: The inputs that were changed, before the change.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]
    rows: NDArray[np.intp]
    base: Mapping[str, NDArray[Any]]

    def fooled(self, predictor: Servable, *, output: Output | str | None = None) -> NDArray[np.bool_]:
        """Return which rows (n,) a model predicts wrong: of the attacked model, all; of a retrained one, fewer.

        Args:
            predictor: The model: whatever `ms.serve` takes.
            output: The output to read, by name or as `ms.Output`.

        Returns:
            Whether each prediction is not the label, bool (n,). NaN scores count as wrong.
        """
        read = Output.of(output)
        given = self.inputs.get("", self.inputs)
        with open_models(predictor, inputs=given) as (batch, (served,)):
            _, scores = select_output(served, served.predict(batch), read.name, reads_labels=True)
        decoded = decode(scores, read.decode)
        return np.asarray((decoded.labels != class_labels(self.labels, what="labels")) | decoded.invalid)

    def save(self, folder: Path, *, subject: Subject, about: str) -> Path:
        """Save the rows as one file in one step, and return its absolute path.

        Its name comes from the model's name, `about` and the running test, so that the same failure replaces its file.
        ArtifactError if an input is redacted, because the rest could not be replayed.
        """
        from pytest_modelserve.parity.failing_inputs import git_ignored_folder  # the parity gates load onnxruntime
        from pytest_modelserve.parity.recordings.exchange import Exchange
        from pytest_modelserve.parity.recordings.npz import write_npz
        from pytest_modelserve.parity.recordings.redaction import Redaction

        if Redaction.of().hides(self.inputs):
            raise ArtifactError("modelserve_redact names an input of them")
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        name = "".join(letter if letter.isalnum() else "-" for letter in subject.name.lower())[:40].strip("-")
        digest = hashlib.sha256("|".join((subject.name, subject.variant, about, test)).encode()).hexdigest()
        path = git_ignored_folder(folder).absolute() / f"{name}-{digest[:8]}.npz"
        inputs: Any = self.inputs[""] if set(self.inputs) == {""} else dict(self.inputs)
        outputs = {_LABELS: self.labels, _ROWS: self.rows} | {f"{_BASE}{name}": self.base[name] for name in self.base}
        write_npz(path, [Exchange(inputs, outputs)], subject)
        return path


def saved(path: str | os.PathLike[str]) -> AdversarialRows:
    """Return the adversarial rows of a file that `assert_robust` saved.

    Args:
        path: The file that the failure text names.

    Returns:
        The rows with their labels; `fooled(model)` replays them.

    Raises:
        ArtifactError: The file cannot be read, or holds no adversarial rows.

    Example:
        `assert not ms.attacks.saved(path).fooled(retrained).any()` keeps what was found as a regression test.
    """
    from pytest_modelserve.parity.recordings.npz import NpzExchanges

    try:
        exchange = NpzExchanges.of(Path(path)).read(0)
        outputs = dict(exchange.outputs)
        labels, rows = outputs.pop(_LABELS), outputs.pop(_ROWS)
    except (ArtifactError, IndexError, KeyError) as error:
        raise ArtifactError(f"{path} holds no adversarial rows of assert_robust: {error}") from error
    inputs = exchange.inputs if isinstance(exchange.inputs, Mapping) else {"": exchange.inputs}
    base = {name.removeprefix(_BASE): array for name, array in outputs.items()}
    return AdversarialRows(inputs, labels, rows.astype(np.intp), base)
