"""Static rules of ONNX files, in order: wire format, external data, structure, what the graphs compute."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from pytest_modelserve.scanning.file_rules import external_data, has_appended_archive
from pytest_modelserve.scanning.findings import StaticResult, finding
from pytest_modelserve.scanning.protobuf_reader import read_wire

# protobuf parses messages of less than 2 GiB.
_MAX_BYTES = (1 << 31) - 1


def check_onnx(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Return what the rules find in the open file at `path`; each step needs that the one before found no error."""
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
    result.states = external.files
    result.total_bytes += sum(state.st_size for state in external.files.values())
    _check_graphs(wire.light, result)
    return result


def _check_graphs(light: bytes, result: StaticResult) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    from pytest_modelserve.scanning.compute_rules import check_computation, sorted_model
    from pytest_modelserve.scanning.graph_rules import check_structure

    model = onnx.ModelProto()
    try:
        model.ParseFromString(light)
    except DecodeError as error:
        result.findings.append(finding("protobuf.malformed", "model", f"protobuf cannot parse it: {error}"))
        return
    findings, result.nodes = check_structure(model)
    result.findings += findings
    if any(each.severity == "error" for each in findings):
        return
    if any(each.rule == "graph.order" for each in findings):
        sorted_model(model)
    computed = check_computation(model, result.total_bytes)
    result.findings += computed.findings
    result.has_loops = computed.has_loops
    result.work = computed.work
