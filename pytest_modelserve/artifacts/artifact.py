"""A model file with identity: what it is, what it takes and gives, and where it came from."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.external import ExternalFile, external_files, stored_bytes
from pytest_modelserve.artifacts.lineage import LineageStep, read_label
from pytest_modelserve.artifacts.signature import Signature, signature_of
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
    is the same artifact.
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
    path = Path(path).absolute()
    try:
        content = _read(path)
        model = _parse(content)
        label = read_label(model, default_name=path.stem)
        external = external_files(model, path)
        sha256 = _digest(hashlib.sha256(content).digest(), len(content), external)
        beside = sum(file.path.stat().st_size for file in external)
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
        name=label.name if name is None else name,
        variant=label.variant if variant is None else variant,
        file_bytes=len(content) + beside,
        initializer_bytes=stored_bytes(model),
    )


def load_model(artifact: Artifact) -> onnx.ModelProto:
    """The model of `artifact` as protobuf; tensors in external files stay there.

    A file that is no longer the one that was opened is an ArtifactError.
    """
    if open_artifact(artifact.path).sha256 != artifact.sha256:
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return _parse(_read(artifact.path))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ArtifactError("it is a folder; give the .onnx file in it")
    if not path.exists():
        raise ArtifactError("there is no such file")
    content = path.read_bytes()
    if not content:
        raise ArtifactError("the file is empty")
    if content.startswith(_LFS):
        raise ArtifactError("it is a Git LFS pointer, not the model itself: run `git lfs pull`")
    return content


def _parse(content: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ArtifactError("it is cut short, or not an ONNX model at all") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError("it holds no graph with an output, so it is not an ONNX model, or was cut short")
    if not model.opset_import:
        raise ArtifactError("it names no operator set (opset_import), so it was cut short or badly converted")
    return model


def _digest(model_sha256: bytes, model_bytes: int, external: tuple[ExternalFile, ...]) -> str:
    if not external:
        return model_sha256.hex()
    framed = hashlib.sha256(_FRAME)
    framed.update(struct.pack("<Q", model_bytes) + model_sha256)
    for file in external:
        name = file.location.encode("utf-8", "surrogatepass")
        with open(file.path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").digest()
        framed.update(struct.pack("<Q", len(name)) + name + struct.pack("<Q", file.path.stat().st_size) + content)
    return framed.hexdigest()
