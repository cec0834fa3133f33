"""Settings of the suite: no test fails because the host is slow, and none reports to the job that runs it.

An environment without extras (`make test-base`) runs what the base package has to do: a module or a test is skipped
there if it fails for want of one of `EXTRA_PACKAGES`. Where all are installed nothing is skipped by this rule.
"""

import re
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest
import scipy.stats  # noqa: F401  # an extension module cannot be imported again after an in-process run of pytester

EXTRA_PACKAGES = (
    "torch", "onnxscript", "cloudpickle", "tqdm", "onnxsim", "onnx_ir", "narwhals", "polars", "hypothesis", "sklearn",
    "skl2onnx", "pandas", "xdist", "pytest_rerunfailures", "jsonschema", "pyarrow", "duckdb", "pyspark", "mkdocs", "yaml",
    "prometheus_client", "opentelemetry", "markdown_it", "ruff", "importlinter", "mypy", "grpc", "cryptography",
    "model_signing", "OpenSSL", "opacus",
)  # fmt: skip
"""What extras and the development group install."""
MISSING = tuple(name for name in EXTRA_PACKAGES if find_spec(name) is None)
_NEEDS = re.compile(
    rf"(?:No module named '({'|'.join(MISSING)})\b|needs ({'|'.join(MISSING)}|scikit-learn|onnx-ir), which is not installed)"
)

if find_spec("sklearn") is not None:
    import sklearn.ensemble  # noqa: F401  # the same

if find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # The current profile, which is hypothesis's own for CI there, without limits on time.
    settings.register_profile(
        "without time limits", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("without time limits")


@pytest.fixture(autouse=True)
def outside_of_github(monkeypatch):
    """Projects that tests run add nothing to the summary of a job of this repository."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _skipped_without_extra((yield), collector)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _skipped_without_extra((yield), item)


def _skipped_without_extra(report: Any, node: pytest.Item | pytest.Collector) -> Any:
    """Return the report, as skipped if it failed for want of a package that is missing here."""
    text = f"{report.longrepr}\n{getattr(report, 'capstdout', '')}"  # what a project of pytester printed
    found = _NEEDS.search(text) if MISSING and report.failed else None
    if found:
        report.outcome = "skipped"
        report.longrepr = (str(node.path), 0, f"Skipped: needs {found[1] or found[2]}")
    return report
