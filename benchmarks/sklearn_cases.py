"""Converted scikit-learn models against scikit-learn's own answers: `python benchmarks/sklearn_cases.py`.

The models, which skl2onnx converted, and the recordings of scikit-learn's answers are in `fixtures/golden/sklearn`,
whose README says what they are. Each model is served by onnxruntime and each of its recordings replayed through
`assert_output_parity` within rtol 1e-4 and atol 1e-5; labels, dtypes, shapes and class names have to be equal. What
deviates is listed by name in `deviations.toml` beside them. This prints what is new there and what has vanished;
`--update` writes the list anew.
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
"""A hundred times what rounding float32 once costs, and less than anybody reads of a probability."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """What is told of each output of one case, why it is so, and whether the machine decides."""

    told: tuple[str, ...]
    why: str
    by_machine: bool


def recordings() -> Iterator[tuple[str, Path, Path]]:
    """The name, model file and recording of every case."""
    for recording in sorted(FOLDER.glob("*.npz")):
        model = recording.name.partition(".")[0]
        yield recording.stem, FOLDER / f"{model}.onnx", recording


def replay(model: Path, recording: Path) -> tuple[str, ...]:
    """What the model answers otherwise than scikit-learn did, a sentence for each output; empty for nothing.

    That onnxruntime refuses the model is an answer too.
    """
    reference = ms.open_recording(recording)
    try:
        with ms.serve(model) as candidate:
            ms.assert_output_parity(candidate, reference, reference.inputs, rtol=RTOL, atol=ATOL)
    except ms.GateFailure as failure:
        return tuple(finding for finding in failure.evidence.findings if finding.startswith("output "))
    except ms.ArtifactError as error:
        told = _REASON.search(str(error))
        return (f"refused: {told[0] if told else error}",)
    return ()


def deviations() -> dict[str, tuple[str, ...]]:
    """What deviates in each case that deviates, by its name."""
    found = {name: replay(model, recording) for name, model, recording in recordings()}
    return {name: told for name, told in found.items() if told}


def listed() -> dict[str, Deviation]:
    """The list of known deviations, by the name of the case."""
    cases = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    return {
        name: Deviation(tuple(case["told"]), case["why"], case.get("by_machine", False)) for name, case in cases.items()
    }


def changes(found: Mapping[str, tuple[str, ...]], known: Mapping[str, Deviation]) -> list[str]:
    """A sentence for each output that deviates and is not in the list, and for each in the list that does not.

    An output is known by its case and name: the last digit of the figures may be the machine's. Cases that the machine
    decides are neither.
    """
    now = {(case, _output(told)): told for case, every in found.items() for told in every}
    before = {(case, _output(told)): told for case, entry in known.items() for told in entry.told}
    by_machine = {case for case, entry in known.items() if entry.by_machine}
    new = [f"new: {key[0]}: {told}" for key, told in now.items() if key not in before and key[0] not in by_machine]
    gone = [
        f"vanished: {key[0]}: {told}" for key, told in before.items() if key not in now and key[0] not in by_machine
    ]
    return sorted(new) + sorted(gone)


def _output(told: str) -> str:
    """The name of the output in a sentence about it, "" where the model was refused."""
    return told.split("'")[1] if told.startswith("output ") else ""


def write_list(found: Mapping[str, tuple[str, ...]]) -> None:
    """Write the list anew; the reasons that somebody wrote into it stay."""
    known = listed()
    lines = [
        f"# What converted models answer otherwise than scikit-learn does, beyond rtol {RTOL:g}, atol {ATOL:g}:",
        "# written by `python benchmarks/sklearn_cases.py --update`, which keeps every `why`. A test fails on what is",
        "# new and on what vanished; what is by_machine may be otherwise elsewhere.",
    ]
    for name, told in found.items():
        before = known.get(name, Deviation((), "", False))
        lines += ["", f"[{json.dumps(name)}]", f"why = {json.dumps(before.why, ensure_ascii=False)}"]
        lines += ["by_machine = true"] if before.by_machine else []
        lines += ["told = [", *(f"    {json.dumps(sentence, ensure_ascii=False)}," for sentence in told), "]"]
    KNOWN.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--update", action="store_true", help="write the list of known deviations anew")
    found, every = deviations(), list(recordings())
    if options.parse_args().update:
        write_list(found)
    print(f"{len(every)} recordings: {len(every) - len(found)} agree, {len(found)} deviate")
    for sentence in changes(found, listed()):
        print(sentence)


if __name__ == "__main__":
    main()
