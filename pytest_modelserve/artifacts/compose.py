"""One artifact out of a model and the steps around it, and the steps alone for preparing training data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.artifact import Artifact, load_model, open_artifact
from pytest_modelserve.artifacts.chain import chain
from pytest_modelserve.artifacts.digest import digest_of
from pytest_modelserve.artifacts.joining import DEFAULT_OPSET, with_postprocess, with_preprocess
from pytest_modelserve.artifacts.lineage import JSON, LineageStep
from pytest_modelserve.artifacts.naming import rename_value
from pytest_modelserve.artifacts.own_code import own_code
from pytest_modelserve.artifacts.saving import save_artifact
from pytest_modelserve.artifacts.signature import TensorSpec
from pytest_modelserve.artifacts.steps import Step
from pytest_modelserve.artifacts.store import Store
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import package_versions

if TYPE_CHECKING:
    import onnx

# Of the opset that the steps alone are written in; a model with steps keeps its own.
_STEPS_IR_VERSION = 10
_FILE = "model.onnx"


def compose(
    artifact: Artifact,
    *,
    preprocess: Sequence[Step] = (),
    postprocess: Sequence[Step] = (),
    store: Store,
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
            "own_code": own_code(),
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

    return open_artifact(store.get_or_build(key, build, what=f"{artifact.subject} with its steps") / _FILE)


def steps_artifact(steps: Sequence[Step], spec: TensorSpec, *, name: str, store: Store) -> Artifact:
    """The artifact of `steps` alone, which takes inputs that fit `spec` and computes the bits that `compose` would.

    Use it to prepare training data by the runtime that will prepare the served ones. Results are named as `compose`
    names them; where that would be the input's own name, the output is "prepared".
    """
    step = _lineage_step("steps", None, {}, steps=steps)
    key = digest_of(
        {"steps": tuple(steps), "spec": spec, "name": name, "versions": step.versions, "own_code": own_code()}
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
