"""Whether onnxruntime survives opening a model, asked in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pytest_modelserve.errors import RecipeError

# As `serve` opens a model, every optimisation on: at the level that `optimize` uses the crash does not show.
_OPEN = "import sys, onnxruntime as o; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
_PYTHON_EXCEPTION = 1


def refuse_crash(path: Path) -> None:
    """RecipeError if opening the model at `path` ends the process; one that onnxruntime only refuses passes.

    onnxruntime 1.32 does that (SIGSEGV, in its layout optimiser for the CPU) for a float16 Transpose of an input that
    feeds a MatMul, for one. Nothing can be caught afterwards, so the first to open such a model must not be the caller.
    """
    child = subprocess.run([sys.executable, "-c", _OPEN, str(path)], capture_output=True, check=False)
    if child.returncode not in (0, _PYTHON_EXCEPTION):
        raise RecipeError(
            f"onnxruntime ends the whole process (exit status {child.returncode}) when it opens the result: its own "
            "fault; leave this model in fp32, or try 'simplify' first"
        )
