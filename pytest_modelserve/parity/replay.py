"""Command line that replays a recording against an ONNX file: `python -m pytest_modelserve.parity.replay`.

A failing `assert_output_parity` prints this command for its smallest failing input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.metrics import Tolerance
from pytest_modelserve.parity.failing_inputs import Criterion, load_tolerances
from pytest_modelserve.parity.recordings import Recording, open_recording
from pytest_modelserve.parity.recordings.redaction import check_complete
from pytest_modelserve.serving import Predictor, serve

AGREES, DIFFERS, FAILED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one replay and return its exit status; differences are printed, errors go to standard error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.tolerances is None and not (options.rtol and options.atol):
        parser.error("the following arguments are required: --rtol and --atol, or --tolerances")
    try:
        rtol, atol = _tolerances(options)
        with serve(options.candidate, interpreter=options.interpreter) as candidate:
            signature = candidate.signature if options.recording.is_dir() else None
            recording = open_recording(options.recording, signature=signature)
            check_complete(recording.redacted, str(options.recording))
            criterion = Criterion(rtol, atol, options.equal_nan, outputs=options.output)
            problems = list(_problems(candidate, recording, criterion))
    except ModelServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    for problem in problems:
        print(problem)
    verb, requests = "differs from" if problems else "agrees with", len(recording.exchanges)
    count = "1 request" if requests == 1 else f"{requests} requests"
    print(f"{candidate.subject} {verb} {recording.subject}: {count}")
    return DIFFERS if problems else AGREES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_modelserve.parity.replay",
        description="Compare the outputs of an ONNX model with recorded ones, element by element.",
        epilog="exit status: 0 if all outputs agree, 1 if one differs, 2 if nothing could be compared",
    )
    parser.add_argument("candidate", type=Path, help="the ONNX file, which onnxruntime runs on the CPU")
    parser.add_argument(
        "recording", type=Path, help="recorded inputs and outputs: .npz, .parquet, or a folder of ONNX test data"
    )
    for name, meaning in (("rtol", "relative to the recorded value"), ("atol", "absolute")):
        parser.add_argument(
            f"--{name}",
            action="append",
            metavar="[OUTPUT=]NUMBER",
            help=f"tolerance, {meaning}; for one output if its name precedes it, once for each output",
        )
    parser.add_argument(
        "--tolerances",
        type=Path,
        metavar="FILE",
        help="calibrated tolerances that were saved with a failing input, instead of --rtol and --atol",
    )
    parser.add_argument(
        "--interpreter", metavar="PATH", help="the Python of another environment, whose onnxruntime runs the file"
    )
    parser.add_argument(
        "--output", action="append", metavar="NAME", help="an output to compare, once for each (default: all)"
    )
    parser.add_argument(
        "--no-equal-nan", dest="equal_nan", action="store_false", help="count NaN in both outputs as a difference"
    )
    return parser


def _tolerances(options: argparse.Namespace) -> tuple[Tolerance, Tolerance]:
    if options.tolerances is not None:
        if options.rtol or options.atol:
            raise ModelServeError("--tolerances replaces --rtol and --atol: give one or the others")
        return load_tolerances(options.tolerances)
    return _tolerance("--rtol", options.rtol), _tolerance("--atol", options.atol)


def _tolerance(option: str, given: Sequence[str]) -> Tolerance:
    """Return one number, or one for each output by name; ModelServeError for anything else."""
    pairs = [value.rpartition("=") for value in given]
    try:
        numbers = {name: float(number) for name, _, number in pairs}
    except ValueError:
        raise ModelServeError(f"{option} must be a number or OUTPUT=NUMBER, got {' '.join(given)!r}") from None
    if "" not in numbers:
        return numbers
    if len(given) > 1:
        raise ModelServeError(f"{option} must be one number for all outputs or OUTPUT=NUMBER for each, not both")
    return numbers[""]


def _problems(candidate: Predictor, recording: Recording, criterion: Criterion) -> Iterator[str]:
    several = len(recording.exchanges) > 1
    for index, exchange in enumerate(recording.exchanges):
        compared = criterion.compare(candidate.predict(exchange.inputs), exchange.outputs)
        for problem in (*compared.structural_problems, *compared.numeric_problems):
            yield f"request {index}: {problem}" if several else problem


if __name__ == "__main__":
    sys.exit(main())
