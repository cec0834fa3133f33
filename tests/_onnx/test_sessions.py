"""Sessions of onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_modelserve._onnx.sessions import try_to_open
from pytest_modelserve._processes import call_in_child


def test_model_that_onnxruntime_refuses_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "größe.onnx"
    path.write_bytes(b"no model")
    target = f"{try_to_open.__module__}:{try_to_open.__name__}"
    assert call_in_child(target, os.fsencode(path), timeout_s=300) == b""
