"""Gates on what a served model, its training and its files give away about single rows."""

from pytest_modelserve.privacy.attribute_inference import measure_attribute_leak
from pytest_modelserve.privacy.extraction import measure_extraction
from pytest_modelserve.privacy.membership_inference import measure_membership_leak
from pytest_modelserve.privacy.privacy_budget import measure_privacy_budget
from pytest_modelserve.privacy.profile_privacy import measure_profile_privacy

__all__ = [
    "measure_attribute_leak",
    "measure_extraction",
    "measure_membership_leak",
    "measure_privacy_budget",
    "measure_profile_privacy",
]
