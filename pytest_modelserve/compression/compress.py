"""Recipes applied to an artifact, one after another, each checked and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve._files import check_free_space
from pytest_modelserve._onnx.graph import copy_node_metadata, node_counts
from pytest_modelserve._processes import crash_watch
from pytest_modelserve.artifacts import (
    JSON,
    Artifact,
    LineageStep,
    Store,
    digest_of,
    is_unchanged,
    open_artifact,
    package_hash,
    read_graph,
    relocated,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.artifacts.artifact import load_with_weights
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Calibration,
    CalibrationData,
    CalibrationMethod,
    RangeMethod,
    open_calibration,
    range_method,
)
from pytest_modelserve.compression.fp16 import FP16
from pytest_modelserve.compression.graph_optimization import OPTIMIZE, SIMPLIFY
from pytest_modelserve.compression.quantization import INT4_WEIGHTS, INT8_DYNAMIC
from pytest_modelserve.compression.recipe import (
    Inputs,
    NodeSelection,
    Recipe,
    RecipeContext,
    RecipeResult,
    check_excluded,
    excluded_names,
)
from pytest_modelserve.compression.static_quantization import INT8_STATIC
from pytest_modelserve.compression.validation import check_outputs, check_signature, draw_cases, serve_result
from pytest_modelserve.errors import ArtifactError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx


# One recipe on one artifact: the result written, served, and compared with its source.


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A recipe and what the user gives it: nothing that it does not take."""

    recipe: Recipe
    calibration: Calibration | None
    ranging: RangeMethod
    exclude: tuple[str, ...]


def build_result(artifact: Artifact, job: Job, variant: str, target: Path) -> Artifact:
    """The artifact at `target` that `job` makes of `artifact`, and that passed every check.

    RecipeError says what the recipe or a check found, ArtifactError that the source is no longer what was opened,
    before or after the recipe.
    """
    model = load_with_weights(artifact)
    with serve(artifact) as reference:
        trials = draw_cases(reference, artifact)
    with TemporaryDirectory(dir=target.parent) as work, _watch(job.recipe) as watch:
        source = read_graph(artifact.path)
        applied = _applied(artifact, job, model, trials[0].inputs, Path(work))
        check_signature(applied.model, source)
        copy_node_metadata(applied.model, source)
        step = _lineage_step(artifact, job, source, applied)
        lineage = (*artifact.lineage, step)
        result = save_artifact(applied.model, target, name=artifact.name, variant=variant, lineage=lineage)
        watch(result.path)
        with serve_result(without_change_check(result)) as candidate:  # the folder of a build is nobody else's
            check_outputs(candidate, trials, is_exact=job.recipe.is_exact)
    if not is_unchanged(artifact):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return result


def _watch(recipe: Recipe) -> AbstractContextManager[Callable[[Path], None]]:
    return crash_watch() if recipe.may_crash else nullcontext(lambda _: None)


def _applied(artifact: Artifact, job: Job, model: onnx.ModelProto, inputs: Inputs, work: Path) -> RecipeResult:
    recipe = job.recipe
    if job.exclude and recipe.excludable:
        where = f"recipe {recipe.name!r} on {artifact.subject}"
        check_excluded(job.exclude, model, recipe.excludable(model), where)
    batches = job.calibration.batches if job.calibration else _no_batches
    context = RecipeContext(inputs, work, batches, exclude=job.exclude, source=artifact.path, ranging=job.ranging)
    try:
        return recipe.apply(model, context)
    except RecipeError as error:
        if error.__cause__ is not None:  # a tool failed, instead of finding something out
            check_free_space(work, 2 * artifact.file_bytes)  # what tools write between is larger by a little
        raise


def _no_batches() -> Iterator[Inputs]:
    return iter(())


def _lineage_step(artifact: Artifact, job: Job, source: onnx.ModelProto, applied: RecipeResult) -> LineageStep:
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


RECIPES = {recipe.name: recipe for recipe in (SIMPLIFY, OPTIMIZE, FP16, INT8_DYNAMIC, INT8_STATIC, INT4_WEIGHTS)}
"""Every recipe by name."""

# What an export calls its result; a recipe's result is called by the recipe alone.
_PLAIN = ("", "fp32")


def compress(
    artifact: Artifact,
    recipe: str | Sequence[str],
    *,
    calibration: CalibrationData | None = None,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    exclude: NodeSelection | Iterable[NodeSelection] = (),
    store: Store,
) -> Artifact:
    """`artifact` after one recipe, or after several in order: from the store where that was done before.

    "simplify" folds constants and removes idle nodes by onnxsim and leaves the answers as they are, as does "optimize",
    onnxruntime's own optimizer, whose file is tied to onnxruntime. "fp16" puts all into 16 bits that fits there.
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
    that keeps less than 10 dB on its calibration data, for a model that is quantized already, for NaN or infinite
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
    ranging = range_method(calibration_method, percentile)
    excluded = excluded_names(exclude)
    _check_taken(recipes, calibration, ranging, excluded)
    with nullcontext() if calibration is None else open_calibration(calibration, artifact.signature) as calibrated:
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
    recipes: Sequence[Recipe], calibration: CalibrationData | None, ranging: RangeMethod, excluded: Sequence[str]
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
            "own_code": package_hash(),
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
    return relocated(built[0], entry) if built else open_artifact(entry / file_name)
