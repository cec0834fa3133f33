"""Static rules of ONNX files, in order: file, wire format, external data, graphs, what the graphs compute."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from pytest_modelserve.scanning.file_rules import external_data, has_appended_archive
from pytest_modelserve.scanning.findings import StaticResult, finding
from pytest_modelserve.scanning.protobuf_reader import read_wire

# protobuf parses messages of less than 2 GiB.
_MAX_BYTES = (1 << 31) - 1


def check_onnx(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what the rules find in the open ONNX file at `path`."""
    result = StaticResult(total_bytes=size)
    if size > _MAX_BYTES:
        result.findings.append(finding("file.size", path.name, f"{size:,} bytes, more than {_MAX_BYTES:,}"))
        return result
    if has_appended_archive(file, size):
        result.findings.append(finding("file.appended-archive", path.name, "a reader of ZIP archives opens it, too"))
    wire = read_wire(file, size)
    result.findings += wire.findings
    if not wire.is_parsable:
        return result
    external = external_data(wire.external, path)
    result.findings += external.findings
    result.readable = tuple(external.files)
    result.total_bytes += sum(state.st_size for state in external.files.values())
    return result
