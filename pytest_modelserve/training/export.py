"""Export of torch modules to ONNX, verified against eager torch."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.artifacts import (
    Artifact,
    LineageStep,
    Store,
    as_store,
    describe_file,
    opset_of,
    save_artifact,
)
from pytest_modelserve.errors import ArtifactError, ExportError, InputError, UsageError, require
from pytest_modelserve.evidence import Subject, package_versions
from pytest_modelserve.serving import Predictor, TorchPredictor, serve
from pytest_modelserve.training.derived_model import DerivedModel
from pytest_modelserve.training.determinism import isolated, run_twice
from pytest_modelserve.training.export_agreement import GivenTolerance
from pytest_modelserve.training.export_checks import (
    check_untraced_inputs,
    check_written,
    correct_outputs,
    dropped_notes,
    nan_notes,
    remove_shapes,
    rounding_notes,
    runtime_error,
)
from pytest_modelserve.training.export_errors import DroppedConstant, ExportFailure
from pytest_modelserve.training.export_request import (
    PACKAGES,
    ROW_CHECKS,
    Dynamic,
    ExportJob,
    ExportRequest,
    make_request,
)
from pytest_modelserve.training.module_pickle import pickle_job
from pytest_modelserve.training.train import Examples, TrainedModel

if TYPE_CHECKING:
    import onnx
    from torch import nn

_PRECISIONS = {"float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}


def export(
    model: TrainedModel | DerivedModel | nn.Module,
    example_inputs: Examples | None = None,
    *,
    dynamic: Dynamic = ("batch",),
    opset: int | None = None,
    external_data: bool = False,
    time_limit_s: float = 300.0,
    rtol: float | None = None,
    atol: float | None = None,
    check_rows: Sequence[str] = ROW_CHECKS,
    store: Store | Path | str | None = None,
    name: str | None = None,
) -> Artifact:
    """Export `model` to ONNX and verify the result against eager torch; a repeated export comes from the store.

    torch's exporter runs in a child process. onnxruntime then runs the exported model at sizes that were not traced and
    on edge-case rows (padding, zeros, extremes), and its outputs must match the module's, except for rounding: by 256
    roundings of the largest value, or, where long sums lose more, by 4 times the rounding error of the module itself,
    which runs in float64 and with its sums in another order. Wrong output shapes in the file are corrected. If both
    return NaN for such a row, the lineage says so.

    Artifact inputs are named after `forward`'s parameters. Nested inputs use their own key if it is unique (`ids`),
    otherwise the full path (`batch.ids`); items of a sequence are numbered (`state_0`). Outputs are named by the same
    rule (`named_outputs`).

    Args:
        model: A trained model, one made from it (`prune`, `distill`), or a torch module in eval mode on the CPU.
        example_inputs: One array, a tuple or list of arrays by position, or a mapping by the names of `forward`'s
            parameters, nested where one takes a mapping or a sequence. Rows lie along the first axis. A TrainedModel
            brings its own.
        dynamic: Names of the axes that stay free: the leading axes of every input (`("batch",)`), or axis by axis
            (`{"ids": {0: "batch", 1: "time"}}`). A list of axes has torch's form (`{"ids": [0]}`): axis 0 is called
            "batch", any other after its input ("ids_axis_1"). `()` fixes every size.
        opset: The opset to write (default: the exporter's choice).
        external_data: Store tensors of 1 KiB and more in a separate file. Models above 1 GiB always do.
        time_limit_s: Longest run of the exporter in seconds.
        rtol: Relative tolerance of the outputs, which may differ by `atol + rtol * |eager torch|`. Give it with `atol`,
            or neither; the lineage records both.
        atol: Absolute tolerance of the outputs.
        check_rows: Kinds of edge-case rows to check: "padding" (one value throughout in integers or booleans), "zeros"
            and "extremes". Leave out a kind that is never served; the lineage records it.
        store: Store, or its folder, where results are kept (default: the pipeline's store).
        name: Name of the artifact (default: the source's name, or the class's).

    Returns:
        The verified artifact.

    Raises:
        ExportError: The module is in training mode, scripted, quantized by torch, pruned with masks, not on the CPU or
            cannot be pickled; it is random or keeps state that changes its outputs;
            the exporter fails, crashes or exceeds its time limit; or the result has another opset, other outputs or
            nothing to store separately. The message has the end of the exporter's log.
        BakedAxisError: An axis in `dynamic` is fixed in the exported model.
        ControlFlowError: `forward` branches on values of the data; the message names the source line.
        UnsupportedOperatorError: ONNX or onnxruntime lacks an operator; the message names it.
        InputError: `forward` does not accept the example inputs.
        UsageError: `dynamic` names axes that the inputs do not have; only one of `rtol` and `atol` is given, or a
            negative one; or `check_rows` has an unknown name.
        ArtifactError: The store cannot be written.
        MissingDependencyError: torch or onnxscript is not installed.

    Example:
        >>> artifact = export(module, rows[:2], store=store)  # doctest: +SKIP
        >>> str(artifact.signature)  # doctest: +SKIP
        'x: float32[batch, 20] -> output: float32[batch, 2]'
    """
    require("torch", "export")
    request = make_request(
        model,
        example_inputs,
        dynamic=dynamic,
        opset=opset,
        external_data=external_data,
        time_limit_s=time_limit_s,
        rtol=rtol,
        atol=atol,
        check_rows=check_rows,
        name=name,
    )
    entry = as_store(store).get_or_build(
        request.key, lambda folder: _export_into(folder, request), what=f"export of {request.name}"
    )
    return describe_file(entry / f"{request.name}.onnx")


def _export_into(folder: Path, request: ExportRequest) -> None:
    import onnx

    if find_spec("onnxscript") is None:  # the child imports it
        require("onnxscript", "export")
    file_name = f"{request.name}.onnx"
    with (
        TemporaryDirectory(dir=folder) as work,
        warnings.catch_warnings(),
        isolated(request.module) as module,
    ):
        warnings.simplefilter("ignore")  # of eager torch, which may be errors here; the module is not tested for them
        raw = Path(work) / file_name
        with ChildProcess("pytest_modelserve.training.export_worker:run", preload=True) as exporter:
            # The process starts while the module runs here.
            reference = _reference(request, module)
            outputs = _output_names(reference, module, request)
            job = ExportJob(request.module, request.tracing, outputs, request.opset, request.external_data, raw)
            dropped = _run_exporter(exporter, job, request.time_limit_s)
        model = onnx.load(raw)
        check_written(model, request.tracing, outputs, request.opset)
        remove_shapes(model)
        checked = save_artifact(model, raw, name=request.name, variant="unchecked", lineage=())
        with _candidate(checked, model) as candidate:
            probes = check_untraced_inputs(
                candidate,
                reference,
                request.tracing,
                given=_tolerance(request),
                check_rows=request.check_rows,
                dropped=dropped,
            )
    notes = (
        *correct_outputs(model, probes),
        *nan_notes(probes),
        *rounding_notes(probes),
        *_unchecked(request),
        *dropped_notes(dropped),
    )
    verified = "outputs match eager torch at " + "; ".join(map(str, probes))
    saved = save_artifact(
        model,
        folder / file_name,
        name=request.name,
        variant=_precision(request.module),
        lineage=(*request.training, _lineage_step(request, opset_of(model), (verified, *notes))),
        external_data=request.external_data,
    )
    if request.external_data and not saved.external:
        raise ExportError(
            f"external_data=True has no effect: no tensor of {request.name} takes 1 KiB or more. Remove it"
        )


def _reference(request: ExportRequest, module: nn.Module) -> Predictor:
    return TorchPredictor(module, subject=Subject(request.name, "torch"), call=request.tracing.call)


def _tolerance(request: ExportRequest) -> GivenTolerance | None:
    if request.rtol is None or request.atol is None:
        return None
    return GivenTolerance(request.rtol, request.atol)


def _unchecked(request: ExportRequest) -> tuple[str, ...]:
    """Return a note on the kinds of edge-case rows that were left out."""
    kinds = [kind for kind in ROW_CHECKS if kind not in request.check_rows]
    return (f"edge-case rows not checked (check_rows): {', '.join(kinds)}",) if kinds else ()


def _candidate(checked: Artifact, model: onnx.ModelProto) -> Predictor:
    try:
        return serve(checked)
    except ArtifactError as error:
        raise runtime_error(error, model) from error


def _lineage_step(request: ExportRequest, opset: int | None, notes: tuple[str, ...]) -> LineageStep:
    axes = {name: {str(axis): label for axis, label in named.items()} for name, named in request.tracing.axes.items()}
    return LineageStep(
        "export",
        {"dynamic": axes, "traced": request.tracing.sizes, "opset": opset, **_choices(request)},
        request.weights_sha256,
        package_versions(PACKAGES),
        notes,
    )


def _choices(request: ExportRequest) -> dict[str, Any]:
    """Return the settings of the checks that are not the defaults."""
    chosen: dict[str, Any] = {}
    if request.rtol is not None:
        chosen |= {"rtol": request.rtol, "atol": request.atol}
    if request.check_rows != ROW_CHECKS:
        chosen["check_rows"] = list(request.check_rows)
    return chosen


def _output_names(reference: Predictor, module: nn.Module, request: ExportRequest) -> tuple[str, ...]:
    """Return the names of the module's outputs, from two runs on the traced inputs; ExportError if they differ."""
    try:
        return tuple(run_twice(request.name, module, lambda: reference.predict(request.tracing.inputs)))
    except (ExportError, InputError):
        raise
    except Exception as error:  # whatever the user's forward raises
        arrays = request.tracing.inputs
        inputs = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ExportError(
            f"{request.name} fails in eager torch on the example inputs ({inputs}): {type(error).__name__}: {error}"
            f"{_other_dtype(request)}"
        ) from error


def _other_dtype(request: ExportRequest) -> str:
    """Return what to do if an input has another floating dtype than the module."""
    own = _floating_dtype(request.module)
    for name, array in request.tracing.inputs.items():
        if own and array.dtype.kind == "f" and array.dtype.name != own:
            return f". The module has dtype {own}: convert {name!r} with .astype(np.{own})"
    return ""


def _run_exporter(exporter: ChildProcess, job: ExportJob, time_limit_s: float) -> tuple[DroppedConstant, ...]:
    what = f"export of {job.path.stem}"
    try:
        payload = pickle_job(job, job.module, purpose="export")
    except UsageError as error:
        raise ExportError(str(error)) from error
    result = exporter.call(payload, timeout_s=time_limit_s, description=what)
    if isinstance(result, Crash):
        if result.timed_out:
            what += f" exceeded its time limit of {time_limit_s:g} s"
        else:
            what += f": its process was {result}" if result.signal else f": its process {result}"
        raise ExportError(what + format_log(result.log_tail))
    outcome: ExportFailure | tuple[DroppedConstant, ...] = pickle.loads(result)
    if isinstance(outcome, ExportFailure):
        raise outcome.to_error(what, exporter.log_tail())
    return outcome


def _precision(module: nn.Module) -> str:
    """Return the name of the most frequent floating dtype of the parameters; fp32 for a module without any."""
    return _PRECISIONS.get(_floating_dtype(module), "fp32")


def _floating_dtype(module: nn.Module) -> str:
    dtypes = Counter(str(parameter.dtype) for parameter in module.parameters() if parameter.is_floating_point())
    most_frequent = [dtype.removeprefix("torch.") for dtype, _ in dtypes.most_common(1)]
    return most_frequent[0] if most_frequent else ""
