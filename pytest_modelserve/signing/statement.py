"""Signed evidence: an in-toto statement of a run's verdicts on these bytes, by these tests, in this environment.

Sources: in-toto Attestation Framework 1.0 with the predicate "test-result" 0.1; DSSE 1.0 for the envelope.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import InputError, UsageError, VerificationError
from pytest_modelserve.evidence import Evidence
from pytest_modelserve.evidence.evidence import functions_of, snake_case
from pytest_modelserve.evidence.failure_text import evidence_line, printable
from pytest_modelserve.signing.keys import PathLike, hash_of, key_id, private_key, public_key, read_pem, trusted_paths
from pytest_modelserve.signing.untrusted_files import parse_json, read_json

Document = Mapping[str, Any]
Trust = PathLike | Sequence[PathLike] | None

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
VERSION = 1
"""Of the part of the predicate that is this project's own."""
_KEPT = ("started", "commit", "complete", "exit_status", "environment", "generator")
_ROUNDED = 1e-5
"""Evidence holds its budgets in words, some with 6 digits."""
_CLOCK_SKEW = timedelta(minutes=5)


def signed_statement(document: Document, *, suite: Mapping[str, str], days: float, key_pem: bytes) -> str:
    """Return the document of a run as a statement in a signed envelope, as JSON.

    Args:
        document: The JSON document of a run that ended.
        suite: The sha256 of each file of the tests: test modules, contracts, conftest files, and the settings.
        days: The days until the statement expires.
        key_pem: The private key in PEM.

    Raises:
        UsageError: No gate of the run is about a model file.
    """
    gates = [gate for gate in document["gates"] if gate["judged"] and gate["evidence"] is not None]
    subjects = {gate["evidence"]["subject"]["sha256"]: gate["evidence"]["subject"] for gate in gates}
    subjects.pop(None, None)
    if not subjects:
        raise UsageError("no gate of this run is about a file: a statement binds verdicts to the sha256 of one")
    finished = datetime.fromisoformat(document["started"]) + timedelta(seconds=document["duration_s"])
    own = {
        "version": VERSION,
        "finished": finished.isoformat(timespec="seconds"),
        "expires": (finished + timedelta(days=days)).isoformat(timespec="seconds"),
        **{name: document[name] for name in _KEPT},
        "suite_sha256": suite_digest(suite),
        "gates": [_gate(gate) for gate in gates],
    }
    predicate = {**_result(document), "configuration": _descriptors(suite), "modelserve": own}
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [
            {"name": " / ".join(filter(None, (each["name"], each["variant"]))), "digest": {"sha256": sha256}}
            for sha256, each in subjects.items()
        ],
        "predicateType": _PREDICATE_TYPE,
        "predicate": predicate,
    }
    return json.dumps(_envelope(json.dumps(statement).encode(), key_pem), indent=1) + "\n"


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """Return a gate as the statement holds it: without what people read and reports draw."""
    evidence = {**gate["evidence"], "details": {}, "findings": [], "advice": ""}
    return {
        "test": gate["node_id"],
        "expected": gate["expected"],
        "attempt": gate["attempt"],
        "evidence": evidence,
    }


def _result(document: Document) -> dict[str, Any]:
    """Return the fields of the predicate "test-result": tests by outcome, and PASSED, WARNED or FAILED."""
    failed, warned, passed = set(), set(), set()
    for gate in document["gates"]:
        if not gate["judged"]:
            continue
        test = gate["node_id"]
        if gate["outcome"] in ("failed", "crashed"):
            failed.add(test)
        elif gate["verdict"] == "INCONCLUSIVE" or gate["expected"]:
            warned.add(test)
        else:
            passed.add(test)
    for outcome, tests in document["without_evidence"].items():
        {"passed": passed, "failed": failed}.get(outcome, warned).update(tests)
    ended_well = document["complete"] and document["exit_status"] == 0 and not failed
    return {
        "result": "FAILED" if not ended_well else "WARNED" if warned else "PASSED",
        "passedTests": sorted(passed - warned - failed),
        "warnedTests": sorted(warned - failed),
        "failedTests": sorted(failed),
    }


def _descriptors(files: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(files.items())]


def suite_files(
    root: Path, node_ids: Iterable[str], settings: Path | None, data: Iterable[Path] = ()
) -> dict[str, str]:
    """Return the sha256 of the files that tests are written in and of `data`, by path relative to `root`.

    These are their modules and contracts, every conftest.py above them, and the file of the settings. Modules that they
    import, and what they read, are not among them.
    """
    files = {*data, *(root / node_id.partition("::")[0] for node_id in node_ids)}
    files |= {folder / "conftest.py" for file in files for folder in file.parents if folder.is_relative_to(root)}
    files |= set() if settings is None else {settings}
    found = {}
    for path in filter(Path.is_file, sorted(files)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[Path(os.path.relpath(path, root)).as_posix()] = digest
    return found


def suite_digest(files: Mapping[str, str]) -> str:
    """Return one sha256 for the files of a suite: that of the lines that `sha256sum` prints for them."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()


# The envelope


def pre_authentication_encoding(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return the bytes that are signed: type and payload with their lengths (DSSE, PAE).

    >>> pre_authentication_encoding(b"hello world", "http://example.com/HelloWorld")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _envelope(payload: bytes, key_pem: bytes) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = private_key(key_pem)
    signature = key.sign(pre_authentication_encoding(payload), ec.ECDSA(hash_of(key)))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def _verified_payload(envelope: Any, trusted: Sequence[Path]) -> bytes:
    """Return the payload of an envelope that one of the keys signed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = {path: public_key(read_pem(path)) for path in trusted}
    try:
        kind, signatures = envelope["payloadType"], envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        found = [base64.b64decode(each["sig"], validate=True) for each in signatures]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"it is no signed envelope (DSSE): {type(error).__name__}: {error}") from None
    if kind != PAYLOAD_TYPE:
        raise InputError(f"its payload is of type {kind!r}, and {PAYLOAD_TYPE!r} is expected")
    if not found:
        raise VerificationError("unsigned: the envelope has no signature")
    for key in keys.values():
        for signature in found:
            try:
                key.verify(signature, pre_authentication_encoding(payload), ec.ECDSA(hash_of(key)))
            except InvalidSignature:
                continue
            return payload
    names = ", ".join(path.name for path in keys)
    raise VerificationError(f"edited, or signed by another key: no signature of {names} is valid for this content")


# Verification


@dataclass(frozen=True, slots=True)
class RequiredGate:
    """A gate that a statement must hold: its test in a contract, or only its name.

    `budgets` are numbers by argument ("max_drop"); `of_model` says whether its subject is the model.
    """

    gate: str
    test: str | None = None
    budgets: Mapping[str, float] | None = None
    confidence: float | None = None
    of_model: bool = True


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified statement: the gates that passed on an artifact, when, and where.

    `known_failures` are gates on it whose failure the tests expect (xfail).
    """

    artifact: Artifact
    gates: tuple[Evidence, ...]
    known_failures: tuple[Evidence, ...]
    finished: datetime
    expires: datetime
    commit: str | None
    environment: Mapping[str, Any]
    suite: Mapping[str, str]

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.environment["packages"].items())
        lines = [
            f"{len(self.gates)} gate{'s' * (len(self.gates) != 1)} passed on {self.artifact.path.name}, sha256 "
            f"{self.artifact.sha256}",
            *(f"  {evidence_line(evidence)}{_reference(evidence)}" for evidence in self.gates),
            *(f"  known failure: {evidence_line(evidence)}" for evidence in self.known_failures),
            f"  judged {self.finished:%Y-%m-%d %H:%M} UTC, expires {self.expires:%Y-%m-%d}"
            + (f", commit {self.commit}" if self.commit else ""),
            f"  by {', '.join(self.suite)}",
            f"  with Python {self.environment['python']}, {packages}",
        ]
        return "\n".join(map(printable, lines))


def _reference(evidence: Evidence) -> str:
    digest = None if evidence.reference is None else evidence.reference.sha256
    return f", reference sha256 {digest[:12]}…" if digest else ""


def read_statement(path: PathLike, trust: Trust = None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return a statement and the part that is this project's own, after its signature was verified.

    Raises:
        VerificationError: No trusted key signed this content.
        InputError: The file or a key cannot be read, is something else, or is newer than this release.
        UsageError: No key is given.
    """
    trusted = trusted_paths(trust)
    try:
        statement = parse_json(_verified_payload(read_json(path), trusted))
        kinds = (statement["_type"], statement["predicateType"])
        if kinds != (_STATEMENT_TYPE, _PREDICATE_TYPE):
            raise InputError(f"it is of type {kinds}, and {(_STATEMENT_TYPE, _PREDICATE_TYPE)} is expected")
        own = statement["predicate"]["modelserve"]
        if type(own["version"]) is not int or own["version"] > VERSION:
            raise InputError(
                f"it has version {own['version']!r}, and this release reads up to {VERSION}: install a newer version "
                "of pytest-modelserve"
            )
    except (InputError, VerificationError) as error:
        raise type(error)(f"the statement {os.fspath(path)} is refused: {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _no_statement(path, error) from None
    return statement, own


def _no_statement(path: PathLike, error: Exception) -> InputError:
    return InputError(f"{os.fspath(path)} is no statement of this project: {type(error).__name__}: {error}")


def check_statement(
    path: PathLike, artifact: Artifact, *, trust: Trust, required: Sequence[RequiredGate], now: datetime
) -> tuple[Statement, list[str]]:
    """Return a statement whose signature is valid, and every reason why it does not vouch for `artifact`."""
    statement, own = read_statement(path, trust)
    try:
        predicate = statement["predicate"]
        suite = {each["name"]: each["digest"]["sha256"] for each in predicate["configuration"]}
        judged = [each for each in _evidence(own) if each[2].subject.sha256 == artifact.sha256]
        found = Statement(
            artifact=artifact,
            gates=tuple(evidence for _, _, evidence in judged if evidence.passed),
            known_failures=tuple(evidence for _, expected, evidence in judged if expected and not evidence.passed),
            finished=datetime.fromisoformat(own["finished"]),
            expires=datetime.fromisoformat(own["expires"]),
            commit=own["commit"],
            environment=own["environment"],
            suite=suite,
        )
        reasons = [
            *_reasons_of_run(predicate, own, found, now),
            *_reasons_of_artifact(statement, own, found),
            *(reason for gate in required if (reason := _reason_of_gate(gate, own, artifact)) is not None),
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _no_statement(path, error) from None
    return found, reasons


def _evidence(own: Mapping[str, Any]) -> list[tuple[str, bool, Evidence]]:
    """Return the test, whether its failure was expected, and the evidence of each gate; the verdicts are derived."""
    return [(gate["test"], gate["expected"], Evidence.from_json(json.dumps(gate["evidence"]))) for gate in own["gates"]]


def _reasons_of_run(
    predicate: Mapping[str, Any], own: Mapping[str, Any], found: Statement, now: datetime
) -> Iterable[str]:
    if now > found.expires:
        yield f"expired: it was valid until {found.expires:%Y-%m-%d %H:%M} UTC; run the tests again"
    if found.finished > now + _CLOCK_SKEW:
        yield f"from the future: it was made at {found.finished:%Y-%m-%d %H:%M} UTC"
    if own["complete"] is not True:
        yield "incomplete run: not every collected test was selected and ended"
    if own["suite_sha256"] != suite_digest(found.suite):
        yield "edited suite: the digest of the suite is not that of its files"
    if predicate["failedTests"] or own["exit_status"] != 0:
        failed = ", ".join(predicate["failedTests"]) or f"pytest's exit status was {own['exit_status']}"
        yield f"failed run: {failed}"


def _reasons_of_artifact(statement: Mapping[str, Any], own: Mapping[str, Any], found: Statement) -> Iterable[str]:
    artifact = found.artifact
    digests = {each["digest"]["sha256"]: each["name"] for each in statement["subject"]}
    if artifact.sha256 not in digests:
        others = ", ".join(f"{name} {sha256[:12]}…" for sha256, name in digests.items())
        yield f"other artifact: {artifact.path.name} has sha256 {artifact.sha256[:12]}…; the statement is of {others}"
    elif not found.gates:
        yield "missing gate: no gate passed on this artifact"
    for gate in own["gates"]:
        stated = gate["evidence"]["verdict"]
        evidence = Evidence.from_json(json.dumps(gate["evidence"]))
        name = f"{evidence.gate} in {gate['test']}"
        if stated != (None if evidence.verdict is None else evidence.verdict.value):
            yield f"edited verdict: {name} says {stated}, and its figures say {evidence.verdict}"
        elif evidence.subject.sha256 == artifact.sha256 and not gate["expected"] and evidence.severity > 0:
            yield f"failed gate: {name} is {evidence.verdict}"
        elif evidence.subject.sha256 == artifact.sha256 and gate["attempt"] > 1:
            yield f"repeated gate: {name} passed in attempt {gate['attempt']}; its error rate holds for the first alone"


def _reason_of_gate(required: RequiredGate, own: Mapping[str, Any], artifact: Artifact) -> str | None:
    """Return why a required gate is missing or weaker; None if it passed on the artifact."""
    name = required.test or required.gate
    matching = [
        evidence
        for test, expected, evidence in _evidence(own)
        if not expected
        and (not required.of_model or evidence.subject.sha256 == artifact.sha256)
        and (_is_test(test, required.test) if required.test else required.gate in _names_of(evidence))
    ]
    if not matching:
        return f"missing gate: {name} was not judged on this artifact"
    failing = next((evidence for evidence in matching if not evidence.passed), None)
    if failing is not None:
        return f"failed gate: {name} is {failing.verdict}"
    return next((reason for evidence in matching if (reason := _weaker(required, evidence, name)) is not None), None)


def _weaker(required: RequiredGate, evidence: Evidence, name: str) -> str | None:
    given = {}
    for quantity in evidence.quantities:
        if quantity.budget is not None and quantity.budget.argument:
            argument, _, value = quantity.budget.argument.partition("=")
            if "(" not in argument:  # of a slice: "Slices(min_value=0.7)"
                given[argument] = float(value)
    for argument, limit in (required.budgets or {}).items():
        # A budget that was added since is named by the digest of the contract.
        judged = given.get(argument, limit)
        is_weaker = judged < limit if argument.startswith("min") else judged > limit
        if is_weaker and not math.isclose(judged, limit, rel_tol=_ROUNDED):
            return f"weaker budget: {name} was judged with {argument}={judged:g}, and the contract says {limit:g}"
    at_most = required.confidence
    if at_most is not None and evidence.confidence is not None and evidence.confidence < at_most:
        return f"weaker confidence: {name} was judged at {evidence.confidence:g}, and the contract says {at_most:g}"
    return None


def _is_test(test: str, required: str) -> bool:
    """Return whether a test is that of a contract, "m.modelgate.toml::size", in whatever folder."""
    return test == required or test.endswith(f"/{required}")


def _names_of(evidence: Evidence) -> tuple[str, str]:
    """Return the names of a gate, as "accuracy_parity" or "assert_accuracy_parity"."""
    _, assertion = functions_of(snake_case(evidence.gate))
    return assertion, assertion.removeprefix("assert_")
