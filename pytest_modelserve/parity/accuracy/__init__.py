"""Accuracy gates and task metrics."""
