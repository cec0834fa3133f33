"""Replay a recording against a model file: `python -m pytest_modelserve.parity.replay model.onnx failing.npz ...`.

A failing `assert_output_parity` prints this command for the smallest input that fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.metrics import Tolerance, compare_outputs, pair_outputs
from pytest_modelserve.parity.recordings import Recording, open_recording
from pytest_modelserve.serving import Predictor, serve

AGREES, DIFFERS, CANNOT = 0, 1, 2
_EPILOG = "exit status: 0 where every answer agrees, 1 where one differs, 2 where nothing could be compared"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one replay; what differs is printed, and what went wrong told on standard error."""
    chosen = _parser().parse_args(arguments)
    try:
        rtol, atol = _tolerance("--rtol", chosen.rtol), _tolerance("--atol", chosen.atol)
        with serve(chosen.candidate) as candidate:
            signature = candidate.signature if chosen.recording.is_dir() else None
            recording = open_recording(chosen.recording, signature=signature)
            problems = list(_problems(candidate, recording, rtol, atol))
    except ModelServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT
    for problem in problems:
        print(problem)
    verb = "differs from" if problems else "agrees with"
    print(f"{candidate.subject} {verb} {recording.subject}: {_counted(len(recording.exchanges))}")
    return DIFFERS if problems else AGREES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_modelserve.parity.replay",
        description="Hold the answers of an ONNX model against recorded ones, element by element.",
        epilog=_EPILOG,
    )
    parser.add_argument("candidate", type=Path, help="the ONNX file that answers, by onnxruntime on the CPU")
    parser.add_argument(
        "recording", type=Path, help="what was asked and answered: .npz, .parquet, or a folder of ONNX test data"
    )
    for name, meaning in (("rtol", "relative to the recorded value"), ("atol", "absolute")):
        parser.add_argument(
            f"--{name}",
            action="append",
            required=True,
            metavar="[OUTPUT=]NUMBER",
            help=f"tolerance, {meaning}; of one output where its name stands before it, given once for each",
        )
    return parser


def _tolerance(option: str, given: Sequence[str]) -> Tolerance:
    """One number, or one for each output by name; ModelServeError for anything else."""
    pairs = [value.rpartition("=") for value in given]
    try:
        numbers = {name: float(number) for name, _, number in pairs}
    except ValueError:
        raise ModelServeError(f"{option} is a number, or OUTPUT=NUMBER, not {' '.join(given)!r}") from None
    if "" not in numbers:
        return numbers
    if len(given) > 1:
        raise ModelServeError(f"{option} is one number for all outputs, or OUTPUT=NUMBER for each: not both")
    return numbers[""]


def _problems(candidate: Predictor, recording: Recording, rtol: Tolerance, atol: Tolerance) -> Iterator[str]:
    """A sentence for each way in which an answer differs."""
    several = len(recording.exchanges) > 1
    for index in range(len(recording.exchanges)):
        exchange = recording.exchanges[index]
        found = pair_outputs(candidate.predict(exchange.inputs), exchange.outputs)
        compared = compare_outputs(found, exchange.outputs, rtol=rtol, atol=atol)
        for problem in (*compared.structural_problems, *compared.numeric_problems):
            yield f"request {index}: {problem}" if several else problem


def _counted(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


if __name__ == "__main__":
    sys.exit(main())
