"""Recipes applied to an artifact, one after another, each checked and stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from pytest_modelserve.artifacts import Artifact, Store, digest_of, moved, open_artifact, own_code
from pytest_modelserve.compression.building import Job, build_result
from pytest_modelserve.compression.calibration import Given, calibration_of
from pytest_modelserve.compression.exclusion import Excluded, excluded_names
from pytest_modelserve.compression.fp16 import FP16
from pytest_modelserve.compression.int4_weights import INT4_WEIGHTS
from pytest_modelserve.compression.int8_dynamic import INT8_DYNAMIC
from pytest_modelserve.compression.int8_static import INT8_STATIC
from pytest_modelserve.compression.optimize import OPTIMIZE
from pytest_modelserve.compression.ranging import MIN_MAX, CalibrationMethod, Ranging, ranging_of
from pytest_modelserve.compression.recipe import Recipe
from pytest_modelserve.compression.simplify import SIMPLIFY
from pytest_modelserve.errors import RecipeError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions

RECIPES = {recipe.name: recipe for recipe in (SIMPLIFY, OPTIMIZE, FP16, INT8_DYNAMIC, INT8_STATIC, INT4_WEIGHTS)}
"""Every recipe by name."""

# What an export calls its result; a recipe's result is called by the recipe alone.
_PLAIN = ("", "fp32")


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
    their value and gives the others finer steps; "entropy" clips hard, and on outputs without a bound loses up to 19 dB
    against "min-max". Ranges do not depend on the order of batches.

    `exclude` names nodes, or holds layers from `sensitivity`, that "fp16" leaves in fp32 and the int recipes in float:
    their weights and what they compute; what such a node reads is still rounded where the node before it rounds what it
    gives. Each recipe that takes exclusions looks the names up in the model that it is handed.

    The variant is named by its recipes, "simplify+int8-dynamic"; the lineage says how many nodes of which operator
    there were before and after, what was left as it was, and the settings.

    Each result is run by onnxruntime on random inputs of two batch sizes beside its source: an exact recipe has to
    give the same answers up to rounding, any other finite ones. `artifact` itself is never written to.

    UsageError for an unknown recipe or none, for calibration data, a calibration method or exclusions that no recipe
    takes, for a percentile without its method, and for a node that is not there. RecipeError for a recipe
    that fails, that changes nothing, that changes the signature or, if exact, an answer, for an "int8-static" result
    that keeps less than 10 dB on its calibration data, for a model that is quantised already, for NaN or infinite
    weights, and for a model whose inputs cannot be drawn at random; for calibration data that are missing, empty or not
    finite, or that do not fit the model. ArtifactError for a source that changed or lost
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
            job = Job(
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


def _one(artifact: Artifact, job: Job, store: Store) -> Artifact:
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
    built: list[Artifact] = []

    def build(folder: Path) -> None:
        try:
            built.append(build_result(artifact, job, variant, folder / file_name))
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r} on {artifact.subject}: {error}") from error

    entry = store.get_or_build(key, build, what=f"{recipe.name} of {artifact.subject}")
    return moved(built[0], entry) if built else open_artifact(entry / file_name)
