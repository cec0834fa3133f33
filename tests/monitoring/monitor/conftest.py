"""A profile of two numbers, and monitors with a state of their own."""

import numpy as np
import pytest

import pytest_modelserve as ms


@pytest.fixture(scope="session")
def profile():
    return ms.reference_profile(night(0, rows=10_000), name="training")


@pytest.fixture
def monitor(profile, tmp_path):
    return ms.Monitor("fraud", [ms.streams.columns(profile)], state=tmp_path / "fraud.state", start="2026-11-01")


def night(seed, *, rows=5_000, shift=0.0):
    """Return the rows of a night; `shift` moves the age in standard deviations."""
    rng = np.random.default_rng(seed)
    return {"age": rng.normal(40 + 12 * shift, 12, rows), "income": rng.lognormal(8, 1, rows)}
