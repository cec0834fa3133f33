"""Gates on what a served model, its training and its files give away about single rows."""

from pytest_modelserve.privacy.attribute_inference import measure_attribute_leak
from pytest_modelserve.privacy.extraction import measure_extraction
from pytest_modelserve.privacy.membership_inference import measure_membership_leak
from pytest_modelserve.privacy.profile_privacy import measure_profile_privacy

__all__ = [
    "measure_attribute_leak",
    "measure_extraction",
    "measure_membership_leak",
    "measure_profile_privacy",
]
