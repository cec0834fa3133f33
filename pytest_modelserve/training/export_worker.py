"""The child process in which torch's exporter runs: one export each, forked or as a new interpreter."""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve.serving.pytree import named_outputs
from pytest_modelserve.serving.torch_predictor import Call
from pytest_modelserve.training.export_errors import cause_of
from pytest_modelserve.training.export_request import Tracing

if TYPE_CHECKING:
    import torch
    from torch import nn

# A protobuf message ends at 2 GiB; beyond half of it the exporter writes the weights to a file of their own.
_INLINE_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class ExportJob:
    """All that one call of the exporter needs."""

    module: nn.Module
    tracing: Tracing
    outputs: Sequence[str]
    opset: int | None
    external_data: bool
    path: Path

    def run(self) -> None:
        """Write the ONNX file, or the cause of a failure beside it."""
        try:
            self._export()
        except BaseException as error:
            self.path.unlink(missing_ok=True)  # on a full disk its half is the room for the cause
            cause_of(error, self.tracing, self.path.parent).leave_in(self.path.parent)
            raise

    def _export(self) -> None:
        import torch

        torch.set_num_threads(1)
        _forget_traces()
        size = sum(tensor.nbytes for tensor in self.module.state_dict().values())
        with torch.no_grad():
            torch.onnx.export(
                self.module,
                **self._arguments(),
                f=self.path,
                input_names=list(self.tracing.inputs),
                output_names=list(self.outputs),
                opset_version=self.opset,
                external_data=self.external_data or size > _INLINE_LIMIT_BYTES,
                dynamo=True,
                verbose=False,
            )

    def _arguments(self) -> dict[str, Any]:
        """What the exporter is to call the module with, and the axes that stay free, in the same form.

        As keyword arguments where every input is a parameter and every output stands for itself. Else the module gets,
        in this process, a `forward` that takes and returns nothing but tensors in a row: torch would have to be told
        of every class that holds some, and would fix what it does not know.
        """
        # Names, not torch.export.Dim: with those an axis that the trace fixed is baked in without a word.
        axes = {name: dict(named) or None for name, named in self.tracing.axes.items()}
        call = self.tracing.call
        named = call is None or (call.plain and set(call.names) <= set(signature(self.module.forward).parameters))
        if call is None or (named and _is_flat(self.module(**self._tensors()))):
            return {"args": (), "kwargs": self._tensors(), "dynamic_shapes": axes}
        self.module.forward = _in_a_row(self.module.forward, call)
        return {"args": tuple(self._tensors().values()), "dynamic_shapes": (tuple(axes.values()),)}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The traced inputs, each time anew: the module may work in place."""
        import torch

        return {name: torch.from_numpy(array.copy()) for name, array in self.tracing.inputs.items()}


def _is_flat(result: Any) -> bool:
    """Whether `result` is a tensor, or a plain dict, tuple or list of them."""
    import torch

    values = [result]
    if type(result) in (dict, tuple, list):
        values = list(result.values()) if isinstance(result, dict) else list(result)
    return all(isinstance(value, torch.Tensor) for value in values)


def _in_a_row(forward: Callable[..., object], call: Call) -> Callable[..., tuple[Any, ...]]:
    def forward_in_a_row(*tensors: Any) -> tuple[Any, ...]:
        args, kwargs = call.arguments(dict(zip(call.names, tensors, strict=True)))
        return tuple(named_outputs(forward(*args, **kwargs)).values())

    return forward_in_a_row


def _forget_traces() -> None:
    """Undo what an earlier export in this process, or in the one that forked it, left behind in torch.

    To keep the time axis of a recurrent layer free, the exporter registers a loop in place of the layer for as long as
    it traces. The operator's dispatch cache outlives that (seen with torch 2.13), so from the second export on the
    layer is unrolled over the traced length: the export fails, or bakes the axis.
    """
    import torch

    for name in ("gru", "lstm", "rnn_tanh", "rnn_relu"):
        for overload in ("input", "data"):
            operator = getattr(getattr(torch.ops.aten, name), overload)
            getattr(operator, "_dispatch_cache", {}).clear()


def main(job_path: str, alarm_s: str) -> None:
    """Run the pickled job: what `python -m pytest_modelserve.training.export_worker JOB ALARM` does."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(int(alarm_s))  # should the parent be gone and not end this process
    job: ExportJob = pickle.loads(Path(job_path).read_bytes())
    job.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
