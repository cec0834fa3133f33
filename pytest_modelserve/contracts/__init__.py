"""Gates without Python: contracts in TOML, model files on the command line of pytest, and the check of a release."""

from pytest_modelserve.contracts.release import verify_statement

__all__ = ["verify_statement"]
