"""Whether int8 leaves a model's answers standing, on some of the data that it was calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.compression.activations import Activations
from pytest_modelserve.compression.after import served
from pytest_modelserve.compression.coarse import coarse_values
from pytest_modelserve.compression.exclusion import nodes_around
from pytest_modelserve.compression.files import write_large
from pytest_modelserve.compression.kept import Kept
from pytest_modelserve.compression.ranges import Range
from pytest_modelserve.compression.ranging import MIN_MAX
from pytest_modelserve.compression.recipe import Inputs, Material
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError

if TYPE_CHECKING:
    import onnx

# An error a third as large as the signal. Between what is broken and what is coarse lies a wide gap: over twelve
# families of models and two trained networks, with every way to choose ranges, sound ones kept 25 dB and more of what
# `Kept` measures, and those whose attention or whose inputs were rounded away less than 4.
MIN_KEPT_DB = 10.0
_ROWS = 64
_TOLD = 3
# What attention to nothing is scored: -10,000 in BERT, -1e9, or the least float32. Scores themselves are tens.
_MASK = -1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A model's values and the ranges that they were given, and its `treated` nodes: those that have an int8 form."""

    activations: Activations
    ranges: Mapping[str, Range]
    treated: Sequence[onnx.NodeProto]


def refuse_broken(quantised: onnx.ModelProto, measured: Measured, material: Material) -> None:
    """RecipeError if a floating output of `quantised` keeps less than 10 dB of its signal on calibration rows.

    These are what the ranges are from, so that the steps alone are at fault, and the first 64, because the median of as
    many is known to a decibel or two where sound and broken are 20 apart. The error names the values that are left with
    a handful of levels, and the nodes that give or read them.
    """
    path = material.folder / "after.onnx"
    write_large(quantised, path)
    outputs = [value.name for value in quantised.graph.output]
    kept = _kept(path, outputs, measured.activations, material.batches())
    worst = min(kept, key=lambda name: kept[name].sqnr_db, default=None)
    if worst is None or kept[worst].sqnr_db >= MIN_KEPT_DB:
        return
    raise RecipeError(
        f"output {worst!r} has an SQNR of {kept[worst].sqnr_db:.1f} dB on the calibration data, and below "
        f"{MIN_KEPT_DB:.0f} dB it is no answer: {_cause(quantised, measured, material)}"
    )


def _kept(path: Path, outputs: Sequence[str], activations: Activations, batches: Iterator[Inputs]) -> dict[str, Kept]:
    kept: dict[str, Kept] = {}
    with served(path) as candidate:
        for batch in _first(batches):
            expected = activations.fetched(outputs, batch)
            try:
                answers = candidate.predict(batch)
            except (InputError, ArtifactError) as error:
                raise RecipeError(f"the result does not run on a batch of calibration=: {error}") from error
            for name, array in expected.items():
                if array.dtype.kind == "f" and array.size:
                    kept.setdefault(name, Kept()).add(answers[name], array)
    return kept


def _first(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """So many batches that they hold `_ROWS` rows."""
    rows = 0
    for batch in batches:
        yield batch
        rows += max((len(array) if array.ndim else 1 for array in batch.values()), default=1)
        if rows >= _ROWS:
            return


def _cause(quantised: onnx.ModelProto, measured: Measured, material: Material) -> str:
    values = measured.activations.of(next(material.batches()))
    coarse = tuple(coarse_values(quantised, measured.ranges, values))
    is_clipped = material.ranging != MIN_MAX
    if not coarse:
        unclipped = "calibration_method='min-max', which clips nothing, or " if is_clipped else ""
        return (
            f"try {unclipped}exclude= with the first nodes of sensitivity(artifact, 'int8-static', rows), which ranks "
            "them by what each costs, or 'int8-dynamic'"
        )
    told = ", ".join(map(str, coarse[:_TOLD]))
    more = f" and {len(coarse) - _TOLD} more" if len(coarse) > _TOLD else ""
    nodes = tuple(sorted({*material.exclude, *nodes_around((value.name for value in coarse), measured.treated)}))
    if min(value.low for value in coarse) <= _MASK:
        instead = "a mask of -30 masks as well; 'int8-dynamic' rounds no mask"
    elif is_clipped:
        instead = "'int8-dynamic' takes the range of each call"
    else:
        instead = (
            "calibration_method='percentile' leaves rare outliers out; 'int8-dynamic' takes the range of each call"
        )
    return (
        f"few of 256 levels are left to {told}{more}; exclude={nodes!r} leaves the nodes that give or read such values "
        f"in float; {instead}"
    )
