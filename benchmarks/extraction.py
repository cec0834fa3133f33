"""What answers give away of a model and of a row, and what each answer step costs and saves, on digits and tumors.

`python -m benchmarks.extraction [--worlds 100]` takes about a minute on a quiet host. The digits network is trained on
600 images, a tenth of them with a random label; that of the tumors on 284 rows, until it knows them by heart. Each step
is composed into the file. Columns: accuracy on rows of neither training nor queries; agreement of a copy with the model
after 600 (142) queries, from the answers and, in the first line, from true labels, and its gain with the interval of
the gate. Then, for the digits, the proportion of members that 16 shadow models find at 1 % false positives, with its
lower bound; for the tumors that of rows whose mean smoothness is guessed in the right one of five bins.

The last lines: how much of the noise remains in the mean of 30 queries, of the same row or of slightly different ones,
and the verdicts where the model gives nothing away.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pytest_modelserve as ms
from fixtures.breast_cancer import load
from fixtures.digits import DATA

SMOOTHNESS = 4
STEPS: Mapping[str, Sequence[Any]] = {
    "probabilities": [ms.Softmax()],
    "2 decimals": [ms.Softmax(), ms.Round(2)],
    "1 decimal": [ms.Softmax(), ms.Round(1)],
    "the highest alone": [ms.Softmax(), ms.TopKMask(1)],
    "the highest, 1 decimal": [ms.Softmax(), ms.TopKMask(1), ms.Round(1)],
    "temperature 4": [ms.Temperature(4), ms.Softmax()],
    "temperature 4, 1 decimal": [ms.Temperature(4), ms.Softmax(), ms.Round(1)],
    "noise 0.5 on logits": [ms.Noise(0.5, seed=1), ms.Softmax()],
    "noise 2 on logits": [ms.Noise(2, seed=1), ms.Softmax()],
    "noise 2, drawn anew": [ms.Noise(2, seed=None), ms.Softmax()],
    "label": [ms.ArgMax()],
}


@dataclass(frozen=True, eq=False)
class Task:
    """Rows and true labels; the first `training` rows were trained on, the next `queries` are sent."""

    name: str
    rows: NDArray[np.float32]
    labels: NDArray[np.int64]
    training: int
    queries: int
    random_labels: float
    epochs: int


def tasks() -> list[Task]:
    with np.load(DATA) as data:
        images, digits = data["images"].reshape(-1, 64) / 16, data["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(digits))
    tumors = load().in_file_order
    mixed = np.random.default_rng(1).permutation(len(tumors.benign))
    standardized = (tumors.rows - tumors.rows.mean(axis=0)) / tumors.rows.std(axis=0)
    return [
        Task("digits", images[order].astype(np.float32), digits[order], 600, 600, 0.1, 60),
        Task("tumors", standardized[mixed].astype(np.float32), tumors.benign[mixed], 284, 142, 0.0, 200),
    ]


def build(columns: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(columns, 128), nn.ReLU(), nn.Linear(128, classes))


def annotated(task: Task) -> NDArray[np.int64]:
    """Return the labels of all rows as the annotators gave them, some at random."""
    rng = np.random.default_rng(2)
    wrong = rng.random(len(task.labels)) < task.random_labels
    return np.where(wrong, rng.integers(0, task.labels.max() + 1, len(task.labels)), task.labels)


def source_of(task: Task) -> ms.ModelSource:
    rows = task.rows[: task.training]
    return ms.ModelSource(
        name=task.name,
        build=functools.partial(build, rows.shape[1], int(task.labels.max()) + 1),
        fit=ms.TrainSpec(loss="cross_entropy", epochs=task.epochs, batch_size=32, learning_rate=3e-3),
        data={"x": rows, "y": annotated(task)[: task.training]},
        example_inputs=rows[:2],
    )


def members_found(pipeline: ms.Pipeline, task: Task, steps: Sequence[Any]) -> str:
    """Return the true positive rate of 16 shadow models at 1 % false positives, with its lower bound."""

    def deploy(trained: ms.TrainedModel) -> ms.Predictor:
        module = trained.module()

        def probabilities(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                logits: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(rows))).numpy()
            return np.asarray(pipeline.prepare(steps, logits))

        return ms.serve(probabilities, name=task.name)

    others = {"x": task.rows[task.training :], "y": annotated(task)[task.training :]}
    if isinstance(steps[-1], ms.ArgMax):
        return "       –       "
    found = ms.measure_membership_leak(
        pipeline.train(source_of(task)),
        None,
        others,
        max_tpr=0.05,
        deploy=deploy,
        output=ms.Output(scores="probabilities"),
        store=pipeline.store,
        processes=1,
    )
    assert found.interval is not None
    return f"{100 * found.value:5.1f} % > {100 * found.interval.low:4.1f} %"


def table(pipeline: ms.Pipeline, task: Task) -> None:
    artifact = pipeline.export(pipeline.train(source_of(task)))
    held_out = slice(task.training + task.queries, None)
    unseen = slice(task.training, None)
    last = "members at 1 % FPR" if task.name == "digits" else "smoothness"
    print(f"\n{task.name}, {task.queries} queries{'':14} accuracy    copy   gain [99.9 %, 95 %]     {last}")
    for name, steps in STEPS.items():
        with ms.serve(pipeline.compose(artifact, postprocess=steps)) as served:
            right = ms.measure_accuracy(served, task.rows[held_out], task.labels[held_out], min_value=0.5)
            copied = ms.measure_extraction(
                served, task.rows[unseen], task.labels[unseen], queries=[task.queries], max_gain=0.05
            )
            if task.name == "tumors":
                leak = ms.measure_attribute_leak(served, task.rows, attribute=SMOOTHNESS, max_gain=0.05)
                without, having = (100 * quantity.value for quantity in leak.quantities[1:3])
                given_away = f"{without:5.1f} → {having:5.1f} %"
            else:
                given_away = members_found(pipeline, task, steps)
        gain, labels, answers = copied.quantities
        assert gain.interval is not None
        low, high = (100 * end for end in (gain.interval.low, gain.interval.high))
        if name == "probabilities":
            print(f"{'(from true labels)':40} {100 * labels.value:5.1f} %")
        print(
            f"{name:28} {100 * right.quantities[0].value:7.1f} % {100 * answers.value:5.1f} % "
            f"{100 * gain.value:6.1f} [{low:5.1f}, {high:5.1f}]  {given_away}",
            flush=True,
        )


def averaged_noise(pipeline: ms.Pipeline, task: Task, sends: int = 30) -> None:
    """Print the standard deviation of what is left of noise in the mean of many queries about one row."""
    artifact = pipeline.export(pipeline.train(source_of(task)))
    rows = task.rows[-100:]
    rng = np.random.default_rng(3)
    print(f"\n{task.name}: noise of 0.5 on logits, error of the mean of {sends} queries")
    for name, seed in (("by the answer", 1), ("drawn anew", None)):
        with (
            ms.serve(artifact) as plain,
            ms.serve(pipeline.compose(artifact, postprocess=[ms.Noise(0.5, seed=seed)])) as noisy,
        ):
            (clean,) = plain.predict(rows).values()
            errors = []
            for size in (0.0, 0.01, 0.1):
                moves = size * rng.normal(size=(sends, *rows.shape)).astype(np.float32)
                answers = [next(iter(noisy.predict(rows + move).values())) for move in moves]
                errors.append(f"{(np.mean(answers, axis=0) - clean).std():.2f}")
        print(f"  {name:14} same row {errors[0]}, moved by 0.01 {errors[1]}, by 0.1 {errors[2]} (inputs from 0 to 1)")


def worlds(count: int) -> None:
    """Print verdicts where the model gives nothing away: it is always right, or does not read the column."""
    verdicts: dict[str, Counter[str]] = {"a copy": Counter(), "a column": Counter()}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(600, 5)).astype(np.float32)
        rows[:, 4] = rng.integers(0, 3, 600)
        weights = rng.normal(size=(4, 1))
        labels = (rows[:, :4] @ weights > 0).ravel().astype(int)
        found = ms.measure_extraction(
            lambda x, w=weights: (x[:, :4] @ w > 0).ravel().astype(int),
            rows,
            labels,
            queries=[100],
            max_gain=0.01,
            seed=seed,
        )
        verdicts["a copy"][str(found.verdict)] += 1
        found = ms.measure_attribute_leak(
            lambda x, w=weights: x[:, :4] @ w, rows, attribute=4, max_gain=0.01, seed=seed, alpha=0.05
        )
        verdicts["a column"][str(found.verdict)] += 1
    print(f"\n{count} models that give nothing away (the column at alpha = 5 %)")
    for name, counts in verdicts.items():
        print(f"  {name:10} {dict(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=100)
    count = parser.parse_args().worlds
    with tempfile.TemporaryDirectory() as cache, ms.Pipeline(Path(cache)) as pipeline:
        for task in tasks():
            table(pipeline, task)
        averaged_noise(pipeline, tasks()[0])
    worlds(count)


if __name__ == "__main__":
    main()
