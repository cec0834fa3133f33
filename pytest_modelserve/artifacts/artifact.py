"""A model file with identity: what it is, what it takes and gives, and where it came from."""

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

from pytest_modelserve._files import write_file
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

if TYPE_CHECKING:
    import onnx


# Whether a file can have changed since it was read, by what the file system says of it.


# A file that changes twice within one tick of the file system's clock keeps its time: up to 10 ms on Linux, and up to
# 2 s (FAT) where whole seconds are all that it stores.
_TICK_NS, _COARSE_TICK_NS = 100_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileState:
    """A file before it was read at `seen_ns`, by the clock that tells its times."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    seen_ns: int

    def is_surely_unchanged(self, path: Path) -> bool:
        """Whether the file at `path` is surely the one that was read; False also where that cannot be told.

        A write leaves another time, except within the tick of the clock in which the one before it fell: of a file that
        was read so soon after it was written, nothing can be told (the "racy" entries of git's index).
        """
        return self._is_settled and self.matches(file_state(path))

    def matches(self, other: FileState) -> bool:
        """Whether both are of one file with the same times."""
        return replace(self, seen_ns=other.seen_ns) == other

    @property
    def _is_settled(self) -> bool:
        tick = _TICK_NS if self.modified_ns % _SECOND_NS else _COARSE_TICK_NS
        return max(self.modified_ns, self.changed_ns) + tick < self.seen_ns


def file_state(path: Path) -> FileState:
    """The stamp of the file at `path`, to be taken before it is read; OSError where there is none."""
    seen_ns = time.time_ns()
    found = os.stat(path)
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, seen_ns)


# No ONNX file begins with 0xff (protobuf has no such tag), so no single file has the digest of a framed list of files.
_FRAME = b"\xffpytest_modelserve: model and external data\0"
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An ONNX model on disk.

    `sha256` is that of the file itself, as `sha256sum` prints it; with external data it covers the model and each file
    beside it, their names and lengths included. `file_bytes` is the size of all files together, `initializer_bytes`
    that of the stored tensors alone, wherever they lie. The file's own name is not part of the digest: a renamed copy
    is the same artifact. `stamps` are those of the model file and then of `external`, as they were before the digest.
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

    @property
    def subject(self) -> Subject:
        """The artifact as evidence names it."""
        return Subject(self.name, self.variant, self.sha256)


def open_artifact(path: str | os.PathLike[str], *, name: str | None = None, variant: str | None = None) -> Artifact:
    """The artifact at `path`; the weights are hashed, not loaded, and nothing of the model is run.

    Name, variant and lineage are those in the file's metadata; without them the file's stem, "" and (). `name` and
    `variant` override what the file says. A file that is missing, empty, cut short or no ONNX model, and external data
    that are missing, too short or outside the model's folder, are an ArtifactError.
    """
    found = describe_file(Path(path).absolute(), None)
    return replace(
        found, name=found.name if name is None else name, variant=found.variant if variant is None else variant
    )


def describe_file(path: Path, model_sha256: bytes | None) -> Artifact:
    """The artifact at the absolute `path`, of which the sha256 of the model file is known, or None."""
    try:
        stamp = _stamp(path)
        model_sha256 = model_sha256 or _sha256(path)
        model = read_graph(path)
        label = read_label(model, default_name=path.stem)
        external = external_files(model, path)
        file_states = (stamp, *(file_state(file.path) for file in external))
        sha256 = _digest(model_sha256, stamp.size, external)
        if not file_state(path).matches(stamp):
            raise ArtifactError("it was written to meanwhile: open it again when that is done")
    except ArtifactError as error:
        raise ArtifactError(f"cannot open the model {path}: {error}") from error.__cause__
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
    """The model of `artifact` as protobuf; tensors in external files stay there.

    A file that is no longer the one that was opened is an ArtifactError.
    """
    before = artifact.path.exists() and file_state(artifact.path)
    model = parse_model(artifact.path.read_bytes()) if is_unchanged(artifact) else None
    if model is None or not before or not file_state(artifact.path).matches(before):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """What the file at `path` holds now, less the content of large weights: initializers with dims and no data.

    Integers of 32 and 64 bits are there whatever their size. The weights are not read, so this takes milliseconds for
    a model of any size. ArtifactError for a file that is no model.
    """
    with open(path, "rb") as file:
        try:
            return parse_model(read_without_weights(file))
        except (MalformedError, ArtifactError):
            return parse_model(path.read_bytes())  # which says what is wrong with it


def is_unchanged(artifact: Artifact) -> bool:
    """Whether the files of `artifact` are those that were opened.

    The digest tells, unless the file system does: what has the times, size and inode of then, and was at rest then.
    ArtifactError for a file that cannot be opened any more.
    """
    files = (artifact.path, *artifact.external)
    try:
        known = len(artifact.file_states) == len(files)
        if known and all(
            stamp.is_surely_unchanged(path) for stamp, path in zip(artifact.file_states, files, strict=True)
        ):
            return True
    except OSError:
        pass  # open_artifact says what is missing
    return open_artifact(artifact.path).sha256 == artifact.sha256


def relocated(artifact: Artifact, folder: Path) -> Artifact:
    """`artifact` after its files were moved into `folder`, where they lie as they did in the folder of its model."""
    external = tuple(folder / path.relative_to(artifact.path.parent) for path in artifact.external)
    return replace(artifact, path=folder / artifact.path.name, external=external)


def without_change_check(artifact: Artifact) -> Artifact:
    """`artifact` as one that nobody but the caller can write to meanwhile: its digest need not be taken again."""
    return replace(artifact, file_states=tuple(replace(stamp, seen_ns=sys.maxsize) for stamp in artifact.file_states))


def check_model(model: onnx.ModelProto) -> None:
    """ArtifactError for what parses as a model and is none, as half a file may."""
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError("it holds no graph with an output, so it is not an ONNX model, or was cut short")
    if not model.opset_import:
        raise ArtifactError("it names no operator set (opset_import), so it was cut short or badly converted")


def parse_model(content: bytes) -> onnx.ModelProto:
    """The model in `content`, a whole file; ArtifactError where it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ArtifactError("it is cut short, or not an ONNX model at all") from error
    check_model(model)
    return model


def _stamp(path: Path) -> FileState:
    if path.is_dir():
        raise ArtifactError("it is a folder; give the .onnx file in it")
    if not path.exists():
        raise ArtifactError("there is no such file")
    stamp = file_state(path)
    if not stamp.size:
        raise ArtifactError("the file is empty")
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ArtifactError("it is a Git LFS pointer, not the model itself: run `git lfs pull`")
    return stamp


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


# Stored artifacts that candidates are held against: one file each, in a folder under version control.


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


# Writing a model with its label, whole or not at all.


# A protobuf message ends at 2 GiB. Half of it leaves room for the tensors that are too small to move out.
INLINE_LIMIT_BYTES = 1 << 30
# Smaller tensors stay in the model file, as onnx itself has it (size_threshold of convert_model_to_external_data).
_SMALL_BYTES = 1024
# onnx's ExternalData.md asks for page alignment, so that a runtime can map the file.
_PAGE_BYTES = 4096


def save_artifact(
    model: onnx.ModelProto,
    path: Path,
    *,
    name: str,
    variant: str,
    lineage: Sequence[LineageStep],
    external_data: bool = False,
) -> Artifact:
    """Write `model` to `path` with its name, variant and lineage inside, and open it as an Artifact.

    `model` itself is not changed. Tensors that it keeps in external files stay there, and those files must lie beside
    `path` already. Weights of more than 1 GiB, and with `external_data` any of 1 KiB and more, go to a file of their
    own beside the model, which carries the first digits of its digest in its name, so that an earlier model of the same
    name stays whole until the last step. A kill leaves the old model or the new one. A folder that cannot be written is
    an ArtifactError.
    """
    path = Path(path).absolute()
    inline = sum(tensor_bytes(tensor) for tensor in tensors_of(model) if tensor.HasField("raw_data"))
    is_moved = external_data or inline > INLINE_LIMIT_BYTES
    labelled = copy_without_weights(model)
    write_label(labelled, Label(name, variant, tuple(lineage)))
    try:
        if is_moved:
            restore_weights(labelled, model)
            _move_out(labelled, path)
        sha256 = _write(path, serialize(labelled, None if is_moved else model))
    except OSError as error:
        raise ArtifactError(f"cannot write the model {path}: {error.strerror or error}") from error
    return describe_file(path, sha256)


def _write(path: Path, chunks: Iterable[bytes]) -> bytes:
    """Write `chunks` to `path` in one step; the sha256 of the file."""
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in chunks:
            digest.update(chunk)
            yield chunk

    write_file(path, hashed())
    return digest.digest()


def _move_out(model: onnx.ModelProto, path: Path) -> None:
    """Write the large tensors of `model` to a file beside `path` and leave references in their place."""
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


def load_with_weights(artifact: Artifact) -> onnx.ModelProto:
    """The model with all its weights."""
    import onnx

    model = load_model(artifact)
    onnx.load_external_data_for_model(model, str(artifact.path.parent))
    return model
