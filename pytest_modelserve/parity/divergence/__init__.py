"""Divergence analysis: the first node at which two models differ."""

from pytest_modelserve.parity.divergence.locate import Divergence, FaultOrigin, fault_origin, locate_divergence

__all__ = ["Divergence", "FaultOrigin", "fault_origin", "locate_divergence"]
