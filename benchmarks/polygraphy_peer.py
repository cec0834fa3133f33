"""Polygraphy's comparison with all tensors marked, in another Python process that is called over pipes.

Run by that Python, this file is the server: it reads one pair of models a line and prints its time and result.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Result:
    """The candidate's node that computes the first tensor reported as different, "" for none; and the time.

    `error` is the reason for a missing result: a model that does not run, or that holds bfloat16.
    """

    node: str
    seconds: float
    error: str = ""


class Peer:
    """The process; close it through `of`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._inputs = folder / "inputs.npz"

    @staticmethod
    @contextlib.contextmanager
    def of(python: Path | None) -> Iterator[Peer | None]:
        """The peer in `python`; None for none."""
        if python is None:
            yield None
            return
        command = [str(python), "-W", "ignore", __file__]
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        ):
            yield Peer(process, Path(folder))
            assert process.stdin is not None
            process.stdin.close()

    def compare(self, candidate: Path, reference: Path, inputs: Mapping[str, NDArray[np.generic]]) -> Result:
        """Return its result for this pair. RuntimeError if the process has ended."""
        import numpy

        arrays: dict[str, Any] = dict(inputs)
        numpy.savez(self._inputs, **arrays)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(candidate), str(reference), str(self._inputs)]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process has ended")
        return Result(**json.loads(line))


def _compare(candidate: str, reference: str, inputs: Mapping[str, Any]) -> Result:
    import onnx
    from polygraphy import constants
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    start = time.perf_counter()
    sessions = [
        SessionFromOnnx(BytesFromOnnx(ModifyOutputs(OnnxFromPath(path), outputs=constants.MARK_ALL)))
        for path in (reference, candidate)
    ]
    try:
        results = Comparator.run([OnnxrtRunner(session) for session in sessions], data_loader=[dict(inputs)])
    except Exception as error:  # the runtime's exceptions share no base class
        return Result("", time.perf_counter() - start, str(error))
    ((agreement,),) = Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc())[0].values()
    seconds = time.perf_counter() - start
    different = next((name for name, agrees in agreement.items() if not bool(agrees)), "")
    makers = {name: node.name for node in onnx.load(candidate).graph.node for name in node.output}
    return Result(makers.get(different, ""), seconds)


def _serve() -> None:
    """Process every line of standard input; what Polygraphy prints is dropped."""
    import numpy
    import onnxruntime
    from polygraphy.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.CRITICAL
    onnxruntime.set_default_logger_severity(4)
    for line in sys.stdin:
        candidate, reference, arrays = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()), numpy.load(arrays) as inputs:
            result = _compare(candidate, reference, dict(inputs))
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    _serve()
