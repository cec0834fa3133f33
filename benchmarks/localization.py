"""Accuracy of `locate_divergence` on mutants of exported models: `python -m benchmarks.localization [--only PART]`.

*mutants*: every line of the frozen table of `fixtures.mutants` is located in the broken export, against the export.
Equivalent mutants are excluded by the rule of `fixtures.mutants.oracle`; lost ones, whose model or node no longer
exists, are counted. Found means that a divergence was reported, exact that it names the right node; misses are listed.
*rewritten*: the same after onnxsim simplified or onnxruntime optimized (extended) each broken float export, so that
nodes are fused, moved and renamed. Exact then means that the result names the node, or the first tensor behind it that
both files have; a mutant whose outputs the rewriting corrects is equivalent. *clean*: 125 sets of random weights for
every export, and for each set three copies of the same model that must not raise an alarm: saved again, simplified, and
optimized.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import pytest_modelserve as ms
from fixtures.families import FAMILIES
from fixtures.mutants import KINDS, QUANTIZED, Mutant, Original, load, original
from fixtures.mutants.oracle import agrees
from pytest_modelserve.evidence import package_versions
from pytest_modelserve.progress import progress

GOAL_FOUND, GOAL_EXACT = 0.99, 0.95
WEIGHT_SETS = 125
PARTS = ("mutants", "rewritten", "clean")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one mutant; `message` is the result as text if it is wrong.

    `is_lost` if its model or node no longer exists, for example because the quantization recipe refuses the model.
    """

    mutant: Mutant
    is_equivalent: bool
    is_lost: bool = field(default=False, kw_only=True)
    is_found: bool = False
    is_exact: bool = False
    message: str = ""


def outcome(mutant: Mutant, source: Original, folder: Path) -> Outcome:
    """Apply the mutation, and locate it."""
    try:
        draft, change = mutant.of(source)
    except KeyError as error:
        return Outcome(mutant, False, is_lost=True, message=str(error))
    if source.is_equivalent(mutant, draft, change):
        return Outcome(mutant, is_equivalent=True)
    onnx.save(draft.model, folder / "mutant.onnx")
    try:
        found = ms.locate_divergence(folder / "mutant.onnx", source.reference, source.inputs)
    except ms.ModelServeError as error:
        return Outcome(mutant, False, message=f"{type(error).__name__}: {error}")
    if found is None:
        return Outcome(mutant, False, message="no divergence")
    is_exact = found.node in change.names
    return Outcome(mutant, False, True, is_exact, "" if is_exact else str(found))


def outcomes(pipeline: ms.Pipeline, mutants: Sequence[Mutant], folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of each mutant; mutants of one model must be consecutive."""
    for model, group in itertools.groupby(mutants, key=lambda mutant: mutant.model):
        some = tuple(group)
        try:
            source = original(pipeline, model)
        except ms.RecipeError as error:
            yield from (Outcome(mutant, False, is_lost=True, message=str(error)) for mutant in some)
        else:
            yield from (outcome(mutant, source, folder) for mutant in some)


def format_mutants(every: Sequence[Outcome]) -> Iterator[str]:
    """Yield the rates of found and exact by kind, by model and over all, and every miss."""
    yield f"{'':30} {'listed':>7} {'lost':>5} {'equivalent':>11} {'counted':>8} {'found':>8} {'exact':>8}"
    for kind in KINDS:
        yield _row(kind, [each for each in every if each.mutant.kind == kind])
    for model in dict.fromkeys(each.mutant.model for each in every):
        yield _row(model, [each for each in every if each.mutant.model == model])
    yield _row("all", every)
    yield f"goals: found ≥ {GOAL_FOUND:.0%}, exact ≥ {GOAL_EXACT:.0%}"
    for each in every:
        if not (each.is_equivalent or each.is_exact):
            yield f"  {each.mutant}\n    {each.message}"


def _row(name: str, some: Sequence[Outcome]) -> str:
    equivalent, lost = sum(each.is_equivalent for each in some), sum(each.is_lost for each in some)
    counted = [each for each in some if not (each.is_equivalent or each.is_lost)]
    shares = [_percent(each.is_found for each in counted), _percent(each.is_exact for each in counted)]
    line = f"{name:30} {len(some):7} {lost:5} {equivalent:11} {len(counted):8}"
    return f"{line} {shares[0]:>8} {shares[1]:>8}"


def _percent(hits: Iterable[bool]) -> str:
    every = list(hits)
    return f"{100 * sum(every) / len(every):.1f} %" if every else ""


def reseeded(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return a copy of `model` with random normal weights of the same mean and standard deviation."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    rng = np.random.default_rng(seed)
    for tensor in copy.graph.initializer:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
        if array.dtype == np.float32 and array.size > 1:
            mean, spread = array.mean(), array.std() or np.float32(0.1)
            drawn = mean + spread * rng.standard_normal(array.shape, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(drawn.astype(np.float32), tensor.name))
    return copy


def simplified(source: Path, made: Path) -> None:
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source), check_n=0)
    onnx.save(model, made)


def optimized(source: Path, made: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(made)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def saved_again(source: Path, made: Path) -> None:
    onnx.save(onnx.load(source), made)


COPIES: dict[str, Callable[[Path, Path], None]] = {
    "saved again": saved_again,
    "simplified": simplified,
    "optimized": optimized,
}
REWRITING = ("simplified", "optimized")


def rewritten_outcomes(
    pipeline: ms.Pipeline, mutants: Sequence[Mutant], rewrite: Callable[[Path, Path], None], folder: Path
) -> Iterator[Outcome]:
    """Yield the outcomes of mutants that were rewritten after the mutation."""
    source: Original | None = None
    broken, candidate = folder / "mutant.onnx", folder / "rewritten.onnx"
    for mutant in mutants:
        if source is None or source.name != mutant.model:
            source = original(pipeline, mutant.model)
        draft, change = mutant.of(source)
        if source.is_equivalent(mutant, draft, change):
            yield Outcome(mutant, is_equivalent=True)
            continue
        onnx.save(draft.model, broken)
        rewrite(broken, candidate)
        made = onnx.load(candidate)
        if agrees(made, source.model, source.inputs, source.values):
            yield Outcome(mutant, is_equivalent=True)
            continue
        found = ms.locate_divergence(candidate, source.reference, source.inputs)
        names = set() if found is None else _between(source.model, made, found.tensor)
        is_exact = found is not None and (found.node in change.names or mutant.node in names)
        yield Outcome(mutant, False, found is not None, is_exact, "" if is_exact else str(found))


def _between(reference: onnx.ModelProto, candidate: onnx.ModelProto, tensor: str) -> set[str]:
    """Return the nodes of `reference` that compute `tensor` from tensors that `candidate` also has."""
    shared = {name for node in candidate.graph.node for name in node.output}
    makers = {name: node for node in reference.graph.node for name in node.output}
    names: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            waiting.extend(name for name in node.input if name not in shared)
    return names


def format_rewritten(name: str, every: Sequence[Outcome]) -> Iterator[str]:
    yield _row(f"broken, then {name}", every)
    yield from (f"  {each.mutant}\n    {each.message}" for each in every if not (each.is_equivalent or each.is_exact))


def alarms(pipeline: ms.Pipeline, weight_sets: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield family, copy and message of every clean variant; the message is "" without an alarm."""
    reference, candidate = folder / "reference.onnx", folder / "candidate.onnx"
    for family in FAMILIES:
        source = original(pipeline, family)
        for seed in range(weight_sets):
            onnx.save(reseeded(source.model, seed), reference)
            for name, copy in COPIES.items():
                copy(reference, candidate)
                found = ms.locate_divergence(candidate, reference, source.inputs)
                yield family, name, "" if found is None else f"weights {seed}: {found}"


def format_alarms(every: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    for name in COPIES:
        found = [(family, text) for family, copy, text in every if copy == name]
        yield f"{name:14} {len(found):6} clean variants, {sum(bool(text) for _, text in found)} alarms (goal: 0)"
        yield from (f"  {family} {text}" for family, text in found if text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="one part (default: all)")
    parser.add_argument(
        "--weight-sets", type=int, default=WEIGHT_SETS, help=f"for each export (default: {WEIGHT_SETS})"
    )
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    versions = package_versions(("torch", "onnx", "onnxruntime", "onnxsim", "numpy"))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    with tempfile.TemporaryDirectory() as root, ms.Pipeline(Path(root, "cache")) as pipeline:
        folder = Path(root)
        if "mutants" in parts:
            mutants = list(load())
            every = list(progress(outcomes(pipeline, mutants, folder), "mutants", total=len(mutants)))
            print("\n".join(format_mutants(every)))
        if "rewritten" in parts:
            floats = [mutant for mutant in load() if not mutant.model.endswith(QUANTIZED)]
            for name in REWRITING:
                made = rewritten_outcomes(pipeline, floats, COPIES[name], folder)
                print("\n".join(format_rewritten(name, list(progress(made, f"{name} mutants", total=len(floats))))))
        if "clean" in parts:
            total = len(FAMILIES) * options.weight_sets * len(COPIES)
            clean = list(progress(alarms(pipeline, options.weight_sets, folder), "clean variants", total=total))
            print("\n".join(format_alarms(clean)))


if __name__ == "__main__":
    main()
