"""Choosing before and above the gates: how many labelled rows a gate needs."""

from pytest_modelserve.selection import planning

__all__ = ["planning"]
