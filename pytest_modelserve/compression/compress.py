"""Recipes applied to an artifact, one after another, each checked and stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
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
from pytest_modelserve.compression.fp16 import FP16
from pytest_modelserve.compression.int4_weights import INT4_WEIGHTS
from pytest_modelserve.compression.int8_dynamic import INT8_DYNAMIC
from pytest_modelserve.compression.int8_static import INT8_STATIC
from pytest_modelserve.compression.optimize import OPTIMIZE
from pytest_modelserve.compression.recipe import Applied, Inputs, Material, Recipe
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


def compress(
    artifact: Artifact, recipe: str | Sequence[str], *, calibration: Given | None = None, store: Store
) -> Artifact:
    """`artifact` after one recipe, or after several in order: from the store where that was done before.

    "simplify" folds constants and removes idle nodes by onnxsim and leaves the answers as they are, as does "optimize",
    onnxruntime's own optimiser, whose file is tied to onnxruntime. "fp16" puts all into 16 bits that fits there.
    "int8-dynamic" and "int8-static" put weights into 8 bits by onnxruntime, "int4-weights" into 4; the ranges of the
    values in between are found while the model runs, or beforehand on `calibration`, which "int8-static" needs: an
    array, a mapping from input names to arrays, or an iterable of such batches, of which one at a time is in memory.

    The variant is named by its recipes, "simplify+int8-dynamic"; the lineage says how many nodes of which operator
    there were before and after, and what was left as it was.

    Each result is run by onnxruntime on random inputs of two batch sizes beside its source: an exact recipe has to
    give the same answers up to rounding, any other finite ones. `artifact` itself is never written to.

    UsageError for an unknown recipe or none, and for calibration data that no recipe takes. RecipeError for a recipe
    that fails, that changes nothing, that changes the signature or, if exact, an answer, for a model that is quantised
    already, for NaN or infinite weights, and for a model whose inputs cannot be drawn at random; for calibration data
    that are missing, empty or not finite, or that do not fit the model. MissingDependencyError where the recipe's
    package is not installed.
    """
    names = (recipe,) if isinstance(recipe, str) else tuple(recipe)
    if not names:
        raise UsageError(f"no recipe is given; known: {', '.join(map(repr, RECIPES))}")
    for name in names:
        if name not in RECIPES:
            raise UsageError(unknown_choice("recipe", name, RECIPES))
    _check_calibration([RECIPES[name] for name in names], calibration)
    with nullcontext() if calibration is None else calibration_of(calibration, artifact.signature) as calibrated:
        for name in names:
            chosen = RECIPES[name]
            artifact = _one(artifact, chosen, calibrated if chosen.calibrates else None, store)
    return artifact


def _check_calibration(recipes: Sequence[Recipe], calibration: Given | None) -> None:
    told = ", ".join(repr(recipe.name) for recipe in recipes)
    if calibration is not None and not any(recipe.calibrates for recipe in recipes):
        raise UsageError(f"calibration= is given, and {told} takes none: leave it out")
    if calibration is None:
        for recipe in recipes:
            if recipe.calibrates:
                raise RecipeError(
                    f"recipe {recipe.name!r} needs calibration=: rows like those that the model will serve, as an "
                    "array, a mapping from input names to arrays, or an iterable of such batches"
                )


def _one(artifact: Artifact, recipe: Recipe, calibration: Calibration | None, store: Store) -> Artifact:
    variant = recipe.name if artifact.variant in _PLAIN else f"{artifact.variant}+{recipe.name}"
    key = digest_of(
        {
            "stage": "compression",
            "recipe": recipe.name,
            "source": artifact.sha256,
            "name": artifact.name,
            "variant": variant,
            "calibration": calibration.digest if calibration else None,
            "versions": package_versions((*recipe.packages, "onnxruntime", "numpy")),
            "own_code": own_code(),
        }
    )
    file_name = f"{artifact.path.stem}.onnx"

    def build(folder: Path) -> None:
        try:
            _build(artifact, recipe, calibration, variant, folder / file_name)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r} on {artifact.subject}: {error}") from error

    entry = store.get_or_build(key, build, what=f"{recipe.name} of {artifact.subject}")
    return open_artifact(entry / file_name)


def _build(artifact: Artifact, recipe: Recipe, calibration: Calibration | None, variant: str, target: Path) -> None:
    source = loaded(artifact)
    with serve(artifact) as reference, TemporaryDirectory(dir=target.parent) as work:
        trials = draw_trials(reference, artifact)
        copy = type(source)()
        copy.CopyFrom(source)
        applied = recipe.apply(
            copy, Material(trials[0], Path(work), calibration.batches if calibration else _no_batches)
        )
        model = applied.model
        check_signature(model, source)
        keep_node_metadata(model, source)
        step = _lineage_step(artifact, recipe, calibration, source, applied)
        result = save_artifact(model, target, name=artifact.name, variant=variant, lineage=(*artifact.lineage, step))
        with _served(result) as candidate:
            check_answers(candidate, reference, trials, is_exact=recipe.is_exact)
    load_model(artifact)  # ArtifactError, should a tool have written to its source


def _no_batches() -> Iterator[Inputs]:
    return iter(())


def _lineage_step(
    artifact: Artifact, recipe: Recipe, calibration: Calibration | None, source: onnx.ModelProto, applied: Applied
) -> LineageStep:
    settings: dict[str, JSON] = {
        "recipe": recipe.name,
        "nodes_before": node_counts(source),
        "nodes_after": node_counts(applied.model),
    }
    if calibration:
        settings["calibration"] = calibration.digest
    return LineageStep(
        "compression",
        settings,
        artifact.sha256,
        package_versions(recipe.packages),
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
