"""What `pytest model.onnx` says of the model families and of onnx's node models: `python -m benchmarks.model_files`.

One run of pytest names every file. A FAIL is false unless the model has the fault: an operator that draws random
numbers is not deterministic. Such models are listed, and so is every other FAIL, with the number of checks that were
not judged by reason. Node models that the bare onnxruntime does not load are left out. The timed checks and the memory
check, which give no verdict, are left out of the run over the node models: `--all` takes them in.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

import pytest_modelserve as ms
from benchmarks.onnx_inputs import _load_error, cases
from fixtures.families import FAMILIES

RANDOM = {"Bernoulli", "Dropout", "Multinomial", *(f"Random{kind}" for kind in ("Normal", "Uniform"))}
RANDOM |= {f"{name}Like" for name in RANDOM if name.startswith("Random")}
"""Operators whose outputs differ from call to call; Dropout only where it trains."""
UNTIMED = "not (latency or memory or slowdown)"


def write_families(folder: Path) -> list[Path]:
    paths = []
    for family in FAMILIES.values():
        exported = ms.export(family.build(), family.inputs(2, 0), dynamic=family.dynamic, name=family.name)
        paths.append(folder / f"{family.name}.onnx")
        paths[-1].write_bytes(exported.path.read_bytes())
    return paths


def write_node_models(folder: Path, number: int) -> list[Path]:
    """Write `number` node models, evenly spaced over all that onnxruntime loads."""
    found = []
    for name, model in cases():
        path = folder / f"{re.sub('[^0-9a-zA-Z_]', '_', name)}.onnx"
        onnx.save(model, path)
        if _load_error(path):
            path.unlink()
        else:
            found.append(path)
    step = len(found) / number
    kept = {found[int(index * step)] for index in range(number)}
    for path in set(found) - kept:
        path.unlink()
    print(f"{len(found):,} node models load in onnxruntime; {len(kept)} of them, evenly spaced, are named", flush=True)
    return sorted(kept)


def run(paths: list[Path], folder: Path, *, select: str, workers: int) -> dict[str, Any]:
    """Return the document of one run of pytest over the files."""
    document = folder / "evidence.json"
    arguments = [*(path.name for path in paths), "-q", "-p", "no:cacheprovider", f"--modelserve-json={document}"]
    arguments += ["-k", select] if select else []
    arguments += ["-n", str(workers), "--dist=loadfile"] if workers > 1 else []
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{done.stdout[-3000:]}{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    return found


def explained(gate: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a FAIL is the fault of the model: it draws random numbers, divides integers or loops freely."""
    file, _, check = gate["node_id"].partition("::")
    if check == "safe":
        rules = {each["rule"] for each in gate["evidence"]["details"]["findings"] if each["severity"] == "error"}
        return rules <= {"compute.integer-division", "compute.loop-bound"}
    operators = {node.op_type for node in onnx.load(folder / file).graph.node}
    return check == "deterministic" and bool(operators & RANDOM)


def report(document: Mapping[str, Any], folder: Path, what: str) -> int:
    """Print the counts of one run, and return the number of false FAILs."""
    gates = document["gates"]
    verdicts = Counter(gate["verdict"] or "measured" for gate in gates)
    listed = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    print(f"\n{what}: {listed}, {len(document['not_judged']):,} not judged")
    false = 0
    for gate in gates:
        if gate["verdict"] in ("FAIL", "INCONCLUSIVE", "ERROR", "CRASHED"):
            is_fault = gate["verdict"] == "FAIL" and explained(gate, folder)
            false += not is_fault
            text = gate["error"] or gate["evidence"]["summary"]
            print(f"  {gate['verdict']} {gate['node_id']}: {text}{' (true)' if is_fault else ''}")
    print(f"  false FAIL, INCONCLUSIVE or ERROR: {false}")
    reasons: Counter[tuple[str, str]] = Counter()
    for node_id, reason in document["not_judged"].items():
        reasons[node_id.partition("::")[2], re.sub(r"'[^']*'|test_\w+|\d[\d.e+-]*", "…", reason)[:110]] += 1
    for (check, reason), count in reasons.most_common(40):
        print(f"  not judged {count:4} × {check}: {reason}")
    return false


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--number", type=int, default=300, help="node models (default: 300)")
    parser.add_argument("--workers", type=int, default=1, help="processes of pytest (default: 1)")
    parser.add_argument("--only", choices=("families", "nodes"), help="run over these models alone (default: both)")
    parser.add_argument("--all", action="store_true", help="time the node models, too")
    options = parser.parse_args()
    false = 0
    if options.only != "nodes":
        with tempfile.TemporaryDirectory() as folder:
            paths = write_families(Path(folder))
            document = run(paths, Path(folder), select="", workers=1)
            false += report(document, Path(folder), f"{len(paths)} model families")
    if options.only != "families":
        with tempfile.TemporaryDirectory() as folder:
            paths = write_node_models(Path(folder), options.number)
            document = run(paths, Path(folder), select="" if options.all else UNTIMED, workers=options.workers)
            false += report(document, Path(folder), f"{len(paths)} node models")
    print(f"\nfalse FAIL in all: {false}")


if __name__ == "__main__":
    main()
