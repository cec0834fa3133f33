"""Stored artifacts that candidates are held against: one file each, in a folder under version control."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_modelserve.artifacts.artifact import Artifact, open_artifact
from pytest_modelserve.artifacts.durable import write_file
from pytest_modelserve.errors import ArtifactError, UsageError

_MOST_BYTES = 1 << 30
"""External data are put into the one file, and a protobuf message ends at 2 GiB."""


def baseline_path(folder: Path, name: str) -> Path:
    """The file of the baseline `name`; UsageError for a name that is no plain file name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"a baseline's name is letters, digits, '_', '-' and '.', not {name!r}")
    return folder / f"{name}.onnx"


def store_baseline(artifact: Artifact, path: Path) -> Artifact:
    """Replace the file at `path` by `artifact` in one step, and return the artifact that is there now.

    A model in one file is copied byte for byte and keeps its sha256; external data are put into the file, which then
    has another. ArtifactError for a model that changed since it was opened, for more than 1 GiB of external data, and
    for a folder that cannot be written.
    """
    if open_artifact(artifact.path).sha256 != artifact.sha256:
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    content = _one_file(artifact)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, [content])
    except OSError as error:
        raise ArtifactError(
            f"the baseline {path} cannot be written: {error.strerror or error}; choose another folder with "
            "--modelserve-baselines"
        ) from error
    return open_artifact(path)


def _one_file(artifact: Artifact) -> bytes:
    if not artifact.external:
        return artifact.path.read_bytes()
    if artifact.file_bytes > _MOST_BYTES:
        raise ArtifactError(
            f"{artifact.subject} has {artifact.file_bytes:,} bytes in {1 + len(artifact.external)} files, too many for "
            "a baseline of one file: keep it where it is and open it with open_artifact"
        )
    import onnx

    return onnx.load(artifact.path).SerializeToString()  # type: ignore[no-any-return]
