"""The child process in which torch's exporter runs: one export each, forked or as a new interpreter."""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.training.child import CAUSE_FILE
from pytest_modelserve.training.tracing import Tracing

if TYPE_CHECKING:
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
    path: Path

    def run(self) -> None:
        """Write the ONNX file, or the innermost cause of a failure into a text file beside it."""
        try:
            self._export()
        except BaseException as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            self.path.with_name(CAUSE_FILE).write_text(f"{type(cause).__name__}: {cause}", encoding="utf-8")
            raise

    def _export(self) -> None:
        import torch

        torch.set_num_threads(1)
        _forget_traces()
        size = sum(tensor.nbytes for tensor in self.module.state_dict().values())
        with torch.no_grad():
            torch.onnx.export(
                self.module,
                (),
                self.path,
                kwargs={name: torch.from_numpy(array.copy()) for name, array in self.tracing.inputs.items()},
                input_names=list(self.tracing.inputs),
                output_names=list(self.outputs),
                # Names, not torch.export.Dim: with those an axis that the trace fixed is baked in without a word.
                dynamic_shapes={name: dict(named) or None for name, named in self.tracing.axes.items()},
                opset_version=self.opset,
                external_data=size > _INLINE_LIMIT_BYTES,
                dynamo=True,
                verbose=False,
            )


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
    """Run the pickled job: what `python -m pytest_modelserve.training.export_child JOB ALARM` does."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(int(alarm_s))  # should the parent be gone and not end this process
    job: ExportJob = pickle.loads(Path(job_path).read_bytes())
    job.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
