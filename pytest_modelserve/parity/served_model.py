"""Served model gate: an endpoint serves the file that was judged, or the cause of the difference is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity
from pytest_modelserve.metrics import Outputs
from pytest_modelserve.parity.outputs import measure_output_parity
from pytest_modelserve.serving.endpoint import EndpointPredictor
from pytest_modelserve.serving.inputs import Inputs, as_batch, as_one_batch, checked_feed, slice_rows
from pytest_modelserve.serving.serve import as_predictor

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

# Rows for the explanation of a difference: each known cause is one more call of the file.
_ROWS = 64
# Answers are explained if what is left of the difference is this part of an output's scale, and of the difference.
_EXPLAINED = 1e-3
# 16 machine epsilons of float32, the least tolerance of output parity.
_ROUNDING = 2.0**-19
# Half precision has 11 bits: one rounding is at most 2^-11 of a value; many of them seldom exceed 2^-6 of the scale.
_HALF_PRECISION = (2.0**-15, 2.0**-6)


def measure_served_model(
    endpoint: Servable,
    artifact: Servable,
    inputs: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    others: Mapping[str, Servable] | None = None,
) -> Evidence:
    """Measure whether `endpoint` serves `artifact`: the same signature, digest (if the server states one) and answers.

    Names, order, dtypes and fixed sizes of inputs and outputs are compared with the server's metadata. The sha256 of
    the file is compared with the parameter `sha256` of its metadata or answers, if there is one. Every answer is
    compared with that of the file in onnxruntime here, as `assert_output_parity` does. The verdict, PASS or FAIL, holds
    for these inputs.

    A FAIL says why, if the cause is a known one: outputs that are renamed, exchanged or in another order; half
    precision; one of `others`, such as an older version; inputs that are scaled, or whose channels or axes are
    exchanged, before the model gets them. Otherwise the weights differ.

    Args:
        endpoint: The URL of a model, an `ms.Endpoint`, or whatever else `ms.serve` takes.
        artifact: The file that should be served, or whatever else `ms.serve` takes.
        inputs: One batch, shape (rows, ...) for each input, or an iterable of batches.
        rtol: Relative tolerance; give it with `atol`, or neither to calibrate them as `assert_output_parity` does.
        atol: Absolute tolerance, in the output's units.
        others: Models that may be served by mistake, by a name for the message: `{"version 1": "digits_v1.onnx"}`.

    Returns:
        Evidence with the largest error of an answer as a multiple of its tolerance, and the number of mismatches of
        signature, digest and order if there are any.

    Raises:
        InputError: There are no rows, or they do not fit the artifact.
        EndpointError: The server does not answer.
        UsageError: One tolerance without the other, or none for a reference that cannot run another way.

    Example:
        `ms.assert_serves("http://127.0.0.1:8080/v2/models/digits", "digits.onnx", images)` fails for another file.
    """
    began = time.perf_counter()
    with as_predictor(endpoint) as served, as_predictor(artifact) as file:
        if isinstance(file, EndpointPredictor):
            raise UsageError(
                f"artifact must be the file that was judged; got {file.describe()}: the endpoint comes first"
            )
        batch = as_batch(as_one_batch(inputs), file.signature)
        sample = slice_rows(batch, _ROWS)
        expected = file.predict(sample)  # first, so that inputs that do not fit the file are its own error
        mismatches = _signature_mismatches(served.signature, file.signature)
        causes: list[str] = []
        parity: Evidence | None = None
        try:
            answer, sha256 = (
                served.answer(sample) if isinstance(served, EndpointPredictor) else (served.predict(sample), None)
            )
        except InputError:
            if not mismatches:
                raise
        else:
            mismatches += _digest_mismatches(sha256 or served.subject.sha256, file.subject.sha256)
            mismatches += _order_mismatches(list(answer), list(expected))
            parity = measure_output_parity(served, file, batch, rtol=rtol, atol=atol)
            if not parity.passed:
                causes = list(_causes(answer, expected, file, sample, others or {}))
        return _evidence(served, file, mismatches, parity, causes, time.perf_counter() - began)


def _signature_mismatches(served: Signature | None, file: Signature | None) -> list[str]:
    """Return a sentence for each difference of what the server tells; nothing where one of both tells nothing."""
    found: list[str] = []
    if served is None or file is None:
        return found
    for side, told, expected in (("input", served.inputs, file.inputs), ("output", served.outputs, file.outputs)):
        if not told:
            continue
        by_name = {spec.name: spec for spec in told}
        names = {spec.name for spec in expected}
        for spec in expected:
            if spec.name not in by_name:
                found.append(f"the server tells no {side} {spec.name!r}, but {', '.join(map(repr, by_name)) or 'none'}")
            elif not _is_same(by_name[spec.name], spec):
                found.append(f"the server tells {side} {by_name[spec.name]}, and the file has {spec}")
        found += [f"the server tells {side} {name!r}, which the file lacks" for name in by_name if name not in names]
        if by_name.keys() == names:
            found += [
                f"in the metadata, {each}"
                for each in _order_mismatches(list(by_name), [s.name for s in expected], side)
            ]
    return found


def _is_same(told: TensorSpec, spec: TensorSpec) -> bool:
    """Return whether dtypes and shapes are the same; a free or named dim is told as a dim of any size."""
    if told.dtype != spec.dtype or told.shape is None or spec.shape is None:
        return told.dtype == spec.dtype
    sizes = [dim if isinstance(dim, int) else None for dim in spec.shape]
    return [dim if isinstance(dim, int) else None for dim in told.shape] == sizes


def _digest_mismatches(told: str | None, sha256: str | None) -> list[str]:
    if told is None or sha256 is None or told == sha256:
        return []
    return [f"the server tells sha256 {told[:12]}…, and the file has {sha256[:12]}…: another file is served"]


def _order_mismatches(told: list[str], expected: list[str], side: str = "output") -> list[str]:
    if told == expected or sorted(told) != sorted(expected):
        return []
    return [f"{side}s have the order {', '.join(told)}, in the file {', '.join(expected)}"]


def _causes(
    answer: Outputs, expected: Outputs, file: Predictor, sample: Inputs, others: Mapping[str, Servable]
) -> Iterator[str]:
    """Yield the known causes of the difference between the answer and the file's outputs, or that there is none."""
    names = list(_name_causes(answer, expected))
    yield from names
    if names or not expected.keys() <= answer.keys():
        return
    before = _distance(answer, expected)
    if before <= _ROUNDING:
        yield "the first rows have the answers of the file, and others have not"
        return
    found = []
    if _are_float16(answer, expected) and before <= _HALF_PRECISION[1]:
        found.append(
            f"the answers are float16 numbers, {before:.2g} of an output's scale away: half precision is served"
        )
    for name, other in others.items():
        try:
            with as_predictor(other) as predictor:
                if _explains(_distance(answer, predictor.predict(sample)), before):
                    found.append(f"the answers are those of {name} ({predictor.subject})")
        except ModelServeError as error:
            found.append(f"{name} cannot be compared: {error}")
    for how, change in _PREPROCESSING.items():
        changed = _changed(sample, file.signature, change)
        if changed is not None and _explains(_distance(answer, file.predict(changed)), before):
            found.append(f"the answers are those of the file for inputs that are {how}: preprocessing differs")
    yield from found
    if not any("the answers are" in each for each in found):
        yield _unexplained(before)


def _unexplained(difference: float) -> str:
    if not np.isfinite(difference):
        return "the answers have NaN, infinities or shapes that the file's outputs do not have"
    low, high = _HALF_PRECISION
    guess = "other weights, or another preprocessing"
    if low <= difference <= high:
        guess = "as much as half precision or a quantized model does"
    return f"the answers differ by {difference:.2g} of an output's scale, for no known cause: {guess}"


def _name_causes(answer: Outputs, expected: Outputs) -> Iterator[str]:
    """Yield outputs whose values have another name."""
    for name, array in expected.items():
        if name in answer and _distance({name: answer[name]}, {name: array}) <= _EXPLAINED:
            continue
        for other, found in answer.items():
            if other != name and _distance({name: found}, {name: array}) <= _EXPLAINED:
                if other in expected:
                    yield f"outputs are exchanged: the values of {name!r} are served as {other!r}"
                else:
                    yield f"output {name!r} is renamed: its values are served as {other!r}"


def _distance(outputs: Outputs, expected: Outputs) -> float:
    """Return the largest difference as a part of its output's scale; infinite for another shape, or NaN elsewhere."""
    worst = 0.0
    for name, array in expected.items():
        found = outputs.get(name)
        if found is None or found.shape != array.shape:
            return np.inf
        if array.dtype.kind not in "fiubV" or found.dtype.kind not in "fiubV":
            worst = max(worst, 0.0 if np.array_equal(found, array) else np.inf)
            continue
        left, right = found.astype(np.float64), array.astype(np.float64)
        if not np.array_equal(np.isfinite(left), np.isfinite(right)):
            return np.inf
        left, right = left[np.isfinite(right)], right[np.isfinite(right)]
        scale = float(np.abs(right).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(left - right).max(initial=0.0)) / scale)
    return worst


def _explains(after: float, before: float) -> bool:
    return after <= min(_EXPLAINED, before / 10)


def _are_float16(answer: Outputs, expected: Outputs) -> bool:
    """Return whether every float is a float16 number, where the file has float32 or float64."""
    floats = [answer[name] for name, array in expected.items() if array.dtype in (np.float32, np.float64)]
    with np.errstate(over="ignore"):
        return bool(floats) and all(
            each.dtype.kind == "f" and np.array_equal(each, each.astype(np.float16), equal_nan=True) for each in floats
        )


def _reversed_channels(x: NDArray[Any]) -> NDArray[Any] | None:
    axis = next((axis for axis in (1, x.ndim - 1) if x.ndim == 4 and x.shape[axis] == 3), None)
    return None if axis is None else np.flip(x, axis)


def _transposed(x: NDArray[Any]) -> NDArray[Any] | None:
    axes = (1, 2) if x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3)) else (2, 3)
    is_image = x.ndim in (3, 4) and x.shape[axes[0]] == x.shape[axes[1]]
    return np.swapaxes(x, *axes) if is_image else None


_PREPROCESSING: Mapping[str, Callable[[NDArray[Any]], NDArray[Any] | None]] = {
    "divided by 255": lambda x: x / 255,
    "multiplied by 255": lambda x: x * 255,
    "divided by their largest value": lambda x: x / (np.abs(x).max(initial=0) or 1),
    "mapped from [0, 1] to [-1, 1]": lambda x: 2 * x - 1,
    "mapped from [0, 255] to [-1, 1]": lambda x: x / 127.5 - 1,
    "inverted (1 - x)": lambda x: 1 - x,
    "inverted (255 - x)": lambda x: 255 - x,
    "in the reverse order of channels (RGB, BGR)": _reversed_channels,
    "transposed (height and width)": _transposed,
}
"""Changes of inputs that a server may make, or leave out, by mistake."""


def _changed(sample: Inputs, signature: Signature | None, change: Callable[[NDArray[Any]], Any]) -> Inputs | None:
    """Return the inputs with every number changed, in the dtypes of the file; None if no input can be."""
    feed: Mapping[str, Any] = {"": sample} if signature is None else checked_feed(sample, signature)
    made = {}
    for name, array in feed.items():
        changed = change(array.astype(np.float64)) if array.dtype.kind in "fiu" else None
        if changed is not None and array.dtype.kind != "f":
            limits = np.iinfo(array.dtype)
            changed = changed if (changed == np.clip(np.rint(changed), limits.min, limits.max)).all() else None
        made[name] = array if changed is None else changed.astype(array.dtype)
    if all(made[name] is feed[name] for name in feed):
        return None
    return made if signature is not None else made[""]


def _evidence(
    served: Predictor,
    file: Predictor,
    mismatches: list[str],
    parity: Evidence | None,
    causes: list[str],
    duration_s: float,
) -> Evidence:
    quantities = () if parity is None else parity.quantities
    if mismatches:
        found = Quantity("mismatches with the file", len(mismatches), "count", budget=Budget("at_most", 0))
        quantities = (found, *quantities)
    evidence = Evidence(
        gate="served model",
        subject=served.subject,
        reference=file.subject,
        quantities=quantities,
        n=0 if parity is None else parity.n,
        n_unit="rows" if parity is None else parity.n_unit,
        method=Method(f"metadata of the server; {'no answers' if parity is None else parity.method.name}"),
        summary="the endpoint serves the file",
        findings=(*mismatches, *causes, *(() if parity is None else parity.findings)),
        details={**({} if parity is None else parity.details), "mismatches": mismatches, "causes": causes},
        duration_s=duration_s,
    )
    if evidence.passed:
        return evidence
    return replace(
        evidence,
        summary="the endpoint does not serve the file as it was judged",
        advice="deploy the file again, and compare its sha256 with that of the server; give older versions as "
        "others=, to see whether one of them is served",
    )
