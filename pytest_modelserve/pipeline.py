"""The stages bound to one store and one seed: what the `modelserve` fixture hands out, usable without pytest.

The module's own functions are those of one default pipeline, whose store is the folder that the environment variable
MODELSERVE_CACHE names, or `.modelserve/cache` in the working directory.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytest_modelserve.artifacts import (
    Artifact,
    Step,
    Store,
    TensorSpec,
    compose as compose_artifact,
    open_artifact,
    steps_artifact,
)
from pytest_modelserve.artifacts.artifact import baseline_path, store_baseline
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import current_recorder
from pytest_modelserve.serving import Predictor, serve as serve_target

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pytest_modelserve.compression import CalibrationData, CalibrationMethod, NodeSelection
    from pytest_modelserve.training import ModelSource, TrainedModel


class Pipeline:
    """Train, export, compress, compose and serve over one store; a context manager that closes what it served.

    `cache` is the folder of the store, made when first needed. `seed` is the default of `train`. `baselines` is the
    folder of `baseline`, which stores what it is given where `update` is set; `root` is where node ids start.
    """

    def __init__(
        self,
        cache: Path | str,
        *,
        seed: int = 0,
        baselines: Path | str = "baselines",
        update: bool = False,
        root: Path | str = ".",
    ) -> None:
        self.store = Store(Path(cache))
        self.seed = seed
        self.baselines = Path(baselines)
        self.update = update
        self.root = Path(root)
        self._served: list[Predictor] = []

    def train(self, source: ModelSource, *, seed: int | None = None) -> TrainedModel:
        """The trained model of `source`, from the store where the same training was done before."""
        from pytest_modelserve.training import train

        return train(source, seed=self.seed if seed is None else seed, store=self.store)

    def export(
        self,
        model: TrainedModel | torch.nn.Module,
        example_inputs: NDArray[Any] | Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        dynamic: Sequence[str] | Mapping[str, Mapping[int, str]] = ("batch",),
        opset: int | None = None,
        external_data: bool = False,
        name: str | None = None,
    ) -> Artifact:
        """The ONNX artifact of `model`, checked against eager torch; `dynamic` names the axes that stay free.

        A TrainedModel brings its example inputs and its name; a bare module needs the first and may be given the
        second. Example inputs are one array, a tuple by position, or a mapping by the names of `forward`'s parameters,
        nested where one takes a mapping. `external_data` keeps the weights in a file beside the model. Raises
        ExportError where the exporter fails or changes an answer; BakedAxisError, ControlFlowError and
        UnsupportedOperatorError, which are ExportErrors, name the axis, the source line or the operator.
        """
        from pytest_modelserve.training import export

        return export(
            model,
            example_inputs,
            dynamic=dynamic,
            opset=opset,
            external_data=external_data,
            name=name,
            store=self.store,
        )

    def compress(
        self,
        artifact: Artifact,
        recipe: str | Sequence[str],
        *,
        calibration: CalibrationData | None = None,
        calibration_method: CalibrationMethod = "min-max",
        percentile: float | None = None,
        exclude: NodeSelection | Iterable[NodeSelection] = (),
    ) -> Artifact:
        """A smaller or faster variant of `artifact` by one recipe or several in order; `artifact` is never touched.

        Recipes: "simplify", "optimize", "fp16", "int8-dynamic", "int8-static", "int4-weights". Of these "int8-static"
        needs `calibration`: rows like those that the model will serve, as an array, a mapping from input names to
        arrays, or an iterable of such batches. `calibration_method` ("min-max", "entropy", "percentile" with its
        `percentile`) says how its ranges come about; `exclude` names nodes, or layers that `sensitivity` ranked, that
        stay in float. Raises RecipeError where a recipe cannot be applied or changes nothing.
        """
        from pytest_modelserve.compression import compress

        return compress(
            artifact,
            recipe,
            calibration=calibration,
            calibration_method=calibration_method,
            percentile=percentile,
            exclude=exclude,
            store=self.store,
        )

    def compose(
        self,
        artifact: Artifact,
        *,
        preprocess: Sequence[Step] = (),
        postprocess: Sequence[Step] = (),
        input_dtype: str | None = None,
        keep: Sequence[str] = (),
    ) -> Artifact:
        """`artifact` with its pre- and postprocessing inside the graph: one file, one runtime, no train/serve skew.

        `input_dtype` is what callers send where the model itself takes another ("uint8" before `Scale(1 / 255)`);
        `keep` names outputs of the model that stay outputs. Raises UsageError for steps that do not fit the model.
        """
        return compose_artifact(
            artifact,
            preprocess=preprocess,
            postprocess=postprocess,
            input_dtype=input_dtype,
            keep=keep,
            store=self.store,
        )

    def prepare(self, steps: Sequence[Step], rows: NDArray[Any]) -> NDArray[Any]:
        """`rows` (n, ...) after `steps`, by the graphs and the runtime that will serve them: for training data."""
        spec = TensorSpec("rows", rows.dtype.name, ("batch", *rows.shape[1:]))
        with serve_target(steps_artifact(steps, spec, name="steps", store=self.store)) as predictor:
            return next(iter(predictor.predict(rows).values()))

    def open_artifact(self, path: Path | str) -> Artifact:
        """The artifact in an ONNX file, its external data included. Raises ArtifactError for anything else."""
        return open_artifact(path)

    def baseline(self, name: str, candidate: Artifact | None = None) -> Artifact:
        """The stored artifact that candidates are held against: `<name>.onnx` in the folder of baselines.

        With `--modelserve-update` a given `candidate` replaces it first, in one step; without, `candidate` only says
        what would. Commit the file: a baseline is an artifact to compare with, not a number from another machine.

        Raises ArtifactError with the command that stores it where there is none, and for a file that is no model;
        UsageError for a name that is no plain file name.
        """
        path = baseline_path(self.baselines, name)
        if self.update and candidate is not None:
            return store_baseline(candidate, path)
        if not path.exists():
            raise ArtifactError(
                f"there is no baseline {name!r}: {path} does not exist. Store one from the test that gives the "
                f"candidate, modelserve.baseline({name!r}, candidate), with\n  {self._update_command()}"
            )
        return open_artifact(path)

    def _update_command(self) -> str:
        """What to type for the test that runs now; node ids start at the root directory."""
        recorder = current_recorder()
        node = "" if recorder is None else f" {shlex.quote(recorder.node_id)}"
        elsewhere = "" if self.root.resolve() == Path.cwd() else f"cd {shlex.quote(str(self.root.resolve()))} && "
        return f"{elsewhere}pytest{node} --modelserve-update"

    def serve(
        self,
        target: Artifact | Path | str | TrainedModel | torch.nn.Module | Callable[..., Any],
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 1,
        name: str | None = None,
        variant: str | None = None,
    ) -> Predictor:
        """A predictor of `target`: an ONNX model in onnxruntime, or a torch module or callable as reference.

        `name` and `variant` are what reports call it, where its own would not tell. It is closed with this pipeline;
        closing it earlier is allowed.
        """
        predictor = serve_target(target, providers=providers, threads=threads, name=name, variant=variant)
        self._served.append(predictor)
        return predictor

    def close(self) -> None:
        """Close every predictor that this pipeline served."""
        while self._served:
            self._served.pop().close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# As in the standard library's `random`: one hidden instance, whose bound methods are the module's functions.
_default = Pipeline(os.environ.get("MODELSERVE_CACHE", ".modelserve/cache"))
train = _default.train
export = _default.export
compress = _default.compress
compose = _default.compose
prepare = _default.prepare
