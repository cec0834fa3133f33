"""`int8-static`: weights and the values between layers in 8 bits, with ranges measured on calibration data."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import STANDARD, all_nodes, name_nodes, weight_arrays, weight_dtypes
from pytest_modelserve._onnx.serialization import write_model
from pytest_modelserve._onnx.sessions import Activations, quantizable_operators
from pytest_modelserve.compression.calibration import MIN_MAX, Range, clip_ranges, observe_ranges
from pytest_modelserve.compression.quantization import (
    check_quantizable,
    float_layer_notes,
    nothing_to_quantize,
    quantizer_error,
    quiet_quantizer,
    size_note,
)
from pytest_modelserve.compression.recipe import Inputs, Recipe, RecipeContext, RecipeResult, nodes_around
from pytest_modelserve.compression.validation import serve_result
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError
from pytest_modelserve.metrics.signal_quality import RowSignalQuality
from pytest_modelserve.metrics.tolerance import MIN_QUANTIZED_SQNR_DB

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization.calibrate import TensorsData


# A model in which nodes read and give int8, written by onnxruntime's quantizer from ranges that it is handed.


class Quantizer:
    """QDQ with a scale for each channel of a weight: what onnxruntime's `quantize_static` does once it has ranges.

    That one measures them itself, keeping what it sees of every batch until the last; only its latest versions can be
    given some instead.
    """

    def __init__(self, path: Path) -> None:
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

        self._model: onnx.ModelProto = load_model_with_shape_infer(path)

    def quantized(
        self, ranges: Mapping[str, Range], *, only: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> onnx.ModelProto:
        """The model with all nodes that have an int8 form quantized, or those named in `only`, save for `exclude`.

        Raises whatever onnxruntime does: bare ValueErrors, RuntimeErrors and AssertionErrors.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = type(self._model)()
        copy.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            copy,
            True,  # a scale for each channel
            False,  # weights in all 8 bits
            QuantType.QInt8,
            QuantType.QInt8,
            _tensors_data(ranges),
            list(only),
            list(exclude),
            quantizable_operators(),
            {},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        return quantized


def _tensors_data(ranges: Mapping[str, Range]) -> TensorsData:
    """`ranges` for the quantizer; one with NaN as endless, so that its scale shows whether the value is used at all."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    endless = Range(np.float32(-np.inf), np.float32(np.inf))
    usable = {name: found if found.is_finite else endless for name, found in ranges.items()}
    told = {name: TensorData(lowest=found.low, highest=found.high) for name, found in usable.items()}
    return TensorsData(CalibrationMethod.MinMax, told)


# Values inside a model for which 256 steps between their least and their largest are too few.


# A value that keeps no more levels than this although it has ten times as many numbers in it: scores behind a mask of
# -1e9 keep 2 for some thousand. In twelve sound families of models and two trained networks no value with 80 numbers
# keeps less than 96 levels; masks of 0 and 1 keep 2 for 2.
_LEVELS = 8
_NUMBERS = 10 * _LEVELS
# Enough to find that many numbers; all of an image's activations would take seconds to sort.
_LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class CoarseActivation:
    """The value `name`, of the range `low` to `high`, which int8 gives steps of `step`."""

    name: str
    low: float
    high: float
    step: float

    def __str__(self) -> str:
        return f"{self.name!r} (from {self.low:.3g} to {self.high:.3g} in steps of {self.step:.2g})"


def coarse_activations(
    quantized: onnx.ModelProto, ranges: Mapping[str, Range], values: Mapping[str, NDArray[np.float32]]
) -> Iterator[CoarseActivation]:
    """Those of `values` that have many different numbers and, as `quantized` rounds them by `ranges`, 8 or fewer."""
    import onnx

    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in values:
            continue
        step, zero = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
        seen = values[node.input[0]]
        steps = np.rint(seen.astype(np.float64) / float(step))
        levels = np.unique(np.clip(steps, -128 - int(zero), 127 - int(zero)).astype(np.int16)).size
        if levels <= _LEVELS and np.unique(seen.reshape(-1)[:_LOOKED_AT]).size >= _NUMBERS:
            range_ = ranges[node.input[0]]
            yield CoarseActivation(node.input[0], float(range_.low), float(range_.high), float(step))


# Whether int8 leaves a model's answers standing, on some of the data that it was calibrated on.


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


def check_output_sqnr(quantized: onnx.ModelProto, measured: Measured, context: RecipeContext) -> None:
    """RecipeError if a floating output of `quantized` keeps less than 10 dB of its signal on calibration rows.

    These are what the ranges are from, so that the steps alone are at fault, and the first 64, because the median of as
    many is known to a decibel or two where sound and broken are 20 apart. The error names the values that are left with
    a handful of levels, and the nodes that give or read them.
    """
    path = context.folder / "after.onnx"
    write_model(quantized, path)
    outputs = [value.name for value in quantized.graph.output]
    kept = _kept(path, outputs, measured.activations, context.batches())
    worst = min(kept, key=lambda name: kept[name].sqnr_db, default=None)
    if worst is None or kept[worst].sqnr_db >= MIN_QUANTIZED_SQNR_DB:
        return
    raise RecipeError(
        f"output {worst!r} has an SQNR of {kept[worst].sqnr_db:.1f} dB on the calibration data, and below "
        f"{MIN_QUANTIZED_SQNR_DB:.0f} dB it is no answer: {_cause(quantized, measured, context)}"
    )


def _kept(
    path: Path, outputs: Sequence[str], activations: Activations, batches: Iterator[Inputs]
) -> dict[str, RowSignalQuality]:
    kept: dict[str, RowSignalQuality] = {}
    with serve_result(path) as candidate:
        for batch in _first(batches):
            expected = activations.fetched(outputs, batch)
            try:
                answers = candidate.predict(batch)
            except (InputError, ArtifactError) as error:
                raise RecipeError(f"the result does not run on a batch of calibration=: {error}") from error
            for name, array in expected.items():
                if array.dtype.kind == "f" and array.size:
                    kept.setdefault(name, RowSignalQuality()).add(answers[name], array)
    return kept


def _first(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """So many batches that they hold `_ROWS` rows."""
    rows = 0
    for batch in batches:
        yield batch
        rows += max((len(array) if array.ndim else 1 for array in batch.values()), default=1)
        if rows >= _ROWS:
            return


def _cause(quantized: onnx.ModelProto, measured: Measured, context: RecipeContext) -> str:
    values = measured.activations.of(next(context.batches()))
    coarse = tuple(coarse_activations(quantized, measured.ranges, values))
    is_clipped = context.ranging != MIN_MAX
    if not coarse:
        unclipped = "calibration_method='min-max', which clips nothing, or " if is_clipped else ""
        return (
            f"try {unclipped}exclude= with the first nodes of sensitivity(artifact, 'int8-static', rows), which ranks "
            "them by what each costs, or 'int8-dynamic'"
        )
    told = ", ".join(map(str, coarse[:_TOLD]))
    more = f" and {len(coarse) - _TOLD} more" if len(coarse) > _TOLD else ""
    nodes = tuple(sorted({*context.exclude, *nodes_around((value.name for value in coarse), measured.treated)}))
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


@dataclass(frozen=True, slots=True, eq=False)
class PreparedModel:
    """A model that int8 may take: `treated` are its nodes that have an int8 form, each with a name."""

    activations: Activations
    quantizer: Quantizer
    treated: tuple[onnx.NodeProto, ...]


def prepare_model(model: onnx.ModelProto, folder: Path) -> PreparedModel:
    """`model` made ready to be quantized, as often as wanted; it is written to `folder`. RecipeError if it is unfit."""
    check_quantizable(model, form="int8")
    _refuse_own_operators(model)
    treated = tuple(_excludable(model))
    name_nodes(treated)
    path = folder / "before.onnx"
    is_large = write_model(model, path)
    try:
        with quiet_quantizer():
            return PreparedModel(Activations(path, is_large=is_large), Quantizer(path), treated)
    except Exception as error:
        raise quantizer_error(error) from error


def _apply(model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
    ready = prepare_model(model, context.folder)
    ranges = _ranges(model, ready, context)
    quantized = _quantized(model, ready, ranges, context)
    check_output_sqnr(quantized, Measured(ready.activations, ranges, ready.treated), context)
    return RecipeResult(quantized, (*float_layer_notes(quantized), *size_note(model, quantized)))


def _ranges(model: onnx.ModelProto, ready: PreparedModel, context: RecipeContext) -> dict[str, Range]:
    seen = observe_ranges(ready.activations, context.batches, context.ranging)
    if context.ranging.method == "entropy" and not all(range_.is_finite for range_ in seen.values()):
        _quantized(model, ready, seen, context)  # what is refused for them is refused before the search for others
    return clip_ranges(seen, ready.activations, context.batches, context.ranging)


def _refuse_own_operators(model: onnx.ModelProto) -> None:
    """The quantizer infers no type behind an operator that onnx does not know, and skips in silence what has none."""
    own = sorted({node.op_type for node in all_nodes(model.graph) if node.domain not in STANDARD})
    if own:
        raise RecipeError(
            f"the model holds operators outside the ONNX standard ({', '.join(own)}), behind which no range can be "
            "measured: quantize first, and use 'optimize' afterwards"
        )


def _quantized(
    model: onnx.ModelProto, ready: PreparedModel, ranges: Mapping[str, Range], context: RecipeContext
) -> onnx.ModelProto:
    """RecipeError where nothing was quantized, and where a scale is infinite."""
    try:
        with quiet_quantizer():
            quantized = ready.quantizer.quantized(ranges, exclude=context.exclude)
    except Exception as error:
        # It does not say which scale it stumbled over.
        found = [*_infinite(model), *(name for name, range_ in ranges.items() if not range_.is_finite)]
        raise (_endless(found, ready.treated, context.exclude) if found else quantizer_error(error)) from error
    _refuse_unchanged(model, quantized, context.exclude)
    made = weight_dtypes(quantized).keys() - weight_dtypes(model).keys()
    endless = [name.removesuffix("_scale") for name in _infinite(quantized, made)]
    if endless:
        # The scale of a bias is made of two others.
        values = [name for name in endless if not name.endswith("_quantized")] or endless
        raise _endless(values, ready.treated, context.exclude)
    return quantized


def _infinite(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[str]:
    return (name for name, array in weight_arrays(model, names) if not np.isfinite(array).all())


def _endless(names: list[str], treated: Iterable[onnx.NodeProto], excluded: Iterable[str]) -> RecipeError:
    nodes = tuple(sorted({*excluded, *nodes_around(names, treated)}))
    return RecipeError(
        f"no int8 scale for {', '.join(map(repr, names))}: NaN or infinite on the calibration data, as behind a mask "
        f"of -inf; exclude={nodes!r} leaves the nodes that give or read such values in float; a mask of -30 has a "
        "scale; 'int8-dynamic' rounds no mask"
    )


def _refuse_unchanged(model: onnx.ModelProto, quantized: onnx.ModelProto, exclude: tuple[str, ...]) -> None:
    stored = {tensor.name for tensor in quantized.graph.initializer}
    if not any(node.op_type == "DequantizeLinear" and node.input[0] in stored for node in quantized.graph.node):
        raise nothing_to_quantize("operator", model, exclude)


def _excludable(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    operators = set(quantizable_operators())
    return [node for node in model.graph.node if node.op_type in operators]


INT8_STATIC = Recipe(
    "int8-static",
    _apply,
    packages=("onnxruntime", "onnx"),
    is_exact=False,
    calibrates=True,
    excludable=_excludable,
)
