"""What happens to rows on their way to a model, at graded severities, without changing what they show."""

from pytest_modelserve.robustness.corruptions.corruption import Corruption, corruption
from pytest_modelserve.robustness.corruptions.features import dropped, stale, unit_slip
from pytest_modelserve.robustness.corruptions.images import blur, brightness, contrast, noise, rotation, shift

__all__ = [
    "Corruption",
    "blur",
    "brightness",
    "contrast",
    "corruption",
    "dropped",
    "noise",
    "rotation",
    "shift",
    "stale",
    "unit_slip",
]
