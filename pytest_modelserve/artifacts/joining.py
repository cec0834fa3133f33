"""A model with steps before and after it, as one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.chain import Boundary, Chain, chain
from pytest_modelserve.artifacts.naming import rename_value, unused_prefix
from pytest_modelserve.artifacts.signature import TensorSpec, signature_of, value_info
from pytest_modelserve.artifacts.steps import Step
from pytest_modelserve.errors import UsageError, unknown_choice

if TYPE_CHECKING:
    import onnx

# What torch.onnx.export writes by default; the steps mean the same in every opset from 13 on.
DEFAULT_OPSET = 20
# Softmax took its present meaning, and every operator of the steps its present form, in opset 13.
_MIN_OPSET = 13
# From IR version 4 on an initializer need not be an input too.
_MIN_IR_VERSION = 4


def with_preprocess(
    model: onnx.ModelProto, steps: Sequence[Step], *, input: str | None, dtype: str | None
) -> onnx.ModelProto:
    """`model` with `steps` before its input of that name, which keeps the name and may get another dtype.

    `input` may be None where the model has but one.
    """
    from onnx.compose import merge_graphs

    inputs = signature_of(model).inputs
    taken = _choose("input", input, inputs, "prepare")
    if last := next((step for step in steps if step.is_last), None):
        raise UsageError(f"{type(last).__name__} gives an answer, not an input: it belongs into postprocess=")
    if taken.name in {output.name for output in model.graph.output}:
        raise UsageError(f"the model returns its input {taken.name!r} as it came; no step can stand before that")
    given = TensorSpec(taken.name, dtype or taken.dtype, taken.shape)
    before = chain([*steps, Boundary()], given, prefix=unused_prefix(model.graph, "preprocess"))
    (prepared,) = before.results.values()
    if prepared.dtype != taken.dtype:
        raise UsageError(f"the steps make {prepared.dtype} of {given}, and the model takes {taken}")
    graph = merge_graphs(
        before.graph,
        model.graph,
        [(prepared.name, taken.name)],
        name=model.graph.name,
        doc_string=model.graph.doc_string,
    )
    rename_value(graph, before.entry, taken.name)
    # merge_graphs puts the prepared input first; callers know the model's own order.
    declared = {value.name: value for value in graph.input}
    ordered = [type(value).FromString(declared[value.name].SerializeToString()) for value in model.graph.input]
    del graph.input[:]
    graph.input.extend(ordered)
    return _with_graph(model, graph)


def with_postprocess(
    model: onnx.ModelProto, steps: Sequence[Step], *, output: str | None, keep: Sequence[str]
) -> onnx.ModelProto:
    """`model` with `steps` after its output of that name; it then gives the last step's results and those in `keep`.

    `output` may be None where the model has but one. `keep` may name outputs of the model and values that a step names
    on the way. A value inside the model that has the name of a result gets another.
    """
    from onnx.compose import merge_graphs

    outputs = {spec.name: spec for spec in signature_of(model).outputs}
    scored = _choose("output", output, tuple(outputs.values()), "work on")
    prefix = unused_prefix(model.graph, "postprocess")
    after = chain([Boundary(), *steps], scored, prefix=prefix)
    _check_names(model, scored.name, after, keep)
    results = {**after.results, **{name: after.passing[name] for name in keep if name not in outputs}}
    source = type(model.graph)()
    source.CopyFrom(model.graph)
    for name in results:
        rename_value(source, name, f"{prefix}model/{name}")
    left = f"{prefix}model/{scored.name}" if scored.name in results else scored.name
    graph = merge_graphs(source, after.graph, [(left, after.entry)], name=source.name, doc_string=source.doc_string)
    for name, value in results.items():
        rename_value(graph, value.name, name)
    declared = {value.name: value for value in model.graph.output}
    declared |= {name: value_info(TensorSpec(name, value.dtype, value.shape)) for name, value in results.items()}
    _declare_outputs(graph, [declared[name] for name in (*after.results, *keep)])
    return _with_graph(model, graph)


def opset_of(model: onnx.ModelProto) -> int | None:
    """The version of the ai.onnx operators that `model` imports; None where it imports only other domains."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _with_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    """`model` with another graph; functions, metadata, producer and all else stay (onnx.compose would drop some)."""
    opset = opset_of(model)
    if opset is not None and opset < _MIN_OPSET:
        raise UsageError(
            f"steps need opset {_MIN_OPSET} or later, and the model has {opset}: export it with a newer opset, "
            "or convert it with onnx.version_converter"
        )
    joined = type(model)()
    joined.CopyFrom(model)
    graph.metadata_props.extend(model.graph.metadata_props)
    graph.quantization_annotation.extend(model.graph.quantization_annotation)
    joined.graph.CopyFrom(graph)
    joined.ir_version = max(joined.ir_version, _MIN_IR_VERSION)
    if opset is None:
        joined.opset_import.add(domain="", version=DEFAULT_OPSET)
    return joined


def _choose(what: str, name: str | None, specs: Sequence[TensorSpec], purpose: str) -> TensorSpec:
    names = [spec.name for spec in specs]
    if name is None and len(specs) == 1:
        return specs[0]
    if name is None:
        raise UsageError(
            f"the model has {len(names)} {what}s, {', '.join(map(repr, names))}: "
            f"say which one the steps {purpose}, {what}={names[0] if names else None!r} for one"
        )
    if name not in names:
        raise UsageError(unknown_choice(what, name, names))
    return specs[names.index(name)]


def _check_names(model: onnx.ModelProto, scored: str, after: Chain, keep: Sequence[str]) -> None:
    inputs = {value.name for value in model.graph.input}
    available = [*(value.name for value in model.graph.output), *after.passing]
    if scored in inputs:
        raise UsageError(f"the model returns its input {scored!r} as it came; no step can stand after that")
    for name in keep:
        if name in after.results:
            raise UsageError(f"keep: {name!r} is what the last step's result is called, so it cannot be kept as well")
        if name not in available:
            raise UsageError(unknown_choice("output to keep", name, available))
    for name in (*after.results, *keep):
        if name in inputs:
            raise UsageError(f"the steps give a result called {name!r}, and so is an input of the model")


def _declare_outputs(graph: onnx.GraphProto, outputs: Sequence[onnx.ValueInfoProto]) -> None:
    names = {value.name for value in outputs}
    inner = [value for value in graph.value_info if value.name not in names]
    for field, values in ((graph.output, outputs), (graph.value_info, inner)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
