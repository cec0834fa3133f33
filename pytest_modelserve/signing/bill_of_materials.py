"""Bill of materials of a model in CycloneDX 1.6: its files, its inputs and outputs, and the steps that made it."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Artifact, LineageStep, as_artifact, read_graph
from pytest_modelserve.artifacts.metadata import TensorSpec
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.evidence.evidence import json_value

_NAMESPACE = uuid.UUID("6f3b0f6e-5c5b-4f0e-9d0a-2f6d8f6b1c11")
"""Of serial numbers: the same model has the same one, wherever the document is made."""


def model_bom(model: Artifact | str | os.PathLike[str]) -> dict[str, Any]:
    """Return the machine-learning bill of materials of a model.

    The same model gives the same document: it holds no time. It names what the model file says of its history; that
    is not proof: sign the model.

    Args:
        model: The artifact, or the path of its file.

    Returns:
        A CycloneDX 1.6 document as JSON builtins: the model with its inputs and outputs, its files with their sha256,
        the steps of its lineage as ancestors, and the packages of those steps.

    Raises:
        ArtifactError: The model cannot be opened.

    Example:
        >>> bom = ms.model_bom("champion.onnx")  # doctest: +SKIP
        >>> bom["metadata"]["component"]["name"]  # doctest: +SKIP
        'champion'
    """
    artifact = as_artifact(model)
    reference = f"model:{artifact.sha256}"
    files = [_file(artifact, path) for path in (artifact.path, *artifact.external)]
    packages = {package: _package(*package) for step in artifact.lineage for package in step.versions.items()}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, artifact.sha256)}",
        "version": 1,
        "metadata": {"tools": {"components": [_tool()]}, "component": _model(artifact, reference)},
        "components": [*files, *(packages[key] for key in sorted(packages))],
        "dependencies": [
            {"ref": reference, "dependsOn": [each["bom-ref"] for each in files]},
            *({"ref": each["bom-ref"]} for each in files),
        ],
    }
    return dict(json_value(document))  # names of the file are printable in it


def _model(artifact: Artifact, reference: str) -> dict[str, Any]:
    graph = read_graph(artifact.path)
    facts = {
        "modelserve:variant": artifact.variant,
        "modelserve:sha256": artifact.sha256,
        "onnx:ir_version": str(graph.ir_version),
        "onnx:opset": ", ".join(f"{each.domain or 'ai.onnx'} {each.version}" for each in graph.opset_import),
        "onnx:producer": f"{graph.producer_name} {graph.producer_version}".strip(),
    }
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": artifact.name,
        "modelCard": {
            "modelParameters": {
                "inputs": list(map(_format, artifact.signature.inputs)),
                "outputs": list(map(_format, artifact.signature.outputs)),
            }
        },
        "properties": _properties(facts),
    }
    if not artifact.external:  # else its digest is that of several files, which no other tool can check
        found["hashes"] = [_sha256(artifact.sha256)]
    if artifact.lineage:
        steps = [_ancestor(number, step) for number, step in enumerate(artifact.lineage, start=1)]
        found["pedigree"] = {"ancestors": steps, "notes": "the steps that made the model, as its metadata say"}
    return found


def _ancestor(number: int, step: LineageStep) -> dict[str, Any]:
    """Return a step of the lineage: the model that it made, with the digest of what it made it from."""
    settings = {f"modelserve:setting:{name}": str(value) for name, value in step.settings.items()}
    facts = {"modelserve:parent": step.parent or "", **settings}
    found = {"type": "machine-learning-model", "name": f"{number}: {step.stage}", "properties": _properties(facts)}
    return {**found, "description": "; ".join(step.notes)} if step.notes else found


def _file(artifact: Artifact, path: Path) -> dict[str, Any]:
    name = path.relative_to(artifact.path.parent).as_posix()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_sha256(digest)]}


def _package(name: str, version: str) -> dict[str, Any]:
    """Return a package that took part in a step; it is no part of the model."""
    found = {"type": "library", "name": name, "version": version, "scope": "excluded"}
    return found if name == "python" else {**found, "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"}


def _tool() -> dict[str, str]:
    tool = "pytest-modelserve"
    return {"type": "application", "name": tool, "version": package_versions((tool,)).get(tool, "")}


def _format(spec: TensorSpec) -> dict[str, str]:
    return {"format": str(spec)}


def _properties(facts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in facts.items() if value]


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
