"""The recipe `int8-static`: weights and activations in 8 bits, with ranges measured on calibration data."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import (
    STANDARD_DOMAINS,
    all_nodes,
    name_nodes,
    subgraph_nodes,
    weight_arrays,
    weight_dtypes,
)
from pytest_modelserve._onnx.serialization import write_model
from pytest_modelserve._onnx.sessions import Activations, quantizable_operators
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Range,
    clip_ranges,
    measure_ranges,
    observe_ranges,
)
from pytest_modelserve.compression.quantization import (
    check_quantizable,
    float_layer_notes,
    nothing_to_quantize,
    quantizer_error,
    quiet_quantizer,
    size_note,
)
from pytest_modelserve.compression.recipe import (
    Inputs,
    Recipe,
    RecipeContext,
    RecipeResult,
    SingleNodes,
    nodes_around,
)
from pytest_modelserve.compression.saturation import saturation_note
from pytest_modelserve.compression.validation import serve_result
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError
from pytest_modelserve.metrics.channel_quality import RowSignalQuality
from pytest_modelserve.metrics.channels import Channel, by_channel, channel_axes
from pytest_modelserve.metrics.tolerance import MIN_QUANTIZED_SQNR_DB

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization.calibrate import TensorsData

# The median over as many rows is known to a decibel or two, and sound and broken models are 20 apart.
_SQNR_ROWS = 64
_LISTED_VALUES = 3
# Mask values of attention: -10,000 in BERT, -1e9, or the least float32. Scores themselves are tens.
_MASK = -1000.0
# An activation is coarse if int8 leaves it at most this many levels although it has ten times as many distinct numbers.
# Scores behind a mask of -1e9 have 2 for some thousand numbers. In twelve sound families of models and two trained
# networks no value with 80 numbers has less than 96 levels; masks of 0 and 1 have 2 for 2.
_COARSE_LEVELS = 8
_MIN_NUMBERS = 10 * _COARSE_LEVELS
# A channel is lost if its range is less than a step although it has several distinct numbers.
_MIN_LOST_NUMBERS = 4
# Enough values to find that many numbers; sorting all activations of an image would take seconds.
_SAMPLE_SIZE = 100_000


class Int8Static(Recipe):
    """Quantization of weights, one scale a channel, and of activations by onnxruntime's QDQ format."""

    name = "int8-static"
    calibrates = True
    needs_calibration = True
    can_exclude = True
    can_reduce_range = True
    has_sensitivity = True

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the quantized model."""
        prepared = prepare_model(model, context.folder)
        ranges = observe_ranges(prepared.activations, context.batches, context.range_method)
        if context.range_method.method == "entropy" and not all(found.is_finite for found in ranges.values()):
            _quantize(model, prepared, ranges, context)  # raises what is wrong before the search, which takes seconds
        ranges = clip_ranges(ranges, prepared.activations, context.batches, context.range_method)
        quantized = _quantize(model, prepared, ranges, context)
        _check_output_sqnr(quantized, prepared, ranges, context)
        notes = (*float_layer_notes(quantized), *_subgraph_notes(model), *size_note(model, quantized))
        return RecipeResult(quantized, (*notes, *saturation_note(quantized, next(context.batches()))))

    def excludable(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Return the nodes that have an int8 form."""
        operators = set(quantizable_operators())
        return [node for node in model.graph.node if node.op_type in operators]

    def single_nodes(self, model: onnx.ModelProto, context: RecipeContext) -> SingleNodes:
        """Return the nodes that have an int8 form, and a function that quantizes one of them by name.

        Ranges do not depend on which nodes are quantized: they are measured once.
        """
        prepared = prepare_model(model, context.folder)
        ranges = measure_ranges(prepared.activations, context.batches, context.range_method)

        def quantize(name: str) -> onnx.ModelProto:
            try:
                with quiet_quantizer():
                    quantized = prepared.quantize(ranges, only=(name,))
            except Exception as error:
                raise quantizer_error(error) from error
            if not any(node.op_type == "DequantizeLinear" for node in quantized.graph.node):
                raise RecipeError(f"{name!r} alone stays in float")
            return quantized

        return prepared.nodes, quantize


@dataclass(frozen=True, slots=True, eq=False)
class PreparedModel:
    """A model with inferred shapes, the `nodes` that have an int8 form, and access to its activations."""

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    activations: Activations

    def quantize(
        self,
        ranges: Mapping[str, Range],
        *,
        only: Sequence[str] = (),
        exclude: Sequence[str] = (),
        reduce_range: bool = False,
    ) -> onnx.ModelProto:
        """Return the model with all nodes quantized, or those named in `only`, except those in `exclude`.

        `quantize_static` of onnxruntime calls the same class. It measures the ranges itself, with the values of all
        batches in memory, and only from onnxruntime 1.32 on can read them from a file instead. Raises whatever
        onnxruntime does: ValueError, RuntimeError and AssertionError.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = type(self.model)()
        copy.CopyFrom(self.model)
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=_tensors_data(ranges),
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(exclude),
            op_types_to_quantize=quantizable_operators(),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        return quantized


def prepare_model(model: onnx.ModelProto, folder: Path) -> PreparedModel:
    """Return `model` ready to be quantized any number of times; it is written to `folder`."""
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    check_quantizable(model, form="int8")
    own = sorted({node.op_type for node in all_nodes(model.graph) if node.domain not in STANDARD_DOMAINS})
    if own:
        # The quantizer infers no type behind an unknown operator, and silently skips values without a type.
        raise RecipeError(
            f"the model has operators outside the ONNX standard ({', '.join(own)}), behind which no range can be "
            "measured: quantize first, and use 'optimize' afterwards"
        )
    nodes = tuple(Int8Static().excludable(model))
    name_nodes(nodes)
    path = folder / "before.onnx"
    has_data_file = write_model(model, path)
    try:
        with quiet_quantizer():
            activations = Activations(path, has_external_data=has_data_file)
            return PreparedModel(load_model_with_shape_infer(path), nodes, activations)
    except Exception as error:
        raise quantizer_error(error) from error


def _tensors_data(ranges: Mapping[str, Range]) -> TensorsData:
    """Return `ranges` for onnxruntime; NaN becomes infinite, so that the scale shows whether the value is used."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    infinite = Range(np.float32(-np.inf), np.float32(np.inf))
    usable = {name: found if found.is_finite else infinite for name, found in ranges.items()}
    data = {name: TensorData(lowest=found.low, highest=found.high) for name, found in usable.items()}
    return TensorsData(CalibrationMethod.MinMax, data)


def _quantize(
    model: onnx.ModelProto, prepared: PreparedModel, ranges: Mapping[str, Range], context: RecipeContext
) -> onnx.ModelProto:
    """Return the quantized model; raise RecipeError where nothing was quantized or a scale is infinite."""
    try:
        with quiet_quantizer():
            quantized = prepared.quantize(ranges, exclude=context.exclude, reduce_range=context.reduce_range)
    except Exception as error:
        # It does not say which scale failed.
        found = [*_infinite(model), *(name for name, range_ in ranges.items() if not range_.is_finite)]
        raise (_no_scale(found, model, prepared, ranges, context) if found else quantizer_error(error)) from error
    stored = {tensor.name for tensor in quantized.graph.initializer}
    if not any(node.op_type == "DequantizeLinear" and node.input[0] in stored for node in quantized.graph.node):
        hint = "".join(f"; {note}: use 'int8-dynamic', which enters them" for note in _subgraph_notes(model))
        raise nothing_to_quantize("operator", model, context.exclude, hint)
    added = weight_dtypes(quantized).keys() - weight_dtypes(model).keys()
    infinite = [name.removesuffix("_scale") for name in _infinite(quantized, added)]
    if infinite:
        # The scale of a bias is the product of two others.
        values = [name for name in infinite if not name.endswith("_quantized")] or infinite
        raise _no_scale(values, model, prepared, ranges, context)
    return quantized


def _subgraph_notes(model: onnx.ModelProto) -> Iterator[str]:
    """Yield a note on operators inside branches and loops, where no ranges are measured."""
    operators = set(quantizable_operators())
    outer = [node for node in model.graph.node if any(each.op_type in operators for each in subgraph_nodes(node))]
    if outer:
        names = ", ".join(f"{node.op_type} {node.name!r}" for node in outer)
        yield f"int8-static does not quantize inside branches and loops ({names})"


def _infinite(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[str]:
    return (name for name, array in weight_arrays(model, names) if not np.isfinite(array).all())


def _no_scale(
    names: list[str],
    model: onnx.ModelProto,
    prepared: PreparedModel,
    ranges: Mapping[str, Range],
    context: RecipeContext,
) -> RecipeError:
    around = tuple(sorted({*context.exclude, *nodes_around(names, prepared.nodes)}))
    is_masked = any(name in ranges and ranges[name].low == -np.inf for name in names) or any(
        np.isneginf(array).any() for _, array in weight_arrays(model, names)
    )
    if is_masked:
        cause = "NaN or infinite on the calibration data, as behind a mask of -inf"
        alternative = "a mask of -30 has a scale; 'int8-dynamic' quantizes no mask"
    elif set(_infinite(model, names)):
        cause, alternative = "weights are infinite", "or correct the weights"
    else:
        cause = "NaN or infinite on the calibration data"
        alternative = "or calibrate on rows for which they are finite"
    return RecipeError(
        f"no int8 scale for {', '.join(map(repr, names))}: {cause}; exclude={around!r} leaves the nodes that write or "
        f"read such values in float; {alternative}"
    )


# Sanity check of the result: output SQNR on calibration data.


def _check_output_sqnr(
    quantized: onnx.ModelProto, prepared: PreparedModel, ranges: Mapping[str, Range], context: RecipeContext
) -> None:
    """Raise RecipeError if the SQNR of a floating output or channel is below 10 dB on the first 64 calibration rows.

    The ranges come from these rows, so only the quantization steps can be the cause.
    """
    path = context.folder / "after.onnx"
    write_model(quantized, path)
    outputs = [value.name for value in quantized.graph.output]
    quality = _output_quality(path, outputs, prepared.activations, context.batches())
    figures = {name: found.worst() for name, found in quality.items()}
    worst = min(figures, key=lambda name: figures[name].value, default=None)
    if worst is None or figures[worst].value >= MIN_QUANTIZED_SQNR_DB:
        return
    figure = figures[worst].below(MIN_QUANTIZED_SQNR_DB)
    where = f"output {worst!r}" if figure.channel is None else f"output {worst!r} {figure.channel}"
    raise RecipeError(
        f"{where} has an SQNR of {figure.value:.1f} dB on the calibration data (minimum "
        f"{MIN_QUANTIZED_SQNR_DB:.0f} dB): {_cause(quantized, prepared, ranges, context, figure.channel)}"
    )


def _output_quality(
    path: Path, outputs: Sequence[str], activations: Activations, batches: Iterator[Inputs]
) -> dict[str, RowSignalQuality]:
    quality: dict[str, RowSignalQuality] = {}
    with serve_result(path) as candidate:
        for batch in _first_rows(batches):
            expected = activations.fetch(outputs, batch)
            try:
                got = candidate.predict(batch)
            except (InputError, ArtifactError) as error:
                raise RecipeError(f"the result does not run on a batch of calibration=: {error}") from error
            for name, array in expected.items():
                if array.dtype.kind == "f" and array.size:
                    quality.setdefault(name, RowSignalQuality()).add(got[name], array)
    return quality


def _first_rows(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    rows = 0
    for batch in batches:
        yield batch
        rows += max((len(array) if array.ndim else 1 for array in batch.values()), default=1)
        if rows >= _SQNR_ROWS:
            return


def _cause(
    quantized: onnx.ModelProto,
    prepared: PreparedModel,
    ranges: Mapping[str, Range],
    context: RecipeContext,
    channel: Channel | None,
) -> str:
    values = prepared.activations.of(next(context.batches()))
    coarse = tuple(coarse_activations(quantized, ranges, values))
    lost = _lost_channel(quantized, prepared, values) if channel is not None and not coarse else None
    if lost is not None:
        nodes = tuple(sorted({*context.exclude, *nodes_around((lost.value,), prepared.nodes)}))
        return (
            f"{lost}; exclude={nodes!r} leaves the nodes that write or read this value in float, each input with its "
            "own steps; 'int8-dynamic' rounds weights only"
        )
    is_clipped = context.range_method != MIN_MAX
    if not coarse:
        unclipped = "calibration_method='min-max', which clips nothing, or " if is_clipped else ""
        return (
            f"try {unclipped}exclude= with the first nodes of sensitivity(artifact, 'int8-static', rows), or "
            "'int8-dynamic'"
        )
    listed = ", ".join(map(str, coarse[:_LISTED_VALUES]))
    more = f" and {len(coarse) - _LISTED_VALUES} more" if len(coarse) > _LISTED_VALUES else ""
    nodes = tuple(sorted({*context.exclude, *nodes_around((value.name for value in coarse), prepared.nodes)}))
    if min(value.low for value in coarse) <= _MASK:
        alternative = "a mask of -30 masks as well; 'int8-dynamic' quantizes no mask"
    elif is_clipped:
        alternative = "'int8-dynamic' computes the range of each call"
    else:
        alternative = (
            "calibration_method='percentile' clips rare outliers; 'int8-dynamic' computes the range of each call"
        )
    return (
        f"few of 256 levels are left to {listed}{more}; exclude={nodes!r} leaves the nodes that write or read such "
        f"values in float; {alternative}"
    )


@dataclass(frozen=True, slots=True)
class LostChannel:
    """A channel of the activation `value` that goes from `low` to `high`, which is less than one step."""

    operator: str
    node: str
    value: str
    step: float
    channel: Channel
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.operator} {self.node!r} writes {self.value!r} in steps of {self.step:.2g}, more than the whole of "
            f"its {self.channel} (from {self.low:.3g} to {self.high:.3g})"
        )


def _lost_channel(
    quantized: onnx.ModelProto, prepared: PreparedModel, values: Mapping[str, NDArray[np.float32]]
) -> LostChannel | None:
    """Return the last activation of the graph with a step that is larger than the range of one of its channels."""
    writers = {output: node for node in prepared.nodes for output in node.output}
    for quantized_name, step, _ in reversed(tuple(_quantization_steps(quantized))):
        # The quantizer renames what a node writes where the value is an output of the graph.
        name = quantized_name.removesuffix("_QuantizeLinear_Input")
        node = writers.get(name)
        if node is None or name not in values or node.name not in nodes_around((name,), (node,)):
            continue
        for axis in channel_axes(values[name].shape):
            channels = by_channel(values[name], axis)
            low, high = channels.min(axis=1), channels.max(axis=1)
            for index in np.flatnonzero((high > low) & (high - low < step)):
                if np.unique(channels[index, :_SAMPLE_SIZE]).size >= _MIN_LOST_NUMBERS:
                    where = Channel(axis, int(index))
                    return LostChannel(
                        node.op_type, node.name, name, step, where, float(low[index]), float(high[index])
                    )
    return None


def _quantization_steps(quantized: onnx.ModelProto) -> Iterator[tuple[str, float, int]]:
    """Yield the name, the step and the zero point of each quantized activation, in the order of the graph."""
    import onnx

    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear" and all(name in stored for name in node.input[1:3]):
            step, zero = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
            if step.size == 1:
                yield node.input[0], float(step), int(zero)


@dataclass(frozen=True, slots=True)
class CoarseActivation:
    """The activation `name` with a range from `low` to `high` that is too wide for 8 bits, of steps of `step`."""

    name: str
    low: float
    high: float
    step: float

    def __str__(self) -> str:
        return f"{self.name!r} (from {self.low:.3g} to {self.high:.3g} in steps of {self.step:.2g})"


def coarse_activations(
    quantized: onnx.ModelProto, ranges: Mapping[str, Range], values: Mapping[str, NDArray[np.float32]]
) -> Iterator[CoarseActivation]:
    """Yield those of `values` that have many distinct numbers and at most 8 levels after quantization by `ranges`."""
    for name, step, zero in _quantization_steps(quantized):
        if name not in values:
            continue
        seen = values[name]
        steps = np.rint(seen.astype(np.float64) / step)
        levels = np.unique(np.clip(steps, -128 - zero, 127 - zero).astype(np.int16)).size
        if levels <= _COARSE_LEVELS and np.unique(seen.reshape(-1)[:_SAMPLE_SIZE]).size >= _MIN_NUMBERS:
            yield CoarseActivation(name, float(ranges[name].low), float(ranges[name].high), step)
