"""The one verdict that needs no statistics: a predictor whose answers are no numbers has no error to judge."""

from __future__ import annotations

import time

from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject


def evidence_of_unanswered(
    gate: str,
    subject: Subject,
    *,
    broken: int,
    told: str,
    n: int,
    started: float,
    reference: Subject | None = None,
) -> Evidence:
    """The FAIL of a `subject` that left `broken` of `n` rows without an answer; `told` says which."""
    return Evidence(
        gate=gate,
        subject=subject,
        reference=reference,
        quantities=(Quantity("unanswered", broken, "count", budget=Budget("at most", 0)),),
        n=n,
        n_unit="rows",
        method=Method("every row looked at"),
        summary="some rows are answered with NaN or infinities",
        findings=(told,),
        advice="find out where they come from: look at the first such row node by node, and impute what is missing",
        duration_s=time.perf_counter() - started,
    )
