"""Proof of origin: manifests, signatures and signed evidence of model files."""

from pytest_modelserve.signing.bill_of_materials import model_bom
from pytest_modelserve.signing.keys import private_key, private_pem
from pytest_modelserve.signing.manifest import measure_tampering, write_manifest
from pytest_modelserve.signing.signature import CheckedCopy, checked_copy, sign_model, verify_model

__all__ = [
    "CheckedCopy",
    "checked_copy",
    "measure_tampering",
    "model_bom",
    "private_key",
    "private_pem",
    "sign_model",
    "verify_model",
    "write_manifest",
]
