"""What the scanner says of bad and of good files: `python -m benchmarks.bad_files [--exports]`.

Bad files: those of `fixtures.bad_models` are written one after the other and scanned strictly. A file is named if a
finding has the rule of its kind. The slowest scan, the most processor time of one scan and the largest memory of a
trial are printed, and whether this process opened another file than those of the folder.

Good files: every node model of the installed onnx, the conversions of scikit-learn, and every model in the cache of
this clone (`pytest example_models` fills it). Those with an error are listed with the rule. `--exports` adds the model
families of the tests, exported by torch (two minutes).

Large file: the time of a scan, and of opening alone in a new process that has imported onnxruntime, of a model of
300 MB, in turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import pytest_modelserve as ms
from benchmarks.sklearn_cases import Deviation, listed
from fixtures.bad_models import bad_files
from fixtures.onnx_parts import make_node, model, vector
from pytest_modelserve.scanning import ScanReport, scan as scan_module, scan_file

ROOT = Path(__file__).parent.parent
KNOWN = (f"{tempfile.gettempdir()}/bad-", str(ROOT), sys.prefix, sys.base_prefix, "/proc/", "/dev/null")
OPEN = """
import sys, time, onnxruntime
began = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(time.perf_counter() - began)
"""
LARGE_BYTES = 300_000_000


def judge_bad_files() -> None:
    kinds: Counter[str] = Counter()
    missed, times, cpu, memory = [], {}, {}, {}
    opened_outside: list[str] = []
    sys.addaudithook(lambda event, arguments: _note_open(event, arguments, opened_outside))
    run = scan_module.run_in_sandbox
    peaks: list[int] = []

    def with_peak(*arguments, **settings):  # type: ignore[no-untyped-def]
        result = run(*arguments, **settings)
        peaks.append(result.peak_bytes)
        return result

    scan_module.run_in_sandbox = with_peak
    for bad in bad_files():
        with tempfile.TemporaryDirectory(prefix="bad-") as folder:
            path = bad.write(Path(folder))
            size = path.lstat().st_size
            began, processor = time.perf_counter(), time.process_time()
            report = scan_file(path)
            times[str(bad)] = time.perf_counter() - began
            cpu[str(bad)] = time.process_time() - processor
            memory[str(bad)] = (peaks.pop() if peaks else 0) - 3 * size
        kinds[bad.kind] += 1
        if bad.rule not in {each.rule for each in report.findings} or report.is_safe:
            missed.append(f"{bad}: {report}")
    scan_module.run_in_sandbox = run
    print(f"bad files {len(times)}, kinds {len(kinds)}, named by the rule of their kind {len(times) - len(missed)}")
    for line in missed:
        print(f"  not named: {line}")
    slowest = max(times, key=times.__getitem__)
    print(f"slowest scan {times[slowest]:.2f} s ({slowest}); median {statistics.median(times.values()) * 1e3:.1f} ms")
    busiest = max(cpu, key=cpu.__getitem__)
    print(f"most processor time in this process {cpu[busiest]:.2f} s ({busiest})")
    largest = max(memory, key=memory.__getitem__)
    print(f"largest trial, less three times the file: {memory[largest] / 2**20:.0f} MiB ({largest})")
    print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB, alive")
    print(f"files that this process opened outside of the folder: {sorted(set(opened_outside)) or 'none'}")


def _note_open(event: str, arguments: tuple[object, ...], found: list[str]) -> None:
    """Note each opened file that is no part of a bad folder, Python, the system's libraries or this project."""
    if event != "open" or not isinstance(arguments[0], str) or not os.path.isabs(arguments[0]):
        return  # relative names are those of a temporary folder that is removed
    if not arguments[0].startswith(KNOWN) and "site-packages" not in arguments[0]:
        found.append(arguments[0])


def node_models() -> Iterator[tuple[str, Path]]:
    from onnx.backend.test.loader import load_model_tests

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in ("node", "simple", "pytorch-operator", "pytorch-converted"):
            for case in load_model_tests(kind=kind):
                path = Path(case.model_dir or folder, "model.onnx")
                if not case.model_dir:
                    onnx.save(case.model, path)
                yield f"{kind}/{case.name}", path


def conversions() -> Iterator[tuple[str, Path]]:
    """Yield the converted models, without those that onnxruntime refuses: the converter wrote them wrongly."""
    wrong = {name.partition(".")[0] for name, each in listed().items() if not each.by_machine and _is_refused(each)}
    for path in sorted((ROOT / "fixtures" / "golden" / "sklearn").glob("*.onnx")):
        if path.stem not in wrong:
            yield path.stem, path


def _is_refused(deviation: Deviation) -> bool:
    return any(each.startswith("refused: ") for each in deviation.findings)


def cached() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / ".modelserve" / "cache").rglob("*.onnx")):
        yield path.name, path


def exports() -> Iterator[tuple[str, Path]]:
    from fixtures.families import FAMILIES

    for family in FAMILIES.values():
        exported = ms.export(family.build(), family.inputs(2, 0), dynamic=family.dynamic, name=family.name)
        yield family.name, exported.path
        for recipe in ("optimize", "int8-dynamic"):
            try:
                yield f"{family.name} {recipe}", ms.compress(exported, recipe).path
            except ms.RecipeError:
                continue


def judge_good_files(what: str, files: Iterator[tuple[str, Path]]) -> None:
    count, refused, warned, seconds = 0, [], Counter[str](), []
    for name, path in files:
        report: ScanReport = scan_file(path)
        count += 1
        seconds.append(report.seconds)
        warned.update({each.rule for each in report.findings if each.severity == "warning"})
        refused += [f"{name}: {each.rule}: {each.message}" for each in report.findings if each.refuses]
    listed = ", ".join(f"{rule} {number}" for rule, number in warned.items()) or "none"
    median = statistics.median(seconds) * 1e3 if seconds else 0
    print(f"{what}: {count} files, {len(refused)} errors; median {median:.1f} ms; files with warnings: {listed}")
    for line in refused:
        print(f"  {line}")


def time_large_file(rounds: int) -> None:
    side = 2500
    count = LARGE_BYTES // (4 * side * side)
    weights = [np.random.default_rng(i).normal(size=(side, side)).astype(np.float32) / 50 for i in range(count)]
    nodes = [make_node("MatMul", [f"v{i}" if i else "x", f"w{i}"], [f"v{i + 1}"]) for i in range(count)]
    nodes.append(make_node("Relu", [f"v{count}"], ["y"]))
    shape = ("n", side)
    found = model(nodes, [vector("x", shape=shape)], [vector("y", shape=shape)])
    found.graph.initializer.extend(numpy_helper.from_array(each, f"w{i}") for i, each in enumerate(weights))
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in (
            ("one file", {}),
            ("external data", {"save_as_external_data": True, "location": "w.bin"}),
        ):
            path = Path(folder, f"{name[:3]}.onnx")
            onnx.save(found, path, **settings)
            size = sum(os.path.getsize(each) for each in Path(folder).iterdir())
            ratios, opening, scanning = [], [], []
            for _ in range(rounds):
                done = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=True)
                opening.append(float(done.stdout))
                began = time.perf_counter()
                report = scan_file(path)
                scanning.append(time.perf_counter() - began)
                ratios.append(scanning[-1] / opening[-1])
            print(
                f"{size / 1e6:.0f} MB, {name}: opening {min(opening):.2f} s, scan {min(scanning):.2f} s, ratio "
                f"{statistics.median(ratios):.2f} (median of {rounds}); safe {report.is_safe}"
            )
            for each in Path(folder).iterdir():
                each.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--exports", action="store_true", help="scan the model families, too (two minutes)")
    parser.add_argument("--rounds", type=int, default=5, help="scans of the large file (default: 5)")
    options = parser.parse_args()
    scan_file(next(path for _, path in conversions()))  # the warm process is started once
    judge_bad_files()
    judge_good_files("node models of onnx", node_models())
    judge_good_files("conversions of scikit-learn", conversions())
    judge_good_files("models in the cache of this clone", cached())
    if options.exports:
        judge_good_files("model families", exports())
    time_large_file(options.rounds)


if __name__ == "__main__":
    main()
