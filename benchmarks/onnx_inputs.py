"""Inputs for onnx's own generated node cases, with no configuration: `python -m benchmarks.onnx_inputs`.

Every model of these cases that onnxruntime can load is served. `strategies.inputs(predictor)` generates the simplest
example and 19 others (one or two rows, 0 to 4 mutations, fixed seeds). A model counts as accepted if it returns outputs
for the simplest example and for at least nine in ten of all. The goal is 99 % of the models. Missed models are listed
with the runtime's own reason, also if no inputs were generated.

Everything runs in a child process. A case that crashes it counts as missed, and the next child continues after it.
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

EXAMPLES = 20
GOAL = 0.99
MIN_ACCEPTED = 0.9
CASE_LIMIT_S = 60
CRASHES = "crashes the process, or takes more than a minute"

Outcome = dict[str, Any]


def cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield every node case of the installed onnx by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts that overflow and logarithms of 0 in the reference outputs
        found = load_model_tests(kind="node")
    for case in found:
        model = case.model
        if model is None and case.model_dir is not None:
            model = onnx.load(Path(case.model_dir) / "model.onnx")
        if model is not None:
            yield case.name, model


def outcome(model: onnx.ModelProto) -> Outcome:
    """Return whether a model is loaded and served, how many examples it accepts, and why it rejects others."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        if reason := _load_error(path):
            return {"loaded": False, "reason": reason}
        started = time.perf_counter()
        try:
            with ms.serve(path) as predictor:
                return {"loaded": True, "served": True, **_accepted(predictor), "s": time.perf_counter() - started}
        except ms.ModelServeError as error:
            return {"loaded": True, "served": False, "reason": str(error)[:300]}


def _load_error(path: Path) -> str:
    """Return why onnxruntime does not load the file, empty if it does."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)[:300]
    return ""


def _accepted(predictor: ms.Predictor) -> Outcome:
    strategy: Any = ms.strategies.inputs(predictor)
    accepted, reason, simplest = 0, "", False
    for seed in range(EXAMPLES):
        feed = strategy.at(rows=1 + seed % 2, edits=seed % 5, seed=seed)
        try:
            predictor.predict(dict(feed))
        except Exception as error:
            reason = reason or f"{error}"[-300:]
        else:
            accepted += 1
            simplest = simplest or seed == 0
    source = source_of(strategy)
    assert source is not None
    return {"accepted": accepted, "simplest": simplest, "reason": reason, "searched": source.accepts is not None}


def is_accepted(found: Outcome) -> bool:
    """Return whether a model got valid inputs."""
    return bool(found.get("simplest")) and found["accepted"] >= MIN_ACCEPTED * EXAMPLES


def outcomes(names: Sequence[str] = ()) -> dict[str, Outcome]:
    """Return the outcome of every case, or of the named ones."""
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
            begun, finished = json.loads(line)
            found[begun] = finished or {
                "loaded": True,
                "served": True,
                "accepted": 0,
                "reason": CRASHES,
                "searched": False,
            }
        if child.wait() == 0:
            return found
        # A signal ends the child at the case it had begun. An exception is a bug of this script or the package.
        if child.returncode > 0 or begun is None or found[begun]["reason"] != CRASHES:
            raise RuntimeError("the child process failed, see its output above")


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
    """Return the end of an error message, without what differs from case to case."""
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
    loaded = {name: outcome for name, outcome in found.items() if outcome["loaded"]}
    served = {name: outcome for name, outcome in loaded.items() if outcome["served"]}
    accepted = [name for name, outcome in served.items() if is_accepted(outcome)]
    some = sum(outcome["accepted"] > 0 for outcome in served.values())
    outputs = sum(outcome["accepted"] for outcome in served.values())
    print(f"{len(found)} cases, of which onnxruntime loads {len(loaded)} and the package serves {len(served)}")
    print(
        f"accepted / loaded: {len(accepted)} / {len(loaded)} = {len(accepted) / len(loaded):.2%} (goal ≥ {GOAL:.0%}); "
        f"at least one example accepted: {some}; of all examples: {outputs / EXAMPLES / len(loaded):.2%}; "
        f"rows found by calling the model: {sum(outcome['searched'] for outcome in served.values())}"
    )
    print("not served, by reason:")
    for reason, count in Counter(kind_of_reason(t["reason"]) for t in loaded.values() if not t["served"]).most_common():
        print(f"  {count:4d}  {reason}")
    print("not accepted:")
    for name, outcome in sorted(served.items()):
        if name not in accepted:
            print(f"  {name}: {outcome['accepted']} of {EXAMPLES}: {kind_of_reason(outcome['reason'])}")


if __name__ == "__main__":
    main()
