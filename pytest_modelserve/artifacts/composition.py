"""One artifact out of a model and the steps around it, and the steps alone for preparing training data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import rename_value, unused_prefix
from pytest_modelserve.artifacts.artifact import Artifact, load_model, open_artifact, save_artifact
from pytest_modelserve.artifacts.hashing import digest_of, package_hash
from pytest_modelserve.artifacts.metadata import JSON, LineageStep, TensorSpec, signature_of, spec_of, value_info
from pytest_modelserve.artifacts.store import Store, default_store
from pytest_modelserve.artifacts.transforms import FLOATS, Step, node, small_graph
from pytest_modelserve.errors import ArtifactError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions

if TYPE_CHECKING:
    import onnx


# Steps in a row as one graph.


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps joined into one graph, in which every name begins with the same prefix.

    The graph takes the value `entry`. `results` are the values of the last step, `passing` those that earlier steps
    give a name of their own; both map the public name to the value inside.
    """

    graph: onnx.GraphProto
    entry: str
    results: dict[str, TensorSpec]
    passing: dict[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Boundary(Step):
    """What stands between steps and a model, so that both compute the same bits together as each alone.

    onnxruntime fuses a constant factor into a MatMul that it meets (MatMulScaleFusion), and then rounds otherwise than
    the step alone did when it prepared the training data. A Clip without bounds passes every value on, NaN included,
    and no fusion reaches across it; an Identity would be optimized away. It costs about 1 µs for a row.
    """

    def graph(self, spec: TensorSpec) -> onnx.GraphProto:
        """`Clip(x)` without bounds for floats; integers are not rounded and just pass."""
        return small_graph([node("Clip" if spec.dtype in FLOATS else "Identity", ["x"], ["y"])], spec, {"y": spec}, {})


def chain(steps: Sequence[Step], spec: TensorSpec, *, prefix: str) -> Chain:
    """The graph of `steps`, at least one, for an input that fits `spec`.

    A step that cannot take what comes to it, or that follows one after which nothing can, is a UsageError.
    """
    from onnx.compose import add_prefix_graph, merge_graphs

    graph: onnx.GraphProto | None = None
    results, passing = {spec.name: spec}, {}
    for index, step in enumerate(steps):
        if len(results) > 1 or (index and steps[index - 1].is_last):
            raise UsageError(f"{_kind(step)} cannot follow {_kind(steps[index - 1])}, which must be the last step")
        ((name, value),) = results.items()
        piece = step.graph(TensorSpec(name, value.dtype, value.shape))
        names = step.outputs or (name,)
        if len(piece.input) != 1 or len(piece.output) != len(names):
            raise UsageError(f"the graph of {_kind(step)} must have one input and {len(names)} outputs")
        piece = add_prefix_graph(piece, f"{prefix}{index}_{_kind(step).lower()}/")
        passing.update(results if index and steps[index - 1].outputs else {})
        results = {name: spec_of(output) for name, output in zip(names, piece.output, strict=True)}
        graph = piece if graph is None else merge_graphs(graph, piece, [(value.name, piece.input[0].name)])
    if graph is None:
        raise UsageError("no steps are given")
    return Chain(graph, graph.input[0].name, results, passing)


def _kind(step: Step) -> str:
    return type(step).__name__


# A model with steps before and after it, as one model.


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


# Of the opset that the steps alone are written in; a model with steps keeps its own.
_STEPS_IR_VERSION = 10
_FILE = "model.onnx"


def compose(
    artifact: Artifact,
    *,
    preprocess: Sequence[Step] = (),
    postprocess: Sequence[Step] = (),
    store: Store | None = None,
    input: str | None = None,
    output: str | None = None,
    input_dtype: str | None = None,
    keep: Sequence[str] = (),
) -> Artifact:
    """The artifact with `preprocess` before its input and `postprocess` after its output, in one graph.

    The input keeps its name and its dims, symbolic ones included; `input_dtype` says what callers send where that is
    not what the model takes ("uint8" before `Scale(1 / 255)`). Softmax gives "probabilities", ArgMax "label", TopK
    "top_labels" and "top_scores"; after other steps the output keeps its name. Outputs of the model are left out unless
    `keep` names them, as are the "probabilities" of a Softmax that another step follows. `input` and `output` say which
    ones are meant where the model has several. The model needs opset 13 or later; its nodes keep their metadata.

    A boundary that no fusion of onnxruntime crosses stands between steps and model: the same steps run alone
    (`steps_artifact`) and then the model give the same bits. The result carries the artifact's name, variant and
    lineage. It lies in `store` under a key of the artifact's sha256, the steps and the
    library versions. Steps that do not fit the model are a UsageError.
    """
    settings = {"input": input, "input_dtype": input_dtype, "output": output, "keep": tuple(keep)}
    _check_together(preprocess, postprocess, settings)
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

    store = store or default_store()
    return open_artifact(store.get_or_build(key, build, what=f"{artifact.subject} with its steps") / _FILE)


def steps_artifact(steps: Sequence[Step], spec: TensorSpec, *, name: str, store: Store) -> Artifact:
    """The artifact of `steps` alone, which takes inputs that fit `spec` and computes the bits that `compose` would.

    Use it to prepare training data by the runtime that will prepare the served ones. Results are named as `compose`
    names them; where that would be the input's own name, the output is "prepared".
    """
    step = _lineage_step("steps", None, {}, steps=steps)
    key = digest_of(
        {"steps": tuple(steps), "spec": spec, "name": name, "versions": step.versions, "own_code": package_hash()}
    )

    def build(folder: Path) -> None:
        _save(_alone(steps, spec, name), folder, name=name, variant="", lineage=(step,))

    return open_artifact(store.get_or_build(key, build, what=f"the steps {name}") / _FILE)


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
        raise ArtifactError(f"the model of {name} with its steps does not pass onnx.checker: {error}") from error


def _copy_external(artifact: Artifact, folder: Path) -> None:
    # Copies, as onnx refuses data in a file with hard links.
    for path in artifact.external:
        copy = folder / path.relative_to(artifact.path.parent)
        if copy == folder / _FILE:
            raise ArtifactError(f"the external data of {artifact.path} are called {_FILE}: give them another name")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _check_together(
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
                raise UsageError(f"{name}= says what {side}= works on: give steps there too, or leave {name}= out")


def _lineage_step(stage: str, parent: str | None, settings: Mapping[str, JSON], **steps: Sequence[Step]) -> LineageStep:
    told = {side: [{"step": type(step).__name__, **asdict(step)} for step in row] for side, row in steps.items()}
    return LineageStep(stage, {**settings, **told}, parent, package_versions(("pytest-modelserve", "onnx")))
