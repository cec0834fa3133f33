"""The variant that `ms.tune` chooses beside the best of 60 that were all tried once, on five models.

    python -m benchmarks.tuning [--model NAME ...] [--batch 32]

Each grid has 60 sessions: 15 recipes and parameters (with none among them), one and two threads, graph optimization on
and off; the original in its own session is one of them. *offline* builds, times and judges all of them, each with as
many timings as `tune` gives the finalists, and takes the fastest that its own max-T test over all shows to pass.
*apart*: the time of tune's choice over that of the best, both as timed offline. Where no variant is faster, the
original counts as the choice. *calls*: predictions that tune needs, over those of offline, without those of builds.
*overhead*: the time of the search outside of building, opening and calling models, over the time inside.

Goals: within 5 % of the best, in at most a third of the calls, overhead at most 10 %. Both time the same sessions one
after the other, so that a busy host moves them apart. The lock of timed gates is not taken.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pytest_modelserve as ms
from fixtures import breast_cancer, co2, stdlib_text
from fixtures.digits import DATA, TRAINING_ROWS
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.tuning import objective
from pytest_modelserve.tuning.gate import GateFunction, run_gate
from pytest_modelserve.tuning.selection import select
from pytest_modelserve.tuning.trial import Trial
from pytest_modelserve.tuning.variant import Variant, VariantFactory
from pytest_modelserve.tuning.variant_search import FINAL_BLOCKS, Search

RECIPES: list[Any] = [
    "simplify", "optimize", "fp16", "int8-dynamic", "int4-weights", ("simplify", "int8-dynamic"), ("fp16", "optimize"),
    ("simplify", "fp16"),
    {"recipe": "int8-static", "exclude": [0, 1, 2]},
    {"recipe": "int8-static", "calibration_method": "percentile", "percentile": [99.9, 99.99]},
    {"recipe": "int8-static", "reduce_range": True},
]  # fmt: skip
CNN_SIZES = {"ids": {0: "batch", 1: "seq"}, "measurements": {0: "batch"}, "family": {0: "batch"}}
SESSIONS: dict[str, Any] = {"threads": (1, 2), "optimize": (True, False)}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, the batch on which it is timed, its calibration rows, and its gate."""

    artifact: ms.Artifact
    batch: Any
    calibration: Any
    gate: GateFunction


def accuracy_gate(pipeline: ms.Pipeline, artifact: ms.Artifact, rows: Any, labels: Any, **options: Any) -> GateFunction:
    """Return the gate against the outputs of the original."""
    outputs = pipeline.serve(artifact).predict(rows)
    return lambda candidate: ms.assert_accuracy_parity(candidate, outputs, rows, labels, **options)


def digits(pipeline: ms.Pipeline, batch: int) -> Subject:
    from example_models.digits_cnn.model import PREPROCESS, source

    with np.load(DATA) as data:
        images, labels = pipeline.prepare(PREPROCESS, data["images"]), data["labels"].astype(np.int64)
    order = np.random.default_rng(20_000).permutation(len(labels))
    training, rest = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    artifact = pipeline.export(pipeline.train(source(images[training], labels[training])))
    gate = accuracy_gate(pipeline, artifact, images[rest], labels[rest], max_drop=0.03)
    return Subject(artifact, images[rest][:batch], images[training][:128], gate)


def tumors(pipeline: ms.Pipeline, batch: int) -> Subject:
    from example_models.breast_cancer_mlp.model import preprocess, source

    data = breast_cancer.load()
    steps = preprocess(data.training.rows)
    training, rows = (pipeline.prepare(steps, part.rows) for part in (data.training, data.held_out))
    artifact = pipeline.export(pipeline.train(source(training, data.training.benign)))
    gate = accuracy_gate(pipeline, artifact, rows, data.held_out.benign, max_drop=0.05)
    return Subject(artifact, rows[:batch], training[:128], gate)


def transformer(pipeline: ms.Pipeline, batch: int) -> Subject:
    from example_models.stdlib_text.model import transformer_source

    data = stdlib_text.load()
    training, lines = (stdlib_text.characters(part.texts) for part in (data.training, data.held_out))
    trained = pipeline.train(transformer_source(training, data.training.prose))
    artifact = pipeline.export(trained, dynamic={"ids": {0: "batch", 1: "seq"}})
    gate = accuracy_gate(pipeline, artifact, lines, data.held_out.prose, max_drop=0.02)
    return Subject(artifact, lines[:batch], training[:64], gate)


def cnn(pipeline: ms.Pipeline, batch: int) -> Subject:
    from example_models.stdlib_text.model import cnn_source

    data = stdlib_text.load()
    training, rows = data.inputs(data.training), data.inputs(data.held_out)
    trained = pipeline.train(cnn_source(training, data.training.prose, families=len(data.families)))
    artifact = pipeline.export(trained, dynamic=CNN_SIZES)
    gate = accuracy_gate(pipeline, artifact, rows, data.held_out.prose, max_drop=0.02)

    def first(inputs: dict[str, Any], count: int) -> dict[str, Any]:
        return {name: array[:count] for name, array in inputs.items()}

    return Subject(artifact, first(rows, batch), first(training, 128), gate)


def gru(pipeline: ms.Pipeline, batch: int) -> Subject:
    from example_models.co2_gru.model import source

    data = co2.load()
    artifact = pipeline.export(
        pipeline.train(source(data.training.ppm)),
        dynamic={"window": {0: "batch", 1: "time"}},
    )
    windows, targets = data.held_out.windows, data.held_out.targets
    gate = accuracy_gate(
        pipeline, artifact, windows, targets, metric="mae", max_rise=0.05, sampling=ms.Sampling(block=52)
    )
    return Subject(artifact, windows[:batch], windows[:128], gate)


SUBJECTS: dict[str, Callable[[ms.Pipeline, int], Subject]] = {
    "digits CNN": digits, "breast cancer MLP": tumors, "text CNN": cnn, "text Transformer": transformer, "CO2 GRU": gru,
}  # fmt: skip


class Meter:
    """Time inside of building, opening and calling models, and the number of predictions outside of builds."""

    def __init__(self) -> None:
        self.inside_s = 0.0
        self.calls = 0
        self._depth = 0

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Count from here to the end of the block."""
        kept = (OnnxPredictor.__init__, OnnxPredictor.predict, Variant.__init__)
        init, predict, make = kept
        timed = self._timed

        def counted(predictor: Any, inputs: Any) -> Any:
            self.calls += self._depth == 0
            return timed(predict)(predictor, inputs)

        def made(variant: Any, name: str, build: Callable[[], Any], *rest: Any, **options: Any) -> None:
            make(variant, name, timed(build), *rest, **options)

        OnnxPredictor.__init__, OnnxPredictor.predict, Variant.__init__ = timed(init), counted, made  # type: ignore
        try:
            yield
        finally:
            OnnxPredictor.__init__, OnnxPredictor.predict, Variant.__init__ = kept  # type: ignore

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)
            self._depth, began = 1, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside_s += time.perf_counter() - began
                self._depth = 0

        return call


def tried_offline(subject: Subject, pipeline: ms.Pipeline) -> Search:
    """Return a search in which every variant was built, timed as finalists are, and judged."""
    factory = VariantFactory(subject.calibration, subject.batch, pipeline.store)
    variants = factory.grid(subject.artifact, sources=(), recipes=RECIPES, **SESSIONS)
    latency = objective.Objective("latency", subject.artifact, subject.batch, store=pipeline.store, seed=1)
    search = Search([subject.gate], ["rows"], latency, 0.05)
    search.trials = [Trial(variant) for variant in variants]
    for trial in search.trials:
        search._build(trial)
    search._measure(search.trials, FINAL_BLOCKS)
    for trial in (trial for trial in search.trials if trial.outcome == "open"):
        with trial.serve() as predictor:
            trial.results.append(run_gate(subject.gate, predictor))
    search.selection = select([trial for trial in search.trials if trial.results], error_rate=0.05)
    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=SUBJECTS, help="one model or several (default: all)")
    parser.add_argument("--batch", type=int, default=32, help="rows of the batch on which models are timed")
    options = parser.parse_args()
    objective.host_lock = nullcontext  # type: ignore[assignment]
    print(f"{'model':<19}{'best of 60':<42}{'chosen':<42}{'apart':>7}{'calls':>7}{'overhead':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or SUBJECTS:
            pipeline = ms.Pipeline(Path(folder, "cache"))
            subject = SUBJECTS[name](pipeline, options.batch)
            online, offline, began = Meter(), Meter(), time.perf_counter()
            with online.metered():
                tuning = pipeline.tune(
                    subject.artifact, subject.batch, gates=subject.gate, recipes=RECIPES,
                    calibration=subject.calibration, **SESSIONS,
                )  # fmt: skip
            took = time.perf_counter() - began
            shutil.rmtree(pipeline.store.root / "tuning")  # what offline measures, it measures itself
            with offline.metered():
                search = tried_offline(subject, pipeline)
            ratios = {trial.name: trial.ratio for trial in search.trials}
            best = min(search.selection.shown, key=lambda trial: trial.ratio, default=None)
            best_name, least = (best.name, best.ratio) if best is not None and best.ratio < 1 else ("original", 1.0)
            chosen = "original" if tuning.best is None else tuning.best.name
            apart = ratios.get(chosen, 1.0) / least
            print(
                f"{name:<19}{f'{best_name} × {least:.2f}':<42}{f'{chosen} × {ratios.get(chosen, 1.0):.2f}':<42}"
                f"{100 * (apart - 1):>5.1f} %{online.calls / offline.calls:>7.2f}"
                f"{100 * (took / online.inside_s - 1):>8.1f} %{took:>9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
