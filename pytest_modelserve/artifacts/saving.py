"""Writing a model with its label, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.artifact import Artifact, described
from pytest_modelserve.artifacts.durable import write_file
from pytest_modelserve.artifacts.external import tensor_bytes, tensors_of
from pytest_modelserve.artifacts.lineage import Label, LineageStep, write_label
from pytest_modelserve.artifacts.wire import fill, light_copy, wire_form
from pytest_modelserve.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

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
    labelled = light_copy(model)
    write_label(labelled, Label(name, variant, tuple(lineage)))
    try:
        if is_moved:
            fill(labelled, model)
            _move_out(labelled, path)
        sha256 = _write(path, wire_form(labelled, None if is_moved else model))
    except OSError as error:
        raise ArtifactError(f"cannot write the model {path}: {error.strerror or error}") from error
    return described(path, sha256)


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
