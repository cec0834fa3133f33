"""Two graphs held against each other from the inside: which node is the first to answer otherwise."""

from pytest_modelserve.parity.locating.divergence import Divergence
from pytest_modelserve.parity.locating.locate import locate_divergence
from pytest_modelserve.parity.locating.origin import Origin, fault_origin

__all__ = ["Divergence", "Origin", "fault_origin", "locate_divergence"]
