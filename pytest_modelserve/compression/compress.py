"""Application of recipes to an artifact, each result validated and stored."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve._files import check_free_space
from pytest_modelserve._onnx.graph import copy_node_metadata, node_counts
from pytest_modelserve._processes import ChildProcess, Crash
from pytest_modelserve.artifacts import (
    JSON,
    Artifact,
    LineageStep,
    Store,
    as_artifact,
    as_store,
    describe_file,
    digest_of,
    is_unchanged,
    load_with_weights,
    package_hash,
    read_graph,
    relocated,
    save_artifact,
    without_change_check,
)
from pytest_modelserve.compression.calibration import (
    MIN_MAX,
    Calibration,
    CalibrationData,
    CalibrationMethod,
    RangeMethod,
    check_varied,
    constant_input_notes,
    open_calibration,
    parse_range_method,
)
from pytest_modelserve.compression.fp16 import Fp16
from pytest_modelserve.compression.graph_optimization import Optimize, Simplify
from pytest_modelserve.compression.quantization import Int4Weights, Int8Dynamic
from pytest_modelserve.compression.recipe import (
    Inputs,
    NodeSelection,
    Recipe,
    RecipeContext,
    RecipeResult,
    check_excluded,
    selected_names,
)
from pytest_modelserve.compression.static_quantization import Int8Static
from pytest_modelserve.compression.validation import check_outputs, check_signature, draw_cases, serve_result
from pytest_modelserve.errors import ArtifactError, RecipeError, UsageError, unknown_choice
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import serve
from pytest_modelserve.signing import checked_copy

if TYPE_CHECKING:
    import onnx

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (Simplify(), Optimize(), Fp16(), Int8Dynamic(), Int8Static(), Int4Weights())
}
"""Every recipe by name."""

_OPENER = "pytest_modelserve._onnx.sessions:try_to_open"
# Variants of an export; the result of a recipe on one of these is named by the recipe alone.
_EXPORT_VARIANTS = ("", "fp32")


def compress(
    artifact: Artifact | str | os.PathLike[str],
    recipe: str | Sequence[str],
    *,
    calibration: CalibrationData | None = None,
    calibration_method: CalibrationMethod = "min-max",
    percentile: float | None = None,
    exclude: NodeSelection | Iterable[NodeSelection] = (),
    reduce_range: bool = False,
    store: Store | Path | str | None = None,
) -> Artifact:
    """Convert `artifact` by one recipe, or by several in order.

    Recipes:

    - `"simplify"`: fold constants and remove idle nodes (onnxsim); outputs stay the same.
    - `"optimize"`: onnxruntime's graph optimization, saved; outputs stay the same. The file is tied to the installed
      onnxruntime.
    - `"fp16"`: weights and values in 16 bits, except where a constant does not fit. With `calibration`, values inside
      the model that overflow on those rows are found as well.
    - `"int8-dynamic"`: weights in 8 bits; ranges of activations are computed at each call.
    - `"int8-static"`: weights and activations in 8 bits; ranges come from `calibration`.
    - `"int4-weights"`: weights in 4 bits, 32 to a scale.

    onnxruntime runs each result and its source on random inputs of two batch sizes. An exact recipe must reproduce the
    outputs up to rounding, any other must give finite ones. A result is taken from `store` if it was built before.
    `artifact` is never written to. The lineage records the settings, the operators before and after, and what was left
    unchanged.

    Args:
        artifact: The model to convert, or the path of its ONNX file.
        recipe: A name from `RECIPES`, or several in order. The variant is named by them: "simplify+int8-dynamic".
        calibration: Representative inputs, required by "int8-static" and optional for "fp16": an array, a mapping from
            input names to arrays, or an iterable of such batches, of which one at a time is in memory. The order of
            batches does not matter. NaN, infinite values and rows that are all the same are rejected.
        calibration_method: How "int8-static" derives the range of an activation. "min-max" takes all values;
            "percentile" drops the largest absolute values; "entropy" minimizes the Kullback-Leibler divergence between
            2,048 bins and their 128 levels. "entropy" clips hard: on unbounded outputs it loses up to 19 dB against
            "min-max".
        percentile: Percentage of absolute values inside the range of "percentile" (default 99.999).
        exclude: Nodes to leave unconverted, by name or as layers from `sensitivity`. Their inputs are still rounded
            where the node before them rounds its output.
        reduce_range: Keep the weights of the int8 recipes within 7 bits. x86 processors without VNNI add pairs of int8
            products in 16 bits, which can saturate; the lineage notes where, on any processor. With 7 bits nothing
            saturates, at some loss of precision.
        store: Store, or its folder, where results are kept (default: the pipeline's store).

    Returns:
        The converted artifact.

    Raises:
        UsageError: An unknown recipe, an argument that no recipe takes, or a node that is not there.
        RecipeError: The recipe fails or changes the signature; a quantization changes nothing; an exact recipe changes
            an output; an "int8-static" result has an SQNR below 10 dB on its calibration data; the model is quantized
            already or has NaN or infinite weights; no inputs can be drawn for it; or calibration data are missing or do
            not fit.
        ArtifactError: The source changed or is not signed by a trusted key, or the store cannot be written.
        MissingDependencyError: The package of the recipe is not installed.

    Example:
        >>> small = compress(artifact, "int8-dynamic", store=store)  # doctest: +SKIP
        >>> small.variant  # doctest: +SKIP
        'int8-dynamic'
    """
    artifact = as_artifact(artifact)
    names = tuple(recipe) if isinstance(recipe, Iterable) and not isinstance(recipe, str) else (recipe,)
    if not names:
        raise UsageError(f"recipe is empty; known: {', '.join(map(repr, RECIPES))}")
    for name in names:
        if name not in RECIPES:
            raise UsageError(unknown_choice("recipe", name, RECIPES))
    recipes = [RECIPES[name] for name in names]
    store = as_store(store)
    range_method = parse_range_method(calibration_method, percentile)
    excluded = selected_names(exclude)
    _check_arguments(recipes, calibration, range_method, excluded, reduce_range=reduce_range)
    copy = checked_copy(artifact, None)
    with (
        nullcontext() if copy is None else closing(copy),
        nullcontext() if calibration is None else open_calibration(calibration, artifact.signature) as batches,
    ):
        artifact = artifact if copy is None else copy.artifact  # what was verified is what is opened
        if batches is not None:
            check_varied(batches)
        for each in recipes:
            run = _Run(
                each,
                batches if each.calibrates else None,
                range_method if each.needs_calibration else MIN_MAX,
                excluded if each.can_exclude else (),
                reduce_range and each.can_reduce_range,
            )
            artifact = _stored_result(artifact, run, store)
    return artifact


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A recipe with the arguments that it takes."""

    recipe: Recipe
    calibration: Calibration | None
    range_method: RangeMethod
    exclude: tuple[str, ...]
    reduce_range: bool


def _check_arguments(
    recipes: Sequence[Recipe],
    calibration: CalibrationData | None,
    method: RangeMethod,
    excluded: Sequence[str],
    *,
    reduce_range: bool,
) -> None:
    names = ", ".join(repr(recipe.name) for recipe in recipes)
    if calibration is not None and not any(recipe.calibrates for recipe in recipes):
        raise UsageError(f"calibration= does not apply to {names}: remove it")
    if method != MIN_MAX and not any(recipe.needs_calibration for recipe in recipes):
        raise UsageError(f"calibration_method={method.method!r} does not apply to {names}: remove it")
    if excluded and not any(recipe.can_exclude for recipe in recipes):
        raise UsageError(f"exclude= does not apply to {names}: remove it")
    if reduce_range and not any(recipe.can_reduce_range for recipe in recipes):
        raise UsageError(f"reduce_range= does not apply to {names}: remove it")
    if calibration is None:
        for recipe in recipes:
            if recipe.needs_calibration:
                raise RecipeError(
                    f"recipe {recipe.name!r} needs calibration=: representative inputs as an array, a mapping from "
                    "input names to arrays, or an iterable of such batches"
                )


def _stored_result(artifact: Artifact, run: _Run, store: Store) -> Artifact:
    recipe = run.recipe
    variant = recipe.name if artifact.variant in _EXPORT_VARIANTS else f"{artifact.variant}+{recipe.name}"
    key = digest_of(
        {
            "stage": "compression",
            "recipe": recipe.name,
            "source": artifact.sha256,
            "name": artifact.name,
            "variant": variant,
            "calibration": run.calibration.digest if run.calibration else None,
            "range_method": run.range_method,
            "exclude": run.exclude,
            "reduce_range": run.reduce_range,
            "versions": package_versions((*recipe.packages, "onnxruntime", "numpy")),
            "own_code": package_hash(),
        }
    )
    file_name = f"{artifact.path.stem}.onnx"
    built: list[Artifact] = []

    def build(folder: Path) -> None:
        try:
            built.append(_build(artifact, run, variant, folder / file_name))
        except RecipeError as error:
            raise RecipeError(f"recipe {recipe.name!r} on {artifact.subject}: {error}") from error

    entry = store.get_or_build(key, build, what=f"{recipe.name} of {artifact.subject}")
    return relocated(built[0], entry) if built else describe_file(entry / file_name)


def _build(artifact: Artifact, run: _Run, variant: str, target: Path) -> Artifact:
    """Write the result of `run` to `target` and validate it."""
    model = load_with_weights(artifact)
    with serve(artifact) as reference:
        cases = draw_cases(reference, artifact)
    # The child process imports onnxruntime while the model is made.
    child = ChildProcess(_OPENER) if run.recipe.may_crash else nullcontext()
    with TemporaryDirectory(dir=target.parent) as work, child as opener:
        source = read_graph(artifact.path)
        converted = _apply(artifact, run, model, cases[0].inputs, Path(work))
        check_signature(converted.model, source)
        copy_node_metadata(converted.model, source)
        step = _lineage_step(artifact, run, source, converted)
        lineage = (*artifact.lineage, step)
        result = save_artifact(converted.model, target, name=artifact.name, variant=variant, lineage=lineage)
        if opener is not None:
            _check_opens(result.path, opener)
        with serve_result(without_change_check(result)) as candidate:  # nobody else writes to the folder of a build
            check_outputs(candidate, cases, is_exact=run.recipe.is_exact, is_calibrated=run.calibration is not None)
    if not is_unchanged(artifact):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return result


def _check_opens(path: Path, opener: ChildProcess) -> None:
    """Raise RecipeError if onnxruntime crashes when it opens the model at `path`.

    onnxruntime 1.32 does (SIGSEGV, in its layout optimizer for the CPU) for a float16 Transpose of an input that feeds
    a MatMul, for one.
    """
    result = opener.call(os.fsencode(path), timeout_s=math.inf)
    if isinstance(result, Crash):
        raise RecipeError(
            f"onnxruntime crashes when it opens the result ({result}), a fault of onnxruntime; leave this model "
            "in fp32. 'simplify' before helps some such models (a bidirectional RNN) and not others (a "
            "bidirectional GRU)"
        )


def _apply(artifact: Artifact, run: _Run, model: onnx.ModelProto, inputs: Inputs, work: Path) -> RecipeResult:
    if run.exclude:
        subject = f"recipe {run.recipe.name!r} on {artifact.subject}"
        check_excluded(run.exclude, model, run.recipe.excludable(model), subject)
    batches = run.calibration.batches if run.calibration else _no_batches
    context = RecipeContext(
        inputs,
        work,
        batches,
        exclude=run.exclude,
        source=artifact.path,
        range_method=run.range_method,
        reduce_range=run.reduce_range,
    )
    try:
        return run.recipe.apply(model, context)
    except RecipeError as error:
        if error.__cause__ is not None:  # a library failed
            check_free_space(work, 2 * artifact.file_bytes)  # intermediate files are slightly larger than the model
        raise


def _no_batches() -> Iterator[Inputs]:
    return iter(())


def _lineage_step(artifact: Artifact, run: _Run, source: onnx.ModelProto, converted: RecipeResult) -> LineageStep:
    notes = converted.notes
    settings: dict[str, JSON] = {
        "recipe": run.recipe.name,
        "nodes_before": node_counts(source),
        "nodes_after": node_counts(converted.model),
    }
    if run.calibration:
        settings["calibration"] = run.calibration.digest
        settings["calibration_ranges"] = {name: (each.low, each.high) for name, each in run.calibration.ranges.items()}
        if run.recipe.needs_calibration:
            settings["calibration_method"] = run.range_method.method
            notes = (*notes, *constant_input_notes(run.calibration))
    if run.range_method.percentile is not None:
        settings["percentile"] = run.range_method.percentile
    if run.exclude:
        settings["exclude"] = list(run.exclude)
    if run.reduce_range:
        settings["reduce_range"] = True
    return LineageStep("compression", settings, artifact.sha256, package_versions(run.recipe.packages), notes)
