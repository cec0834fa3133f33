"""Export to ONNX: in a process of its own, checked by us, done once."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.artifacts import (
    Artifact,
    LineageStep,
    Store,
    default_store,
    open_artifact,
    opset_of,
    save_artifact,
)
from pytest_modelserve.errors import ArtifactError, ExportError, InputError, require
from pytest_modelserve.evidence import Subject, package_versions
from pytest_modelserve.serving import Predictor, TorchPredictor, serve
from pytest_modelserve.training.export_checks import (
    check_off_trace,
    check_written,
    correct_outputs,
    forget_shapes,
    nan_notes,
    refusal,
)
from pytest_modelserve.training.export_errors import ExportFailure
from pytest_modelserve.training.export_request import PACKAGES, Dynamic, ExportJob, ExportRequest, request_for
from pytest_modelserve.training.module_pickle import pickle_job
from pytest_modelserve.training.train import Examples, TrainedModel

if TYPE_CHECKING:
    import onnx
    from torch import nn

_PRECISIONS = {"float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}


def export(
    model: TrainedModel | nn.Module,
    example_inputs: Examples | None = None,
    *,
    dynamic: Dynamic = ("batch",),
    opset: int | None = None,
    external_data: bool = False,
    time_limit_s: float = 300.0,
    store: Store | None = None,
    name: str | None = None,
) -> Artifact:
    """The ONNX artifact of `model`: from the store where the same module was exported before, else exported now.

    `example_inputs` are one array; a tuple or list of arrays, by position; or a mapping by the names of `forward`'s
    parameters, nested where one takes a mapping or a sequence. Rows lie along the first axis. A TrainedModel brings its
    own. The inputs of the artifact are called like the parameters; what is nested by its key where no other input is
    ({"batch": {"ids": a, "mask": b}} makes "ids" and "mask"), else by the whole path ("batch.ids"), and in a sequence
    by its place ("state_0"). Outputs are named by the same rule (`named_outputs`).

    `dynamic` names the axes that stay free: the leading axes of every input (`("batch",)`), or axis by axis
    (`{"ids": {0: "batch", 1: "time"}}`); `()` fixes every size. `opset` is the one to write, by default the exporter's
    own choice. The artifact is a single file, unless `external_data` asks for one beside it for the tensors of 1 KiB
    and more, or they need it (1 GiB). `name` is by default the source's, or the class's.

    torch's exporter runs in a fresh process, which is ended after `time_limit_s`. What it wrote is then run by
    onnxruntime and held against the module in eager torch at sizes that it did not trace, and on rows that break models
    (`check_off_trace`); the output shapes that it claims are put right. Where both answer NaN to such a row, a note in
    the lineage says so.

    ExportError, which says what to do and keeps the end of the exporter's log, for a module in training mode, scripted,
    pruned with its masks on or not on the CPU, for an export that fails, dies or takes too long, and for one that is
    not as asked: another opset, another answer, NaN elsewhere, nothing to keep beside the file. Of these BakedAxisError
    names the axis that was to stay free and its input; ControlFlowError the source line that goes by the data;
    UnsupportedOperatorError the operator that ONNX or onnxruntime does not have. InputError for example inputs that
    `forward` does not take, UsageError for axes that they do not have, ArtifactError for a folder that cannot be
    written, MissingDependencyError without torch or onnxscript.
    """
    require("torch", "export")
    request = request_for(
        model,
        example_inputs,
        dynamic=dynamic,
        opset=opset,
        external_data=external_data,
        time_limit_s=time_limit_s,
        name=name,
    )
    entry = (store or default_store()).get_or_build(
        request.key, lambda folder: _export_into(folder, request), what=f"export of {request.name}"
    )
    return open_artifact(entry / f"{request.name}.onnx")


def _export_into(folder: Path, request: ExportRequest) -> None:
    import onnx

    if find_spec("onnxscript") is None:  # the child imports it
        require("onnxscript", "export")
    file_name = f"{request.name}.onnx"
    with TemporaryDirectory(dir=folder) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of eager torch, which may be errors here; the module is not tested for them
        raw = Path(work) / file_name
        with ChildProcess("pytest_modelserve.training.export_worker:run", preload=True) as exporter:
            # The process starts while the module runs here.
            reference = _reference(request)
            outputs = _output_names(reference, request)
            job = ExportJob(request.module, request.tracing, outputs, request.opset, request.external_data, raw)
            _run_exporter(exporter, job, request.time_limit_s)
        model = onnx.load(raw)
        check_written(model, request.tracing, outputs, request.opset)
        forget_shapes(model)
        checked = save_artifact(model, raw, name=request.name, variant="unchecked", lineage=())
        with _candidate(checked, model) as candidate:
            probes = check_off_trace(candidate, reference, request.tracing)
    notes = (*correct_outputs(model, probes), *nan_notes(probes))
    told = "answers like eager torch at " + "; ".join(map(str, probes))
    saved = save_artifact(
        model,
        folder / file_name,
        name=request.name,
        variant=_precision(request.module),
        lineage=(*request.training, _lineage_step(request, opset_of(model), (told, *notes))),
        external_data=request.external_data,
    )
    if request.external_data and not saved.external:
        raise ExportError(
            f"external_data was asked for and no tensor of {request.name} takes 1 KiB, so that all stay in the file: "
            "leave it out"
        )


def _reference(request: ExportRequest) -> Predictor:
    return TorchPredictor(request.module, subject=Subject(request.name, "torch"), call=request.tracing.call)


def _candidate(checked: Artifact, model: onnx.ModelProto) -> Predictor:
    try:
        return serve(checked)
    except ArtifactError as error:
        raise refusal(error, model) from error


def _lineage_step(request: ExportRequest, opset: int | None, notes: tuple[str, ...]) -> LineageStep:
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
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's forward raises
        arrays = request.tracing.inputs
        inputs = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ExportError(
            f"{request.name} itself fails on the example inputs ({inputs}): {type(error).__name__}: {error}"
            f"{_other_dtype(request)}"
        ) from error


def _other_dtype(request: ExportRequest) -> str:
    """What to do where an input has another floating dtype than the module; nothing else."""
    own = _floating_dtype(request.module)
    for name, array in request.tracing.inputs.items():
        if own and array.dtype.kind == "f" and array.dtype.name != own:
            return f". The module is of {own}: give {name!r} as .astype(np.{own})"
    return ""


def _run_exporter(exporter: ChildProcess, job: ExportJob, time_limit_s: float) -> None:
    what = f"export of {job.path.stem}"
    result = exporter.call(pickle_job(job), timeout_s=time_limit_s, description=what)
    if isinstance(result, Crash):
        if result.timed_out:
            what += f" took longer than its time limit of {time_limit_s:g} s and was ended"
        else:
            what += f": its process was {result}" if result.signal else f": its process {result}"
        raise ExportError(what + format_log(result.log_tail))
    if result:
        failure: ExportFailure = pickle.loads(result)
        raise failure.to_error(what, exporter.log_tail())


def _precision(module: nn.Module) -> str:
    """The name of the commonest floating dtype among the parameters; fp32 for a module without any."""
    return _PRECISIONS.get(_floating_dtype(module), "fp32")


def _floating_dtype(module: nn.Module) -> str:
    dtypes = Counter(str(parameter.dtype) for parameter in module.parameters() if parameter.is_floating_point())
    commonest = [dtype.removeprefix("torch.") for dtype, _ in dtypes.most_common(1)]
    return commonest[0] if commonest else ""
