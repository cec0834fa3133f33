"""Two graphs held against each other from the inside: which node is the first to answer otherwise."""

from pytest_modelserve.parity.divergence.locate import Divergence, Origin, fault_origin, locate_divergence

__all__ = ["Divergence", "Origin", "fault_origin", "locate_divergence"]
