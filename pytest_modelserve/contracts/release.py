"""Release check: whether a signed statement says that gates passed on the bytes of a model."""

from __future__ import annotations

import glob
import inspect
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest_modelserve as ms
from pytest_modelserve._files import as_path
from pytest_modelserve.artifacts import Artifact, open_artifact
from pytest_modelserve.contracts.annotations import budgets_of, subject_of
from pytest_modelserve.contracts.contract import GateCall, read_contract
from pytest_modelserve.errors import UsageError, VerificationError, unknown_choice
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES
from pytest_modelserve.signing.statement import RequiredGate, Statement, check_statement, read_statement, suite_files
from pytest_modelserve.signing.untrusted_files import digest_file


def verify_statement(
    statement: str | os.PathLike[str],
    model: Artifact | str | os.PathLike[str],
    *,
    trust: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    contract: str | os.PathLike[str] | None = None,
    gates: Sequence[str] = (),
) -> Statement:
    """Verify that gates passed on a model, by the signed statement that `--modelserve-statement` wrote.

    Refused are a statement that no trusted key signed, that expired, that is of another artifact, of an incomplete or a
    failed run, with a gate on this artifact that did not pass, or whose verdict is not that of its figures.

    Args:
        statement: The path of the statement.
        model: The path of the model file, or its artifact.
        trust: Public keys in PEM; the signature of one of them is enough (default: the environment variable
            `MODELSERVE_TRUST`).
        contract: A contract: every active gate of it must have passed, its budgets must not be weaker than in the
            contract, and the contract and its files of data must be those of the run.
        gates: Names of further gates that must have passed on the model, such as "accuracy_parity".

    Returns:
        The statement; `print` shows the gates, when and with which versions they passed.

    Raises:
        VerificationError: The statement is refused; the message lists every reason.
        InputError: The statement or a key cannot be read, is something else, or is newer than this release.
        UsageError: No key is given, a gate is unknown, or an argument is no path.
        ArtifactError: The model cannot be opened.

    Example:
        >>> print(ms.verify_statement("statement.json", "champion.onnx", trust="release.pub"))  # doctest: +SKIP
        2 gates passed on champion.onnx, sha256 9f2c41b8d3aa…
    """
    statement = as_path("statement", statement)
    path = None if contract is None else as_path("contract", contract).absolute()
    read_statement(statement, trust)  # before the model is parsed
    artifact = model if isinstance(model, Artifact) else open_artifact(model)
    required = [RequiredGate(_known(gate)) for gate in ([gates] if isinstance(gates, str) else gates)]
    if path is not None:
        required += map(_required, (call for call in read_contract(path) if not call.inactive))
    found, reasons = check_statement(statement, artifact, trust=trust, required=required, now=datetime.now(UTC))
    if path is not None and not reasons:
        reasons = list(_reasons_of_contract(path, found))
    if reasons:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise VerificationError(f"the statement {statement} does not vouch for {artifact.path.name}:{listed}")
    return found


def _known(gate: str) -> str:
    known = [name.removeprefix("assert_") for name in ms.__all__ if name.startswith("assert_")]
    if gate.removeprefix("assert_") not in known:
        raise UsageError(unknown_choice("gate", gate, known))
    return gate


def _required(call: GateCall) -> RequiredGate:
    function = getattr(ms, call.assertion)
    given = {name: call.arguments[name] for name in budgets_of(function) if name in call.arguments}
    confidence = inspect.signature(function).parameters.get("confidence")
    default = None if confidence is None else confidence.default
    return RequiredGate(
        call.assertion,
        test=f"{call.place.document.path.name}::{call.name}",
        budgets={name: float(value) for name, value in given.items() if isinstance(value, (int, float))},
        confidence=call.arguments.get("confidence", default),
        of_model=subject_of(function) is not None and call.source.subject is not None,
    )


def data_files(contract: Path, root: Path | None = None) -> set[Path]:
    """Return the files of data, labels and profiles that the active gates of a contract read."""
    found: set[Path] = set()
    for call in read_contract(contract, root=root):
        for name in ("data", "labels", "profile") if not call.inactive else ():
            text = getattr(call.source, name)
            if text and (name != "labels" or text.lower().endswith(FILE_SUFFIXES)):
                path = call.place.child(name).file(text, "pattern" if name == "data" else "file")
                found |= {path} if path.exists() else set(map(Path, glob.glob(str(path))))
    return found


def data_of_contracts(tests: Iterable[str], root: Path) -> set[Path]:
    """Return the data files of all contracts among the tests of a run, given by their node ids."""
    contracts = {test.partition("::")[0] for test in tests if ".modelgate.toml::" in test}
    return {path for name in contracts for path in data_files(root / name, root)}


def _reasons_of_contract(path: Path, statement: Statement) -> Iterator[str]:
    """Yield why a contract or its data are not those of the run; arguments other than budgets may differ, too."""
    digest = digest_file(path.parent, path.name).sha256
    runs = [name for name, sha256 in statement.suite.items() if Path(name).name == path.name and sha256 == digest]
    if not runs:
        yield f"other contract: {path.name} changed since it was run; run it again"
        return
    files = sorted(data_files(path))
    now = suite_files(path.parent, (), None, files)
    for name, sha256 in now.items():
        known = (statement.suite.get(posixpath.normpath(f"{posixpath.dirname(run) or '.'}/{name}")) for run in runs)
        if sha256 not in known:
            yield f"other data: {name} is not what the contract was run on; run it again"
