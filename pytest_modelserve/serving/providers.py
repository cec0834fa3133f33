"""Sessions of onnxruntime that run where they were asked to, reproducibly and silently."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from pytest_modelserve.errors import ArtifactError, UsageError, unknown_choice
from pytest_modelserve.serving.predictor import check_threads

CPU = "CPUExecutionProvider"


def check_providers(providers: Sequence[str]) -> tuple[str, ...]:
    """`providers` as a tuple; UsageError for none, an unknown one, and one that this build of onnxruntime lacks."""
    if isinstance(providers, str):
        raise UsageError(f"providers is a sequence of names: give ({providers!r},)")
    if not providers:
        raise UsageError(f"providers names at least one execution provider, ({CPU!r},) say")
    available = onnxruntime.get_available_providers()
    for name in providers:
        if name in available:
            continue
        if name in onnxruntime.get_all_providers():
            raise UsageError(
                f"provider {name!r} is not in the installed build of onnxruntime, which has "
                f"{', '.join(map(repr, available))}: install the onnxruntime package for that hardware"
            )
        raise UsageError(unknown_choice("provider", name, available))
    return tuple(providers)


def open_session(
    path: Path, *, providers: Sequence[str], threads: int, optimise: bool = True, fragile: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the model at `path` that runs on `providers` and nowhere else.

    Nodes that a provider cannot run go to the next one named; the CPU takes part only if it is named. `optimise=False`
    runs the graph as it stands in the file, without fusing or folding anything; `fragile` leaves out the last level of
    optimisations, which some models do not survive. Raises UsageError for providers and threads that cannot be meant,
    ArtifactError with the runtime's own reason where it refuses the model, and where a provider that is installed does
    not start (missing driver or libraries).
    """
    names = check_providers(providers)
    options = _options(check_threads(threads))
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif fragile:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT
    if CPU not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell, a provider left out, is checked below
            session = onnxruntime.InferenceSession(str(path), options, providers=list(names), enable_fallback=0)
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"onnxruntime refuses the model {path}: {reason(error)}") from error
    started = session.get_providers()
    absent = [name for name in names if name not in started]
    if absent:
        raise ArtifactError(
            f"provider {absent[0]!r} did not start for the model {path}, and onnxruntime would have run it on "
            f"{', '.join(map(repr, started))}: check the driver and the libraries that the provider needs"
        )
    return session


def reason(error: Exception) -> str:
    """What the runtime says, on one line and without its tag; its own text stays on the exception's cause."""
    return " ".join(str(error).removeprefix("[ONNXRuntimeError] : ").split())


def _options(threads: int) -> onnxruntime.SessionOptions:
    """One stream of work: results do not depend on scheduling, and idle threads do not spin beside what is timed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal: what goes wrong is raised, and said once
    return options
