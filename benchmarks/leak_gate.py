"""The leak gate on clean models and planted leaks: `python -m benchmarks.leak_gate [--only clean new-inputs reload]`.

Clean: the families of `fixtures.families`, as exported and for a part of them as int8-dynamic, 20 models in all, each
with batches of two shapes that vary from call to call, and again with the session rebuilt for every call. Planted: the
same models with a wrapper that stores 2 MiB for every new input, and sessions that leak 2 MiB when they are closed.
Every gate runs in its own process, because the heap of a process contains memory freed by earlier gates.
"""

from __future__ import annotations

import argparse
import mmap
import pickle
import tempfile
from collections import Counter
from pathlib import Path

import pytest_modelserve as ms
from fixtures.families import FAMILIES
from fixtures.recipe_matrix import COLUMNS, compressed, exported
from pytest_modelserve._processes import Crash, call_in_child, format_log
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import OnnxPredictor

MODELS = 20
LEAK = 2 << 20
# Tolerable for a server for a day, with one call a second or one reload an hour.
MAX_KIB = {"clean": 20, "clean-reload": 400, "new-inputs": 20, "reload": 400}
GOALS = {"clean": "PASS", "clean-reload": "PASS", "new-inputs": "FAIL", "reload": "FAIL"}
# Of a gate: about five seconds on a quiet host, and a busy one must not decide.
TIME_LIMIT_S = 900


def models(folder: Path) -> dict[str, tuple[str, str]]:
    """Return path and family of 20 models by name: every family as exported, the first ones quantized as well."""
    pipeline = ms.Pipeline(folder)
    found = {}
    for name, family in progress(list(FAMILIES.items()), "exports"):
        artifact = exported(pipeline, family)
        found[name] = (str(artifact.path), name)
        if sum("int8" in key for key in found) < MODELS - len(FAMILIES):
            quantized = compressed(pipeline, family, COLUMNS["int8-dynamic"], artifact)
            found[f"{name} int8-dynamic"] = (str(quantized.path), name)
    assert len(found) == MODELS
    return found


class LeakyPredictor:
    """Predictor that stores 2 MiB for every new input."""

    def __init__(self, predictor: ms.Predictor) -> None:
        self._predictor = predictor
        self._pages: dict[bytes, mmap.mmap] = {}

    def __call__(self, inputs: object) -> object:
        """Predict `inputs`."""
        key = b"".join(array.tobytes() for array in inputs.values())  # type: ignore[attr-defined]
        if key not in self._pages:
            self._pages[key] = pages()
        return self._predictor.predict(inputs)  # type: ignore[arg-type]


def pages() -> mmap.mmap:
    """Return 2 MiB of new memory, written to."""
    memory = mmap.mmap(-1, LEAK)
    memory.write(bytes(LEAK))
    return memory


def measure(payload: bytes) -> bytes:
    """Measure one gate, in a child process."""
    part, path, name = pickle.loads(payload)
    family = FAMILIES[name]
    batches = [family.inputs(rows, seed) for seed, rows in enumerate((2, 16))]
    leaked = []
    if part == "reload":
        original = OnnxPredictor.close

        def close(self: OnnxPredictor) -> None:
            leaked.append(pages())
            original(self)

        OnnxPredictor.close = close  # type: ignore[method-assign]
    with ms.serve(path) as served:
        evidence = ms.measure_memory_growth(
            ms.serve(LeakyPredictor(served)) if part == "new-inputs" else served,
            batches,
            max_kib_per_call=MAX_KIB[part],
            reload="reload" in part,
            time_limit_s=TIME_LIMIT_S,
        )
    return pickle.dumps((evidence.verdict.value, evidence.quantities[0].value, evidence.n, evidence.findings))


def run(part: str, found: dict[str, tuple[str, str]]) -> None:
    """Print the verdicts of one part, and every model whose verdict is not the goal."""
    verdicts: Counter[str] = Counter()
    print(f"{part}, budget {MAX_KIB[part]} KiB a call, {len(found)} models: goal {GOALS[part]}")
    for label, (path, name) in progress(list(found.items()), part):
        payload = pickle.dumps((part, path, name))
        result = call_in_child("benchmarks.leak_gate:measure", payload, timeout_s=3 * TIME_LIMIT_S)
        if isinstance(result, Crash):
            raise SystemExit(f"{label}: {result}{format_log(result.log_tail)}")
        verdict, growth, n, findings = pickle.loads(result)
        verdicts[verdict] += 1
        if verdict != GOALS[part]:
            print(f"  {label}: {verdict}, {growth / 1024:.1f} KiB a call over {n} calls {findings}")
    print("  " + "  ".join(f"{verdict} {count}" for verdict, count in verdicts.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*MAX_KIB], default=[*MAX_KIB], help="parts (default: all)")
    parser.add_argument("--folder", type=Path, help="folder of the models (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = models(given.folder or Path(temporary))
        for part in given.only:
            run(part, found)


if __name__ == "__main__":
    main()
