"""Settings of this suite: no test fails because the host is slow, and none reports to the job that runs it."""

import pytest
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
