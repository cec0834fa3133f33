"""Where a model file came from: the steps that made it, written into the file itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import onnx

JSON = None | bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"]

METADATA_KEY = "pytest_modelserve"
# 1: name, variant, lineage[stage, settings, parent, versions, notes]
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LineageStep:
    """One step that made an artifact: which stage, with which settings and library versions, out of which parent.

    `parent` is the sha256 of the artifact (or of the trained weights) that went in, None at the start of a line.
    Settings that JSON cannot hold, NaN and infinity among them, are a UsageError.
    """

    stage: str
    settings: Mapping[str, JSON] = field(hash=False)
    parent: str | None
    versions: Mapping[str, str] = field(hash=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            settings = json.loads(json.dumps(dict(self.settings), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"lineage settings of stage {self.stage!r} do not fit into JSON: {error}") from error
        # A copy as JSON gives it back, so that a step read from a file equals the step that was written.
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "versions", dict(self.versions))
        object.__setattr__(self, "notes", tuple(self.notes))


@dataclass(frozen=True, slots=True)
class Label:
    """What a model file says about itself: its name, its variant and its lineage."""

    name: str
    variant: str
    lineage: tuple[LineageStep, ...]


def write_label(model: onnx.ModelProto, label: Label) -> None:
    """Put `label` into the model's metadata in place of an earlier one; other metadata stay."""
    others = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    kept = [(entry.key, entry.value) for entry in others]
    del model.metadata_props[:]
    for key, value in [*kept, (METADATA_KEY, _encode(label))]:
        model.metadata_props.add(key=key, value=value)


def read_label(model: onnx.ModelProto, *, default_name: str) -> Label:
    """The label inside the model; a model that was not made here is named `default_name`, without variant or lineage.

    A label that cannot be read, or one in a schema newer than this package knows, is an ArtifactError.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not found:
        return Label(default_name, "", ())
    try:
        return _decode(json.loads(found[-1]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"its metadata entry {METADATA_KEY!r} cannot be read: {type(error).__name__}") from error


def _encode(label: Label) -> str:
    steps = [
        {
            "stage": step.stage,
            "settings": step.settings,
            "parent": step.parent,
            "versions": step.versions,
            "notes": step.notes,
        }
        for step in label.lineage
    ]
    document = {"schema": SCHEMA_VERSION, "name": label.name, "variant": label.variant, "lineage": steps}
    return json.dumps(document, sort_keys=True, allow_nan=False)


def _decode(document: dict[str, Any]) -> Label:
    if document["schema"] > SCHEMA_VERSION:
        raise ArtifactError(
            f"its metadata entry {METADATA_KEY!r} has schema {document['schema']!r}, and this version of "
            f"pytest-modelserve reads up to {SCHEMA_VERSION}: install the version that wrote it, or a newer one"
        )
    steps = (LineageStep(**step) for step in document["lineage"])
    return Label(str(document["name"]), str(document["variant"]), tuple(steps))
