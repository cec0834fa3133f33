"""Is the artifact small enough? Weights against weights, or files against a number of bytes."""

from __future__ import annotations

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Verdict


def measure_size(
    candidate: Artifact,
    reference: Artifact | None = None,
    *,
    max_ratio: float | None = None,
    max_bytes: int | None = None,
) -> Evidence:
    """Evidence of the size of `candidate`: nothing is estimated, so the verdict is PASS or FAIL.

    `max_ratio` bounds the bytes of its weights (initializers, external data included) over those of `reference`; the
    file itself would hide in small models what compression did, behind metadata and source lines. `max_bytes` bounds
    its files together, external data included.

    Raises UsageError without a budget, for one that is not positive, for a ratio without a reference or the reverse,
    and for a reference without weights.
    """
    if max_ratio is None and max_bytes is None:
        raise UsageError("give max_ratio (with a reference), max_bytes, or both")
    if (max_ratio is None) != (reference is None):
        raise UsageError("max_ratio and a reference go together: give both or neither")
    for name, budget in (("max_ratio", max_ratio), ("max_bytes", max_bytes)):
        if budget is not None and not budget > 0:
            raise UsageError(f"{name} is a positive number, not {budget}")
    quantities = []
    if max_ratio is not None and reference is not None:
        if reference.initializer_bytes == 0:
            raise UsageError(f"{reference.subject} holds no weights to compare with")
        ratio = candidate.initializer_bytes / reference.initializer_bytes
        quantities.append(Quantity("weights", ratio, "ratio", budget=Budget("at_most", max_ratio)))
    if max_bytes is not None:
        quantities.append(Quantity("files", candidate.file_bytes, "bytes", budget=Budget("at_most", max_bytes)))
    too_large = any(quantity.verdict is Verdict.FAIL for quantity in quantities)
    return Evidence(
        gate="size",
        subject=candidate.subject,
        reference=None if reference is None else reference.subject,
        quantities=tuple(quantities),
        n=1,
        n_unit="artifact",
        method=Method("bytes counted"),
        summary="larger than its budget" if too_large else "inside its budget",
        findings=(
            f"weights {candidate.initializer_bytes:,} bytes"
            + ("" if reference is None else f" against {reference.initializer_bytes:,}")
            + f", files {candidate.file_bytes:,} bytes",
        ),
        advice="compress it (`int8-dynamic`), or prune it before export" if too_large else "",
    )
