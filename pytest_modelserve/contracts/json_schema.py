"""The JSON schema of contracts, for editors: keys from `contract.py`, values from the signatures of assertions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

import pytest_modelserve as ms
from pytest_modelserve.contracts.annotations import (
    Column,
    DataFile,
    Features,
    Model,
    constructors_of,
    hints_of,
    is_family,
    mapping_item,
    required_by,
    sequence_item,
    subject_of,
    union_members,
)
from pytest_modelserve.contracts.contract import FROM_SOURCE, Contract, GateSource
from pytest_modelserve.contracts.gate_arguments import FUNCTION, is_imported
from pytest_modelserve.robustness.attacks import Attack
from pytest_modelserve.robustness.corruptions import Corruption
from pytest_modelserve.robustness.relations import Relation

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_SIMPLE: Mapping[Any, list[Schema]] = {
    Model: [_TEXT],
    DataFile: [_TEXT],
    Path: [_TEXT],
    str: [_TEXT],
    bool: [{"type": "boolean"}],
    int: [{"type": "integer"}],
    datetime: [{"type": "string", "format": "date-time"}],
    date: [{"type": "string", "format": "date"}],
    Column: [
        _TEXT,
        {"type": "array"},
        {
            "type": "object",
            "required": ["column", "bins"],
            "additionalProperties": False,
            "properties": {"column": _TEXT, "bins": {"type": "array", "items": {"type": "number"}}},
        },
    ],
    Features: [{"type": "integer"}, _TEXT, {"type": "array"}],
}


def contract_schema() -> Schema:
    """Return the schema as JSON builtins."""
    schema = msgspec.json.schema(Contract)
    definitions = schema["$defs"]
    top = definitions["Contract"]
    own = msgspec.json.schema(GateSource)["$defs"]["GateSource"]["properties"]
    gates = sorted(name for name in ms.__all__ if name.startswith("assert_"))
    for gate in gates:
        definitions[gate] = _gate_schema(getattr(ms, gate), own)
    for family in (Relation, Corruption, Attack):
        definitions[family.__name__] = {"anyOf": _family_schemas(family)}
    top["properties"]["gates"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {gate.removeprefix("assert_"): _one_or_several(f"#/$defs/{gate}") for gate in gates},
    }
    accuracy = hints_of(ms.assert_accuracy)
    for name in ("slices", "output", "sampling"):
        top["properties"][name] = _schema_of(accuracy[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A contract of pytest_modelserve, *.modelgate.toml",
        **schema,
    }


def _one_or_several(table: str) -> Schema:
    return {"anyOf": [{"$ref": table}, {"type": "array", "items": {"$ref": table}}]}


def _gate_schema(function: Callable[..., Any], own: Mapping[str, Schema]) -> Schema:
    hints = hints_of(function)
    arguments = {name: hint for name, hint in hints.items() if name not in (subject_of(function), *FROM_SOURCE)}
    described = _argument_descriptions(function)
    properties = {name: {**_schema_of(hint), **_described(described.get(name))} for name, hint in arguments.items()}
    return {
        "type": "object",
        "description": (inspect.getdoc(inspect.unwrap(function)) or "").partition("\n")[0],
        "additionalProperties": False,
        "properties": {**own, **properties},
    }


def _described(text: str | None) -> Schema:
    return {"description": text} if text else {}


def _argument_descriptions(function: Callable[..., Any]) -> Mapping[str, str]:
    """Return the description of each argument in a docstring."""
    section = re.search(r"\nArgs:\n(.*?)(\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _schema_of(hint: Any) -> Schema:
    """Return what `convert` accepts for one type."""
    members = union_members(hint)
    if Any in members:
        return {}
    found: list[Schema] = []
    for member in members:
        if member is float:
            found += [{"type": "number"}, *([] if str in members else [_TEXT])]  # "2 ms"
        elif get_origin(member) is Literal:
            found.append({"enum": list(get_args(member))})
        elif is_family(member):
            found.append({"$ref": f"#/$defs/{member.__name__}"})
        elif is_dataclass(member) and isinstance(member, type):
            found.append(_object({name: _schema_of(each) for name, each in hints_of(member).items()}))
        elif is_imported(member):
            found.append(_TEXT)
        elif (item := mapping_item(member)) is not None:
            found.append({"type": "object", "additionalProperties": _schema_of(item)})
            found += [{"type": "array", "items": _TEXT}] if item is Column else []
        elif (item := sequence_item(member)) is not None:
            found.append({"type": "array", "items": _schema_of(item)})
        else:
            found += _SIMPLE.get(member, [])
    distinct = [each for number, each in enumerate(found) if each not in found[:number]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _family_schemas(family: type) -> list[Schema]:
    """Return the names of constructors without required arguments, and a table for each constructor."""
    makers = constructors_of(family)
    names = [name for name, make in makers.items() if not required_by(make)]
    schemas: list[Schema] = [{"enum": names}, {"type": "string", "pattern": FUNCTION.pattern}]
    for name, make in makers.items():
        table = _object({"type": {"const": name}, **{key: _schema_of(hint) for key, hint in hints_of(make).items()}})
        schemas.append({**table, "required": ["type", *required_by(make)]})
    return schemas


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}
