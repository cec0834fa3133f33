"""A model file with identity: what it is, what it takes and gives, and where it came from."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.external import ExternalFile, external_files, stored_bytes
from pytest_modelserve.artifacts.lineage import LineageStep, read_label
from pytest_modelserve.artifacts.signature import Signature, signature_of
from pytest_modelserve.artifacts.stamp import Stamp, stamp_of
from pytest_modelserve.artifacts.wire import MalformedError, without_weights
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import Subject

if TYPE_CHECKING:
    import onnx

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
    stamps: tuple[Stamp, ...] = field(default=(), compare=False, repr=False)

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
    found = described(Path(path).absolute(), None)
    return replace(
        found, name=found.name if name is None else name, variant=found.variant if variant is None else variant
    )


def described(path: Path, model_sha256: bytes | None) -> Artifact:
    """The artifact at the absolute `path`, of which the sha256 of the model file is known, or None."""
    try:
        stamp = _stamp(path)
        model_sha256 = model_sha256 or _sha256(path)
        model = read_graph(path)
        label = read_label(model, default_name=path.stem)
        external = external_files(model, path)
        stamps = (stamp, *(stamp_of(file.path) for file in external))
        sha256 = _digest(model_sha256, stamp.size, external)
        if not stamp_of(path).is_of(stamp):
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
        file_bytes=sum(each.size for each in stamps),
        initializer_bytes=stored_bytes(model),
        stamps=stamps,
    )


def load_model(artifact: Artifact) -> onnx.ModelProto:
    """The model of `artifact` as protobuf; tensors in external files stay there.

    A file that is no longer the one that was opened is an ArtifactError.
    """
    before = artifact.path.exists() and stamp_of(artifact.path)
    model = parsed(artifact.path.read_bytes()) if is_unchanged(artifact) else None
    if model is None or not before or not stamp_of(artifact.path).is_of(before):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """What the file at `path` holds now, less the content of large weights: initializers with dims and no data.

    Integers of 32 and 64 bits are there whatever their size. The weights are not read, so this takes milliseconds for
    a model of any size. ArtifactError for a file that is no model.
    """
    with open(path, "rb") as file:
        try:
            return parsed(without_weights(file))
        except (MalformedError, ArtifactError):
            return parsed(path.read_bytes())  # which says what is wrong with it


def is_unchanged(artifact: Artifact) -> bool:
    """Whether the files of `artifact` are those that were opened.

    The digest tells, unless the file system does: what has the times, size and inode of then, and was at rest then.
    ArtifactError for a file that cannot be opened any more.
    """
    files = (artifact.path, *artifact.external)
    try:
        known = len(artifact.stamps) == len(files)
        if known and all(stamp.still_holds(path) for stamp, path in zip(artifact.stamps, files, strict=True)):
            return True
    except OSError:
        pass  # open_artifact says what is missing
    return open_artifact(artifact.path).sha256 == artifact.sha256


def moved(artifact: Artifact, folder: Path) -> Artifact:
    """`artifact` after its files were moved into `folder`, where they lie as they did in the folder of its model."""
    external = tuple(folder / path.relative_to(artifact.path.parent) for path in artifact.external)
    return replace(artifact, path=folder / artifact.path.name, external=external)


def at_rest(artifact: Artifact) -> Artifact:
    """`artifact` as one that nobody but the caller can write to meanwhile: its digest need not be taken again."""
    return replace(artifact, stamps=tuple(replace(stamp, seen_ns=sys.maxsize) for stamp in artifact.stamps))


def check_model(model: onnx.ModelProto) -> None:
    """ArtifactError for what parses as a model and is none, as half a file may."""
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError("it holds no graph with an output, so it is not an ONNX model, or was cut short")
    if not model.opset_import:
        raise ArtifactError("it names no operator set (opset_import), so it was cut short or badly converted")


def parsed(content: bytes) -> onnx.ModelProto:
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


def _stamp(path: Path) -> Stamp:
    if path.is_dir():
        raise ArtifactError("it is a folder; give the .onnx file in it")
    if not path.exists():
        raise ArtifactError("there is no such file")
    stamp = stamp_of(path)
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
