"""torch's exporter in a child process: one export for each process."""

from __future__ import annotations

import importlib
import logging
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from inspect import signature
from typing import Any

from pytest_modelserve.serving.pytree import named_outputs
from pytest_modelserve.serving.torch_predictor import Call
from pytest_modelserve.training.export_errors import DroppedConstant, explain_failure, innermost_line
from pytest_modelserve.training.export_request import ExportJob

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `python -W error` is inherited, and would end the process
    import torch

    # What every export imports: the fork server shares it with each child. These modules are private; without them an
    # export only takes longer.
    for _module in ("torch._dynamo", "torch.export._trace", "onnxscript.function_libs.torch_lib.ops", "cloudpickle"):
        with suppress(ImportError):
            importlib.import_module(_module)
    # And two tables of operators, without which a small export takes twice as long.
    with suppress(Exception):
        from torch.onnx._constants import ONNX_DEFAULT_OPSET
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        logging.disable()  # operators of packages that are not installed
        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
        ONNXRegistry.from_torchlib(opset_version=ONNX_DEFAULT_OPSET)
        len(torch.export.default_decompositions())
    logging.disable(logging.NOTSET)
    with suppress(ImportError):
        from tqdm import tqdm

        # torch shows bars in this process alone; tqdm's own lock is a semaphore that a killed process leaks.
        tqdm.set_lock(threading.RLock())

# A protobuf message ends at 2 GiB; beyond half of it the exporter writes the weights to a file of their own.
_INLINE_LIMIT_BYTES = 1 << 30


def run(payload: bytes) -> bytes:
    """Run the pickled ExportJob; return, pickled, the DroppedConstants or the ExportFailure."""
    job: ExportJob = pickle.loads(payload)
    try:
        return pickle.dumps(_export(job))
    except BaseException as error:
        traceback.print_exc()
        job.path.unlink(missing_ok=True)
        return pickle.dumps(explain_failure(error, job.tracing, job.path.parent))


def _export(job: ExportJob) -> tuple[DroppedConstant, ...]:
    torch.set_num_threads(1)
    size = sum(tensor.nbytes for tensor in job.module.state_dict().values())
    with torch.no_grad():
        program = torch.onnx.export(
            job.module,
            **_arguments(job),
            f=job.path,
            input_names=list(job.tracing.inputs),
            output_names=list(job.outputs),
            opset_version=job.opset,
            external_data=job.external_data or size > _INLINE_LIMIT_BYTES,
            dynamo=True,
            verbose=False,
        )
    with suppress(Exception):  # the structure of the traced program is private
        return tuple(_dropped_constants(program))
    return ()


# onnxscript's optimizer takes constants up to this size for 0 (onnxscript 0.7, Constant of its pattern matcher).
_TAKEN_FOR_ZERO = 1e-8


def _dropped_constants(program: Any) -> Iterator[DroppedConstant]:
    """Yield the sums with a tiny constant, such as an epsilon, that the exporter removed as sums with 0."""
    exported = program.exported_program
    written = {name.removeprefix("node_") for name in _names(program.model)}
    constants = set(_written_constants(program.model))
    for node in exported.graph.nodes:
        if node.target not in _SUMS or node.name in written:
            continue
        for argument in node.args[:2]:
            value = _constant(argument, exported)
            if value is not None and 0 < abs(value) <= _TAKEN_FOR_ZERO and not _is_in(value, constants):
                sign = "-" if "sub" in str(node.target) else "+"
                line = innermost_line(node.meta.get("stack_trace") or "")
                yield DroppedConstant(f"{sign} {value:g}", node.name, str(node.target), line)


_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.add.Scalar, torch.ops.aten.sub.Scalar)


def _names(model: Any) -> Iterator[str]:
    """Return the names of all nodes, and those of the traced operators that they come from."""
    for node in model.graph:
        yield node.name or ""
        yield str(node.metadata_props.get("pkg.torch.onnx.fx_node", "")).partition(" ")[0].removeprefix("%")


def _written_constants(model: Any) -> Iterator[float]:
    """Yield the constants that the written model adds or subtracts, and the epsilons of its normalizations."""
    for node in model.graph:
        yield from (each.value for each in node.attributes.values() if each.name == "epsilon")
        if node.op_type in ("Add", "Sub"):
            tensors = [
                value.const_value for value in node.inputs if value is not None and value.const_value is not None
            ]
            yield from (float(tensor.numpy().reshape(())) for tensor in tensors if tensor.size == 1)


def _is_in(value: float, others: set[float]) -> bool:
    """Return True if one of `others` is `value` rounded to float32 or float16."""
    return any(abs(other - value) <= 1e-3 * abs(value) for other in others)


def _constant(argument: Any, exported: Any) -> float | None:
    """Return the number that a traced operator gets, given as such or as a tensor of one element; otherwise None."""
    if isinstance(argument, (int, float)):
        return float(argument)
    signature = exported.graph_signature
    sources = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    name = sources.get(getattr(argument, "name", ""))
    tensor = exported.state_dict.get(name, exported.constants.get(name))
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None


def _arguments(job: ExportJob) -> dict[str, Any]:
    """Return the call of the module and, in the same form, its free axes.

    Keyword arguments where every input is a parameter and every output a tensor. Otherwise the module gets a `forward`
    that takes and returns only tensors: torch would need to know every class that holds some, and fixes unknown ones.
    """
    # Names, not torch.export.Dim: with those an axis that the trace fixed is baked in silently.
    axes = {name: dict(named) or None for name, named in job.tracing.axes.items()}
    call = job.tracing.call
    named = call is None or (call.plain and set(call.names) <= set(signature(job.module.forward).parameters))
    if call is None or (named and _is_flat(job.module(**_tensors(job)))):
        return {"args": (), "kwargs": _tensors(job), "dynamic_shapes": axes}
    job.module.forward = _flattened(job.module.forward, call)
    return {"args": tuple(_tensors(job).values()), "dynamic_shapes": (tuple(axes.values()),)}


def _tensors(job: ExportJob) -> dict[str, torch.Tensor]:
    """Return new tensors of the traced inputs, as the module may work in place."""
    return {name: torch.from_numpy(array.copy()) for name, array in job.tracing.inputs.items()}


def _is_flat(result: Any) -> bool:
    """Return True for a tensor, and for a plain dict, tuple or list of tensors."""
    values = [result]
    if type(result) in (dict, tuple, list):
        values = list(result.values()) if isinstance(result, dict) else list(result)
    return all(isinstance(value, torch.Tensor) for value in values)


def _flattened(forward: Callable[..., object], call: Call) -> Callable[..., tuple[Any, ...]]:
    def flat_forward(*tensors: Any) -> tuple[Any, ...]:
        args, kwargs = call.arguments(dict(zip(call.names, tensors, strict=True)))
        return tuple(named_outputs(forward(*args, **kwargs)).values())

    return flat_forward
