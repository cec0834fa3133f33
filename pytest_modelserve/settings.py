"""Settings of the project that hold outside the plugin, too: the plugin fills them in at its start."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_modelserve.errors import UsageError

SCAN_ALLOW: Mapping[str, str] = {}
"""Reasons by name of the scanner's rules that files of this project may break."""


def allowed_rules(lines: list[str]) -> Mapping[str, str]:
    """Return reasons by rule, from lines "rule: reason"."""
    found = {}
    for line in lines:
        rule, colon, reason = line.partition(":")
        if not (colon and rule.strip() and reason.strip()):
            raise UsageError(f"modelserve_scan_allow: expected 'rule: reason', got {line!r}")
        found[rule.strip()] = reason.strip()
    return found
