"""Rules of the scanner and what they find: one table of rules, one class for a finding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pytest_modelserve.errors import UsageError, printable, unknown_choice

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The severities, the worst first."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of bad file: its name, the severity of its findings, what it is, and what to do."""

    name: str
    severity: Severity
    title: str
    advice: str


_EXPORT = "export the model again from its source"
_SAVE = "save it again from its source, as a state_dict or as safetensors"
_COPY = "replace it by a copy of the file (cp --dereference)"
_TRUST = "do not load the file unless its author can explain it"

_TABLE: tuple[tuple[str, Severity, str, str], ...] = (
    # The file itself
    ("file.link", "error", "the file is a symbolic link", _COPY),
    ("file.hard-link", "error", "the file has more than one name (a hard link)", _COPY),
    ("file.linked-folder", "error", "the folder of the file is a symbolic link", "pass the path without the link"),
    ("file.not-regular", "error", "it is a folder, a FIFO, a socket or a device",
     "pass the paths of model files, such as FOLDER/*"),
    ("file.path", "error", "the path has control characters", "rename the file"),
    ("file.empty", "error", "the file is empty", _EXPORT),
    ("file.changed", "error", "the file changed while it was read", "scan it again when nothing writes to it"),
    ("file.disguised", "error", "the content is of another format than the name says", _TRUST),
    ("file.appended-archive", "error", "the file ends with a ZIP archive", _TRUST),
    ("file.unreadable", "error", "the scanner cannot follow the file to its end", _TRUST),
    ("file.size", "error", "the file is larger than a model can be", "store weights as external data"),
    # External data
    ("external.outside", "error", "external data outside the folder of the model", _TRUST),
    ("external.link", "error", "external data through a symbolic or hard link", _COPY),
    ("external.not-regular", "error", "external data in what is no regular file", _TRUST),
    ("external.missing", "error", "external data in a file that does not exist", "copy it beside the model"),
    ("external.self", "error", "external data in the model file itself", _EXPORT),
    ("external.overlap", "error", "tensors share a part of their external data", _EXPORT),
    ("external.range", "error", "offset or length that does not fit the file or the tensor", _EXPORT),
    ("external.entries", "error", "entries of external data given twice, missing or unknown", _EXPORT),
    # Wire format
    ("protobuf.malformed", "error", "not a valid ONNX model in protobuf's wire format", _EXPORT),
    ("protobuf.field-twice", "error", "a field that may occur once occurs again", _TRUST),
    ("protobuf.appended-message", "error", "a second model is appended to the first", _TRUST),
    ("protobuf.unknown-field", "error", "a field that ONNX does not have", _TRUST),
    ("protobuf.depth", "error", "messages are nested too deeply", _EXPORT),
    ("protobuf.count", "error", "more fields than a model needs", _EXPORT),
    # Names
    ("names.control-character", "error", "a name has control or bidi characters, or is no text", _TRUST),
    ("names.escape-sequence", "error", "a string that controls a terminal (ANSI)", _TRUST),
    ("names.markup", "error", "a name has markup of XML or HTML", _TRUST),
    ("names.path", "error", "a name climbs folders ('..')", _TRUST),
    ("names.length", "error", "a name is very long", _EXPORT),
    ("names.look-alike", "warning", "names that look the same and differ", "compare the names by code point"),
    # Tensors
    ("tensor.dtype", "error", "an element type that ONNX does not have", _EXPORT),
    ("tensor.size", "error", "the content of a tensor does not fit its shape", _EXPORT),
    ("tensor.value", "error", "a stored number that its element type does not have", _EXPORT),
    ("tensor.shape", "error", "a shape with negative or too many axes", _EXPORT),
    ("tensor.sparse", "error", "a sparse tensor that is huge, or has indices out of range", _EXPORT),
    # Graphs
    ("graph.duplicate-initializer", "error", "two initializers of one name", _TRUST),
    ("graph.duplicate-value", "error", "a value that is written twice", _TRUST),
    ("graph.duplicate-name", "warning", "nodes that share a name", "name nodes uniquely"),
    ("graph.duplicate-entry", "error", "an attribute, operator set or metadata key that is given twice", _TRUST),
    ("graph.undefined-value", "error", "a value that is read and never written before", _EXPORT),
    ("graph.cycle", "error", "nodes that read what they write", _EXPORT),
    ("graph.order", "warning", "a node reads a value that a later node writes", _EXPORT),
    ("graph.no-output", "error", "a graph without outputs or operator sets", _EXPORT),
    ("graph.attribute", "error", "an attribute whose value does not fit its type", _EXPORT),
    ("graph.node-count", "error", "more nodes than a model needs", _EXPORT),
    ("graph.nesting", "error", "subgraphs are nested too deeply", _EXPORT),
    ("graph.domain", "error", "an operator of a domain that needs other code", "allow it if you trust that code"),
    ("graph.operator", "error", "an operator or version that ONNX does not have", "upgrade onnx, or export again"),
    ("graph.provider-binary", "error", "a node that holds a compiled program of an accelerator", _TRUST),
    ("graph.runtime-settings", "warning", "metadata that configure onnxruntime", "remove the metadata entry"),
    ("graph.training-info", "error", "graphs for training beside the model", "export the model for inference"),
    ("function.shadows-operator", "error", "a function in the domain of built-in operators", _TRUST),
    ("function.duplicate", "error", "two functions of one name", _TRUST),
    ("function.recursion", "error", "a function that calls itself", _TRUST),
    ("function.expansion", "error", "functions that expand to too many nodes", _TRUST),
    # What graphs compute
    ("compute.integer-division", "error", "integer division that can end the process", "cast to float, or divide by"
     " a constant that is neither 0 nor -1"),
    ("compute.zero-attribute", "error", "an attribute that the runtime divides by and that is not positive", _EXPORT),
    ("compute.loop-bound", "error", "a loop or scan without a small bound", "give the loop a trip count"),
    ("compute.loop-growth", "error", "a loop that multiplies a value with itself in size", _TRUST),
    ("compute.amplification", "error", "a small file that makes a huge tensor", _EXPORT),
    ("tree.depth", "error", "a decision tree that is too deep", "limit the depth in training"),
    ("tree.structure", "error", "a decision tree with a cycle, or with nodes that do not exist", _EXPORT),
    # Archives
    ("zip.malformed", "error", "an archive that is damaged, or in several parts", _SAVE),
    ("zip.count", "error", "more entries than a checkpoint needs", _SAVE),
    ("zip.duplicate-entry", "error", "two entries of one name: readers disagree on which counts", _TRUST),
    ("zip.path", "error", "an entry whose name leaves the folder of the archive", _TRUST),
    ("zip.link", "error", "an entry that is a symbolic link", _TRUST),
    ("zip.overlap", "error", "entries that share bytes", _TRUST),
    ("zip.header-mismatch", "error", "headers that contradict the directory of the archive", _TRUST),
    ("zip.prefix", "error", "data before the archive", _TRUST),
    ("zip.gap", "error", "data between entries, which belong to none", _TRUST),
    ("zip.appended", "error", "data or a comment behind the archive", _TRUST),
    ("zip.expansion", "error", "a small archive that expands to much more", _TRUST),
    ("zip.encrypted", "error", "an encrypted entry", _TRUST),
    ("zip.method", "error", "an unusual method of compression", _SAVE),
    ("zip.checksum", "error", "an entry with another checksum than its content", _SAVE),
    # Pickles
    ("pickle.global", "error", "a pickle that names or calls a function outside the list of harmless ones", _TRUST),
    ("pickle.dotted-global", "error", "a pickle that reaches an attribute of an attribute", _TRUST),
    ("pickle.computed-global", "error", "a pickle that computes the name of what it calls", _TRUST),
    ("pickle.computed-call", "error", "a pickle that calls something without a name", _TRUST),
    ("pickle.extension", "error", "a pickle that calls by a number of the extension registry", _TRUST),
    ("pickle.instance", "error", "a pickle that makes an instance by the opcode INST", _TRUST),
    ("pickle.nested", "error", "a pickle or archive hidden inside a pickle", _TRUST),
    ("pickle.persistent-id", "error", "a pickle that refers to data elsewhere", _TRUST),
    ("pickle.trailing-data", "error", "data behind the end of a pickle", _TRUST),
    ("pickle.expansion", "error", "a pickle that makes huge values", _TRUST),
    ("pickle.memo", "error", "memo entries that are written twice or make room for millions", _TRUST),
    ("pickle.count", "error", "a pickle that is too long to be read by rules", _SAVE),
    ("pickle.protocol", "error", "an unknown protocol, or a second one", _SAVE),
    ("pickle.malformed", "error", "a pickle that ends early or that no unpickler reads", _SAVE),
    ("pickle.scanner", "note", "what modelaudit-picklescan says that a refused pickle would call", _TRUST),
    ("pickle.library", "warning", "objects of a library, whose code runs when they are loaded",
     "export it to ONNX, or save its state_dict alone"),
    # Checkpoints and arrays
    ("checkpoint.unknown-archive", "error", "an archive that is no checkpoint and no arrays", _TRUST),
    ("checkpoint.unexpected-entry", "error", "an entry that has no place in a checkpoint", _TRUST),
    ("checkpoint.code", "error", "a TorchScript archive, which is a program", _EXPORT),
    ("checkpoint.nested", "error", "an archive inside the data of a tensor", _TRUST),
    ("checkpoint.storage", "error", "a tensor whose storage is missing or of another size", _SAVE),
    ("checkpoint.tensor", "error", "a tensor that reads beyond its storage", _TRUST),
    ("checkpoint.expansion", "error", "a small checkpoint with huge tensors", _TRUST),
    ("checkpoint.compressed", "error", "a compressed file that expands too far or cannot be read", _SAVE),
    ("numpy.header", "error", "an array with an invalid header", _SAVE),
    ("numpy.size", "error", "an array whose content does not fit its shape", _SAVE),
    ("numpy.pickle", "error", "an array of Python objects, which is a pickle", _SAVE),
    ("safetensors.header", "error", "an invalid header of safetensors", _SAVE),
    ("safetensors.tensor", "error", "a tensor whose type, shape and place do not agree", _SAVE),
    ("safetensors.overlap", "error", "tensors that share bytes", _TRUST),
    ("safetensors.range", "error", "bytes that belong to no tensor, or are missing", _SAVE),
    # The trial in the sandbox
    ("trial.crash", "error", "the runtime crashes", "do not load it: it ends the process that serves it"),
    ("trial.deadline", "error", "opening or running does not end in time", "do not load it, or allow this rule"),
    ("trial.memory", "error", "opening or running takes too much memory", "do not load it, or allow this rule"),
    ("trial.refused", "error", "the runtime refuses the file", _EXPORT),
    ("trial.not-run", "note", "no run was possible on generated inputs", "try real inputs in a process of its own"),
    ("trial.limits", "warning", "a limit of the sandbox could not be set", "scan on Linux, with the rights to it"),
)  # fmt: skip
RULES = {row[0]: Rule(*row) for row in _TABLE}
"""Every rule by name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found: where, and what is there.

    Attributes:
        rule: Name of the rule in `RULES`.
        place: Node, tensor, function, file or byte offset.
        message: What is there, in one line of printable text.
        severity: That of the rule, or a milder one.
        allowed: Why the rule is allowed; "" if it is not.
    """

    rule: str
    place: str
    message: str
    severity: Severity = "error"
    allowed: str = ""

    @property
    def advice(self) -> str:
        """What to do."""
        return RULES[self.rule].advice

    @property
    def refuses(self) -> bool:
        """Whether the file must not be loaded."""
        return self.severity == "error" and not self.allowed

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON builtins."""
        found = {"rule": self.rule, "severity": self.severity, "place": self.place, "message": self.message}
        return {**found, "advice": self.advice, **({"allowed": self.allowed} if self.allowed else {})}

    def __str__(self) -> str:
        kind = f"allowed ({self.allowed})" if self.allowed else self.severity
        return f"{kind}: {self.rule}: {self.place}: {self.message}"


def finding(rule: str, place: str, message: str, severity: Severity | None = None) -> Finding:
    """Return the finding of a rule; place and message may hold names from a file."""
    return Finding(rule, printable(place, 200), printable(message, 500), severity or RULES[rule].severity)


@dataclass(slots=True)
class StaticResult:
    """What the static rules of a format found in a file, and what its trial needs.

    Attributes:
        findings: The findings.
        states: State of each file that was checked, beside the scanned one: those that the trial may open, too.
        total_bytes: Bytes of all files of the model.
        nodes: Number of nodes, those of called functions included.
        work: Number of nodes that one run executes, in loops more than once.
        target: The function of the trial, where it is not that of the format; "" for none.
        has_loops: Whether the model has loops, so that its run may be long.
    """

    findings: list[Finding] = field(default_factory=list)
    states: dict[Path, os.stat_result] = field(default_factory=dict)
    total_bytes: int = 0
    nodes: int = 0
    work: float = 0.0
    target: str | None = None
    has_loops: bool = False

    def add(self, rule: str, place: str, text: str) -> None:
        """Add the finding of a rule."""
        self.findings.append(finding(rule, place, text))


def checked_rules(allow: Mapping[str, str]) -> dict[str, str]:
    """Return reasons by allowed rule; UsageError for an unknown rule or an empty reason."""
    for rule, reason in allow.items():
        if rule not in RULES:
            raise UsageError(unknown_choice("rule", rule, RULES))
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"allow: rule {rule!r} needs a reason, which stands in the report; got {reason!r}")
    return {rule: printable(reason.strip(), 200) for rule, reason in allow.items()}


def with_allowed(findings: Iterable[Finding], allow: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return the findings, the worst first, each with the reason why its rule is allowed."""
    known = [replace(each, allowed=allow.get(each.rule, "")) for each in findings]
    return tuple(sorted(known, key=lambda each: (bool(each.allowed), SEVERITIES.index(each.severity))))
