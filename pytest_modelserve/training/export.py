"""Export to ONNX: in a process of its own, checked by us, done once."""

from __future__ import annotations

import math
import os
import pickle
import site
import subprocess
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_modelserve._processes import LOG_FILE, Child, can_fork, fork, run_in_child
from pytest_modelserve.artifacts import Artifact, LineageStep, Store, open_artifact, opset_of, save_artifact
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
from pytest_modelserve.training.export_request import PACKAGES, Dynamic, ExportRequest, request_for
from pytest_modelserve.training.export_worker import ExportJob
from pytest_modelserve.training.train import Examples, TrainedModel

if TYPE_CHECKING:
    from torch import nn

    from pytest_modelserve.training.export_worker import ExportJob

if TYPE_CHECKING:
    import onnx
    from torch import nn

# How long after its time limit a child ends itself, should this process be gone and not do it.
_ORPHAN_GRACE_S = 5
_PRECISIONS = {"float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}


def export(
    model: TrainedModel | nn.Module,
    example_inputs: Examples | None = None,
    *,
    dynamic: Dynamic = ("batch",),
    opset: int | None = None,
    external_data: bool = False,
    time_limit_s: float = 300.0,
    store: Store,
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
    entry = store.get_or_build(
        request.key, lambda folder: _export_into(folder, request), what=f"export of {request.name}"
    )
    return open_artifact(entry / f"{request.name}.onnx")


def _export_into(folder: Path, request: ExportRequest) -> None:
    import onnx

    file_name = f"{request.name}.onnx"
    with TemporaryDirectory(dir=folder) as work, warnings.catch_warnings(), _reference(request) as reference:
        warnings.simplefilter("ignore")  # of eager torch, which may be errors here; the module is not on trial for them
        raw = Path(work) / file_name
        outputs = _output_names(reference, request)
        job = ExportJob(request.module, request.tracing, outputs, request.opset, request.external_data, raw)
        _run_exporter(job, request)
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


def _run_exporter(job: ExportJob, request: ExportRequest) -> None:
    require("onnxscript", "export")
    forks = can_fork()
    if forks:
        _load_exporter()
    folder = job.path.parent
    log = folder / LOG_FILE
    alarm_s = math.ceil(request.time_limit_s) + _ORPHAN_GRACE_S

    def start() -> Child:
        return fork(job.run, log) if forks else spawn(job, log, alarm_s)

    run_in_child(start, folder=folder, time_limit_s=request.time_limit_s, what=f"export of {request.name}")
    if not job.path.exists():
        raise ExportError(f"export of {request.name} ended without a result")


def _load_exporter() -> None:
    """Import what every export imports, so that the next fork of this process has it already (2.1 s become 1.0 s)."""
    for module in ("torch._dynamo", "torch.export._trace", "onnxscript.function_libs.torch_lib.ops"):
        with suppress(ImportError):  # they are not public, and only a matter of speed
            require(module, "export")


def _precision(module: nn.Module) -> str:
    """The name of the commonest floating dtype among the parameters; fp32 for a module without any."""
    return _PRECISIONS.get(_floating_dtype(module), "fp32")


def _floating_dtype(module: nn.Module) -> str:
    dtypes = Counter(str(parameter.dtype) for parameter in module.parameters() if parameter.is_floating_point())
    commonest = [dtype.removeprefix("torch.") for dtype, _ in dtypes.most_common(1)]
    return commonest[0] if commonest else ""


def spawn(job: ExportJob, log: Path, alarm_s: int) -> subprocess.Popen[bytes]:
    """Start `job` in a new interpreter that writes what it prints to `log`; ExportError if it cannot be pickled."""
    job_file = log.with_name("job.pickle")
    job_file.write_bytes(_pickled(job))
    # -W outranks PYTHONWARNINGS, which may make errors of what torch warns of.
    command = [sys.executable, "-W", "ignore", "-m", "pytest_modelserve.training.export_worker"]
    with open(log, "ab") as output:
        return subprocess.Popen(
            [*command, str(job_file), str(alarm_s)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def _pickled(job: ExportJob) -> bytes:
    cloudpickle = require("cloudpickle", "export in a new interpreter")
    try:
        with _by_value(cloudpickle, _modules_of(job.module)):
            return bytes(cloudpickle.dumps(job))
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(
            f"{type(job.module).__name__} cannot be sent to the process that exports it: {error}"
        ) from error


def _modules_of(module: nn.Module) -> set[ModuleType]:
    """The user's own modules that define the classes in `module`: a new interpreter may not find a test file."""
    classes = {cls for each in module.modules() for cls in type(each).__mro__}
    modules = {sys.modules.get(cls.__module__) for cls in classes}
    return {each for each in modules if each is not None and each.__name__ != "__main__" and not _is_installed(each)}


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names
    keys = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {*map(sysconfig.get_path, keys), *site.getsitepackages(), site.getusersitepackages()}
    return any(Path(file).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


@contextmanager
def _by_value(cloudpickle: ModuleType, modules: set[ModuleType]) -> Iterator[None]:
    added = [each for each in modules if each.__name__ not in cloudpickle.list_registry_pickle_by_value()]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)
