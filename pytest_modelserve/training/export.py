"""Export to ONNX: in a process of its own, checked by us, done once."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import Artifact, LineageStep, Store, open_artifact, save_artifact
from pytest_modelserve.errors import ExportError
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.serving import Predictor, serve
from pytest_modelserve.training import child, forking, spawning
from pytest_modelserve.training.export_child import ExportJob
from pytest_modelserve.training.extra import require
from pytest_modelserve.training.off_trace import check_off_trace
from pytest_modelserve.training.request import PACKAGES, ExportRequest, request_for
from pytest_modelserve.training.tracing import Dynamic, Examples
from pytest_modelserve.training.trained import TrainedModel
from pytest_modelserve.training.written import check_written, correct_outputs, forget_shapes, opset_of

if TYPE_CHECKING:
    from torch import nn

# How long after its time limit a child ends itself, should this process be gone and not do it.
_ORPHAN_GRACE_S = 5
_PRECISIONS = {"torch.float64": "fp64", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


def export(
    model: TrainedModel | nn.Module,
    example_inputs: Examples | None = None,
    *,
    dynamic: Dynamic = ("batch",),
    opset: int | None = None,
    time_limit_s: float = 300.0,
    store: Store,
    name: str | None = None,
) -> Artifact:
    """The ONNX artifact of `model`: from the store where the same module was exported before, else exported now.

    `example_inputs` are one array, or a mapping by the names of `forward`'s parameters, with rows along the first axis;
    a TrainedModel brings its own. `dynamic` names the axes that stay free: the leading axes of every input
    (`("batch",)`), or axis by axis (`{"ids": {0: "batch", 1: "time"}}`); `()` fixes every size. `opset` is the one to
    write, by default the exporter's own choice. `name` is by default the source's, or the class's.

    torch's exporter runs in a fresh process, which is ended after `time_limit_s`. What it wrote is then run by
    onnxruntime and held against the module in eager torch at sizes that it did not trace (`check_off_trace`), and the
    output shapes that it claims are put right.

    ExportError, which names the axis, the output or the end of the exporter's log, for a module in training mode, for
    an export that fails, dies or takes too long, and for one that is not faithful: another opset, a fixed axis, another
    answer, NaN elsewhere. InputError for example inputs that `forward` does not take, UsageError for axes that they do
    not have, MissingDependencyError without torch or onnxscript.
    """
    require("torch", "export")
    request = request_for(model, example_inputs, dynamic=dynamic, opset=opset, time_limit_s=time_limit_s, name=name)
    entry = store.get_or_build(
        request.key, lambda folder: _export_into(folder, request), what=f"export of {request.name}"
    )
    return open_artifact(entry / f"{request.name}.onnx")


def _export_into(folder: Path, request: ExportRequest) -> None:
    import onnx

    file_name = f"{request.name}.onnx"
    with TemporaryDirectory(dir=folder) as work, serve(request.module, name=request.name) as reference:
        raw = Path(work) / file_name
        outputs = _output_names(reference, request)
        _run_exporter(ExportJob(request.module, request.tracing, outputs, request.opset, raw), request)
        model = onnx.load(raw)
        check_written(model, request.tracing, outputs, request.opset)
        forget_shapes(model)
        checked = save_artifact(model, raw, name=request.name, variant="unchecked", lineage=())
        with serve(checked) as candidate:
            probes = check_off_trace(candidate, reference, request.tracing)
    notes = correct_outputs(model, probes)
    told = "answers like eager torch at " + "; ".join(map(str, probes))
    lineage = (*request.training, _lineage_step(request, opset_of(model), (told, *notes)))
    save_artifact(model, folder / file_name, name=request.name, variant=_precision(request.module), lineage=lineage)


def _lineage_step(request: ExportRequest, opset: int, notes: tuple[str, ...]) -> LineageStep:
    axes = {name: {str(axis): label for axis, label in named.items()} for name, named in request.tracing.axes.items()}
    return LineageStep(
        "export",
        {"dynamic": axes, "traced": request.tracing.sizes, "opset": opset},
        request.weights_sha256,
        package_versions(PACKAGES),
        notes,
    )


def _output_names(reference: Predictor, request: ExportRequest) -> tuple[str, ...]:
    """The names of the module's outputs, from one run on the traced inputs."""
    try:
        return tuple(reference.predict(request.tracing.inputs))
    except Exception as error:  # whatever a stranger's forward raises
        inputs = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in request.tracing.inputs.items())
        raise ExportError(
            f"{request.name} itself fails on the example inputs ({inputs}): {type(error).__name__}: {error}"
        ) from error


def _run_exporter(job: ExportJob, request: ExportRequest) -> None:
    require("onnxscript", "export")
    forks = forking.can_fork()
    if forks:
        _load_exporter()
    folder = job.path.parent
    log = folder / child.LOG_FILE
    alarm_s = math.ceil(request.time_limit_s) + _ORPHAN_GRACE_S

    def start() -> child.Child:
        return forking.fork(job.run, log) if forks else spawning.spawn(job, log, alarm_s)

    child.run_in_child(start, folder=folder, time_limit_s=request.time_limit_s, what=f"export of {request.name}")
    if not job.path.exists():
        raise ExportError(f"export of {request.name} ended without a result")


def _load_exporter() -> None:
    """Import what every export imports, so that the next fork of this process has it already (2.1 s become 1.0 s)."""
    for module in ("torch._dynamo", "torch.export._trace", "onnxscript.function_libs.torch_lib.ops"):
        with suppress(ImportError):  # they are not public, and only a matter of speed
            require(module, "export")


def _precision(module: nn.Module) -> str:
    """The name of the commonest floating dtype among the parameters; fp32 for a module without any."""
    dtypes = Counter(str(parameter.dtype) for parameter in module.parameters() if parameter.is_floating_point())
    commonest = [dtype for dtype, _ in dtypes.most_common(1)]
    return _PRECISIONS.get(commonest[0], "fp32") if commonest else "fp32"
