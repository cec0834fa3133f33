"""Settings of the project that hold outside the plugin, too: the plugin fills them in at its start."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from pytest_modelserve.errors import UsageError, unknown_choice

SCAN_ALLOW: Mapping[str, str] = {}
"""Reasons by name of the scanner's rules that files of this project may break."""

REDACT: Mapping[str, str] = {}
"""How inputs and columns of these names, or patterns, are redacted in files and messages: "leave out" or "hash"."""
_REDACTIONS = ("leave out", "hash")

SEEN: set[str] = set()
"""Names of the inputs and columns that this run met, while REDACT has rules."""


def redact_rules(lines: list[str], setting: str = "modelserve_redact") -> Mapping[str, str]:
    """Return "leave out" or "hash" by name, from lines "name" or "name: hash"."""
    found = {}
    for line in lines:
        name, colon, how = line.rpartition(": ")
        name, how = (name.strip(), how.strip()) if colon else (line.strip(), "leave out")
        if not name or how not in _REDACTIONS:
            raise UsageError(f"{setting}: expected 'name' or 'name: hash', got {line!r}")
        found[name] = how
    return found


def saw_names(names: Iterable[object]) -> None:
    """Note names of inputs or columns of this run."""
    if REDACT:
        SEEN.update(map(str, names))


def unmatched_rules() -> list[str]:
    """Return a message for each rule of REDACT that names no input or column of this run; none if it met none."""
    unmatched = [
        rule for rule in REDACT if not any(names(rule, name) or re.sub(r"\[\d+\]$", "", rule) == name for name in SEEN)
    ]
    return [
        f"modelserve_redact: {unknown_choice('input or column of this run', rule, sorted(SEEN))}"
        for rule in unmatched * bool(SEEN)
    ]


def is_redacted(name: str) -> bool:
    """Return whether the setting hides the values of the column or input `name`; note that the run met this name."""
    saw_names([name])
    return any(names(rule, name) for rule in REDACT)


def shown_value(name: str, text: str) -> str:
    """Return a text with values of the column or input `name`, or that the setting hides them."""
    return "a redacted value" if is_redacted(name) else text


def names(rule: str, name: str) -> bool:
    """Return whether a rule names this input or column: itself, or with * and ? for any letters."""
    return rule == name or fnmatchcase(name, rule.replace("[", "[[]"))


def allowed_rules(lines: list[str]) -> Mapping[str, str]:
    """Return reasons by rule, from lines "rule: reason"."""
    found = {}
    for line in lines:
        rule, colon, reason = line.partition(":")
        if not (colon and rule.strip() and reason.strip()):
            raise UsageError(f"modelserve_scan_allow: expected 'rule: reason', got {line!r}")
        found[rule.strip()] = reason.strip()
    return found


PROJECT_KEY_VARIABLE = "MODELSERVE_PROJECT_KEY"
_SHORTEST_KEY = 16


def project_key() -> bytes | None:
    """Return 32 bytes made of the secret in MODELSERVE_PROJECT_KEY; None if it is not set, UsageError if it is short.

    Hashes of texts in files need it: without a secret, whoever guesses a text can check the guess.
    """
    secret = os.environ.get(PROJECT_KEY_VARIABLE, "")
    if not secret:
        return None
    if len(secret) < _SHORTEST_KEY:
        raise UsageError(
            f"{PROJECT_KEY_VARIABLE} has {len(secret)} characters and needs at least {_SHORTEST_KEY}, or it can be "
            "guessed: python -c 'import secrets; print(secrets.token_hex())' makes one"
        )
    return hashlib.blake2b(secret.encode(), digest_size=32, person=b"project key").digest()


def key_check(key: bytes | None) -> str:
    """Return 8 hexadecimal digits by which files recognize the project key; "" for none."""
    return "" if key is None else hashlib.blake2b(b"", digest_size=4, key=key, person=b"key check").hexdigest()
