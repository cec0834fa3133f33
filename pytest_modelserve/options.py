"""Command-line options and ini settings: their declarations, and their values in a run.

The plugin imports this module in every run of pytest: it imports nothing heavy.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_modelserve import settings
from pytest_modelserve.errors import UsageError

REPORTS = {
    "json": ("evidence", "as one JSON document"),
    "html": ("page", "as one HTML page"),
    "markdown": ("markdown", "as Markdown of at most 64 KiB for a pull request, failures first"),
    "code-quality": ("code quality", "of gates that did not pass as a code-quality report of GitLab"),
    "ctrf": ("CTRF", "as a Common Test Report Format document"),
    "prometheus": ("metrics", "as metrics in Prometheus' text format"),
    "otlp": ("OTLP", "as metrics in OpenTelemetry's JSON encoding (OTLP)"),
}
"""Each option that writes a report: what the table calls the file, and what it holds."""


def declare_options(parser: pytest.Parser) -> None:
    """Declare each option with its ini setting; the command line takes precedence."""
    group = parser.getgroup("modelserve", "modelserve: model acceptance gates")
    for name, metavar, default, text in (
        *((kind, "PATH", "", f"write the evidence of the run to PATH {form} (default: not written)")
          for kind, (_, form) in REPORTS.items()),
        ("history", "DIR", "", "add the evidence of the run to the folder DIR, for the HTML page and "
         "`python -m pytest_modelserve history DIR` (default: not written)"),
        ("inconclusive", "fail|skip|warn", "fail", "the outcome of a test whose gate is INCONCLUSIVE (default: fail)"),
        ("cache", "DIR", ".modelserve/cache", "folder of trained, exported and compressed models "
         "(default: .modelserve/cache in the root directory)"),
        ("seed", "N", "0", "seed of training (default: 0)"),
        ("statement", "PATH", "", "write the verdicts of the run to PATH as a signed in-toto statement (default: not "
         "written)"),
        ("statement-days", "N", "30", "days until the statement expires (default: 30)"),
        ("sign-key", "PATH", "", "the private key in PEM that signs the statement (default: the environment variable "
         "MODELSERVE_SIGN_KEY, a path or the key itself)"),
        ("trust", "PATHS", "", "public keys and root certificates in PEM, separated by colons; model files that none "
         "of them signed are refused (default: none, and signatures are not asked for)"),
        ("endpoint", "URL", "", "the model that the fixture modelserve_endpoint serves, such as "
         "http://127.0.0.1:8080/v2/models/NAME (default: tests that use it are skipped)"),
        ("baselines", "DIR", "baselines", "folder of the stored models of modelserve.baseline(), to be committed "
         "(default: baselines in the root directory)"),
    ):  # fmt: skip
        group.addoption(f"--modelserve-{name}", metavar=metavar, default=None, help=text)
        parser.addini(_ini(name), help=text, type="string", default=default)
    group.addoption(
        "--modelserve-update",
        action="store_true",
        help="replace the stored model of modelserve.baseline(name, candidate) by its candidate; refused if the "
        "environment variable CI is set (default: off)",
    )
    flags: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("selftest", {"action": "store_true"}, "run the tests again with mutants of every served model and data set, "
         "and list those that no gate notices (default: off)"),
        ("aa", {"metavar": "N", "type": int, "default": 0}, "run every gate that compares N times on the same model "
         "or data, and count false alarms (default: 0, off)"),
        ("selftest-minutes", {"metavar": "M", "type": float, "default": 10.0}, "the most minutes of "
         "--modelserve-selftest and of --modelserve-aa, each (default: 10)"),
    )  # fmt: skip
    for name, how, text in flags:
        group.addoption(f"--modelserve-{name}", help=text, **how)
    parser.addini(
        "modelserve_scan_allow",
        help="rules of the scanner that model files of this project may break, each as 'rule: reason'",
        type="linelist",
        default=[],
    )
    parser.addini(
        "modelserve_redact",
        help="inputs and columns whose values are in no saved input and no message, one a line: 'name', a pattern, a "
        "column 'x[3]', or 'name: hash' for a hash with the secret in MODELSERVE_PROJECT_KEY",
        type="linelist",
        default=[],
    )
    for name, metavar, text in (
        ("inputs", "PATH", "rows for the model files that are named: .npz, .npy, .csv or .parquet (default: generated "
         "from the signature)"),
        ("against", "PATH", "the model that the model files that are named are compared with (default: none)"),
        ("labels", "COLUMN|PATH", "labels of --modelserve-inputs: a column of it, or a file of one column "
         "(default: none)"),
    ):  # fmt: skip
        group.addoption(f"--modelserve-{name}", metavar=metavar, default=None, help=text)
    group.addoption(
        "--modelserve-set",
        metavar="CHECK.ARGUMENT=VALUE",
        action="append",
        default=[],
        help="an argument of a check of a model file, such as its budget: latency.max_ms=2; may be repeated (default: "
        "checks that need a budget are measurements)",
    )
    group.addoption(
        "--modelserve-time-limit",
        metavar="S",
        type=float,
        default=120.0,
        help="seconds that a model file may take to open, and for one call (default: 120)",
    )


def _ini(name: str) -> str:
    return f"modelserve_{name.replace('-', '_')}"


def setting(config: pytest.Config, name: str) -> str:
    """Return the value of a setting: of the command line, else of the ini file, else its default."""
    given = config.getoption(f"--modelserve-{name}")
    return str(config.getini(_ini(name)) if given is None else given)


def path_setting(config: pytest.Config, name: str) -> Path:
    """Return a path setting: relative to the working directory on the command line, to the root in the ini file."""
    given = config.getoption(f"--modelserve-{name}")
    if given is not None:
        return Path(config.invocation_params.dir, given)
    return Path(config.rootpath, str(config.getini(_ini(name))))


def apply_settings(config: pytest.Config) -> None:
    """Set the keys that count, the allowed rules of the scanner, and what is redacted, for this run."""
    _set_trust(config)
    config.add_cleanup(partial(setattr, settings, "SEEN", settings.SEEN))
    settings.SEEN = set()
    for name, key, read in (
        ("SCAN_ALLOW", "modelserve_scan_allow", settings.allowed_rules),
        ("REDACT", "modelserve_redact", settings.redact_rules),
    ):
        config.add_cleanup(partial(setattr, settings, name, getattr(settings, name)))
        try:
            setattr(settings, name, read(config.getini(key)))
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error


def _set_trust(config: pytest.Config) -> None:
    """Set the environment variable of the keys that count, for this process and its children, to the setting."""
    given = setting(config, "trust")
    if not given:
        return
    is_option = config.getoption("--modelserve-trust") is not None
    folder = config.invocation_params.dir if is_option else config.rootpath
    paths = [folder / each.strip() for each in given.replace("\n", os.pathsep).split(os.pathsep) if each.strip()]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise pytest.UsageError(f"--modelserve-trust: {missing[0]!r} is not a file: name a public key or a certificate")
    before = os.environ.get("MODELSERVE_TRUST")
    os.environ["MODELSERVE_TRUST"] = os.pathsep.join(map(str, paths))

    def restore() -> None:
        if before is None:
            os.environ.pop("MODELSERVE_TRUST", None)
        else:
            os.environ["MODELSERVE_TRUST"] = before

    config.add_cleanup(restore)
