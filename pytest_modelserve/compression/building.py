"""One recipe on one artifact: the result written, served, and compared with its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import (
    JSON,
    Artifact,
    LineageStep,
    at_rest,
    is_unchanged,
    read_graph,
    save_artifact,
)
from pytest_modelserve.compression.after import check_answers, check_signature, served
from pytest_modelserve.compression.calibration import Calibration
from pytest_modelserve.compression.census import keep_node_metadata, node_counts
from pytest_modelserve.compression.exclusion import check_excluded
from pytest_modelserve.compression.files import loaded
from pytest_modelserve.compression.opening import crash_watch
from pytest_modelserve.compression.ranging import Ranging
from pytest_modelserve.compression.recipe import Applied, Inputs, Material, Recipe
from pytest_modelserve.compression.room import refuse_full
from pytest_modelserve.compression.trials import draw_trials
from pytest_modelserve.errors import ArtifactError, RecipeError
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import serve

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A recipe and what the user gives it: nothing that it does not take."""

    recipe: Recipe
    calibration: Calibration | None
    ranging: Ranging
    exclude: tuple[str, ...]


def build_result(artifact: Artifact, job: Job, variant: str, target: Path) -> Artifact:
    """The artifact at `target` that `job` makes of `artifact`, and that passed every check.

    RecipeError says what the recipe or a check found, ArtifactError that the source is no longer what was opened,
    before or after the recipe.
    """
    model = loaded(artifact)
    with serve(artifact) as reference:
        trials = draw_trials(reference, artifact)
    with TemporaryDirectory(dir=target.parent) as work, _watch(job.recipe) as watch:
        source = read_graph(artifact.path)
        applied = _applied(artifact, job, model, trials[0].inputs, Path(work))
        check_signature(applied.model, source)
        keep_node_metadata(applied.model, source)
        step = _lineage_step(artifact, job, source, applied)
        lineage = (*artifact.lineage, step)
        result = save_artifact(applied.model, target, name=artifact.name, variant=variant, lineage=lineage)
        watch(result.path)
        with served(at_rest(result)) as candidate:  # the folder of a build is nobody else's
            check_answers(candidate, trials, is_exact=job.recipe.is_exact)
    if not is_unchanged(artifact):
        raise ArtifactError(f"the model {artifact.path} has changed since it was opened: open it again")
    return result


def _watch(recipe: Recipe) -> AbstractContextManager[Callable[[Path], None]]:
    return crash_watch() if recipe.may_crash else nullcontext(lambda _: None)


def _applied(artifact: Artifact, job: Job, model: onnx.ModelProto, inputs: Inputs, work: Path) -> Applied:
    recipe = job.recipe
    if job.exclude and recipe.excludable:
        where = f"recipe {recipe.name!r} on {artifact.subject}"
        check_excluded(job.exclude, model, recipe.excludable(model), where)
    batches = job.calibration.batches if job.calibration else _no_batches
    material = Material(inputs, work, batches, exclude=job.exclude, source=artifact.path, ranging=job.ranging)
    try:
        return recipe.apply(model, material)
    except RecipeError as error:
        if error.__cause__ is not None:  # a tool failed, instead of finding something out
            refuse_full(work, 2 * artifact.file_bytes)  # what tools write between is larger by a little
        raise


def _no_batches() -> Iterator[Inputs]:
    return iter(())


def _lineage_step(artifact: Artifact, job: Job, source: onnx.ModelProto, applied: Applied) -> LineageStep:
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
