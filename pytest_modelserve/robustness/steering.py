"""The test of hypothesis that runs now, if there is one; hypothesis is looked at only where somebody imported it."""

from __future__ import annotations

import math
import sys


def steer(excess: float, label: str) -> None:
    """Tell hypothesis how near a search came to breaking a relation, so that it goes on from the nearest examples."""
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context() or not math.isfinite(excess):
        return
    import hypothesis

    if label not in control.current_build_context().data.target_observations:  # told twice, it is an error there
        hypothesis.target(excess, label=label)
