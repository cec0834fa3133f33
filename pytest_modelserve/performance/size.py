"""Size gate: bytes of weights against a reference, or bytes of files."""

from __future__ import annotations

import os

from pytest_modelserve.artifacts import Artifact, as_artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Verdict
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.inputs import check_positive


def measure_size(
    candidate: Artifact | Predictor | str | os.PathLike[str],
    reference: Artifact | Predictor | str | os.PathLike[str] | None = None,
    *,
    max_ratio: float | None = None,
    max_bytes: int | None = None,
) -> Evidence:
    """Measure the size of an artifact. Nothing is estimated, so the verdict is PASS or FAIL.

    Args:
        candidate: The artifact to measure, its path, or a predictor that serves it.
        reference: The artifact whose weights are compared; required with `max_ratio`, for information without it.
        max_ratio: The largest ratio of the bytes of weights (initializers with external data), candidate to reference.
            In small models the files would hide the effect of compression behind metadata.
        max_bytes: The largest number of bytes of all files of the candidate, external data included.

    Returns:
        Evidence with the ratio of weights, the bytes of files, or both.

    Raises:
        UsageError: No budget is given, one is not positive and finite, `max_ratio` is given without a reference, or the
            reference holds no weights.

    Example:
        `ms.assert_size(int8, fp32, max_ratio=0.3)` fails unless the weights take at most 30 % of their bytes in fp32.
    """
    if max_ratio is None and max_bytes is None:
        raise UsageError("a budget is missing: give max_ratio (with a reference), max_bytes, or both")
    if max_ratio is not None and reference is None:
        raise UsageError("max_ratio requires a reference: give both")
    if max_ratio is not None:
        check_positive("max_ratio", max_ratio, "times the bytes of the reference")
    if max_bytes is not None:
        check_positive("max_bytes", max_bytes, "bytes")
    new, old = as_artifact(candidate), None if reference is None else as_artifact(reference)
    quantities = []
    if max_ratio is not None and old is not None:
        if old.initializer_bytes == 0:
            raise UsageError(f"reference {old.subject} holds no weights to compare with: give max_bytes instead")
        ratio = new.initializer_bytes / old.initializer_bytes
        quantities.append(Quantity("weights", ratio, "ratio", budget=Budget.of("max_ratio", max_ratio)))
    if max_bytes is not None:
        quantities.append(Quantity("files", new.file_bytes, "bytes", budget=Budget.of("max_bytes", max_bytes)))
    too_large = any(quantity.verdict is Verdict.FAIL for quantity in quantities)
    return Evidence(
        gate="size",
        subject=new.subject,
        reference=None if old is None else old.subject,
        quantities=tuple(quantities),
        n=1,
        n_unit="artifact",
        method=Method("byte count"),
        summary="the artifact is larger than its budget" if too_large else "the artifact is within its budget",
        findings=(
            f"weights {new.initializer_bytes:,} bytes"
            + ("" if old is None else f", reference {old.initializer_bytes:,}")
            + f"; files {new.file_bytes:,} bytes",
        ),
        advice="compress it (`int8-dynamic`), or prune it before export" if too_large else "",
    )
