"""Contracts: files `*.modelgate.toml` with the gates that a model has to pass, checked before any gate runs."""

from __future__ import annotations

import glob
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import pytest_modelserve as ms
from pytest_modelserve.contracts.annotations import budgets_of, hints_of, required_by, subject_of
from pytest_modelserve.contracts.gate_arguments import (
    FUNCTION,
    FileKind,
    columns_in,
    convert,
    convert_arguments,
    describe,
    shown,
)
from pytest_modelserve.errors import UsageError, unknown_choice
from pytest_modelserve.evidence.failure_text import printable
from pytest_modelserve.serving.predictor import is_url
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES

SUFFIX = ".modelgate.toml"
Columns = list[str] | dict[str, str | list[str]]


class Model(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A model with its settings; a text is its `path` alone.

    Attributes:
        path: Path of a model file or of ready outputs, or a function as "module:name".
        name: Name in evidence and reports.
        variant: Variant in evidence and reports.
        providers: Execution providers of onnxruntime, in order of preference.
        threads: Number of threads.
        interpreter: Python of another environment, whose onnxruntime runs the file: a path beside the contract, or a
            name in PATH.
    """

    path: str
    name: str | None = None
    variant: str | None = None
    providers: list[str] | None = None
    threads: int | None = None
    interpreter: str | None = None


class Source(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a gate is about: the keys that a contract has for all gates, and each gate may have for itself.

    Attributes:
        subject: The model under test.
        reference: The model that it is compared with.
        data: Path of the rows: .npz, .npy, .csv or .parquet; for data gates also a folder or a pattern.
        labels: Column of the data that holds the labels, or the path of a file with one column.
        columns: Columns that are the model's inputs: a list, or a table from inputs to columns.
        profile: Path of the profile of the training data.
    """

    subject: str | Model | None = None
    reference: str | Model | None = None
    data: str | None = None
    labels: str | None = None
    columns: Columns | None = None
    profile: str | None = None


class GateSource(Source, kw_only=True):
    """The keys of a gate that are no arguments of its assertion.

    Attributes:
        where: Table from columns to a value or a list of values: only these rows.
        rows: Only the first rows, as many as this.
    """

    where: dict[str, Any] | None = None
    rows: int | None = None


class Contract(Source, kw_only=True):
    """The top level of a contract.

    Attributes:
        gates: Table from the name of an assertion without "assert_" to its arguments; a list of tables for several.
        slices: Argument `slices` of every gate that has it.
        output: Argument `output` of every gate that has it.
        sampling: Argument `sampling` of every gate that has it.
        outside: Folders outside the project that paths may lie in.
        description: What the contract is for.
    """

    gates: dict[str, Any]
    slices: Any = None
    output: Any = None
    sampling: Any = None
    outside: list[str] = []
    description: str = ""


SHARED = ("slices", "output", "sampling")
SOURCES = tuple(GateSource.__struct_fields__)
FROM_SOURCE = ("reference", "inputs", "labels", "data", "profile")
"""Parameters of assertions that the source gives, besides the subject."""


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a contract, its path, and the folders that its paths may lie in: the project and those it names."""

    path: Path
    text: str
    roots: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A key of a contract: for messages, and for paths, which are relative to the contract's folder."""

    document: Document
    keys: tuple[str | int, ...] = ()

    @property
    def line(self) -> int:
        """The line of the key, or of the nearest table or list around it; 1 if there is none."""
        return line_of(self.document.text, self.keys)

    def child(self, name: str | int) -> Place:
        """Return the place of a value inside this one."""
        return Place(self.document, (*self.keys, name))

    def error(self, message: str) -> UsageError:
        """Return the error with file, line and key."""
        key = ".".join(str(each) if isinstance(each, str) else f"[{each + 1}]" for each in self.keys).replace(".[", "[")
        return UsageError(printable(f"{self.document.path.name}:{self.line}: {f'{key}: ' if key else ''}{message}"))

    def file(self, text: str, kind: FileKind = "file") -> Path:
        """Return the path of a file that exists, of files of a pattern, or of one to be written; or raise the error."""
        folder = self.document.path.parent
        path = folder / text
        resolved = path.resolve()
        if not any(resolved.is_relative_to(root) for root in self.document.roots):
            raise self.error(
                f"{text!r} lies outside the project {self.document.roots[0]}: move it, or state its folder at the "
                f"top of the contract, outside = [{str(resolved.parent)!r}]"
            )
        if kind == "new" or path.exists() or (kind == "pattern" and glob.has_magic(text) and glob.glob(str(path))):
            return path
        names = [str(each.relative_to(folder)) for each in path.parent.glob("*")] if path.is_relative_to(folder) else []
        hint = unknown_choice("file", text, names) if names else f"the folder {path.parent} has no files"
        raise self.error(f"{text!r} does not exist ({hint[:300]})")


@dataclass(frozen=True, slots=True)
class GateCall:
    """One gate of a contract: a call of its assertion, with what it reads.

    `name` is unique in its contract. `arguments` hold late values. `inactive` is the reason why
    it does not run, or "". `is_slow` marks gates that start processes or repeat calls. `no_inputs` are the columns that
    the contract uses for anything but inputs of a model.
    """

    name: str
    assertion: str
    place: Place
    source: GateSource
    arguments: Mapping[str, Any]
    inactive: str = ""
    is_slow: bool = False
    no_inputs: frozenset[str] = frozenset()


def read_contract(path: Path, *, root: Path | None = None) -> tuple[GateCall, ...]:
    """Return the gates of a contract, with everything checked that can be checked before a gate runs.

    Args:
        path: The file. Paths in it are relative to its folder.
        root: The project's folder; paths outside it are refused, unless `outside` states their folder (default: the
            working directory if the contract lies in it, else the contract's folder).

    Returns:
        The gates in order, each with a name of its own.

    Raises:
        UsageError: The file cannot be read, or a key or value is wrong; the message names file, line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise UsageError(f"{printable(path.name)}:{line[1] if line else 1}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{printable(path.name)}: cannot be read: {error}") from None
    if root is None:
        root = Path.cwd() if path.absolute().is_relative_to(Path.cwd()) else path.parent
    roots = [root.resolve()]
    outside = table.get("outside", [])
    if isinstance(outside, list):  # any other type is refused below
        roots += [(path.parent / each).resolve() for each in outside if isinstance(each, str)]
    top = Place(Document(path, text, tuple(roots)))
    contract = _struct(table, Contract, top)
    for name in Source.__struct_fields__:
        _check_file(getattr(contract, name), name, top.child(name))
    hints = hints_of(ms.assert_accuracy)  # which has every shared argument
    given = {name: value for name in SHARED if (value := getattr(contract, name)) is not None}
    shared = {name: convert(value, hints[name], top.child(name), name=name) for name, value in given.items()}
    gates = tuple(_gates(contract, shared, top.child("gates")))
    if not gates:
        raise top.error("the contract has no gates: add a table, such as [gates.size] with max_bytes")
    for number, gate in enumerate(gates):
        if gate.name in (each.name for each in gates[:number]):
            raise gate.place.error(f"two gates are called {gate.name!r}: give each its own label")
    no_inputs = columns_in(shared).union(*map(_no_inputs, gates))
    return tuple(replace(gate, no_inputs=frozenset(no_inputs)) for gate in gates)


def _no_inputs(call: GateCall) -> set[str]:
    named = call.source.labels
    labels = {named} if named and not named.lower().endswith(FILE_SUFFIXES) else set()
    return columns_in(dict(call.arguments)) | set(call.source.where or ()) | labels


def _struct(table: Mapping[str, Any], kind: type[Any], place: Place) -> Any:
    """Return a table as a Struct; the error of msgspec becomes one with file, line and key."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        for part in re.findall(r"\.([^.\[`]+)|\[(\d+)\]", where.replace("[...]", "")):
            place = place.child(part[0] or int(part[1]))
        unknown = re.search(r"unknown field `(.*)`", message)
        if unknown:
            known = Model if place.keys and place.keys[-1] in ("subject", "reference") else kind
            raise place.child(unknown[1]).error(unknown_choice("key", unknown[1], known.__struct_fields__)) from None
        missing = re.search(r"missing required field `(.*)`", message)
        if missing:
            raise place.error(f"{missing[1]} is missing") from None
        named = (("object | array", "a table or a list of tables"), ("object", "a table"), ("array", "a list"))
        for theirs, ours in (*named, ("str", "a text"), ("int", "a whole number"), ("null", "nothing")):
            message = message.replace(f"`{theirs}`", ours).replace(f"{theirs} |", f"{ours} or").replace(theirs, ours)
        raise place.error(message[0].lower() + message[1:].replace("`", "")) from None


def _check_file(value: Any, name: str, place: Place) -> None:
    """Check the path of a key of the source, if it has one."""
    if isinstance(value, Model):
        value, place = value.path, place.child("path")
    if not isinstance(value, str) or name == "columns" or FUNCTION.fullmatch(value):
        return
    if name in ("subject", "reference") and is_url(value):
        return
    if name == "labels" and not value.lower().endswith(FILE_SUFFIXES):
        return  # a column of the data
    path = place.file(value, "pattern" if name == "data" else "file")
    if name == "labels" and path.suffix.lower() not in FILE_SUFFIXES:
        raise place.error(f"{value!r} is no file of {', '.join(FILE_SUFFIXES)}")


def _gates(contract: Contract, shared: dict[str, Any], place: Place) -> Iterator[GateCall]:
    known = {name.removeprefix("assert_"): name for name in ms.__all__ if name.startswith("assert_")}
    for gate, given in contract.gates.items():
        if gate not in known:
            raise place.child(gate).error(unknown_choice("gate", gate, known))
        if not isinstance(given, dict) and not (isinstance(given, list) and all(isinstance(x, dict) for x in given)):
            raise place.child(gate).error(f"expected a table, or a list of tables; got {shown(given)}")
        if isinstance(given, dict):
            yield _gate(contract, shared, gate, known[gate], given, place.child(gate))
            continue
        for number, table in enumerate(given):
            call = _gate(contract, shared, gate, known[gate], table, place.child(gate).child(number))
            yield call if "[" in call.name or len(given) == 1 else replace(call, name=f"{gate}[{number + 1}]")


def _gate(
    contract: Contract, shared: dict[str, Any], gate: str, assertion: str, table: dict[str, Any], place: Place
) -> GateCall:
    """Return one gate, its own keys before those of the contract."""
    function = getattr(ms, assertion)
    hints = hints_of(function)
    own = [
        name for name in hints if name not in (subject_of(function), *FROM_SOURCE)
    ]  # `columns` of a data gate is its own argument
    arguments = {name: value for name, value in table.items() if name in own or name not in SOURCES}
    allowed = dict.fromkeys([*own, *SOURCES])
    for name in arguments:
        if name not in allowed:
            raise place.child(name).error(unknown_choice("key", name, allowed))
    source = _struct({name: value for name, value in table.items() if name not in arguments}, GateSource, place)
    for name in Source.__struct_fields__:
        _check_file(getattr(source, name), name, place.child(name))
        if getattr(source, name) is None:
            setattr(source, name, getattr(contract, name))
    if source.rows is not None and source.rows < 1:
        raise place.child("rows").error(f"expected a number of rows of at least 1; got {source.rows}")
    if source.where is not None and "inputs" not in hints:
        raise place.child("where").error(f"{gate} reads its data by itself: give a file of the rows that you mean")
    of_all = {name: value for name, value in shared.items() if name in hints}
    converted = {**of_all, **convert_arguments(function, arguments, place, "key")}
    if source.where and "label" not in converted:
        converted["label"] = _condition(source.where)
    inactive = _missing(function, source, converted, place)
    is_slow = ".performance." in function.__wrapped__.__module__ and gate != "size"
    return GateCall(_name(gate, table), assertion, place, source, converted, inactive, is_slow)


def _name(gate: str, table: Mapping[str, Any]) -> str:
    """Return "gate", with the label, the relation or the rows that it is about in brackets."""
    relation = table.get("relation")
    parts = [
        *([str(relation.get("type")) if isinstance(relation, dict) else str(relation)] if relation else []),
        *([_condition(table["where"])] if table.get("where") else []),
        *([str(table["label"])] if table.get("label") else []),
    ]
    return printable(f"{gate}[{', '.join(parts)}]") if parts else gate


def _condition(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in where.items())


def _missing(function: Any, source: GateSource, arguments: Mapping[str, Any], place: Place) -> str:
    """Return why a gate is not active: its budget is not given. Raise the error for anything else that is missing."""
    required = [name for name in required_by(function) if name not in arguments]
    budgets = budgets_of(function)
    from_source: dict[str | None, str] = {
        subject_of(function): "subject",
        **{name: name for name in FROM_SOURCE},
        "inputs": "data",
    }
    for name in required:
        key = from_source.get(name)
        if key is None and name not in budgets:
            what = describe(hints_of(function)[name])
            raise place.error(f"{name} is missing{f': give {what}' if what else ''}")
        if key is not None and getattr(source, key) is None:
            raise place.error(f"{key} is missing, here or at the top of the contract")
    if "labels" in hints_of(function) and source.labels is None and "sees_answer" not in hints_of(function):
        raise place.error("labels is missing, here or at the top of the contract")
    is_judged_anyway = function.__name__ == "assert_conformant"  # by requests; memory needs the number of a process
    if budgets and not is_judged_anyway and not any(name in arguments for name in budgets):
        return f"no budget: set {' or '.join(budgets)} at {printable(place.document.path.name)}:{place.line}"
    return ""


_HEADER = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?")
_ASSIGNMENT = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(text: str, keys: tuple[str | int, ...]) -> int:
    """Return the line, from 1, of a key in TOML, or of the nearest table or list around it."""
    best, line = (0, 1), 1
    for line, found in _key_lines(text):
        shared = min(len(found), len(keys))
        if found[:shared] == keys[:shared] and shared > best[0]:
            best = (shared, line)
    return best[1]


def _key_lines(text: str) -> Iterator[tuple[int, tuple[str | int, ...]]]:
    """Yield the line and the path of each table and key; those inside inline tables are not looked for."""
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str, ...], int] = {}
    quote = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if quote:
            quote = "" if quote in line else quote
            continue
        header = _HEADER.fullmatch(line)
        assignment = _ASSIGNMENT.match(line)
        if header and not assignment:
            names = _dotted(header[2])
            if header[1] == "[[":
                counts[names] = counts.get(names, -1) + 1
            parts: list[str | int] = []
            for depth, name in enumerate(names, start=1):
                parts.append(name)
                if names[:depth] in counts:
                    parts.append(counts[names[:depth]])
            table = tuple(parts)
            yield number, table
        elif assignment:
            yield number, (*table, *_dotted(assignment[1]))
        for marks in ('"""', "'''"):
            if line.count(marks) == 1:
                quote = marks


def _dotted(key: str) -> tuple[str, ...]:
    """Return the parts of a dotted key; () if it is none."""
    try:
        value: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(value, dict):
        ((name, value),) = value.items()
        parts.append(name)
    return tuple(parts)
