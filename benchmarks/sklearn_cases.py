"""Converted scikit-learn models compared with scikit-learn: `python benchmarks/sklearn_cases.py`.

`fixtures/golden/sklearn` has the models, converted by skl2onnx, and recordings of scikit-learn's outputs; its README
describes them. onnxruntime serves each model, and each of its recordings is replayed through output parity within
rtol 1e-4 and atol 1e-5; labels, dtypes, shapes and class names must be equal. Deviations are listed by name in
`deviations.toml`. This prints new ones and those that vanished; `--update` writes the list again.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest_modelserve as ms

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden" / "sklearn"
KNOWN = FOLDER / "deviations.toml"
_REASON = re.compile(r"Type Error: .*|construct locale with name:[\w.-]+")
RTOL, ATOL = 1e-4, 1e-5
"""A hundred times the rounding of float32; smaller differences of a probability do not matter."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """The finding of each output of one case, its reason, and whether it depends on the machine."""

    findings: tuple[str, ...]
    why: str
    by_machine: bool


def recordings() -> Iterator[tuple[str, Path, Path]]:
    """Yield the name, model file and recording of every case."""
    for recording in sorted(FOLDER.glob("*.npz")):
        model = recording.name.partition(".")[0]
        yield recording.stem, FOLDER / f"{model}.onnx", recording


def replay(model: Path, recording: Path) -> tuple[str, ...]:
    """Return one finding for each output that differs from scikit-learn's, or that onnxruntime refuses the model."""
    reference = ms.open_recording(recording)
    try:
        with ms.serve(model) as candidate:
            ms.assert_output_parity(candidate, reference, reference.inputs, rtol=RTOL, atol=ATOL)
    except ms.GateFailure as failure:
        return tuple(finding for finding in failure.evidence.findings if finding.startswith("output "))
    except ms.ArtifactError as error:
        reason = _REASON.search(str(error))
        return (f"refused: {reason[0] if reason else error}",)
    return ()


def deviations() -> dict[str, tuple[str, ...]]:
    """Return the findings of each case that deviates, by its name."""
    found = {name: replay(model, recording) for name, model, recording in recordings()}
    return {name: finding for name, finding in found.items() if finding}


def listed() -> dict[str, Deviation]:
    """Return the known deviations by the name of the case."""
    cases = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    return {
        name: Deviation(tuple(case["findings"]), case["why"], case.get("by_machine", False))
        for name, case in cases.items()
    }


def changes(found: Mapping[str, tuple[str, ...]], known: Mapping[str, Deviation]) -> list[str]:
    """Describe each output that deviates and is not listed, and each listed one that vanished.

    Outputs are compared by case and name, because the last digit may depend on the machine. Cases that depend on the
    machine are skipped.
    """
    now = {(case, _output(finding)): finding for case, every in found.items() for finding in every}
    before = {(case, _output(finding)): finding for case, entry in known.items() for finding in entry.findings}
    by_machine = {case for case, entry in known.items() if entry.by_machine}
    new = [
        f"new: {key[0]}: {finding}" for key, finding in now.items() if key not in before and key[0] not in by_machine
    ]
    gone = [
        f"vanished: {key[0]}: {finding}"
        for key, finding in before.items()
        if key not in now and key[0] not in by_machine
    ]
    return sorted(new) + sorted(gone)


def _output(finding: str) -> str:
    """Return the name of the output in a finding, "" if the model was refused."""
    return finding.split("'")[1] if finding.startswith("output ") else ""


def write_list(found: Mapping[str, tuple[str, ...]]) -> None:
    """Write the list again and keep the reasons in it."""
    known = listed()
    lines = [
        f"# Where converted models differ from scikit-learn, beyond rtol {RTOL:g}, atol {ATOL:g}:",
        "# written by `python benchmarks/sklearn_cases.py --update`, which keeps every `why`. A test fails on what is",
        "# new and on what vanished; by_machine cases may agree elsewhere.",
    ]
    for name, finding in found.items():
        before = known.get(name, Deviation((), "", False))
        lines += ["", f"[{json.dumps(name)}]", f"why = {json.dumps(before.why, ensure_ascii=False)}"]
        lines += ["by_machine = true"] if before.by_machine else []
        lines += ["findings = [", *(f"    {json.dumps(sentence, ensure_ascii=False)}," for sentence in finding), "]"]
    KNOWN.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--update", action="store_true", help="write the list of known deviations again")
    found, every = deviations(), list(recordings())
    if options.parse_args().update:
        write_list(found)
    print(f"{len(every)} recordings: {len(every) - len(found)} agree, {len(found)} deviate")
    for sentence in changes(found, listed()):
        print(sentence)


if __name__ == "__main__":
    main()
