"""A first contract for a model, written from what was measured: `python -m pytest_modelserve init model.onnx`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest_modelserve as ms
from pytest_modelserve.contracts.annotations import budgets_of
from pytest_modelserve.contracts.contract import SUFFIX
from pytest_modelserve.contracts.model_file import (
    RECIPES,
    RELATIONS,
    Check,
    ModelFile,
    NotJudgedError,
    Options,
    checks_for,
)
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence import Evidence, GateFailure, GateInconclusive, Recorder, package_versions, recording
from pytest_modelserve.evidence.failure_text import format_interval, format_value, printable
from pytest_modelserve.progress import progress

# What a call predicts, where a check times or weighs it: one row, as `pytest model.onnx` does.
_ONE_ROW = ("latency", "memory", "slowdown")
_EXAMPLES = {"ms": "… ms", "mib": "… MiB", "bytes": "… KiB", "db": "… dB"}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one check found: evidence, or the reason why there is none."""

    check: Check
    evidence: Evidence | None
    reason: str


def write_first_contract(
    model: Path,
    *,
    data: Path,
    labels: str | None = None,
    against: Path | None = None,
    output: Path | None = None,
    replace: bool = False,
) -> tuple[Path, int, int]:
    """Measure a model on rows and write a commented contract; every budget is left for a person to set.

    Args:
        model: The model file.
        data: File of rows.
        labels: Column of the rows that holds the labels, or the path of a file of one column.
        against: The model that it is to replace.
        output: The contract to write. Default: beside the model, with its name.
        replace: Whether an existing contract may be replaced.

    Returns:
        The path of the contract, and the numbers of gates that are active and that wait for a budget.

    Raises:
        UsageError: The contract exists.
        ModelServeError: A file cannot be read, the rows do not fit, or the model does not open.
    """
    path = model.with_name(f"{model.stem}{SUFFIX}") if output is None else output
    if not path.name.endswith(SUFFIX):
        raise UsageError(f"{path}: the name of a contract ends with {SUFFIX}")
    if path.exists() and not replace:
        raise UsageError(f"{path} exists: pass --force to replace it, or --output for another name")
    for name, each in (("model", model), ("--data", data), ("--against", against)):
        if each is not None and not each.is_file():
            raise UsageError(f"{name}: {printable(str(each))} is not a file")
    outcomes = list(_measured(model, Options(inputs=data, against=against, labels=labels)))
    gates = [lines for outcome in outcomes if (lines := _gate(outcome))]
    folder = path.resolve().parent
    head = _head(model, data, labels, against, folder)
    text = "\n".join([*head, *(line for lines in gates for line in ["", *lines])])
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(f"{text}\n", encoding="utf-8")
    os.replace(temporary, path)
    waiting = sum(any(line.startswith("# m") and " = " in line for line in lines) for lines in gates)
    return path, sum(lines[-1][0] != "#" for lines in gates), waiting


def _measured(model: Path, options: Options) -> Iterator[_Outcome]:
    """Yield what each check finds; a model that does not open is an error."""
    file = ModelFile(model, options)
    checks = [check for check in checks_for(options) if check.name in RELATIONS or _budgets_of(check)]
    try:
        if not file.opening.passed:
            raise ModelServeError(f"{printable(str(model))}: {file.opening.summary}")
        for check in progress(checks, "measuring", total=len(checks)):
            with recording(Recorder("init", "init")) as recorder:
                reason = ""
                try:
                    file.run(check)
                except (GateFailure, GateInconclusive, NotJudgedError) as error:
                    reason = str(error).partition("\n")[0]
            records = recorder.records()
            yield _Outcome(check, records[0].evidence if records else None, reason)
    finally:
        file.close()


def _budgets_of(check: Check) -> list[str]:
    """Return the budgets of a check that a contract can have; the recipes are no gates of a file."""
    return budgets_of(getattr(ms, check.assertion)) if check.assertion and check.name not in RECIPES else []


def _head(model: Path, data: Path, labels: str | None, against: Path | None, folder: Path) -> Iterator[str]:
    versions = package_versions(("pytest-modelserve", "onnxruntime"))
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"# Written by `python -m pytest_modelserve init` on {datetime.now(UTC):%Y-%m-%d} with {named}."
    yield "# A gate whose budget stands in a comment is not active: pytest lists it as not judged. Set a budget that"
    yield '# you can justify, in place of "…", and remove the "#". Figures are those of this machine and these rows.'
    yield ""
    yield f"subject = {_quoted(_relative(model, folder))}"
    if against is not None:
        yield f"reference = {_quoted(_relative(against, folder))}"
    yield f"data = {_quoted(_relative(data, folder))}"
    if labels is not None:
        yield f"labels = {_quoted(_relative(Path(labels), folder) if Path(labels).is_file() else labels)}"
    files = [each.resolve().parent for each in (model, data, against) if each is not None]
    elsewhere = dict.fromkeys(str(each) for each in files if not each.is_relative_to(Path.cwd().resolve()))
    if elsewhere:
        yield f"outside = [{', '.join(map(_quoted, elsewhere))}]  # folders outside the project that paths may lie in"


def _gate(outcome: _Outcome) -> list[str]:
    """Return the lines of one gate, commented out if it cannot be judged or fails."""
    check, evidence = outcome.check, outcome.evidence
    if check.name in RELATIONS:
        lines = ["[[gates.relation]]", f'relation = "{RELATIONS[check.name].__name__}"']
        if evidence is not None and evidence.passed:
            return lines
        return [f"# {printable(outcome.reason)}", *(f"# {line}" for line in lines)]
    header = [f"[gates.{check.assertion.removeprefix('assert_')}]"]
    if evidence is None:
        return [f"# {printable(outcome.reason)}", *(f"# {line}" for line in header)]
    rows = ["rows = 1"] if check.name in _ONE_ROW else []
    figures = {quantity.name: quantity for quantity in evidence.quantities}
    measured = "; ".join(
        f"{name} {format_value(each.value, each.unit)}"
        + ("" if each.interval is None else f" {format_interval(each.interval, each.unit)}")
        for name, each in list(figures.items())[:4]
    )
    # Those of error metrics are for contracts that choose one, and a ratio is one to the reference.
    unused = {"max_value", "max_rise"} | ({"max_ratio"} if evidence.reference is None else set())
    budgets = [name for name in _budgets_of(check) if name not in unused]
    return [*header, *rows, f"# measured: {printable(measured)}", *(f"# {name} = {_example(name)}" for name in budgets)]


def _example(budget: str) -> str:
    ending = budget.rpartition("_")[2]
    return _quoted(_EXAMPLES.get(ending, "… %" if ending in ("drop", "value", "agreement") else "…"))


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder)).as_posix()


def _quoted(text: str) -> str:
    """Return a string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
