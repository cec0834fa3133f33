"""Recipes applied to an artifact, one after another, each checked and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import (
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
from pytest_modelserve.compression.census import keep_node_metadata, node_counts
from pytest_modelserve.compression.int8_dynamic import INT8_DYNAMIC
from pytest_modelserve.compression.recipe import Applied, Recipe
from pytest_modelserve.compression.simplify import SIMPLIFY
from pytest_modelserve.compression.trials import draw_trials
from pytest_modelserve.errors import ArtifactError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import Predictor, serve

if TYPE_CHECKING:
    import onnx

RECIPES = {recipe.name: recipe for recipe in (SIMPLIFY, INT8_DYNAMIC)}
"""Every recipe by name."""

# What an export calls its result; a recipe's result is called by the recipe alone.
_PLAIN = ("", "fp32")


def compress(artifact: Artifact, recipe: str | Sequence[str], *, store: Store) -> Artifact:
    """`artifact` after one recipe, or after several in order: from the store where that was done before.

    "simplify" folds constants and removes idle nodes by onnxsim and leaves the answers as they are; "int8-dynamic" puts
    weights into 8 bits by onnxruntime. The variant is named by its recipes, "simplify+int8-dynamic"; the lineage says
    how many nodes of which operator there were before and after, and what was left as it was.

    Each result is run by onnxruntime on random inputs of two batch sizes beside its source: an exact recipe has to
    give the same answers up to rounding, any other finite ones. `artifact` itself is never written to.

    UsageError for an unknown recipe or none. RecipeError for one that fails, that changes nothing, that changes the
    signature or, if exact, an answer, for a model that is quantised already, for NaN or infinite weights, and for a
    model whose inputs cannot be drawn at random. MissingDependencyError where the recipe's package is not installed.
    """
    names = (recipe,) if isinstance(recipe, str) else tuple(recipe)
    if not names:
        raise UsageError(f"no recipe is given; known: {', '.join(map(repr, RECIPES))}")
    for name in names:
        if name not in RECIPES:
            raise UsageError(unknown_choice("recipe", name, RECIPES))
    for name in names:
        artifact = _one(artifact, RECIPES[name], store)
    return artifact


def _one(artifact: Artifact, recipe: Recipe, store: Store) -> Artifact:
    variant = recipe.name if artifact.variant in _PLAIN else f"{artifact.variant}+{recipe.name}"
    key = digest_of(
        {
            "stage": "compression",
            "recipe": recipe.name,
            "source": artifact.sha256,
            "name": artifact.name,
            "variant": variant,
            "versions": package_versions((*recipe.packages, "onnxruntime", "numpy")),
            "own_code": own_code(),
        }
    )
    file_name = f"{artifact.path.stem}.onnx"

    def build(folder: Path) -> None:
        try:
            _build(artifact, recipe, variant, folder / file_name)
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r} on {artifact.subject}: {error}") from error

    entry = store.get_or_build(key, build, what=f"{recipe.name} of {artifact.subject}")
    return open_artifact(entry / file_name)


def _build(artifact: Artifact, recipe: Recipe, variant: str, target: Path) -> None:
    source = _loaded(artifact)
    with serve(artifact) as reference, TemporaryDirectory(dir=target.parent) as work:
        trials = draw_trials(reference, artifact)
        copy = type(source)()
        copy.CopyFrom(source)
        applied = recipe.apply(copy, trials[0], Path(work))
        model = applied.model
        check_signature(model, source)
        keep_node_metadata(model, source)
        lineage = (*artifact.lineage, _lineage_step(artifact, recipe, source, applied))
        result = save_artifact(model, target, name=artifact.name, variant=variant, lineage=lineage)
        with _served(result) as candidate:
            check_answers(candidate, reference, trials, is_exact=recipe.is_exact)
    load_model(artifact)  # ArtifactError, should a tool have written to its source


def _lineage_step(artifact: Artifact, recipe: Recipe, source: onnx.ModelProto, applied: Applied) -> LineageStep:
    return LineageStep(
        "compression",
        {"recipe": recipe.name, "nodes_before": node_counts(source), "nodes_after": node_counts(applied.model)},
        artifact.sha256,
        package_versions(recipe.packages),
        applied.notes,
    )


def _served(result: Artifact) -> Predictor:
    try:
        return serve(result)
    except ArtifactError as error:
        raise RecipeError(f"onnxruntime does not take the result: {error}") from error


def _loaded(artifact: Artifact) -> onnx.ModelProto:
    """The model with all its weights."""
    import onnx

    model = load_model(artifact)
    onnx.load_external_data_for_model(model, str(artifact.path.parent))
    return model
