"""Checkpoints of unfinished trainings: one file, written atomically, that names the training it belongs to."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pytest_modelserve._files import write_file
from pytest_modelserve.errors import ArtifactError, UsageError

_MAGIC = b"pytest-modelserve checkpoint\n"
# 1: a line of JSON (format, identity, bytes, sha256), then the state as `torch.save` writes it.
FORMAT = 1
_REMEDY = "Delete the file to train from the beginning"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of an unfinished training.

    Attributes:
        identity: What the training depends on: digests of model, code and data, the settings, seed and versions.
        step: Steps done.
        weights: State dict of the module.
        state: All of the state, with optimizer, schedule, losses and the best weights so far.
    """

    identity: Mapping[str, Any]
    step: int
    weights: Mapping[str, Any] = field(repr=False)
    state: Mapping[str, Any] = field(repr=False)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Return the checkpoint in a file, for example to look at the weights before a loss became NaN.

    Raises:
        ArtifactError: The file cannot be read, is no checkpoint, is cut or damaged, or has a newer format.

    Example:
        >>> checkpoint = read_checkpoint(".modelserve/cache/checkpoints/1f….ckpt")  # doctest: +SKIP
        >>> module.load_state_dict(checkpoint.weights)  # doctest: +SKIP
    """
    header, content = _read_parts(Path(path))
    state = _read_state(Path(path), content)
    return Checkpoint(header["identity"], state["step"], state["module"], state)


@dataclass(slots=True)
class CheckpointFile:
    """The file of one training's checkpoint, written at most every `every_s` seconds.

    `identity` is what the training depends on, as JSON values.
    """

    path: Path
    identity: Mapping[str, Any]
    every_s: float
    saved_step: int | None = None
    _saved_at: float = field(default_factory=time.monotonic)
    _is_verified: bool = False

    def load(self) -> dict[str, Any] | None:
        """Return the state in the file, None if there is none.

        Raises:
            ArtifactError: As for `read_checkpoint`.
            UsageError: The checkpoint belongs to another training; the message names what differs.
        """
        if not self.path.exists():
            return None
        header, content = _read_parts(self.path)
        # Parsed from JSON, as that of the file was.
        if differences := _differences(header["identity"], json.loads(json.dumps(dict(self.identity)))):
            raise UsageError(
                f"the checkpoint {self.path} belongs to another training: {'; '.join(differences)}. {_REMEDY}, or use "
                "another one with checkpoint"
            )
        state = _read_state(self.path, content)
        self.saved_step = int(state["step"])
        return state

    def is_due(self) -> bool:
        """Return True if the last write is `every_s` seconds ago."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `state`; it is on the disk when this returns.

        Raises:
            UsageError: The state holds something that cannot be read back safely.
            ArtifactError: The file cannot be written.
        """
        import torch

        stream = BytesIO()
        torch.save(dict(state), stream)
        content = stream.getbuffer()
        header = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        if not self._is_verified:  # of one training all have the same types
            try:
                stream.seek(0)
                torch.load(stream, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise UsageError(
                    "the state of the optimizer or the schedule cannot be kept in a checkpoint, as it holds more than "
                    f"tensors, numbers, text, lists and mappings: {str(error).splitlines()[0]}"
                ) from error
            self._is_verified = True
        try:
            write_file(self.path, [_MAGIC, json.dumps(header).encode() + b"\n", content])
        except OSError as error:
            raise ArtifactError(
                f"the checkpoint {self.path} cannot be written: {error.strerror or error}. Free space or grant "
                "permission there, or choose another file with checkpoint"
            ) from error
        self.saved_step, self._saved_at = int(state["step"]), time.monotonic()


def check_every(every_s: float) -> None:
    """Raise UsageError for a time between checkpoints that is no number of at least 0."""
    if isinstance(every_s, bool) or not isinstance(every_s, (int, float)) or not every_s >= 0:
        raise UsageError(f"checkpoint_every_s must be a number of seconds, at least 0; got {every_s!r}")


def _read_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    if not text.startswith(_MAGIC):
        raise ArtifactError(f"{path} is no checkpoint of pytest-modelserve: use another file. It was not changed")
    line, _, content = text[len(_MAGIC) :].partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(line)
        version, size, sha256 = int(header["format"]), int(header["bytes"]), header["sha256"]
        dict(header["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the checkpoint {path} is damaged: its header cannot be read. {_REMEDY}") from error
    if version > FORMAT:
        raise ArtifactError(
            f"the checkpoint {path} has format {version}, and this version of pytest-modelserve reads up to {FORMAT}: "
            f"install the newer version that wrote it. {_REMEDY}"
        )
    if len(content) != size:
        how = "is cut" if len(content) < size else "is damaged"
        raise ArtifactError(f"the checkpoint {path} {how}: got {len(content)} bytes, expected {size}. {_REMEDY}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"the checkpoint {path} is damaged: its sha256 is not the one in its header. {_REMEDY}")
    return header, content


def _read_state(path: Path, content: bytes) -> dict[str, Any]:
    import torch

    try:
        state: dict[str, Any] = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(f"the checkpoint {path} is damaged: torch cannot read it. {_REMEDY}") from error
    return state


# What another digest means, by its name in the identity.
_DIGESTS = {
    "code": "other code (of the source's functions, of the module's classes or of pytest-modelserve)",
    "data": "other data",
    "model": "other initial weights",
}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return what differs, in words."""
    found = []
    for name in sorted({*theirs, *ours}):
        one, other = theirs.get(name), ours.get(name)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            changed = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
            found += [f"{name}: {key} {one.get(key)!r}, here {other.get(key)!r}" for key in changed]
        elif name in _DIGESTS:
            found.append(_DIGESTS[name])
        else:
            found.append(f"{name} {one!r}, here {other!r}")
    return found
