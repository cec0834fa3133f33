"""Attacks of the Adversarial Robustness Toolbox 1.20.1, in another Python process that is called over pipes.

Run by that Python, this file is the server: it reads one job a line, `Job` as JSON, and answers with the path of the
adversarial rows, the seconds of the attack, from the rows in memory to the adversarial ones, and the number of rows
that the model predicted for it. The environment needs

    pip install adversarial-robustness-toolbox==1.20.1 torch==2.13.0 packaging tqdm requests pillow
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """An attack on a module, which `torch.save` wrote, in the module's own scale.

    `rows` is an .npz with `rows` and `labels`; `settings` go to ART's class.
    """

    attack: str
    module: str
    rows: str
    found: str
    low: float
    high: float
    classes: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The seconds of an attack, and the number of rows that the model predicted for it."""

    seconds: float
    queries: int


class Peer:
    """The process of ART, opened and closed by `of`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    @contextlib.contextmanager
    def of(python: Path) -> Iterator[Peer]:
        """Start ART in `python`."""
        with subprocess.Popen(
            [str(python), "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()

    def seconds(self, job: Job) -> float:
        """Run `job` as `run` does, and return its seconds."""
        return self.run(job).seconds

    def run(self, job: Job) -> Result:
        """Run `job`; its rows are in `job.found` afterwards. RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process has ended")
        return Result(**json.loads(line))


def main() -> None:
    import numpy
    import torch
    from art.attacks.evasion import ProjectedGradientDescentPyTorch, SquareAttack
    from art.estimators.classification import PyTorchClassifier

    attacks = {"pgd": ProjectedGradientDescentPyTorch, "square": SquareAttack}
    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        job = Job(**json.loads(line))
        with numpy.load(job.rows) as file:
            rows, labels = file["rows"], file["labels"]
        settings = {**job.settings, "norm": numpy.inf if job.settings["norm"] == "inf" else job.settings["norm"]}
        classifier = PyTorchClassifier(
            torch.load(job.module, weights_only=False).eval(),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=rows.shape[1:],
            nb_classes=job.classes,
            clip_values=(job.low, job.high),
            device_type="cpu",
        )
        numpy.random.seed(0)
        torch.manual_seed(0)
        queries = _count_queries(classifier)
        attack = attacks[job.attack](classifier, verbose=False, **settings)
        start = time.process_time()
        found = attack.generate(rows, numpy.eye(job.classes, dtype=numpy.float32)[labels])
        seconds = time.process_time() - start
        numpy.savez(job.found, rows=found)
        print(json.dumps({"seconds": seconds, "queries": sum(queries)}), file=out, flush=True)


def _count_queries(classifier: Any) -> list[int]:
    """Return a list that grows by the number of rows of each call of `classifier.predict`."""
    found: list[int] = []
    predict = classifier.predict

    def counted(x: Any, *args: Any, **settings: Any) -> Any:
        found.append(len(x))
        return predict(x, *args, **settings)

    classifier.predict = counted
    return found


if __name__ == "__main__":
    main()
