"""The stages (train, export, compress, compose, serve, tune) bound to one store and one seed."""

from __future__ import annotations

import functools
import importlib
import inspect
import shlex
from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pytest_modelserve import artifacts, serving
from pytest_modelserve.artifacts import Artifact, Step, Store, TensorSpec, default_store, open_artifact, steps_artifact
from pytest_modelserve.artifacts.artifact import baseline_path, store_baseline
from pytest_modelserve.errors import ArtifactError, ModelServeError, without_internals
from pytest_modelserve.evidence import current_recorder
from pytest_modelserve.serving import Predictor

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_modelserve import compact_models, compression, training, tuning

    def _method(stage: Callable[P, R]) -> Callable[Concatenate[Any, P], R]: ...


class _Stage:
    """A function of this package as a method of Pipeline, with its signature and docstring.

    The function is imported when the method is first used. `settings` are attributes of the pipeline that it gets as
    default arguments.
    """

    def __init__(self, module: str, *settings: str) -> None:
        self.module = module
        self.settings = settings

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        stage = getattr(importlib.import_module(self.module), self.name)
        settings = self.settings

        @functools.wraps(stage)
        def method(pipeline: Pipeline, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            defaults = {name: getattr(pipeline, name) for name in settings if kwargs.get(name) is None}
            try:
                result = stage(*args, **{**kwargs, **defaults})
            except ModelServeError as error:
                raise without_internals(error)  # noqa: B904 (it is the same error)
            if isinstance(result, Predictor):
                pipeline._served.append(result)
            return result

        signature = inspect.signature(stage)
        this = Parameter("self", Parameter.POSITIONAL_ONLY)
        own = signature.replace(parameters=[this, *signature.parameters.values()])
        method.__signature__ = own  # type: ignore[attr-defined]
        setattr(owner, self.name, method)
        return getattr(owner if instance is None else instance, self.name)


class Pipeline:
    """Train, export, compress, compose, serve and tune over one store; a context manager that closes its predictors.

    Each stage has the signature and documentation of the function of the same name.

    Args:
        cache: Folder of the store, created when first needed.
        seed: Default seed of `train`.
        baselines: Folder of the baselines.
        update: Whether `baseline` stores the candidates that it is given.
        root: Directory that pytest's node ids start from, named in the command of a missing baseline.
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

    if TYPE_CHECKING:
        train = _method(training.train)
        prune = _method(compact_models.prune)
        distill = _method(compact_models.distill)
        quantization_aware = _method(compact_models.quantization_aware)
        export = _method(training.export)
        compress = _method(compression.compress)
        compose = _method(artifacts.compose)
        open_artifact = _method(artifacts.open_artifact)
        serve = _method(serving.serve)
        tune = _method(tuning.tune)
    else:
        train = _Stage("pytest_modelserve.training", "store", "seed")
        prune = _Stage("pytest_modelserve.compact_models", "store")
        distill = _Stage("pytest_modelserve.compact_models", "store")
        quantization_aware = _Stage("pytest_modelserve.compact_models", "store")
        export = _Stage("pytest_modelserve.training", "store")
        compress = _Stage("pytest_modelserve.compression", "store")
        compose = _Stage("pytest_modelserve.artifacts", "store")
        open_artifact = _Stage("pytest_modelserve.artifacts")
        serve = _Stage("pytest_modelserve.serving")
        tune = _Stage("pytest_modelserve.tuning", "store")

    def prepare(self, steps: Sequence[Step], rows: NDArray[Any]) -> NDArray[Any]:
        """Preprocess training data with the graphs and the runtime that will serve the steps.

        Args:
            steps: Preprocessing steps, as in `compose`.
            rows: Array (n, ...) of the raw inputs.

        Returns:
            Array of the preprocessed rows.

        Raises:
            UsageError: The steps do not fit the rows.
        """
        spec = TensorSpec("rows", rows.dtype.name, ("batch", *rows.shape[1:]))
        with serving.serve(steps_artifact(steps, spec, name="steps", store=self.store)) as predictor:
            return next(iter(predictor.predict(rows).values()))

    def baseline(self, name: str, candidate: Artifact | None = None) -> Artifact:
        """Return the stored baseline `<name>.onnx`, which candidates are compared with.

        Commit the file: a baseline is an artifact to compare with, not a number from another machine.

        Args:
            name: A file name without its ending.
            candidate: The artifact that replaces the baseline if `update` (`--modelserve-update`) is set.

        Raises:
            ArtifactError: There is no such baseline, or the file is not a model; the message names the command that
                stores it.
            UsageError: `name` is not a plain file name.
        """
        path = baseline_path(self.baselines, name)
        if self.update and candidate is not None:
            return store_baseline(candidate, path)
        if not path.exists():
            raise ArtifactError(
                f"baseline {name!r} does not exist ({path}). Store one from the test that has the candidate, "
                f"modelserve.baseline({name!r}, candidate), with\n  {self._update_command()}"
            )
        return open_artifact(path)

    def _update_command(self) -> str:
        """Return the command that updates the test that is running; node ids start at the root directory."""
        recorder = current_recorder()
        node = "" if recorder is None else f" {shlex.quote(recorder.node_id)}"
        elsewhere = "" if self.root.resolve() == Path.cwd() else f"cd {shlex.quote(str(self.root.resolve()))} && "
        return f"{elsewhere}pytest{node} --modelserve-update"

    def close(self) -> None:
        """Close every predictor that this pipeline returned."""
        while self._served:
            self._served.pop().close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# One default pipeline, as in the standard library's `random`; its methods are the functions of the package. Its store
# is the folder that the environment variable MODELSERVE_CACHE names, by default `.modelserve/cache`.
_default = Pipeline(default_store().root)

if TYPE_CHECKING:
    train = _default.train
    prune = _default.prune
    distill = _default.distill
    quantization_aware = _default.quantization_aware
    export = _default.export
    compress = _default.compress
    compose = _default.compose
    prepare = _default.prepare
    tune = _default.tune
else:
    _FUNCTIONS = ("train", "prune", "distill", "quantization_aware", "export", "compress", "compose", "prepare", "tune")

    def __getattr__(name: str) -> Any:
        if name in _FUNCTIONS:
            return getattr(_default, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
