"""onnxruntime sessions: on the named providers only, reproducible, without log output."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError, RecipeError, UsageError, unknown_choice

if TYPE_CHECKING:
    Inputs = Mapping[str, NDArray[Any]]

CPU = "CPUExecutionProvider"


def check_providers(providers: Sequence[str], available: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return `providers` as a tuple; raise UsageError for none, an unknown one, or one that onnxruntime lacks.

    `available` are those of another build of onnxruntime than that of this process.
    """
    if isinstance(providers, str):
        raise UsageError(f"providers must be a sequence of names: pass ({providers!r},)")
    if not providers:
        raise UsageError(f"providers is empty: pass at least one execution provider, for example ({CPU!r},)")
    if available is None:
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
    path: Path, *, providers: Sequence[str], threads: int, optimize: bool = True, known_crash: bool = False
) -> onnxruntime.InferenceSession:
    """Open a session on the model at `path` that runs on `providers` only.

    Nodes that a provider cannot run go to the next one named; the CPU takes part only if it is named. `optimize=False`
    runs the graph as it stands in the file, without fusing or folding anything; `known_crash` leaves out the last level
    of optimizations, on which some models crash. Raises UsageError for providers and threads that cannot be meant,
    ArtifactError with the reason of onnxruntime where it refuses the model, and where a provider that is installed does
    not start (missing driver or libraries).
    """
    names = check_providers(providers)
    options = _options(threads)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif known_crash:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT
    if CPU not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell, a provider left out, is checked below
            session = onnxruntime.InferenceSession(str(path), options, providers=list(names), enable_fallback=0)
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"onnxruntime refuses the model {path}: {reason(error)}") from error
    check_started(path, names, session.get_providers())
    return session


def check_started(path: Path, providers: Sequence[str], started: Sequence[str]) -> None:
    """Raise ArtifactError for a provider without which a session was opened."""
    absent = [name for name in providers if name not in started]
    if absent:
        raise ArtifactError(
            f"provider {absent[0]!r} did not start for the model {path}, and onnxruntime would have run it on "
            f"{', '.join(map(repr, started))}: check the driver and the libraries that the provider needs"
        )


def try_to_open(path: bytes) -> bytes:
    """Open a session on the model at `path`, in a child process: a crash of onnxruntime cannot be caught.

    With every optimization, as is onnxruntime's default. A model that onnxruntime refuses passes.
    """
    with suppress(ArtifactError):
        open_session(Path(os.fsdecode(path)), providers=(CPU,), threads=1)
    return b""


_NEWER_OPSET = re.compile(r"Opset (\d+) is under development")
_SUPPORTED_OPSET = re.compile(r"support for domain (\S+) is till opset (\d+)")
_MISSING_LOCALE = re.compile(r"Failed to construct locale with name:(\S+?):")
_NEWER_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")


def reason(error: Exception | str, *, version: str = onnxruntime.__version__) -> str:
    """Return onnxruntime's message on one line without its tag; the original is the cause of the exception.

    For an opset or IR version that is too new the message says what onnxruntime supports, and for a missing locale and
    mixed floats what to do. `version` is that of the onnxruntime that raised it.
    """
    text = str(error)
    runtime = f"onnxruntime {version}"
    ir_version = _NEWER_IR.search(text)
    if ir_version:
        return (
            f"the file has IR version {ir_version[1]}, and {runtime} supports up to {ir_version[2]}: upgrade "
            "onnxruntime, or write the model with an older onnx"
        )
    opset = _NEWER_OPSET.search(text)
    if opset:
        supported = _SUPPORTED_OPSET.search(text)
        limit = f"up to {supported[2]}" if supported else "none that new"
        return (
            f"the model has opset {opset[1]}, and {runtime} supports {limit}: upgrade onnxruntime, or export with "
            "an older opset"
        )
    locale = _MISSING_LOCALE.search(text)
    if locale:
        language = locale[1].partition(".")[0]
        return (
            f"it changes the case of text in the locale {locale[1]}, which this machine does not have: install it (on "
            f"Debian `apt-get install locales && localedef -i {language} -f UTF-8 {locale[1]}`), or convert the model "
            "with skl2onnx's option locale='C'"
        )
    mixed = "; convert number columns as float32: skl2onnx leaves parts of a model of float64 inputs in float32"
    message = " ".join(text.removeprefix("[ONNXRuntimeError] : ").split())
    return message + mixed * ("Type Error" in text and "tensor(double)" in text)


def _options(threads: int) -> onnxruntime.SessionOptions:
    """Return options for reproducible results, without idle threads that spin while other code is timed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal: what goes wrong is raised, and said once
    return options


Values = dict[str, NDArray[Any]]

# Types that onnxruntime returns as numpy arrays of the same type, with ONNX's element type.
ELEMENT_TYPES = {
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(bool)": onnx.TensorProto.BOOL,
    "tensor(string)": onnx.TensorProto.STRING,
    **{
        f"tensor({sign}int{bits})": onnx.TensorProto.DataType.Value(f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def open_graph_session(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]], *, optimize: bool = False
) -> onnxruntime.InferenceSession:
    """Open a session of `model` on one CPU thread; its external initializers come from `weights`.

    Raises:
        ArtifactError: onnxruntime rejects the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # it warns of unused initializers
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # A session runs once or twice, and weights that are not prepacked are shared instead of copied.
        options.add_session_config_entry("session.disable_prepacking", "1")
    elsewhere = [each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    try:
        shared = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in elsewhere]
        options.add_external_initializers(elsewhere, shared)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except Exception as error:  # the runtime's exceptions share no base class
        raise ArtifactError(f"onnxruntime rejects the graph: {error}") from error


def element_types(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Return ONNX's element type of every output that is a tensor of a numpy type."""
    return {each.name: ELEMENT_TYPES[each.type] for each in session.get_outputs() if each.type in ELEMENT_TYPES}


def run_session(session: onnxruntime.InferenceSession, feed: Mapping[str, Any], names: Sequence[str]) -> Values:
    """Return the values of `names`; raise InputError where onnxruntime fails on `feed`."""
    if not names:
        return {}
    try:
        return dict(zip(names, session.run(list(names), dict(feed)), strict=True))
    except Exception as error:  # the runtime's exceptions share no base class
        raise InputError(f"onnxruntime could not run the graph on these inputs: {error}") from error


class Activations:
    """The activations of the model at `path` that int8-static may quantize; weights are not among them.

    onnxruntime's calibrators choose the values and make outputs of them. The rest of the calibrators is not used: they
    hold the values of all batches in memory and only join batches of equal size.
    """

    def __init__(self, path: Path, *, has_external_data: bool) -> None:
        from onnxruntime.quantization.calibrate import HistogramCalibrater

        shown = path.with_name("shown.onnx")
        calibrator = HistogramCalibrater(
            path, quantizable_operators(), str(shown), use_external_data_format=has_external_data
        )
        calibrator.augment_graph()
        self.names: tuple[str, ...] = tuple(sorted(calibrator.tensors_to_calibrate))
        options = onnxruntime.SessionOptions()
        # Fused nodes would have other values between them than the nodes of the file.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # errors are raised
        self._session = onnxruntime.InferenceSession(str(shown), options, providers=[CPU])

    def of(self, batch: Inputs) -> dict[str, NDArray[np.float32]]:
        """Return each activation by name, float16 as float32.

        Raises:
            RecipeError: The model does not run on `batch`.
        """
        values = self.fetch(self.names, batch)
        return {name: np.asarray(value, np.float32) for name, value in values.items()}

    def fetch(self, names: Sequence[str], batch: Inputs) -> dict[str, NDArray[Any]]:
        """Return the activations and outputs in `names`."""
        if not names:
            return {}
        try:
            values = self._session.run(list(names), dict(batch))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise RecipeError(f"the model does not run on a batch of calibration=: {reason(error)}") from error
        return dict(zip(names, values, strict=True))


def quantizable_operators() -> list[str]:
    """Return the operators that onnxruntime quantizes with ranges measured beforehand."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})
