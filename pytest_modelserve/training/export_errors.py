"""Explanations of the errors of torch's exporter, in terms of the user's module."""

from __future__ import annotations

import errno
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve._processes import format_log
from pytest_modelserve.errors import (
    ArtifactError,
    BakedAxisError,
    ControlFlowError,
    ExportError,
    ModelServeError,
    UnsupportedOperatorError,
)
from pytest_modelserve.training.export_request import Tracing

# By name, as torch moves them between private modules. Seen with torch 2.13; the last one comes from torch.dynamo.
_DATA_DEPENDENT = {
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "UserErrorType.DYNAMIC_CONTROL_FLOW",
}
_NO_TRANSLATION = {"DispatchError", "UnsupportedOperatorException"}
_NO_FAKE = re.compile(r"no fake impl registered for <CustomOpDef\(([^)]+)\)>")
_OVERLOAD = re.compile(r"OpOverload\(op='([^']+)'")
# "a static shape of 2 for dimension inputs['x'].shape[0]", and of an input in a tuple inputs['tensors'][1].shape[0]
_FIXED = re.compile(r"static shape of (\d+) for dimension inputs((?:\[[^\]]+\])+)\.shape\[(\d+)\]")
_VIOLATED = re.compile(r"Constraints violated \(([^)]*)\)")
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_SOURCE_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_BAKED_BY = (
    "forward depends on that size, in an `if`, a loop over the axis, .tolist(), or a parameter of that size; write it "
    "for any size, name the axis of every input that has this size in `dynamic`, or remove it from there"
)

_FLOAT_ADVICE = (
    "export the float module, without fake quantization, and quantize the artifact with ms.compress(artifact, "
    "'int8-static', calibration=rows)"
)

_LIBRARIES = ("torch", "onnxscript", "onnx_ir", "onnx", "numpy")
_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
_OURS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class ExportFailure:
    """A failed export as it crosses to the parent process: the error's class, its message and what torch said."""

    error: type[ModelServeError]
    message: str
    detail: str = ""

    def to_error(self, what: str, log_tail: str) -> ModelServeError:
        """Return the error to raise, with those lines of the exporter's log that say more than the message."""
        known = self.message if self.detail in ("", self.message) else f"{self.message}\n{self.detail}"
        lines = "\n".join(line for line in log_tail.splitlines() if line.strip() not in known)
        return self.error(f"{what} failed: {known.strip()}{format_log(lines)}")


@dataclass(frozen=True, slots=True)
class DroppedConstant:
    """A sum with a tiny constant that the exporter removed: "+ 1e-12", with the traced operator and the source line."""

    constant: str
    node: str
    operator: str
    line: str

    def __str__(self) -> str:
        return f"`{self.constant}` (node {self.node!r}, {self.operator}{', ' + self.line if self.line else ''})"


def explain_failure(error: BaseException, tracing: Tracing, folder: Path) -> ExportFailure:
    """Return the class and message for `error`, which torch's exporter raised while it wrote into `folder`."""
    links = list(_chain(error))
    innermost = links[-1]
    detail = f"{type(innermost).__name__}: {innermost}"
    for link in reversed(links):
        failure = _full_disk(link, folder) or _baked_axis(link, tracing) or _unsupported(link) or _data_dependent(link)
        if failure is not None:
            return ExportFailure(*failure, detail=detail)
    return ExportFailure(ExportError, detail + _at(_user_frame(innermost)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _full_disk(error: BaseException, folder: Path) -> tuple[type[ModelServeError], str] | None:
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    return (
        ArtifactError,
        f"cannot write into {folder}: {error.strerror}; free some space, or choose another folder with "
        "--modelserve-cache",
    )


def _baked_axis(error: BaseException, tracing: Tracing) -> tuple[type[ModelServeError], str] | None:
    found = _FIXED.search(str(error))
    if found:
        size, path, axis = int(found[1]), re.findall(r"\[([^\]]+)\]", found[2])[-1], int(found[3])
        name = list(tracing.inputs)[int(path)] if path.isdecimal() else path.strip("'\"")
        label = tracing.axes.get(name, {}).get(axis, "")
        which = f"axis {axis} of input {name!r} ({label!r} in `dynamic`)"
        return BakedAxisError, f"the exporter fixed {which} at its traced size {size}: {_BAKED_BY}"
    violated = _VIOLATED.search(str(error))
    if violated and str(getattr(error, "error_type", "")) in ("", "UserErrorType.CONSTRAINT_VIOLATION"):
        named = re.findall(r"\w+", violated[1])
        sizes = {label: size for label, size in tracing.sizes.items() if label in named} or tracing.sizes
        free = ", ".join(f"{label!r} (traced {size})" for label, size in sizes.items())
        return BakedAxisError, f"the exporter fixed an axis in `dynamic`, {free}: {_BAKED_BY}"
    return None


def _unsupported(error: BaseException) -> tuple[type[ModelServeError], str] | None:
    unknown = _NO_FAKE.search(str(error))
    if unknown:
        return (
            UnsupportedOperatorError,
            f"torch cannot trace the operator {unknown[1]}{_at(_user_frame(error))}: it has no register_fake, and ONNX "
            "has no translation of it; use torch's own operators",
        )
    if type(error).__name__ not in _NO_TRANSLATION:
        return None
    node = _node_of(error)
    named = _OVERLOAD.search(str(error))
    operator = str(getattr(node, "target", "")) or (named[1] if named else (str(error).split() or [""])[0])
    stack = getattr(node, "meta", {}).get("stack_trace", "")
    advice = _FLOAT_ADVICE if "fake_quantize" in operator else "use other operators, or move that step out of the model"
    where = innermost_line(stack) or _user_frame(error)
    return UnsupportedOperatorError, f"ONNX has no translation of the operator {operator}{_at(where)}: {advice}"


def _data_dependent(error: BaseException) -> tuple[type[ModelServeError], str] | None:
    kinds = {type(error).__name__, str(getattr(error, "error_type", ""))}
    if not kinds & _DATA_DEPENDENT:
        return None
    return (
        ControlFlowError,
        f"forward branches on a value of the data{_at(_user_frame(error))}: a graph computes the same for all data; "
        "use torch.where or masks, or move the branch out of the model",
    )


def branch_on_data(error: BaseException) -> str:
    """Return why torch cannot trace a forward that branches on values of the data; "" for any other error."""
    failures = (_data_dependent(link) for link in reversed(list(_chain(error))))
    return next((failure[1] for failure in failures if failure is not None), "")


def _node_of(error: BaseException) -> Any:
    """Return the graph node that the exporter was translating, from the frames of the traceback."""
    from torch import fx

    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, fx.Node):
                return value
    return None


def _user_frame(error: BaseException) -> str:
    """Return the innermost line of user code in the traceback of `error`."""
    walk = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in walk]
    users = [each for each in lines if _is_users(each[0])]
    return _line(*users[-1]) if users else innermost_line(str(error))


def innermost_line(stack: str) -> str:
    """Return the last line of user code in the traceback `stack`: "model.py:12, in forward, `if x.sum():`"."""
    users = [each for each in _SOURCE_LINE.findall(stack) if _is_users(each[0])]
    return _line(users[-1][0], int(users[-1][1]), users[-1][2]) if users else ""


def _is_users(file: str) -> bool:
    """Return True for a file outside this package, the standard library and the libraries of every export."""
    path = Path(file).resolve()
    if file.startswith("<") or path.is_relative_to(_OURS) or any(map(path.is_relative_to, _library_folders())):
        return False
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts[:-1]:
            return path.parts[path.parts.index(folder) + 1] not in _LIBRARIES
    return not path.is_relative_to(_STDLIB)


def _library_folders() -> list[Path]:
    """Return the folders of the imported libraries, which may lie in any folder of the path."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _LIBRARIES)
    return [Path(file).resolve().parent for file in files if file]


def _line(file: str, number: int, function: str) -> str:
    code = linecache.getline(file, number).strip()
    return f"{file}:{number}, in {function}" + (f", `{code}`" if code else "")


def _at(line: str) -> str:
    return f" at {line}" if line else ""
