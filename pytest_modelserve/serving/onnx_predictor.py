"""An ONNX model answered by onnxruntime in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from pytest_modelserve.artifacts import Artifact, Signature, is_unchanged, open_artifact, read_graph
from pytest_modelserve.errors import ArtifactError, InputError, ModelServeError
from pytest_modelserve.serving.fragile import is_fragile
from pytest_modelserve.serving.hazards import Hazards, hazards_of
from pytest_modelserve.serving.inputs import Feed, checked_feed
from pytest_modelserve.serving.predictor import Inputs, Predictor
from pytest_modelserve.serving.providers import CPU, open_session, reason
from pytest_modelserve.serving.servable import check_servable, run_of
from pytest_modelserve.serving.values import outputs_as_arrays, split_inputs

_Run = Callable[[list[str], dict[str, Any]], list[Any]]


class OnnxPredictor(Predictor):
    """onnxruntime on `providers`: by default one thread of the CPU, sequential, without spinning.

    Sequences, maps and optional values go in and come out as arrays under derived names, by the rule of
    `serving/values.py`: the scores of a converted scikit-learn classifier as `probabilities` (rows, keys) beside
    `probabilities.keys`. bfloat16, float8 and int4 are arrays of the dtypes of ml_dtypes.

    Raises ArtifactError for a file that cannot be opened, one that changed since the artifact was made, one that
    onnxruntime refuses, and for inputs or outputs that no array can hold. `optimise=False` runs the graph as it stands
    in the file. `providers`, `threads` and `optimise` stay readable, so that the same can be served again.
    `guarded=False`, for a process that may end, runs the inputs on which onnxruntime may end it; `hazards` says which.
    """

    transport = "in-process"
    artifact: Artifact
    signature: Signature

    def __init__(
        self,
        model: Artifact | str | os.PathLike[str],
        *,
        providers: Sequence[str] = (CPU,),
        threads: int = 1,
        name: str | None = None,
        variant: str | None = None,
        optimise: bool = True,
        guarded: bool = True,
    ) -> None:
        artifact = _opened(model, name, variant)
        check_servable(artifact)
        super().__init__(artifact.subject, artifact.signature)
        self.artifact = artifact
        self.providers, self.threads, self.optimise = tuple(providers), threads, optimise
        graph = read_graph(artifact.path)
        session = open_session(
            artifact.path, providers=providers, threads=threads, optimise=optimise, fragile=is_fragile(graph)
        )
        self._run: _Run = run_of(session, artifact.signature)
        self._tensors = Signature(tuple(spec for spec in artifact.signature.inputs if spec.is_tensor), ())
        self._others = tuple(spec for spec in artifact.signature.inputs if not spec.is_tensor)
        self._gives_tensors = all(spec.is_tensor for spec in artifact.signature.outputs)
        self.hazards = hazards_of(graph) if guarded else Hazards()
        self._where = f"{', '.join(providers)}, {threads} thread{'s' if threads > 1 else ''}"
        self._outputs = [spec.name for spec in artifact.signature.outputs]
        # Name, dtype and shape of each input that fitted last. A call like the one before, as nearly every call of a
        # loop is, is compared with these (0.2 µs) instead of with the signature (6 µs).
        self._fitted: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...] = ()

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The model's outputs by name, in the model's order; text comes as arrays of str objects, and a value that is
        no tensor as the arrays that stand for it.

        Nothing is cast. InputError names an input whose name, dtype, rank or dim is not the model's, or on which
        onnxruntime would end the process; the model is not run. Values that onnxruntime itself refuses (an index out
        of range) are an InputError too, any other failure of the run is an ArtifactError.
        """
        feed = self._fitting(inputs) or self._checked(inputs)
        try:
            answers = self._run(self._outputs, feed)
        except ModelServeError:
            raise
        except Exception as error:  # the runtime's exceptions share no base class
            raise self._failure(error) from error
        if not self._gives_tensors:
            return outputs_as_arrays(self.signature, answers)
        if len(answers) == 1:  # a third of the time of zip
            return {self._outputs[0]: answers[0]}
        return dict(zip(self._outputs, answers, strict=True))

    def unoptimised(self) -> OnnxPredictor:
        """Another predictor of the same file on the same providers and threads, without graph optimisations."""
        return OnnxPredictor(self.artifact, providers=self.providers, threads=self.threads, optimise=False)

    def describe(self) -> str:
        """One line: the subject, onnxruntime's version, the providers and the number of threads."""
        return f"{self.subject} on onnxruntime {onnxruntime.__version__}, {self._where}"

    def close(self) -> None:
        """Let go of the session; a call that is running elsewhere ends undisturbed."""
        super().close()
        self._run = self._refuse_to_run
        self._fitted = ()

    def _refuse_to_run(self, _names: list[str], _feed: Feed) -> NoReturn:
        raise self._closed_error()

    def _checked(self, inputs: Inputs) -> Feed:
        if self.closed:
            raise self._closed_error()
        others, rest = split_inputs(inputs, self._others) if self._others else ({}, inputs)
        feed = checked_feed(rest, self._tensors)
        self.hazards.refuse(feed)
        decided_by_values = self.hazards.minimum or any(array.dtype.kind == "O" for array in feed.values())
        if not decided_by_values and not others:
            self._fitted = tuple((name, array.dtype, array.shape) for name, array in feed.items())
        return {**feed, **others}

    def _fitting(self, inputs: object) -> Feed | None:
        """The inputs by name if each has the dtype and shape of the last one that fitted, else None."""
        fitted = self._fitted
        if type(inputs) is np.ndarray:
            if len(fitted) == 1:
                ((name, dtype, shape),) = fitted
                if inputs.dtype is dtype and inputs.shape == shape:
                    return {name: inputs}
        elif type(inputs) is dict and len(inputs) == len(fitted):
            for name, dtype, shape in fitted:
                array = inputs.get(name)
                if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
                    return None
            return inputs
        return None

    def _failure(self, error: Exception) -> ModelServeError:
        told = f"onnxruntime could not run {self.subject} on these inputs: {reason(error)}"
        return InputError(told) if isinstance(error, InvalidArgument) else ArtifactError(told)


def _opened(model: Artifact | str | os.PathLike[str], name: str | None, variant: str | None) -> Artifact:
    if not isinstance(model, Artifact):
        return open_artifact(model, name=name, variant=variant)
    if not is_unchanged(model):
        raise ArtifactError(f"the model {model.path} changed after it was opened: open it again")
    return replace(
        model, name=model.name if name is None else name, variant=model.variant if variant is None else variant
    )
