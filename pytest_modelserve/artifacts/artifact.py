"""Artifacts: model files with a digest, signature and lineage, opened, saved and stored as baselines."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve._files import as_path, write_file
from pytest_modelserve._onnx.graph import ExternalFile, external_files, stored_bytes, tensor_bytes, tensors_of
from pytest_modelserve._onnx.serialization import (
    MalformedError,
    copy_without_weights,
    read_without_weights,
    restore_weights,
    serialize,
)
from pytest_modelserve.artifacts.metadata import Label, LineageStep, Signature, read_label, signature_of, write_label
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import Subject

if TYPE_CHECKING:
    import onnx

# No ONNX file begins with 0xff (protobuf has no such tag), so no single file has the digest of a list of files.
_FRAME = b"\xffpytest_modelserve: model and external data\0"
_LFS = b"version https://git-lfs"
# A protobuf message ends at 2 GiB. Half of it leaves space for tensors that are too small to move out.
INLINE_LIMIT_BYTES = 1 << 30
# Smaller tensors stay in the model file, as in onnx (size_threshold of convert_model_to_external_data).
_SMALL_BYTES = 1024
# onnx's ExternalData.md asks for page alignment, so that a runtime can map the file.
_PAGE_BYTES = 4096
# Limit of a baseline: external data are merged into its one file, and a protobuf message ends at 2 GiB.
_MAX_BASELINE_BYTES = 1 << 30
# A file that changes twice within one tick of the file system's clock keeps its time: up to 10 ms on Linux, and up to
# 2 s (FAT) where whole seconds are all that it stores.
_TICK_NS, _COARSE_TICK_NS = 100_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Artifact:
    """An ONNX model on disk.

    Attributes:
        path: The model file.
        external: Files with external data.
        sha256: Digest of the model file, as `sha256sum` prints it. With external data it covers all files, and names
            and lengths of the external ones. The name of the model file is not part of it.
        signature: Inputs and outputs.
        lineage: The steps that made the model, the first one first.
        name: Name of the model, for example "digits_cnn".
        variant: "fp32", "int8-dynamic" and so on.
        file_bytes: Size of all files.
        initializer_bytes: Size of the stored tensors, inside the model file and outside.
        file_states: States of the model file and of `external` before they were hashed.
        opened_by_user: Whether `open_artifact` read a file of the user; False if a stage of this project made it.
    """

    path: Path
    external: tuple[Path, ...]
    sha256: str
    signature: Signature
    lineage: tuple[LineageStep, ...]
    name: str
    variant: str
    file_bytes: int
    initializer_bytes: int
    file_states: tuple[FileState, ...] = field(default=(), compare=False, repr=False)
    opened_by_user: bool = field(default=False, compare=False, repr=False)

    def __repr__(self) -> str:
        """Return one line: all fields fill a page of a failing test."""
        return f"<Artifact {self.subject}: {self.signature}, sha256 {self.sha256[:12]}…>"

    @property
    def subject(self) -> Subject:
        """Return the artifact as evidence names it."""
        return Subject(self.name, self.variant, self.sha256)


_TORCH = ": load it with torch, and pass the module, or what export(module, rows) returns"
_PICKLE = ": load it, and pass the estimator"
_OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".pt2", ".ckpt", ".safetensors"), _TORCH),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
}
"""What to do with the files of other libraries."""


def open_artifact(path: str | os.PathLike[str], *, name: str | None = None, variant: str | None = None) -> Artifact:
    """Open the ONNX model at `path`: hash its files and read its graph, without loading weights.

    Args:
        path: The .onnx file.
        name: Overrides the name in the metadata. Without both it is the stem of the file.
        variant: Overrides the variant in the metadata. Without both it is "".

    Returns:
        The artifact, with the lineage in the metadata or ().

    Raises:
        UsageError: `path` is no path.
        ArtifactError: The file is missing, empty, truncated or not an ONNX model, or external data are missing, too
            short or outside the folder of the model.

    Example:
        >>> champion = open_artifact("models/champion.onnx", name="digits")  # doctest: +SKIP
        >>> print(champion.signature)  # doctest: +SKIP
        image: float32[batch, 8, 8] -> logits: float32[batch, 10]
    """
    if isinstance(path, str) and "://" in path:
        scheme = path.partition("://")[0]
        raise UsageError(f"{scheme}://… is the address of an endpoint: the model's file is needed here, give its path")
    found = describe_file(as_path("model", path))
    return replace(
        found,
        name=found.name if name is None else name,
        variant=found.variant if variant is None else variant,
        opened_by_user=True,
    )


def as_artifact(subject: object) -> Artifact:
    """Return the artifact of a path, an artifact, or a predictor that serves a file; otherwise raise UsageError."""
    if isinstance(subject, (str, os.PathLike)):
        return open_artifact(subject)
    artifact = subject if isinstance(subject, Artifact) else getattr(subject, "artifact", None)
    if isinstance(artifact, Artifact):
        return artifact
    raise UsageError(
        "artifact must be an Artifact, the path of an ONNX file, or a predictor that serves one; got "
        f"{type(subject).__name__}: the file itself is needed"
    )


def describe_file(path: Path, model_sha256: bytes | None = None) -> Artifact:
    """Open the artifact at `path`, a file of this project; `model_sha256` is the digest of the model file if known."""
    path = path.absolute()
    try:
        state = _model_state(path)
        model_sha256 = model_sha256 or _sha256(path)
        model = read_graph(path)
        label = read_label(model, default_name=path.stem)
        external = external_files(model, path)
        file_states = (state, *(file_state(file.path) for file in external))
        sha256 = _digest(model_sha256, state.size, external)
        if not file_state(path).matches(state):
            raise ArtifactError("it was modified while it was read: open it again")
    except ArtifactError as error:
        hint = _OTHER_FORMATS.get(path.suffix.lower(), "")
        raise ArtifactError(f"cannot open the model {path}: {error}{hint}") from error.__cause__
    except OSError as error:
        raise ArtifactError(f"cannot open the model {path}: {error.strerror or error}") from error
    return Artifact(
        path=path,
        external=tuple(file.path for file in external),
        sha256=sha256,
        signature=signature_of(model),
        lineage=label.lineage,
        name=label.name,
        variant=label.variant,
        file_bytes=sum(each.size for each in file_states),
        initializer_bytes=stored_bytes(model),
        file_states=file_states,
    )


def load_model(artifact: Artifact) -> onnx.ModelProto:
    """Load the model of `artifact` as protobuf, without external tensors.

    Raises:
        ArtifactError: The file changed since it was opened.
    """
    before = artifact.path.exists() and file_state(artifact.path)
    model = parse_model(artifact.path.read_bytes()) if is_unchanged(artifact) else None
    if model is None or not before or not file_state(artifact.path).matches(before):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return model


def load_with_weights(artifact: Artifact) -> onnx.ModelProto:
    """Load the model of `artifact` with all weights, external ones included."""
    import onnx

    model = load_model(artifact)
    onnx.load_external_data_for_model(model, str(artifact.path.parent))
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """Read the model at `path` without the data of large weights, in milliseconds for any size.

    Integer initializers of 32 and 64 bits are complete.

    Raises:
        ArtifactError: The file is not a model.
    """
    with open(path, "rb") as file:
        try:
            return parse_model(read_without_weights(file))
        except (MalformedError, ArtifactError):
            return parse_model(path.read_bytes())  # raises what is wrong


def is_unchanged(artifact: Artifact) -> bool:
    """Return True if the files of `artifact` still have the content that was opened.

    Files with the same times, size and inode are not hashed again, unless they were read right after a write.

    Raises:
        ArtifactError: A file cannot be opened any more.
    """
    files = (artifact.path, *artifact.external)
    try:
        known = len(artifact.file_states) == len(files)
        if known and all(
            state.is_surely_unchanged(path) for state, path in zip(artifact.file_states, files, strict=True)
        ):
            return True
    except OSError:
        pass  # open_artifact raises what is missing
    return open_artifact(artifact.path).sha256 == artifact.sha256


def relocated(artifact: Artifact, folder: Path) -> Artifact:
    """Return `artifact` after its files moved into `folder`, with the same relative paths."""
    external = tuple(folder / path.relative_to(artifact.path.parent) for path in artifact.external)
    return replace(artifact, path=folder / artifact.path.name, external=external)


def without_change_check(artifact: Artifact) -> Artifact:
    """Return `artifact` as one that only the caller writes to: `is_unchanged` never hashes it again."""
    return replace(artifact, file_states=tuple(replace(state, seen_ns=sys.maxsize) for state in artifact.file_states))


def check_model(model: onnx.ModelProto) -> None:
    """Raise ArtifactError for what parses as a model but is none, for example half a file."""
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError("it has no graph with an output, so it is not an ONNX model, or was truncated")
    if not model.opset_import:
        raise ArtifactError("it has no operator set (opset_import), so it was truncated or wrongly converted")


def parse_model(content: bytes) -> onnx.ModelProto:
    """Parse the content of a model file; raise ArtifactError if it is not a model."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ArtifactError("it is truncated, or not an ONNX model") from error
    check_model(model)
    return model


def _model_state(path: Path) -> FileState:
    if path.is_dir():
        raise ArtifactError("it is a folder: pass the .onnx file in it")
    if not path.exists():
        raise ArtifactError("there is no such file")
    state = file_state(path)
    if not state.size:
        raise ArtifactError("the file is empty")
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ArtifactError("it is a Git LFS pointer, not the model itself: run `git lfs pull`")
    return state


def _digest(model_sha256: bytes, model_bytes: int, external: tuple[ExternalFile, ...]) -> str:
    if not external:
        return model_sha256.hex()
    framed = hashlib.sha256(_FRAME)
    framed.update(struct.pack("<Q", model_bytes) + model_sha256)
    for file in external:
        name = file.location.encode("utf-8", "surrogatepass")
        content = _sha256(file.path)
        framed.update(struct.pack("<Q", len(name)) + name + struct.pack("<Q", file.path.stat().st_size) + content)
    return framed.hexdigest()


def _sha256(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# Saving.


def save_artifact(
    model: onnx.ModelProto,
    path: Path,
    *,
    name: str,
    variant: str,
    lineage: Sequence[LineageStep],
    external_data: bool = False,
) -> Artifact:
    """Write `model` with its name, variant and lineage to `path` and open it as an Artifact.

    The write is atomic: a kill leaves the old model or the new one. `model` is not changed. Its external files must lie
    in the folder of `path` already.

    Args:
        model: The model.
        path: The file to write.
        name: Name of the model.
        variant: Its variant.
        lineage: The steps that made it.
        external_data: Move tensors of 1 KiB and more to an external file, as for weights of more than 1 GiB. Its name
            has the first digits of its digest, so that an earlier model of the same name stays intact until the last
            step.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    path = Path(path).absolute()
    inline = sum(tensor_bytes(tensor) for tensor in tensors_of(model) if tensor.HasField("raw_data"))
    is_moved = external_data or inline > INLINE_LIMIT_BYTES
    labeled = copy_without_weights(model)
    write_label(labeled, Label(name, variant, tuple(lineage)))
    try:
        if is_moved:
            restore_weights(labeled, model)
            _move_out(labeled, path)
        sha256 = _write(path, serialize(labeled, None if is_moved else model))
    except OSError as error:
        raise ArtifactError(f"cannot write the model {path}: {error.strerror or error}") from error
    return describe_file(path, sha256)


def _write(path: Path, chunks: Iterable[bytes]) -> bytes:
    """Write `chunks` to `path` atomically and return the sha256 of the file."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    write_file(path, hashed())
    return digest.digest()


def _move_out(model: onnx.ModelProto, path: Path) -> None:
    """Move the large tensors of `model` to an external file next to `path`."""
    import onnx

    moved = [tensor for tensor in tensors_of(model) if len(tensor.raw_data) >= _SMALL_BYTES]
    if not moved:
        return
    digest = hashlib.sha256()
    for tensor in moved:
        digest.update(tensor.raw_data)
    location = f"{path.name}.{digest.hexdigest()[:12]}.data"
    write_file(path.with_name(location), _padded(moved))
    offset = 0
    for tensor in moved:
        length = len(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, location, offset, length)
        tensor.ClearField("raw_data")
        offset += length + _padding(length)


def _padded(tensors: Sequence[onnx.TensorProto]) -> Iterator[bytes]:
    for tensor in tensors:
        yield tensor.raw_data
        yield bytes(_padding(len(tensor.raw_data)))


def _padding(length: int) -> int:
    return -length % _PAGE_BYTES


# Baselines: one file each, in a folder under version control.


def baseline_path(folder: Path, name: str) -> Path:
    """Return the file of the baseline `name`; raise UsageError for an invalid name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"baseline name {name!r} is invalid: use letters, digits, '_', '-' and '.'")
    return folder / f"{name}.onnx"


def store_baseline(artifact: Artifact, path: Path) -> Artifact:
    """Replace the file at `path` by `artifact` atomically and return the artifact at `path`.

    A model in one file is copied and keeps its sha256. External data are merged into the file, which changes it.

    Raises:
        ArtifactError: The model changed since it was opened, has more than 1 GiB with external data, or the folder
            cannot be written.
    """
    if open_artifact(artifact.path).sha256 != artifact.sha256:
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    content = _one_file(artifact)
    try:
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
    if artifact.file_bytes > _MAX_BASELINE_BYTES:
        raise ArtifactError(
            f"{artifact.subject} has {artifact.file_bytes:,} bytes in {1 + len(artifact.external)} files, too many for "
            "a baseline, which is one file: keep the model where it is and open it with open_artifact"
        )
    import onnx

    return onnx.load(artifact.path).SerializeToString()  # type: ignore[no-any-return]


# State of a file in the file system.


@dataclass(frozen=True, slots=True)
class FileState:
    """Metadata of a file before it was read at `seen_ns`."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    seen_ns: int

    def is_surely_unchanged(self, path: Path) -> bool:
        """Return True if the file at `path` certainly has the content that was read.

        A write changes the times, except within the same tick of the clock. The result is therefore False for a file
        that was read right after a write (the "racy" entries of git's index).
        """
        return self._is_settled and self.matches(file_state(path))

    def matches(self, other: FileState) -> bool:
        """Return True if both are of the same file with the same times."""
        return replace(self, seen_ns=other.seen_ns) == other

    @property
    def _is_settled(self) -> bool:
        tick = _TICK_NS if self.modified_ns % _SECOND_NS else _COARSE_TICK_NS
        return max(self.modified_ns, self.changed_ns) + tick < self.seen_ns


def file_state(path: Path) -> FileState:
    """Return the state of the file at `path`, to be taken before it is read; raise OSError if there is none."""
    seen_ns = time.time_ns()
    found = os.stat(path)
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, seen_ns)
