"""Whether onnxruntime survives opening a model, asked in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_modelserve.errors import RecipeError

# Every optimisation on, as is onnxruntime's default: at the level that `optimize` uses the crash does not show. One
# thread, as `serve` has it.
_OPEN = """
import os, sys, onnxruntime
path = os.fsdecode(sys.stdin.buffer.read())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
"""
_PYTHON_EXCEPTION = 1


@contextmanager
def crash_watch() -> Iterator[Callable[[Path], None]]:
    """A function that raises RecipeError if opening the model at a path ends the process; to be called once.

    A model that onnxruntime only refuses passes. onnxruntime 1.32 does end the process (SIGSEGV, in its layout
    optimiser for the CPU) for a float16 Transpose of an input that feeds a MatMul, for one. Nothing can be caught
    afterwards, so the first to open such a model must not be the caller. The process that does starts at once and
    loads onnxruntime while the model is made.
    """
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, "-c", _OPEN], stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere
    ) as child:

        def refuse_crash(path: Path) -> None:
            child.communicate(os.fsencode(path))
            if child.returncode not in (0, _PYTHON_EXCEPTION):
                raise RecipeError(
                    f"onnxruntime ends the whole process (exit status {child.returncode}) when it opens the result: "
                    "its own fault; leave this model in fp32. 'simplify' before helps some such models (a "
                    "bidirectional RNN) and not others (a bidirectional GRU)"
                )

        try:
            yield refuse_crash
        finally:
            child.kill()
