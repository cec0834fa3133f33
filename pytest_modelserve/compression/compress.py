"""Recipes applied to an artifact, one after another, each checked and stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import (
    JSON,
    Artifact,
    LineageStep,
    Store,
    digest_of,
    load_model,
    open_artifact,
    own_code,
    save_artifact,
)
from pytest_modelserve.compression.after import check_answers, check_signature
from pytest_modelserve.compression.calibration import Calibration, Given, calibration_of
from pytest_modelserve.compression.census import keep_node_metadata, node_counts
from pytest_modelserve.compression.exclusion import Excluded, check_excluded, excluded_names
from pytest_modelserve.compression.fp16 import FP16
from pytest_modelserve.compression.int4_weights import INT4_WEIGHTS
from pytest_modelserve.compression.int8_dynamic import INT8_DYNAMIC
from pytest_modelserve.compression.int8_static import INT8_STATIC
from pytest_modelserve.compression.optimize import OPTIMIZE
from pytest_modelserve.compression.ranging import MIN_MAX, CalibrationMethod, Ranging, ranging_of
from pytest_modelserve.compression.recipe import Applied, Inputs, Material, Recipe
from pytest_modelserve.compression.room import refuse_full
from pytest_modelserve.compression.simplify import SIMPLIFY
from pytest_modelserve.compression.trials import draw_trials
from pytest_modelserve.errors import ArtifactError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import Predictor, serve

if TYPE_CHECKING:
    import onnx

RECIPES = {recipe.name: recipe for recipe in (SIMPLIFY, OPTIMIZE, FP16, INT8_DYNAMIC, INT8_STATIC, INT4_WEIGHTS)}
"""Every recipe by name."""

# What an export calls its result; a recipe's result is called by the recipe alone.
_PLAIN = ("", "fp32")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A recipe and what the user gives it: nothing that it does not take."""

    recipe: Recipe
    calibration: Calibration | None
    ranging: Ranging
    exclude: tuple[str, ...]


def compress(
    artifact: Artifact,
    recipe: str | Sequence[str],
    *,
    calibration: Given | None = None,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    exclude: Excluded | Iterable[Excluded] = (),
    store: Store,
) -> Artifact:
    """`artifact` after one recipe, or after several in order: from the store where that was done before.

    "simplify" folds constants and removes idle nodes by onnxsim and leaves the answers as they are, as does "optimize",
    onnxruntime's own optimiser, whose file is tied to onnxruntime. "fp16" puts all into 16 bits that fits there.
    "int8-dynamic" and "int8-static" put weights into 8 bits by onnxruntime, "int4-weights" into 4; the ranges of the
    values in between are found while the model runs, or beforehand on `calibration`, which "int8-static" needs: an
    array, a mapping from input names to arrays, or an iterable of such batches, of which one at a time is in memory.

    `calibration_method` says what range "int8-static" gives to a value between layers: "min-max" all that was seen;
    "percentile" that of the `percentile` (default 99.999) per cent of smallest absolute values; "entropy" the one whose
    128 steps tell most of the distribution, by Kullback-Leibler on 2,048 bins. Both leave outliers out, which costs
    their value and gives the others finer steps. Ranges do not depend on the order of batches.

    `exclude` names nodes, or holds layers from `sensitivity`, that "fp16" leaves in fp32 and the int recipes in float:
    their weights and what they compute; what such a node reads is still rounded where the node before it rounds what it
    gives. Each recipe that takes exclusions looks the names up in the model that it is handed.

    The variant is named by its recipes, "simplify+int8-dynamic"; the lineage says how many nodes of which operator
    there were before and after, what was left as it was, and the settings.

    Each result is run by onnxruntime on random inputs of two batch sizes beside its source: an exact recipe has to
    give the same answers up to rounding, any other finite ones. `artifact` itself is never written to.

    UsageError for an unknown recipe or none, for calibration data, a calibration method or exclusions that no recipe
    takes, for a percentile without its method, and for a node that is not there. RecipeError for a recipe
    that fails, that changes nothing, that changes the signature or, if exact, an answer, for a model that is quantised
    already, for NaN or infinite weights, and for a model whose inputs cannot be drawn at random; for calibration data
    that are missing, empty or not finite, or that do not fit the model. ArtifactError for a source that changed or lost
    its external data, and for a store that is full. MissingDependencyError where the recipe's package is not installed.
    """
    if not isinstance(artifact, Artifact):
        raise UsageError(
            f"{artifact!r} is no Artifact: give what open_artifact(path), export(...) or compose(...) returns"
        )
    names = (recipe,) if isinstance(recipe, str) else tuple(recipe)
    if not names:
        raise UsageError(f"no recipe is given; known: {', '.join(map(repr, RECIPES))}")
    for name in names:
        if name not in RECIPES:
            raise UsageError(unknown_choice("recipe", name, RECIPES))
    recipes = [RECIPES[name] for name in names]
    ranging = ranging_of(calibration_method, percentile)
    excluded = excluded_names(exclude)
    _check_taken(recipes, calibration, ranging, excluded)
    with nullcontext() if calibration is None else calibration_of(calibration, artifact.signature) as calibrated:
        for each in recipes:
            job = _Job(
                each,
                calibrated if each.calibrates else None,
                ranging if each.calibrates else MIN_MAX,
                excluded if each.excludable else (),
            )
            artifact = _one(artifact, job, store)
    return artifact


def _check_taken(
    recipes: Sequence[Recipe], calibration: Given | None, ranging: Ranging, excluded: Sequence[str]
) -> None:
    told = ", ".join(repr(recipe.name) for recipe in recipes)
    if not any(recipe.calibrates for recipe in recipes):
        if calibration is not None:
            raise UsageError(f"calibration= is given, and {told} takes none: leave it out")
        if ranging != MIN_MAX:
            raise UsageError(f"calibration_method={ranging.method!r} is given, and {told} takes none: leave it out")
    if excluded and not any(recipe.excludable for recipe in recipes):
        raise UsageError(f"exclude= is given, and {told} can leave no node out: leave exclude= out")
    if calibration is None:
        for recipe in recipes:
            if recipe.calibrates:
                raise RecipeError(
                    f"recipe {recipe.name!r} needs calibration=: rows like those that the model will serve, as an "
                    "array, a mapping from input names to arrays, or an iterable of such batches"
                )


def _one(artifact: Artifact, job: _Job, store: Store) -> Artifact:
    recipe = job.recipe
    variant = recipe.name if artifact.variant in _PLAIN else f"{artifact.variant}+{recipe.name}"
    key = digest_of(
        {
            "stage": "compression",
            "recipe": recipe.name,
            "source": artifact.sha256,
            "name": artifact.name,
            "variant": variant,
            "calibration": job.calibration.digest if job.calibration else None,
            "ranging": job.ranging,
            "exclude": job.exclude,
            "versions": package_versions((*recipe.packages, "onnxruntime", "numpy")),
            "own_code": own_code(),
        }
    )
    file_name = f"{artifact.path.stem}.onnx"

    def build(folder: Path) -> None:
        try:
            _build(artifact, job, variant, folder / file_name)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r} on {artifact.subject}: {error}") from error

    entry = store.get_or_build(key, build, what=f"{recipe.name} of {artifact.subject}")
    return open_artifact(entry / file_name)


def _build(artifact: Artifact, job: _Job, variant: str, target: Path) -> None:
    recipe = job.recipe
    source = loaded(artifact)
    with serve(artifact) as reference, TemporaryDirectory(dir=target.parent) as work:
        trials = draw_trials(reference, artifact)
        copy = type(source)()
        copy.CopyFrom(source)
        if job.exclude and recipe.excludable:
            where = f"recipe {recipe.name!r} on {artifact.subject}"
            check_excluded(job.exclude, copy, recipe.excludable(copy), where)
        batches = job.calibration.batches if job.calibration else _no_batches
        material = Material(trials[0], Path(work), batches, exclude=job.exclude, ranging=job.ranging)
        try:
            applied = recipe.apply(copy, material)
        except RecipeError as error:
            if error.__cause__ is not None:  # a tool failed, instead of finding something out
                refuse_full(Path(work), 2 * artifact.file_bytes)  # what tools write between is larger by a little
            raise
        model = applied.model
        check_signature(model, source)
        keep_node_metadata(model, source)
        step = _lineage_step(artifact, job, source, applied)
        result = save_artifact(model, target, name=artifact.name, variant=variant, lineage=(*artifact.lineage, step))
        with _served(result) as candidate:
            check_answers(candidate, reference, trials, is_exact=recipe.is_exact)
    load_model(artifact)  # ArtifactError, should a tool have written to its source


def _no_batches() -> Iterator[Inputs]:
    return iter(())


def _lineage_step(artifact: Artifact, job: _Job, source: onnx.ModelProto, applied: Applied) -> LineageStep:
    settings: dict[str, JSON] = {
        "recipe": job.recipe.name,
        "nodes_before": node_counts(source),
        "nodes_after": node_counts(applied.model),
    }
    if job.calibration:
        settings["calibration"] = job.calibration.digest
        settings["calibration_method"] = job.ranging.method
    if job.ranging.percentile is not None:
        settings["percentile"] = job.ranging.percentile
    if job.exclude:
        settings["exclude"] = list(job.exclude)
    return LineageStep(
        "compression",
        settings,
        artifact.sha256,
        package_versions(job.recipe.packages),
        applied.notes,
    )


def _served(result: Artifact) -> Predictor:
    try:
        return serve(result)
    except ArtifactError as error:
        raise RecipeError(f"onnxruntime does not take the result: {error}") from error


def loaded(artifact: Artifact) -> onnx.ModelProto:
    """The model with all its weights."""
    import onnx

    model = load_model(artifact)
    onnx.load_external_data_for_model(model, str(artifact.path.parent))
    return model
