"""A model in processes of its own: started afresh as often as it takes to decide."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, Signature, open_artifact
from pytest_modelserve.errors import ModelServeError, UsageError
from pytest_modelserve.evidence import Interval, Method, Verdict
from pytest_modelserve.performance.fresh_worker import FreshJob, FreshStart
from pytest_modelserve.performance.timing import host_turn
from pytest_modelserve.progress import progress
from pytest_modelserve.serving import Inputs, serve
from pytest_modelserve.serving.inputs import check_not_empty
from pytest_modelserve.stats import interim_error_rate, median_bounds

MEDIAN_OF_STARTS = Method(
    "sign interval of the median, one of 2 looks",
    "David & Nagaraja, Order Statistics, 3rd ed. 2003, section 7.1; Bonferroni over the looks",
    "processes are independent and alike",
)
"""How `start_until_decided` and `median_interval` judge."""
_LOOKS = 2
_CHILD = "import sys; from pytest_modelserve.performance.fresh_worker import main; main(*sys.argv[1:])"
_LOG_LINES = 12

Feed = dict[str, NDArray[Any]]
Start = Callable[[], FreshStart]


def fresh_job(
    model: Artifact | str | os.PathLike[str], inputs: Inputs, *, providers: Sequence[str], threads: int, calls: int
) -> tuple[Artifact, FreshJob, Feed]:
    """The artifact, and what a fresh process needs to serve it, the inputs by name; the model has answered them once
    in this process.

    UsageError for anything but an artifact or a path, and for a model that takes sequences, maps or optional values;
    InputError for inputs that do not fit.
    """
    if not isinstance(model, (Artifact, str, os.PathLike)):
        raise UsageError(
            f"a {type(model).__name__} cannot be started in a process of its own: give an Artifact, or the path of an "
            "ONNX file"
        )
    check_not_empty(inputs)
    artifact = model if isinstance(model, Artifact) else open_artifact(model)
    with serve(artifact, providers=providers, threads=threads) as predictor:
        predictor.predict(inputs)
    others = [spec.name for spec in artifact.signature.inputs if not spec.is_tensor]
    if others:
        raise UsageError(f"input {others[0]!r} is no tensor, and only tensors can be sent to a process of its own")
    job = FreshJob(
        model=str(artifact.path),
        signature=Signature(artifact.signature.inputs, artifact.signature.outputs),
        providers=tuple(providers),
        threads=threads,
        calls=calls,
    )
    return artifact, job, _by_name(inputs, artifact.signature)


def start_in_fresh_process(job: FreshJob, inputs: Feed, *, time_limit_s: float) -> FreshStart:
    """One start of `job` with `inputs` in a new interpreter, while no other timed gate of this host runs.

    A forked child would begin with this process's memory. ModelServeError for a child that fails, with the end of what
    it printed, and for one that takes longer than the limit, which is ended.
    """
    with tempfile.TemporaryDirectory(prefix="modelserve-") as folder, host_turn():
        job_file, inputs_file, result = (Path(folder, name) for name in ("job", "inputs", "result.json"))
        job_file.write_bytes(pickle.dumps(job))
        inputs_file.write_bytes(pickle.dumps(inputs, protocol=5))  # from 5 on arrays are read without a second copy
        # -W outranks PYTHONWARNINGS, which may make errors of what an import warns of.
        command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(job_file), str(inputs_file), str(result)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        try:
            done = subprocess.run(
                command,
                env=environment,
                timeout=time_limit_s,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelServeError(
                f"a fresh process that serves {job.model} took longer than {time_limit_s:g} s and was ended: "
                "raise time_limit_s, or look at what blocks it"
            ) from None
        if done.returncode:
            raise ModelServeError(f"a fresh process that serves {job.model} failed{_told(done)}")
        return FreshStart(**json.loads(result.read_text(encoding="utf-8")))


def start_until_decided(
    start: Start, judge: Callable[[Sequence[FreshStart]], Verdict], *, confidence: float, alpha: float
) -> tuple[FreshStart, ...]:
    """As many starts as `judge` needs: the fewest that can PASS, and where they do not, the fewest that can FAIL."""
    starts: list[FreshStart] = []
    for look in looks_at_starts(confidence=confidence, alpha=alpha):
        starts += [start() for _ in progress(range(look - len(starts)), "fresh processes")]
        if judge(starts) is not Verdict.INCONCLUSIVE:
            break
    return tuple(starts)


def looks_at_starts(*, confidence: float, alpha: float) -> tuple[int, int]:
    """After how many starts they are judged: 6 and 10 for the usual error rates.

    All of n starts lie above their median with probability 2⁻ⁿ. PASS may be said at both looks, so each takes half of
    its error; FAIL is said at the second alone, which takes all of alpha.
    """
    to_pass = math.ceil(-math.log2(interim_error_rate(1 - confidence, _LOOKS)))
    to_fail = math.ceil(-math.log2(alpha))
    return to_pass, max(to_fail, to_pass + 1)


def median_interval(values: Sequence[float], *, confidence: float, alpha: float) -> tuple[float, Interval]:
    """The median of positive `values`, one a start, and its interval at one of the two looks; at the first one the low
    end is 0."""
    bounds = median_bounds(values, low_level=1 - alpha, high_level=1 - interim_error_rate(1 - confidence, _LOOKS))
    may_fail = len(values) >= looks_at_starts(confidence=confidence, alpha=alpha)[1]
    low = bounds.low if may_fail else 0.0
    return bounds.estimate, Interval(low, bounds.high, bounds.low_level, bounds.high_level)


def _by_name(inputs: Inputs, signature: Signature) -> Feed:
    return dict(inputs) if isinstance(inputs, Mapping) else {signature.inputs[0].name: inputs}


def _told(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stdout.decode("utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:]
    status = f" (exit status {done.returncode})" if done.returncode > 0 else f" (signal {-done.returncode})"
    return status + ("; it printed nothing" if not lines else ":\n" + "\n".join(f"  {line}" for line in lines))
