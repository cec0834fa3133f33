"""Many budgets, one error rate: Holm's procedure over quantities that are judged by their intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from pytest_modelserve.evidence.model import Quantity
from pytest_modelserve.evidence.verdict import Verdict

Key = TypeVar("Key", bound=Hashable)


def judge_together(quantities: Mapping[Key, Callable[[float], Quantity]], *, alpha: float) -> dict[Key, Quantity]:
    """Each quantity, judged at the share of `alpha` that Holm leaves it; FAIL of any at most with probability `alpha`.

    A quantity is given as the function from an error rate of FAIL to it. All are tried at alpha over their number, and
    after those that FAIL the others again, at alpha over the number that is left. PASS needs no correction where every
    quantity has to PASS. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.
    """
    open_ = dict(quantities)
    found: dict[Key, Quantity] = {}
    while open_:
        latest = {key: at(alpha / len(open_)) for key, at in open_.items()}
        found |= latest
        failing = [key for key, quantity in latest.items() if quantity.verdict is Verdict.FAIL]
        if not failing:
            break
        for key in failing:
            del open_[key]
    return found
