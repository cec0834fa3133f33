"""onnx's own recorded model cases, replayed through output parity: `python benchmarks/onnx_cases.py`.

The installed onnx has about 2,000: some for every operator of every opset, built in memory, and models with recorded
outputs as test data. onnxruntime serves each from a file. Its outputs must equal the recorded ones within the
tolerances of onnx's own tests (rtol 1e-3, atol 1e-7 unless a case says more), including dtypes, shapes, NaN and
infinities. Deviations are listed by name in `tests/parity/onnx_cases_known.toml`. This prints new ones and those that
vanished; `--update` writes the list again.

Everything runs in a child process: a case that crashes it has that outcome, and the next child continues after it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

import pytest_modelserve as ms
from pytest_modelserve.artifacts import TensorSpec
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.onnx_predictor import as_arrays

KNOWN = Path(__file__).parent.parent / "tests" / "parity" / "onnx_cases_known.toml"
AGREES = ""
CRASHES = "ends the process"
TIME_LIMIT_S = 600
SMALL = ("node", "simple", "pytorch-operator", "pytorch-converted")
LARGE = "light"  # image classifiers of up to 0.6 GB, whose weights are made when they are loaded

# These depend on the machine: its locales (en_US.UTF-8), and how the last digit of a float16 is rounded.
MACHINE = re.compile(r"/test_(strnorm\w*monday|attention_\w*fp16)")


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the outputs that onnx recorded: a folder, the file of a model, or a model with data in memory."""

    name: str
    rtol: float
    atol: float
    path: Path | None = None
    model: onnx.ModelProto | None = None
    data_sets: Sequence[tuple[Sequence[Any], Sequence[Any]]] = ()


def cases(kinds: Sequence[str], without: Sequence[str] = ()) -> Iterator[Case]:
    """Yield every installed case of these kinds, without those whose models would have to be downloaded.

    `without` names modules of onnx's node cases to leave out, for the lifetime of the process.
    """
    from onnx.backend.test.loader import DATA_DIR, load_model_tests

    for name in without:
        sys.modules[f"onnx.backend.test.case.node.{name}"] = ModuleType(name)

    for kind in kinds:
        if kind == LARGE:
            for path in sorted(Path(DATA_DIR, kind).glob("*.onnx")):
                yield Case(f"{kind}/{path.stem}", 2e-3, 1e-7, path)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the reference computations: casts that overflow, logarithms of 0
            found = load_model_tests(kind=kind)
        for case in found:
            path = None if case.model_dir is None else Path(case.model_dir)
            yield Case(f"{kind}/{case.name}", case.rtol, case.atol, path, case.model, case.data_sets or ())


def replay(case: Case, folder: Path) -> str:
    """Return AGREES if onnxruntime's outputs equal the recorded ones, else how they differ."""
    try:
        with ms.serve(_model_file(case, folder)) as candidate:
            recording = _recording(case, candidate)
            evidence = ms.measure_output_parity(candidate, recording, recording.inputs, rtol=case.rtol, atol=case.atol)
    except ms.ModelServeError as error:
        return _reason(str(error))
    return AGREES if evidence.verdict is ms.Verdict.PASS else evidence.findings[0]


def _model_file(case: Case, folder: Path) -> Path:
    if case.path is not None:
        return case.path if case.path.suffix else case.path / "model.onnx"
    path = folder / f"{case.name.replace('/', '-')}.onnx"
    onnx.save(case.model, path)
    return path


def _recording(case: Case, candidate: ms.Predictor) -> ms.Recording:
    signature = candidate.signature
    assert signature is not None
    if case.path is not None and not case.path.suffix:
        return ms.open_recording(case.path, signature=signature)
    data_sets = case.data_sets if case.path is None else [_generated(case.path, signature.inputs)]
    exchanges = [
        ms.Exchange(_arrays(signature.inputs, given), _arrays(signature.outputs, outputs))
        for given, outputs in data_sets
    ]
    return ms.Recording(Subject(case.name, "recorded"), exchanges, source=case.name)


def _generated(path: Path, inputs: Sequence[TensorSpec]) -> tuple[list[Any], list[Any]]:
    """Return the inputs that onnx generates for its large models, a ramp from 0 to 1, and the recorded output."""
    ramps = []
    for spec in inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape or ()]
        n = int(np.prod(shape))
        ramps.append((np.arange(n).reshape(shape) / n).astype(np.float32))
    output = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return ramps, [output]


def _arrays(specs: Sequence[TensorSpec], values: Sequence[Any]) -> dict[str, Any]:
    pairs = zip(specs, values, strict=True)
    return {name: array for spec, value in pairs for name, array in as_arrays(spec, _plain(value)).items()}


def _plain(value: Any) -> Any:
    """Return a recorded value as onnxruntime would: tensors as arrays, text as str."""
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        text = [item.decode() if isinstance(item, bytes) else item for item in value.ravel()]
        return np.array(text, dtype=object).reshape(value.shape)
    return value


def _reason(text: str) -> str:
    """Return an error without what depends on the machine: folders, and the runtime's source lines."""
    for pattern, words in (
        (r"NOT_IMPLEMENTED : Could not find an implementation for (\S+) node", "onnxruntime has no kernel for {}"),
        (r"NOT_IMPLEMENTED : Failed to find kernel for (\S+)", "onnxruntime has no kernel for {}"),
        (r"Fatal error: (\S+)\(-1\) is not a registered", "onnxruntime does not know {}"),
        (r"(construct locale with name:[\w.-]+|layout_ == 0|running \w+ node)", "onnxruntime fails: {}"),
        (r"(input|output) '.*' of type (\w+), which cannot", "{} of a type that cannot be served"),
    ):
        match = re.search(pattern, text)
        if match:
            return words.format(match[1])
    return text[:160]


def outcomes(kinds: Sequence[str] = SMALL, without: Sequence[str] = ()) -> dict[str, str]:
    """Return the result of `replay` for every case, by name; see `cases` for `without`."""
    found: dict[str, str] = {}
    while True:
        child = subprocess.run(
            [sys.executable, __file__, "--child", *kinds, "--without", *without],
            input="\n".join(found),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        begun = None
        for line in child.stdout.splitlines():
            begun, text = json.loads(line)
            found[begun] = CRASHES if text is None else text
        if child.returncode == 0:
            return found
        # A signal ends the child in the case that it began; an exception is a bug of this script or the package.
        if child.returncode > 0 or begun is None or found[begun] != CRASHES:
            raise RuntimeError(f"the cases could not be replayed:\n{child.stderr[-4000:]}")


def _child(kinds: Sequence[str], without: Sequence[str], done: Collection[str]) -> None:
    """Print two lines of JSON a case: its name before it runs, its outcome after."""
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(kinds, without):
            if case.name not in done:
                print(json.dumps([case.name, None]), flush=True)
                print(json.dumps([case.name, replay(case, Path(folder))]), flush=True)


def listed() -> tuple[dict[str, str], dict[str, str]]:
    """Return the listed deviations by name: those everywhere, and those that depend on the machine."""
    tables = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    return tables["everywhere"], tables["by_machine"]


def listed_versions() -> dict[str, str]:
    """Return the versions with which the list was written."""
    return dict(tomllib.loads(KNOWN.read_text(encoding="utf-8"))["versions"])


def versions() -> dict[str, str]:
    """Return the versions that the deviations depend on."""
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def changes(found: Mapping[str, str]) -> list[str]:
    """Describe each deviation that is not listed, and each listed one that vanished."""
    everywhere, by_machine = listed()
    deviating = {name: text for name, text in found.items() if text != AGREES}
    new = [f"new: {name}: {text}" for name, text in deviating.items() if name not in {*everywhere, *by_machine}]
    vanished = [f"vanished: {name}: {text}" for name, text in everywhere.items() if found.get(name, AGREES) == AGREES]
    return sorted(new) + sorted(vanished)


def write_list(found: Mapping[str, str]) -> None:
    """Write the list again."""
    deviating = sorted((name, text) for name, text in found.items() if text != AGREES)
    tables = {
        "versions": list(versions().items()),
        "everywhere": [(name, text) for name, text in deviating if not MACHINE.search(name)],
        "by_machine": [(name, text) for name, text in deviating if MACHINE.search(name)],
    }
    lines = [
        "# Where onnxruntime's outputs differ from those that onnx recorded for its own cases, or it fails: written by",
        "# `python benchmarks/onnx_cases.py --update`. A test fails on what is new and on what vanished; what is in",
        "# by_machine (a locale that is not installed, the last digit of a float16) may agree elsewhere.",
    ]
    for table, entries in tables.items():
        lines += ["", f"[{table}]"]
        lines += [f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries]
    KNOWN.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--update", action="store_true", help="write the list of known deviations again")
    options.add_argument("--large", action="store_true", help="replay the image classifiers, too; they are not listed")
    options.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options.add_argument("--without", nargs="*", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        _child(chosen.child, chosen.without, set(sys.stdin.read().splitlines()))
        return
    found = outcomes()
    deviating = sum(text != AGREES for text in found.values())
    print(f"{len(found)} cases: {len(found) - deviating} agree, {deviating} deviate")
    if chosen.update:
        write_list(found)
    for sentence in changes(found):
        print(sentence)
    if chosen.large:
        for name, text in outcomes([LARGE]).items():
            print(f"{name}: {text or 'agrees'}")


if __name__ == "__main__":
    main()
