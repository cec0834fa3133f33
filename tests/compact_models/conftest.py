import pytest

from pytest_modelserve.artifacts import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all results of a test file."""
    return Store(tmp_path_factory.mktemp("cache"))
