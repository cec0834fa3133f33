"""Benchmark: time of `locate_divergence` relative to one plain run: `python -m benchmarks.localization_time`.

Three mutants of every float export of `fixtures.mutants`, spread over its part of the table, and three of an encoder of
the size of MiniLM (6 layers, 384 wide, one text of 128 ids). Each round times the calls of one pair in shuffled order;
the figures are medians of the rounds' ratios. A plain run opens the reference's file with onnxruntime's defaults, on
one thread, and makes one call.

`--peer PYTHON` also times Polygraphy, in an environment that has polygraphy, onnx and onnxruntime: both models with all
tensors marked, in one process that has everything loaded and prints nothing. Its result is the node that computes the
first tensor reported as different; where it fails (bfloat16, a model that does not run) it is not timed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import pytest_modelserve as ms
from benchmarks.polygraphy_peer import Peer
from fixtures.families import FAMILIES
from fixtures.mutants import Mutant, Original, load, original
from pytest_modelserve.progress import progress
from pytest_modelserve.selftest.draft import every_value

GOAL_RUNS = 10
ROUNDS, PAIRS_EACH = 7, 3


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plain_run(path: Path, source: Original) -> None:
    """Open the graph with onnxruntime's defaults, on one thread, and run it once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, dict(source.inputs))


@dataclass(frozen=True, slots=True)
class Ratios:
    """Median ratios of one pair: our time to one plain run, and the time of the peer to ours, with its result.

    `peer` is None without a peer and where it fails.
    """

    runs: float
    seconds: float
    is_exact: bool
    peer: float | None = None
    is_peer_exact: bool = False
    is_peer_failed: bool = False


def pairs(pipeline: ms.Pipeline) -> Iterator[tuple[Original, Mutant]]:
    """Yield a few mutants of every float export, spread over its part of the table, and of a large encoder."""
    every = list(load())
    for family in FAMILIES:
        source = original(pipeline, family)
        listed = [m for m in every if m.model == family and not source.is_equivalent(m, *m.of(source))]
        yield from ((source, mutant) for mutant in listed[:: max(1, len(listed) // PAIRS_EACH)][:PAIRS_EACH])
    source = encoder(pipeline)
    norms = [node.name for node in source.model.graph.node if node.op_type == "LayerNormalization"]
    for node in (norms[0], norms[len(norms) // 2], norms[-1]):
        yield source, Mutant(source.name, node, "bias", "input=2 size=0.01", seed=0)


def encoder(pipeline: ms.Pipeline) -> Original:
    """Export six layers of torch's encoder at the width of MiniLM, with random weights."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True, activation="gelu")
    encoded = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    module = torch.nn.Sequential(torch.nn.Embedding(2000, 384), encoded).eval()
    ids = np.random.default_rng(0).integers(0, 2000, (1, 128))
    artifact = pipeline.export(module, ids, dynamic=(), name="encoder_6x384")
    model = onnx.load(artifact.path)
    inputs = {model.graph.input[0].name: ids}
    return Original(artifact.name, model, every_value(model, inputs), artifact, artifact, inputs)


def _measure(mutant: Mutant, source: Original, folder: Path, peer: Peer | None) -> Ratios:
    draft, change = mutant.of(source)
    path, reference = folder / "mutant.onnx", source.reference.path
    onnx.save(draft.model, path)
    calls: dict[str, Callable[[], float]] = {
        "plain": lambda: timed(lambda: plain_run(reference, source)),
        "ours": lambda: timed(lambda: ms.locate_divergence(path, reference, source.inputs)),
    }
    found = ms.locate_divergence(path, reference, source.inputs)
    theirs = peer.compare(path, reference, source.inputs) if peer else None
    if peer and theirs and not theirs.error:
        calls["peer"] = lambda: peer.compare(path, reference, source.inputs).seconds
    order = random.Random(0)
    rounds = [{name: calls[name]() for name in order.sample(list(calls), len(calls))} for _ in range(ROUNDS + 1)]
    timed_rounds = rounds[1:]  # the first is the warm-up
    return Ratios(
        runs=statistics.median(each["ours"] / each["plain"] for each in timed_rounds),
        seconds=statistics.median(each["ours"] for each in timed_rounds),
        is_exact=found is not None and found.node in change.names,
        peer=statistics.median(each["peer"] / each["ours"] for each in timed_rounds) if "peer" in calls else None,
        is_peer_exact=theirs is not None and theirs.node in change.names,
        is_peer_failed=theirs is not None and bool(theirs.error),
    )


def format_ratios(every: Sequence[tuple[str, Ratios]]) -> Iterator[str]:
    for family in dict.fromkeys(name for name, _ in every):
        yield _row(family, [each for name, each in every if name == family])
    yield _row("all", [each for _, each in every])
    yield f"goal: ≤ {GOAL_RUNS} plain runs"


def _row(name: str, some: Sequence[Ratios]) -> str:
    runs = [each.runs for each in some]
    right = sum(each.is_exact for each in some)
    line = f"{name:22} × {statistics.median(runs):4.1f} of a plain run (worst {max(runs):4.1f}), "
    line += f"{1e3 * statistics.median(each.seconds for each in some):6.1f} ms, right {right} of {len(some)}"
    theirs = [each.peer for each in some if each.peer is not None]
    if theirs:
        right, failed = sum(each.is_peer_exact for each in some), sum(each.is_peer_failed for each in some)
        line += f"; Polygraphy × {statistics.median(theirs):.1f} of that, right {right} and failed {failed}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="a Python that has polygraphy (default: no peer)")
    python = parser.parse_args().peer
    with (
        tempfile.TemporaryDirectory() as root,
        ms.Pipeline(Path(root, "cache")) as pipeline,
        Peer.of(python) as peer,
    ):
        total = PAIRS_EACH * (len(FAMILIES) + 1)
        every = [
            (source.name, _measure(mutant, source, Path(root), peer))
            for source, mutant in progress(pairs(pipeline), "pairs", total=total)
        ]
    print("\n".join(format_ratios(every)))


if __name__ == "__main__":
    main()
