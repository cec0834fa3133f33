"""Composition of a model with preprocessing and postprocessing steps into one ONNX graph."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import rename_value, unused_prefix
from pytest_modelserve.artifacts.artifact import Artifact, as_artifact, describe_file, load_model, save_artifact
from pytest_modelserve.artifacts.hashing import digest_of, package_hash
from pytest_modelserve.artifacts.metadata import JSON, LineageStep, TensorSpec, signature_of, spec_of, value_info
from pytest_modelserve.artifacts.store import Store, as_store
from pytest_modelserve.artifacts.transforms import FLOATS, Step, node, small_graph
from pytest_modelserve.errors import ArtifactError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions

if TYPE_CHECKING:
    import onnx

# What torch.onnx.export writes by default; the steps mean the same in every opset from 13 on.
DEFAULT_OPSET = 20
# Softmax has its present definition, and every operator of the steps its present form, since opset 13.
_MIN_OPSET = 13
# Since IR version 4 an initializer need not be an input, too.
_MIN_IR_VERSION = 4
# IR version of DEFAULT_OPSET, for steps alone; a model with steps keeps its own.
_STEPS_IR_VERSION = 10
_FILE = "model.onnx"


def compose(
    artifact: Artifact | str | os.PathLike[str],
    *,
    preprocess: Sequence[Step] = (),
    postprocess: Sequence[Step] = (),
    store: Store | Path | str | None = None,
    input: str | None = None,
    output: str | None = None,
    input_dtype: str | None = None,
    keep: Sequence[str] = (),
) -> Artifact:
    """Compose an artifact with steps before its input and after its output, in one graph.

    The input keeps its name and dims. Softmax names its output "probabilities", ArgMax "label", TopK "top_labels" and
    "top_scores"; after other steps the output keeps its name. Nodes of the model keep their metadata.

    A boundary that no fusion of onnxruntime crosses separates steps and model: running the steps alone
    (`steps_artifact`) and then the model gives the same bits.

    Args:
        artifact: The model, of opset 13 or later, or the path of its ONNX file.
        preprocess: Steps before the input.
        postprocess: Steps after the output.
        store: Where the result is kept, under a key of the artifact, the steps and the library versions.
        input: Name of the input that the steps prepare. Needed if the model has several.
        output: Name of the output that the steps take. Needed if the model has several.
        input_dtype: dtype that callers send if it differs from the model's: "uint8" before `Scale(1 / 255)`.
        keep: Outputs of the model to return as well, or "probabilities" of a Softmax that another step follows.

    Returns:
        The composed artifact, with the name, variant and extended lineage of `artifact`.

    Raises:
        UsageError: No steps, steps that do not fit the model, an unknown name, or an opset below 13.
        ArtifactError: The artifact changed, or the composed model is invalid.

    Example:
        >>> steps = {"preprocess": [Scale(1 / 255)], "postprocess": [Softmax(), ArgMax()]}  # doctest: +SKIP
        >>> served = compose(artifact, **steps, input_dtype="uint8", store=store)  # doctest: +SKIP
        >>> print(served.signature)  # doctest: +SKIP
        image: uint8[batch, 64] -> label: int64[batch]
    """
    artifact = as_artifact(artifact)
    settings = {"input": input, "input_dtype": input_dtype, "output": output, "keep": tuple(keep)}
    _check_settings(preprocess, postprocess, settings)
    step = _lineage_step("compose", artifact.sha256, settings, preprocess=preprocess, postprocess=postprocess)
    key = digest_of(
        {
            "artifact": artifact.sha256,
            "name": artifact.name,
            "variant": artifact.variant,
            "settings": settings,
            "preprocess": tuple(preprocess),
            "postprocess": tuple(postprocess),
            "versions": step.versions,
            "own_code": package_hash(),
        }
    )

    def build(folder: Path) -> None:
        model = load_model(artifact)
        if preprocess:
            model = with_preprocess(model, preprocess, input=input, dtype=input_dtype)
        if postprocess:
            model = with_postprocess(model, postprocess, output=output, keep=keep)
        _copy_external(artifact, folder)
        _save(model, folder, name=artifact.name, variant=artifact.variant, lineage=(*artifact.lineage, step))

    store = as_store(store)
    return describe_file(store.get_or_build(key, build, what=f"{artifact.subject} with its steps") / _FILE)


def steps_artifact(steps: Sequence[Step], spec: TensorSpec, *, name: str, store: Store) -> Artifact:
    """Write `steps` alone as an artifact that computes the same bits as in `compose`.

    Use it to prepare training data with the runtime that serves the model.

    Args:
        steps: At least one step.
        spec: Spec of the input.
        name: Name of the artifact.
        store: Where the result is kept.

    Returns:
        An artifact with outputs named as by `compose`, or "prepared" where that would be the name of the input.

    Raises:
        UsageError: The steps do not fit `spec`.
    """
    step = _lineage_step("steps", None, {}, steps=steps)
    key = digest_of(
        {"steps": tuple(steps), "spec": spec, "name": name, "versions": step.versions, "own_code": package_hash()}
    )

    def build(folder: Path) -> None:
        _save(_alone(steps, spec, name), folder, name=name, variant="", lineage=(step,))

    return describe_file(store.get_or_build(key, build, what=f"the steps {name}") / _FILE)


def _alone(steps: Sequence[Step], spec: TensorSpec, name: str) -> onnx.ModelProto:
    import onnx

    joined = chain(steps, spec, prefix="steps/")
    rename_value(joined.graph, joined.entry, spec.name)
    for public, value in joined.results.items():
        rename_value(joined.graph, value.name, "prepared" if public == spec.name else public)
    joined.graph.name = name
    opset = onnx.helper.make_opsetid("", DEFAULT_OPSET)
    return onnx.helper.make_model(joined.graph, opset_imports=[opset], ir_version=_STEPS_IR_VERSION)


def _save(model: onnx.ModelProto, folder: Path, *, name: str, variant: str, lineage: tuple[LineageStep, ...]) -> None:
    import onnx

    path = save_artifact(model, folder / _FILE, name=name, variant=variant, lineage=lineage).path
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise ArtifactError(f"the model of {name} with its steps is invalid (onnx.checker): {error}") from error


def _copy_external(artifact: Artifact, folder: Path) -> None:
    # onnx rejects external data in a file with hard links.
    for path in artifact.external:
        copy = folder / path.relative_to(artifact.path.parent)
        if copy == folder / _FILE:
            raise ArtifactError(f"the external data of {artifact.path} are named {_FILE}: rename them")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _check_settings(
    preprocess: Sequence[Step], postprocess: Sequence[Step], settings: Mapping[str, str | tuple[str, ...] | None]
) -> None:
    if not preprocess and not postprocess:
        raise UsageError("compose needs at least one step, in preprocess= or postprocess=")
    for steps, side, names in (
        (preprocess, "preprocess", ("input", "input_dtype")),
        (postprocess, "postprocess", ("output", "keep")),
    ):
        for name in names:
            if settings[name] and not steps:
                raise UsageError(f"{name}= needs steps in {side}=: pass steps there, or remove {name}=")


def _lineage_step(stage: str, parent: str | None, settings: Mapping[str, JSON], **steps: Sequence[Step]) -> LineageStep:
    described = {side: [{"step": type(step).__name__, **asdict(step)} for step in row] for side, row in steps.items()}
    return LineageStep(stage, {**settings, **described}, parent, package_versions(("pytest-modelserve", "onnx")))


# Models with steps.


def with_preprocess(
    model: onnx.ModelProto, steps: Sequence[Step], *, input: str | None, dtype: str | None
) -> onnx.ModelProto:
    """Return `model` with `steps` before the named input, which keeps its name and may change its dtype."""
    from onnx.compose import merge_graphs

    inputs = signature_of(model).inputs
    taken = _choose("input", input, inputs, "prepare")
    if last := next((step for step in steps if step.is_last), None):
        raise UsageError(
            f"preprocess= has {type(last).__name__}, whose result is not an input: move it to postprocess="
        )
    if taken.name in {output.name for output in model.graph.output}:
        raise UsageError(f"the model returns its input {taken.name!r} unchanged, so no step can precede it")
    given = TensorSpec(taken.name, dtype or taken.dtype, taken.shape)
    before = chain([*steps, FusionBarrier()], given, prefix=unused_prefix(model.graph, "preprocess"))
    (prepared,) = before.results.values()
    if prepared.dtype != taken.dtype:
        raise UsageError(f"preprocess= converts {given} to {prepared.dtype}, but the model takes {taken}")
    graph = merge_graphs(
        before.graph,
        model.graph,
        [(prepared.name, taken.name)],
        name=model.graph.name,
        doc_string=model.graph.doc_string,
    )
    rename_value(graph, before.entry, taken.name)
    # merge_graphs moves the prepared input to the front; callers rely on the model's order.
    declared = {value.name: value for value in graph.input}
    ordered = [type(value).FromString(declared[value.name].SerializeToString()) for value in model.graph.input]
    del graph.input[:]
    graph.input.extend(ordered)
    return _with_graph(model, graph)


def with_postprocess(
    model: onnx.ModelProto, steps: Sequence[Step], *, output: str | None, keep: Sequence[str]
) -> onnx.ModelProto:
    """Return `model` with `steps` after the named output; its outputs are the last step's results and `keep`.

    A value inside the model that has the name of a result is renamed.
    """
    from onnx.compose import merge_graphs

    outputs = {spec.name: spec for spec in signature_of(model).outputs}
    scored = _choose("output", output, tuple(outputs.values()), "work on")
    prefix = unused_prefix(model.graph, "postprocess")
    after = chain([FusionBarrier(), *steps], scored, prefix=prefix)
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
    """Return the version of the ai.onnx operators that `model` imports, None if it imports only other domains."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _with_graph(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return `model` with another graph; functions, metadata and producer stay (onnx.compose would drop some)."""
    opset = opset_of(model)
    if opset is not None and opset < _MIN_OPSET:
        raise UsageError(
            f"the model has opset {opset}, and steps need {_MIN_OPSET} or later: export it with a newer opset, "
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
            f"name the one that the steps {purpose}, for example {what}={names[0] if names else None!r}"
        )
    if name not in names:
        raise UsageError(unknown_choice(what, name, names))
    return specs[names.index(name)]


def _check_names(model: onnx.ModelProto, scored: str, after: Chain, keep: Sequence[str]) -> None:
    inputs = {value.name for value in model.graph.input}
    available = [*(value.name for value in model.graph.output), *after.passing]
    if scored in inputs:
        raise UsageError(f"the model returns its input {scored!r} unchanged, so no step can follow it")
    for name in keep:
        if name in after.results:
            raise UsageError(f"keep= names {name!r}, which is the name of the last step's result: remove it")
        if name not in available:
            raise UsageError(unknown_choice("output to keep", name, available))
    for name in (*after.results, *keep):
        if name in inputs:
            raise UsageError(f"the result {name!r} of the steps has the name of an input of the model")


def _declare_outputs(graph: onnx.GraphProto, outputs: Sequence[onnx.ValueInfoProto]) -> None:
    names = {value.name for value in outputs}
    inner = [value for value in graph.value_info if value.name not in names]
    for field, values in ((graph.output, outputs), (graph.value_info, inner)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


# Steps joined into one graph.


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps joined into one graph, in which every name begins with the same prefix.

    `entry` is the input. `results` are the values of the last step and `passing` those that earlier steps name; both
    map the public name to the value inside.
    """

    graph: onnx.GraphProto
    entry: str
    results: dict[str, TensorSpec]
    passing: dict[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class FusionBarrier(Step):
    """Barrier between steps and a model, so that both compute the same bits together and alone.

    onnxruntime fuses a constant factor into a MatMul (MatMulScaleFusion), which rounds differently. A Clip without
    bounds passes every value on, NaN included, and no fusion crosses it; an Identity would be optimized away. It costs
    about 1 µs a row.
    """

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Clip(x)` without bounds for floats, `Identity(x)` for integers."""
        return small_graph([node("Clip" if spec.dtype in FLOATS else "Identity", ["x"], ["y"])], spec, {"y": spec}, {})


def chain(steps: Sequence[Step], spec: TensorSpec, *, prefix: str) -> Chain:
    """Join `steps` into one graph for an input that fits `spec`; raise UsageError where a step does not fit."""
    from onnx.compose import add_prefix_graph, merge_graphs

    graph: onnx.GraphProto | None = None
    results, passing = {spec.name: spec}, {}
    for index, step in enumerate(steps):
        if len(results) > 1 or (index and steps[index - 1].is_last):
            raise UsageError(
                f"{_step_name(step)} cannot follow {_step_name(steps[index - 1])}, which must be the last step"
            )
        ((name, value),) = results.items()
        piece = step.graph(TensorSpec(name, value.dtype, value.shape))
        names = step.outputs or (name,)
        if len(piece.input) != 1 or len(piece.output) != len(names):
            raise UsageError(f"the graph of {_step_name(step)} must have one input and {len(names)} outputs")
        piece = add_prefix_graph(piece, f"{prefix}{index}_{_step_name(step).lower()}/")
        passing.update(results if index and steps[index - 1].outputs else {})
        results = {name: spec_of(output) for name, output in zip(names, piece.output, strict=True)}
        graph = piece if graph is None else merge_graphs(graph, piece, [(value.name, piece.input[0].name)])
    if graph is None:
        raise UsageError("steps is empty: pass at least one")
    return Chain(graph, graph.input[0].name, results, passing)


def _step_name(step: Step) -> str:
    return type(step).__name__
