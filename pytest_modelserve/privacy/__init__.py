"""Gates on what a served model, its training and its files give away about single rows."""

from pytest_modelserve.privacy.attribute_inference import measure_attribute_leak
from pytest_modelserve.privacy.extraction import measure_extraction
from pytest_modelserve.privacy.membership_inference import measure_membership_leak

__all__ = ["measure_attribute_leak", "measure_extraction", "measure_membership_leak"]
