"""Inputs for onnx's own generated node cases, with no configuration: `python -m benchmarks.onnx_inputs`.

Every model of these cases that onnxruntime can load is served, and `strategies.inputs(predictor)` is asked for the
plainest example and for 19 drawn ones (one or two rows, 0 to 4 edits, fixed seeds). A model counts as served with
inputs where it answers the plainest and at least nine in ten of all; goal: 99 % of the models. What is missed is named,
with the runtime's own reason; a model that is loaded and gets no inputs for another reason counts as missed too.

All of it runs in a child process: one that a case ends counts as missed, and the next child goes on after it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

import pytest_modelserve as ms
from pytest_modelserve.robustness.strategies import source_of

DRAWS = 20
GOAL = 0.99
SHARE = 0.9
CASE_LIMIT_S = 60
ENDS = "ends the process, or takes more than a minute"

Outcome = dict[str, Any]


def cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every node case of the installed onnx by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reference computations: casts that overflow, logarithms of 0
        found = load_model_tests(kind="node")
    for case in found:
        model = case.model
        if model is None and case.model_dir is not None:
            model = onnx.load(Path(case.model_dir) / "model.onnx")
        if model is not None:
            yield case.name, model


def outcome(model: onnx.ModelProto) -> Outcome:
    """What becomes of one model: not loaded, not served, or how many draws it answered and what it said to others."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        if reason := _refused(path):
            return {"loaded": False, "reason": reason}
        started = time.perf_counter()
        try:
            with ms.serve(path) as predictor:
                return {"loaded": True, "served": True, **_answers(predictor), "s": time.perf_counter() - started}
        except ms.ModelServeError as error:
            return {"loaded": True, "served": False, "reason": str(error)[:300]}


def _refused(path: Path) -> str:
    """Why onnxruntime does not load the file; empty where it does."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)[:300]
    return ""


def _answers(predictor: ms.Predictor) -> Outcome:
    draw: Any = ms.strategies.inputs(predictor)
    answered, reason, plain = 0, "", False
    for seed in range(DRAWS):
        feed = draw.at(rows=1 + seed % 2, edits=seed % 5, seed=seed)
        try:
            predictor.predict(dict(feed))
        except Exception as error:
            reason = reason or f"{error}"[-300:]
        else:
            answered += 1
            plain = plain or seed == 0
    source = source_of(draw)
    assert source is not None
    return {"answered": answered, "plain": plain, "reason": reason, "asked": source.accepts is not None}


def is_accepted(told: Outcome) -> bool:
    """Whether a model was given inputs that it takes."""
    return bool(told.get("plain")) and told["answered"] >= SHARE * DRAWS


def outcomes(names: Sequence[str] = ()) -> dict[str, Outcome]:
    """What became of every case, or of those named."""
    found: dict[str, Outcome] = {}
    while True:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.onnx_inputs", "--child", *names],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n".join(found))
        child.stdin.close()
        begun = None
        for line in child.stdout:
            begun, told = json.loads(line)
            found[begun] = told or {"loaded": True, "served": True, "answered": 0, "reason": ENDS, "asked": False}
        if child.wait() == 0:
            return found
        # A signal ends the child at the case it had begun; an exception is a fault of this script or the package.
        if child.returncode > 0 or begun is None or found[begun]["reason"] != ENDS:
            raise RuntimeError("the child process failed: its own words are above")


def _child(names: Sequence[str], done: set[str]) -> None:
    import signal

    for name, model in cases():
        if name in done or (names and name not in names):
            continue
        print(json.dumps([name, None]), flush=True)
        signal.alarm(CASE_LIMIT_S)
        print(json.dumps([name, outcome(model)]), flush=True)
        signal.alarm(0)


def kind_of_reason(reason: str) -> str:
    """The last words of a refusal, without what differs from case to case."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", reason))[-90:].replace("\n", " ")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("names", nargs="*", help="only these cases")
    options.add_argument("--json", type=Path, help="write every outcome there")
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        _child(given.names, set(sys.stdin.read().split()))
        return
    found = outcomes(given.names)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    loaded = {name: told for name, told in found.items() if told["loaded"]}
    served = {name: told for name, told in loaded.items() if told["served"]}
    accepted = [name for name, told in served.items() if is_accepted(told)]
    some = sum(told["answered"] > 0 for told in served.values())
    draws = sum(told["answered"] for told in served.values())
    print(f"{len(found)} cases, of which onnxruntime loads {len(loaded)} and the package serves {len(served)}")
    print(
        f"accepted / loaded: {len(accepted)} / {len(loaded)} = {len(accepted) / len(loaded):.2%} (goal ≥ {GOAL:.0%}); "
        f"at least one draw answered: {some}; of all draws answered: {draws / DRAWS / len(loaded):.2%}; "
        f"rows found by asking the model: {sum(told['asked'] for told in served.values())}"
    )
    print("not served, by reason:")
    for reason, count in Counter(kind_of_reason(t["reason"]) for t in loaded.values() if not t["served"]).most_common():
        print(f"  {count:4d}  {reason}")
    print("not accepted:")
    for name, told in sorted(served.items()):
        if name not in accepted:
            print(f"  {name}: {told['answered']} of {DRAWS}: {kind_of_reason(told['reason'])}")


if __name__ == "__main__":
    main()
