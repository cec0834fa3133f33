"""Settings of hypothesis for this suite: no test fails because the host is slow."""

from hypothesis import HealthCheck, settings

# The current profile, which is hypothesis's own for CI there, without limits on time.
settings.register_profile(
    "without time limits", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("without time limits")
