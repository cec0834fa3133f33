"""Tolerances that nobody had to choose: what the reference's own rounding reaches when it is run another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import Floor, floors
from pytest_modelserve.numerics.floors import FACTOR, STEPS
from pytest_modelserve.parity.batches import batch_rows, some_rows
from pytest_modelserve.parity.predicting import Inputs
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.reruns import reruns_of

ROWS = 64
"""Rows of the first batch that are run again: enough for a few hundred outputs, and a model that takes 100 ms a row is
done in seconds."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Tolerances for every real output, and how they were found."""

    floors: tuple[Floor, ...]
    reruns: tuple[str, ...]

    @property
    def rtol(self) -> dict[str, float]:
        """The relative part of the tolerance by output."""
        return {floor.output: floor.relative for floor in self.floors}

    @property
    def atol(self) -> dict[str, float]:
        """The absolute part of the tolerance by output, in the output's units."""
        return {floor.output: floor.relative * floor.scale for floor in self.floors}

    def __str__(self) -> str:
        """How an error is judged, in words."""
        how = " and ".join(self.reruns)
        return (
            f"tolerance calibrated: {FACTOR:g} × what the reference's own answers move when it is run {how}, at least "
            f"{STEPS} steps of the dtype, relative to the output's scale plus the element"
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """One sentence for each output: its floor, and where it came from."""
        return tuple(map(_told, self.floors))

    @property
    def details(self) -> list[dict[str, Any]]:
        """The same for programs."""
        return [
            {
                "output": floor.output,
                "floor": floor.relative,
                "scale": floor.scale,
                "differences": dict(floor.differences),
                "steps": floor.steps,
            }
            for floor in self.floors
        ]


def calibrate(reference: Predictor, batch: Inputs) -> Calibration:
    """The tolerances that `reference` itself shows on the first 64 rows of `batch`.

    `reruns_of` tells the ways in which it is run once more; one that its model does not allow is left out. UsageError
    for a reference that cannot be run another way, and for one whose answers then move by more than rounding does (rows
    influence each other, as in a model with dynamic quantisation, or the graph is of lower precision inside): the
    tolerances have to be given there.
    """
    reruns = reruns_of(reference)
    sample = some_rows(batch, ROWS)
    answers = reference.predict(sample)
    if batch_rows(sample) is None:
        reruns.pop("row by row", None)
    again = {how: outputs for how, run in reruns.items() if (outputs := run(sample)) is not None}
    found = floors(answers, again)
    for floor in found:
        if not floor.is_rounding:
            raise UsageError(_not_rounding(reference, floor))
    return Calibration(found, tuple(again))


def _told(floor: Floor) -> str:
    moved = ", ".join(f"{difference:.3g} {how}" for how, difference in floor.differences.items())
    return (
        f"output {floor.output!r}: the floor is {floor.relative:.3g} of its scale {floor.scale:.3g}; the reference "
        f"moved by at most {moved}"
    )


def _not_rounding(reference: Predictor, floor: Floor) -> str:
    how = max(floor.differences, key=lambda name: floor.differences[name])
    return (
        f"output {floor.output!r} of {reference.subject} moves by {floor.observed:.3g} of its scale when it is run "
        f"{how}, which is more than rounding of {floor.dtype}: give both rtol and atol"
    )
