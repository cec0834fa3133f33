"""The first tensor of one model file that two runtimes compute differently."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from pytest_modelserve._onnx.serialization import write_model
from pytest_modelserve.artifacts import open_artifact
from pytest_modelserve.metrics.tolerance import WHOLE_GRAPH_EPSILONS
from pytest_modelserve.parity.divergence.computation_graph import load_graph
from pytest_modelserve.parity.divergence.precision import Deviation, find_deviation
from pytest_modelserve.parity.divergence.tensor_pairs import load_artifact, node_name
from pytest_modelserve.serving import OnnxPredictor, Predictor
from pytest_modelserve.serving.inputs import Inputs, slice_rows
from pytest_modelserve.serving.subprocess_predictor import CALL_LIMIT_S, SubprocessPredictor

# Every tensor of these rows is held at the same time.
_ROWS = 64
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
_TYPES = (*_FLOATS, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RuntimeDifference:
    """The first node whose output differs between two runtimes without graph optimization.

    `node` is "" if none differs by more than rounding: then graph optimization makes the difference, and `optimized`
    names the runtimes whose optimized outputs are not those of the plain graph.
    """

    node: str
    operator: str
    tensor: str
    deviation: Deviation | None
    agreeing: int
    optimized: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.deviation is None:
            names = " and of ".join(self.optimized) or "one of the two"
            return (
                f"every node of the plain graph agrees between the runtimes; graph optimization of {names} changes the "
                "outputs"
            )
        where = self.deviation.problem
        if self.deviation.index is not None:
            values = f"{self.deviation.candidate:.7g}, not {self.deviation.reference:.7g}"
            where = f"at {list(self.deviation.index)} is {values}" + (f" ({where})" if where else "")
        return (
            f"first node that the runtimes compute differently: {self.operator} {self.node!r}; its output "
            f"{self.tensor!r} {where}; {self.agreeing} tensors before it agree"
        )


def can_compare_runtimes(candidate: Predictor, reference: Predictor) -> bool:
    """Return whether both serve the same file, and at least one of them in another process."""
    pair = candidate.artifact, reference.artifact
    return (
        pair[0] is not None
        and pair[1] is not None
        and pair[0].sha256 == pair[1].sha256
        and all(isinstance(each, (OnnxPredictor, SubprocessPredictor)) for each in (candidate, reference))
        and any(isinstance(each, SubprocessPredictor) for each in (candidate, reference))
    )


def locate_runtime_difference(candidate: Predictor, reference: Predictor, inputs: Inputs) -> RuntimeDifference | None:
    """Find the first node of one file that the runtimes of two predictors compute differently; None if none does.

    Both run the graph without optimization, with every tensor of its main graph as an output, on up to 64 rows. A
    difference of more than rounding explains counts. If there is none, each runtime's optimized outputs are compared
    with its plain ones.
    """
    artifact, model = load_artifact(candidate, "candidate")
    graph = load_graph(model)
    _, model = load_artifact(candidate, "candidate")  # with all weights, which the graph has taken out
    known = {value.name for value in model.graph.output}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    names = [name for name in graph.tensors() if name in known or types.get(name) in _TYPES]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None) for name in names if name not in known
    )
    rows = slice_rows(inputs, _ROWS)
    pair = candidate, reference
    with tempfile.TemporaryDirectory(prefix="modelserve-") as folder:
        path = Path(folder, "tensors.onnx")
        write_model(model, path)
        plain = [_run(each, path, rows, plain=True) for each in pair]
    ours, theirs = plain
    for number, name in enumerate(names):
        found = find_deviation(ours[name], theirs[name], "same", steps=WHOLE_GRAPH_EPSILONS)
        if found is not None:
            node = graph.nodes[graph.producer[name]]
            return RuntimeDifference(node_name(node), node.op_type, name, found, number)
    optimized = [_run(each, artifact.path, rows, plain=False) for each in pair]
    if _agree(*optimized):
        return None
    changed = [str(each.subject) for each, *both in zip(pair, optimized, plain, strict=True) if not _agree(*both)]
    return RuntimeDifference("", "", "", None, len(names), tuple(changed))


def _run(predictor: Predictor, path: Path, rows: Inputs, *, plain: bool) -> Values:
    """Return the outputs of a file on the runtime of `predictor`."""
    assert isinstance(predictor, (OnnxPredictor, SubprocessPredictor))
    interpreter = predictor.process.interpreter if isinstance(predictor, SubprocessPredictor) else None
    with SubprocessPredictor(
        open_artifact(path),
        time_limit_s=CALL_LIMIT_S,
        providers=predictor.providers,
        interpreter=interpreter,
        level="ORT_DISABLE_ALL" if plain else None,
    ) as other:
        return other.predict(rows)


def _agree(ours: Values, theirs: Values) -> bool:
    return all(
        find_deviation(ours[name], theirs[name], "same", steps=WHOLE_GRAPH_EPSILONS) is None
        for name in ours.keys() & theirs.keys()
    )
