"""Scan of one file: the format by its content, the static rules of that format, then a trial in the sandbox."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pytest_modelserve.errors import ArtifactError, UsageError, printable, unknown_choice
from pytest_modelserve.scanning.file_rules import (
    change_of,
    external_data,
    format_of,
    has_appended_archive,
    opened,
    path_findings,
)
from pytest_modelserve.scanning.findings import Finding, StaticResult, checked_rules, finding, with_allowed
from pytest_modelserve.scanning.sandbox import SandboxResult, run_in_sandbox

ScanMode = Literal["strict", "static"]
"""strict: static rules, then opening and one run in the sandbox; static: the rules alone, nothing is opened."""
MODES = ("strict", "static")

_HEAD_BYTES = 512
_SMALL_BYTES = 1 << 20
# protobuf parses messages of less than 2 GiB.
_MAX_ONNX_BYTES = (1 << 31) - 1
# A child may use this and three times the bytes of the files, all together less than 1 GiB more than those.
_MEMORY_BYTES = 900 << 20
_BYTES_PER_S = 40e6
_NODES_OPENED_PER_S, _NODES_RUN_PER_S = 5000, 2e5
# A busy host: the processor time is limited, and the elapsed time only in case nothing uses the processor.
_ELAPSED = 8
# Opening makes 4-bit weights eight times as large, and trees thirteen times; what goes beyond is made by the file.
_OPENED_BYTES, _OPENED_RATIO = 96 << 20, 20


@dataclass(frozen=True, slots=True)
class Scanner:
    """How files of one format are scanned.

    Attributes:
        suffixes: Suffixes of such files, in lower case.
        static: The static rules: gets the path, the open file and its size.
        target: The function that the sandbox calls with `{"path": ...}`.
        cpu_s: CPU time of a trial of a small file in seconds.
    """

    suffixes: tuple[str, ...]
    static: Callable[[Path, BinaryIO, int], StaticResult]
    target: str
    cpu_s: float


def _scan_onnx(path: Path, file: BinaryIO, size: int) -> StaticResult:
    """Check wire format, external data, structure and computation; each needs that nothing was wrong before."""
    from pytest_modelserve.scanning.protobuf_reader import read_wire

    result = StaticResult(total_bytes=size)
    if size > _MAX_ONNX_BYTES:
        result.add("file.size", path.name, f"{size:,} bytes, more than {_MAX_ONNX_BYTES:,}")
        return result
    if has_appended_archive(file, size):
        result.add("file.appended-archive", path.name, "a reader of ZIP archives opens it, too")
    wire = read_wire(file, size)
    result.findings += wire.findings
    if wire.is_parsable:
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
        result.add("protobuf.malformed", "model", f"protobuf cannot parse it: {error}")
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


def _scan_checkpoint(rules: str) -> Callable[[Path, BinaryIO, int], StaticResult]:
    """Return a function of `checkpoint_rules` by name, which is imported when a file needs it."""

    def check(path: Path, file: BinaryIO, size: int) -> StaticResult:
        from pytest_modelserve.scanning import checkpoint_rules

        found: StaticResult = getattr(checkpoint_rules, rules)(path, file, size)
        return found

    return check


_TORCH = "pytest_modelserve.scanning.torch_trial:try_checkpoint"
_ARRAYS = "pytest_modelserve.scanning.array_trial:try_arrays"
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin")
_PICKLES = (".pkl", ".pickle", ".joblib")
_COMPRESSED = Scanner(_PICKLES, _scan_checkpoint("check_compressed"), _TORCH, 4.0)

SCANNERS: dict[str, Scanner] = {
    "": Scanner((".onnx",), _scan_onnx, "pytest_modelserve.scanning.onnx_trial:try_onnx", 1.2),
    "zip": Scanner((*_CHECKPOINTS, ".npz"), _scan_checkpoint("check_archive"), _TORCH, 4.0),
    "pickle": Scanner((*_CHECKPOINTS, *_PICKLES), _scan_checkpoint("check_pickle_file"), _TORCH, 4.0),
    "numpy": Scanner((".npy",), _scan_checkpoint("check_numpy"), _ARRAYS, 1.5),
    "safetensors": Scanner((".safetensors",), _scan_checkpoint("check_safetensors"), _ARRAYS, 1.5),
    **dict.fromkeys(("gzip", "zlib", "bzip2", "xz", "lzma"), _COMPRESSED),
}
"""The scanner of each format that `format_of` returns; an ONNX model has no signature of its own."""

_BY_SUFFIX = {
    **dict.fromkeys((*_CHECKPOINTS, *_PICKLES), "pickle"),
    ".npz": "zip",
    ".npy": "numpy",
    ".safetensors": "safetensors",
}


@dataclass(frozen=True, slots=True)
class ScanReport:
    """The result of a scan; `str` gives one line for each finding.

    Attributes:
        path: The file.
        findings: What the rules found, the worst first; allowed ones last.
        opened: Whether the file was opened in the sandbox: not if a static rule refuses it.
        seconds: Duration of the scan.
        states: State of each file that was checked, external data included.
    """

    path: Path
    findings: tuple[Finding, ...]
    opened: bool
    seconds: float
    states: Mapping[Path, os.stat_result] = field(default_factory=dict, repr=False)

    @property
    def is_safe(self) -> bool:
        """Whether no finding refuses the file."""
        return not any(each.refuses for each in self.findings)

    def __str__(self) -> str:
        kinds = ["allowed" if each.allowed else each.severity for each in self.findings]
        counts = [_counted(kinds.count(kind), kind) for kind in ("error", "warning")]
        counts += [f"{kinds.count('allowed')} allowed"] if "allowed" in kinds else []
        how = "opened and run in the sandbox" if self.opened else "not opened"
        head = f"{printable(str(self.path))}: {', '.join(counts)}; {how}"
        lines = [
            f"  {each}\n    {each.advice}" if each.refuses or each.severity == "warning" else f"  {each}"
            for each in self.findings
        ]
        return "\n".join([head, *lines])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def scan_file(
    path: str | os.PathLike[str], *, mode: ScanMode = "strict", allow: Mapping[str, str] | None = None
) -> ScanReport:
    """Scan a model file before anything loads it. This process never opens it as a model.

    Args:
        path: The file.
        mode: "strict": static rules, then opening, optimizing and one run in the sandbox; a limit that the sandbox
            lacks refuses the file. "static": the rules alone.
        allow: Reasons by name of rules that may be broken.

    Returns:
        The report. A file that a static rule refuses is not opened.

    Raises:
        UsageError: An unknown mode or rule.
        ArtifactError: There is no such file, or it cannot be read.
    """
    if mode not in MODES:
        raise UsageError(unknown_choice("scan", mode, MODES))
    allowed = checked_rules(allow or {})
    began = time.perf_counter()
    path = Path(path)
    try:
        static, scanner = _static(path, allowed)
    except OSError as error:
        raise ArtifactError(f"cannot scan {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise ArtifactError(f"cannot scan {str(path)!r}: {error}") from error
    findings = list(static.findings)
    opens = mode == "strict" and scanner is not None and static.target != "" and not _refused(findings, allowed)
    if opens and scanner is not None:
        findings += _trial(path.absolute(), static, scanner)
    return ScanReport(path, with_allowed(findings, allowed), opens, time.perf_counter() - began, static.states)


def _refused(findings: list[Finding], allowed: Mapping[str, str]) -> bool:
    return any(each.severity == "error" and each.rule not in allowed for each in findings)


def _static(path: Path, allowed: Mapping[str, str]) -> tuple[StaticResult, Scanner | None]:
    """Return what the static rules find, and the scanner of the format; None if the content must not be read."""
    result = StaticResult(path_findings(path))
    if _refused(result.findings, allowed):
        return result, None
    # An allowed link is resolved once, and its target must be a regular file.
    target = Path(os.path.realpath(path))
    before = os.lstat(target)
    if not stat.S_ISREG(before.st_mode) or not before.st_size:
        return result, None
    with opened(target) as file:
        head = file.read(_HEAD_BYTES)
        kind = format_of(head, before.st_size)
        scanner = SCANNERS.get(kind)
        suffix = path.suffix.lower()
        if scanner is None or (suffix not in scanner.suffixes and any(suffix in s.suffixes for s in SCANNERS.values())):
            text = f"its content is {kind or 'ONNX or unknown'}, and its name ends in {suffix!r}"
            result.add("file.disguised", path.name, text)
            # Without a known signature, the rules of the format in its name say what is wrong with it.
            scanner = None if kind else SCANNERS.get(_BY_SUFFIX.get(suffix, "none"))
            if scanner is None:
                return result, None
        try:
            found = scanner.static(path.absolute(), file, before.st_size)
        except Exception as error:  # a file that the rules do not expect must not end the caller
            text = f"{type(error).__name__}: {error}"
            found = StaticResult([finding("file.unreadable", path.name, text)])
    found.findings = [*result.findings, *found.findings, *change_of(before, target)]
    found.states = {target: before, **found.states}
    return found, scanner


def _trial(path: Path, static: StaticResult, scanner: Scanner) -> list[Finding]:
    cpu_s = scanner.cpu_s + static.total_bytes / _BYTES_PER_S + static.nodes / _NODES_OPENED_PER_S
    cpu_s += static.work / _NODES_RUN_PER_S
    result = run_in_sandbox(
        static.target or scanner.target,
        {"path": str(path)},
        readable=[*static.states, *_SYSTEM_FILES],
        memory_bytes=_MEMORY_BYTES + 3 * static.total_bytes,
        cpu_s=cpu_s,
        deadline_s=_ELAPSED * cpu_s,
    )
    return list(_trial_findings(path.name, static, result, cpu_s))


# The text operators of ONNX need the locales of the system.
_SYSTEM_FILES = (Path("/usr/lib/locale"),)

_NO_OPERATOR = ("is not a registered function/op", "is deprecated in domain_version")
# What onnxruntime says of files that another version or build opens.
_UNSUPPORTED = (
    "NOT_IMPLEMENTED",
    "under development",
    "max supported IR version",
    "Could not find an implementation",
    _NO_OPERATOR[0],
)
_INITIALIZATION = "Exception during initialization"
# What an operator lacks in this build or on this system; any other failing initialization is the file's.
_UNSUPPORTED_SETTINGS = ("not supported", "Failed to construct locale")


def _trial_findings(name: str, static: StaticResult, result: SandboxResult, cpu_s: float) -> Iterator[Finding]:
    steps = [event for event in result.events if isinstance(event, str)]
    step = steps[-1] if steps else "starting"
    if result.missing:
        text = f"limits that could not be set: {', '.join(result.missing)}"
        yield finding("trial.limits", "sandbox", text, "error")
    if result.timed_out:
        # A large model may compute long on one row; a small file that does, makes work from nothing.
        harmless = step == "running" and not static.has_loops and static.total_bytes > _SMALL_BYTES
        text = f"{step} takes more than {cpu_s:.1f} s of processor time"
        yield finding("trial.deadline", name, text, "warning" if harmless else None)
    elif result.signal == signal.SIGFPE:
        yield finding(
            "compute.integer-division", name, f"{step} ends the process by SIGFPE, a trap of integer division"
        )
    elif result.signal is not None:
        yield finding("trial.crash", name, f"{step} ends the process by {_signal_name(result.signal)}")
    elif _is_out_of_memory(result.error):
        yield finding("trial.memory", name, f"{step} takes more memory than it may: {result.error}")
    elif result.error:
        texts = _UNSUPPORTED + (_UNSUPPORTED_SETTINGS if _INITIALIZATION in result.error else ())
        milder = any(text in result.error for text in texts) and "Fatal error: com.m" not in result.error
        rule = "graph.operator" if any(text in result.error for text in _NO_OPERATOR) else "trial.refused"
        yield finding(rule, name, f"{step}: {result.error}", "warning" if milder else None)
    opened_bytes = max((event.get("opened_bytes", 0) for event in result.events if isinstance(event, dict)), default=0)
    if opened_bytes > _OPENED_BYTES + _OPENED_RATIO * static.total_bytes:
        text = f"opening takes {opened_bytes:,} bytes of memory for {static.total_bytes:,} bytes of files"
        yield finding("compute.amplification", name, text)
    value: Any = result.value
    if isinstance(value, dict) and value.get("not_run"):
        yield finding("trial.not-run", name, str(value["not_run"]))


def _is_out_of_memory(error: str) -> bool:
    return error.startswith("MemoryError") or "bad_alloc" in error or "Failed to allocate memory" in error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
