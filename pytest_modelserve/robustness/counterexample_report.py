"""Text of a counterexample: the changed features, the outputs before and after, and its rows as Python or in a file."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve import settings
from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics.elementwise import is_builtin_dtype
from pytest_modelserve.robustness.coordinates import Coordinates, flatten_rows, row_count, take_rows

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
    from pytest_modelserve.robustness.minimizer import Counterexample
    from pytest_modelserve.robustness.relations import Relation

COUNTEREXAMPLES_FOLDER = Path(".modelserve", "counterexamples")
_PLAIN = (str, int, float, bool, tuple, type(None))
_MAX_CHANGES = 12
_MAX_NUMBERS = 8
_MAX_LITERAL_ELEMENTS = 64
"""Larger inputs are only saved to a file."""


def change_lines(found: Counterexample, names: Sequence[str] | None) -> Iterator[str]:
    """Yield the number of changed features, then each of the first twelve, such as "x[3]   0.25 → 0.9"."""
    layout = Coordinates.of(found.rows)
    rows = row_count(found.rows)
    if not found.changes:
        unchanged = f"base row {found.base_row} violates" if rows == 1 else f"{rows} base rows violate"
        yield f"{unchanged} it unchanged"
        return
    differ = "differs" if len(found.changes) == 1 else "differ"
    where = f"base row {found.base_row}" if rows == 1 else "the base rows"
    before = f"{found.initial_changes:,} before minimization"
    yield f"{len(found.changes)} of {layout.size * rows:,} features {differ} from {where} ({before})"
    changes = [_change(found, layout, row, index, names, rows) for row, index in found.changes[:_MAX_CHANGES]]
    width = max(len(feature) for feature, _ in changes)
    for feature, change in changes:
        yield f"  {feature:<{width}}   {change}"
    if len(found.changes) > _MAX_CHANGES:
        yield f"  and {len(found.changes) - _MAX_CHANGES:,} more"


def feature_lines(relation: Relation, coordinates: Coordinates, names: Sequence[str] | None) -> Iterator[str]:
    """Yield the names of the features that the relation is about: "feature 3 is 'income'"; nothing without `names`."""
    one = getattr(relation, "feature", None)
    features = getattr(relation, "features", () if one is None else (one,))
    if names is None:
        return
    of = getattr(relation, "input", None)
    part = next((part for part in coordinates.slices if of in (None, part.name)), coordinates.slices[0])
    for feature in features:
        place = feature if isinstance(feature, int) else int(np.ravel_multi_index(feature, part.shape))
        yield f"feature {feature} is {names[part.offset + place % part.size]!r}"


def output_lines(found: Counterexample, predictor: BatchedPredictor) -> Iterator[str]:
    """Yield each output of the first changed row before and after, such as "output 'y'  0.1 0.9 → 0.8 0.2"."""
    if not found.changes:
        for name, array in predictor.predict(found.rows).items():
            yield f"output {name!r}  {_numbers(array[0])}"
        return
    before, after = predictor.predict(found.base), predictor.predict(found.rows)
    row = found.changes[0][0]
    for name in after:
        yield f"output {name!r}  {_numbers(before[name][row])} → {_numbers(after[name][row])}"


def input_literal(inputs: Mapping[str, NDArray[Any]]) -> str | None:
    """Return Python code for the inputs, or None for more than 64 elements."""
    if sum(array.size for array in inputs.values()) > _MAX_LITERAL_ELEMENTS:
        return None
    return "{" + ", ".join(f"{name!r}: {_array_literal(array)}" for name, array in inputs.items()) + "}"


def search_identity(relation: Relation, base: Mapping[str, NDArray[Any]]) -> str:
    """Return what tells one search of a test from another: the parameters of its relation and its base rows.

    Under hypothesis it is the parameters alone: every example has other rows, and a failing test has hundreds of them.
    """
    parameters: dict[str, object] = {}
    if is_dataclass(relation):
        parameters = {each.name: getattr(relation, each.name) for each in fields(relation)}
    plain = {name: value for name, value in parameters.items() if isinstance(value, _PLAIN)}
    control = sys.modules.get("hypothesis.control")
    if control is not None and control.currently_in_test_context():
        return repr(plain)
    rows = hashlib.sha256()
    for name, array in base.items():
        is_text = array.dtype.kind in "OUT"
        content = repr(array.tolist()).encode() if is_text else np.ascontiguousarray(array).tobytes()
        rows.update(f"{name} {array.dtype.name} {array.shape} ".encode() + content)
    return f"{plain} {rows.hexdigest()}"


def save_inputs(
    inputs: Mapping[str, NDArray[Any]],
    folder: Path,
    *,
    about: tuple[str, ...],
    identity: str = "",
    names: Sequence[str] | None = None,
) -> Path:
    """Save all inputs of a counterexample as one file, in one step, and return its path.

    Its name comes from `about`, `identity` and the running test, so that the same failure replaces its file and another
    does not. Redacted inputs and features, of these `names`, are left out. OSError or ArtifactError if the folder
    cannot be written.
    """
    from pytest_modelserve.parity.failing_inputs import git_ignored_folder  # the parity gates load onnxruntime
    from pytest_modelserve.parity.recordings.exchange import Exchange
    from pytest_modelserve.parity.recordings.npz import write_npz
    from pytest_modelserve.parity.recordings.redaction import Redaction

    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(about)).strip("-").lower()[:60]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    digest = hashlib.sha256("|".join((*about, identity, test)).encode()).hexdigest()
    path = git_ignored_folder(folder) / f"{words}-{digest[:8]}.npz"
    redaction = Redaction({**settings.REDACT, **_redacted_features(inputs, names)})
    try:
        write_npz(path, [redaction.exchange(Exchange(inputs, {}))], Subject(about[0]))
    except UsageError as error:
        raise ArtifactError(str(error)) from error
    return path


def is_complete(inputs: Mapping[str, NDArray[Any]], names: Sequence[str] | None) -> bool:
    """Return whether nothing of the inputs is redacted."""
    from pytest_modelserve.parity.recordings.redaction import Redaction

    return not settings.REDACT or not Redaction(settings.REDACT).hides(inputs, names or ())


def _redacted_features(inputs: Mapping[str, NDArray[Any]], names: Sequence[str] | None) -> dict[str, str]:
    """Return the columns of the features whose names are redacted, of inputs (n, features)."""
    if names is None or not any(map(settings.is_redacted, names)):
        return {}
    found = {}
    for part in Coordinates.of(inputs).slices:
        for place in range(part.size):
            if settings.is_redacted(names[part.offset + place]):
                column = f"[{place}]" if len(part.shape) == 1 else ""  # of an image, the whole input
                found[f"{part.name or 'input'}{column}"] = "leave out"
    return found


def saved(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the inputs of a saved counterexample by name, for `@example` or another run.

    Args:
        path: The file that the failure text names.

    Returns:
        The inputs by name, (n, ...).

    Raises:
        ArtifactError: The file cannot be read, or is not a counterexample of this package.

    Example:
        `ms.assert_relation(model, ms.strategies.saved(path), relation, candidates=0)` reruns a failure.
    """
    from pytest_modelserve.parity.recordings.npz import NpzExchanges
    from pytest_modelserve.parity.recordings.redaction import check_complete

    try:
        exchange = NpzExchanges.of(Path(path), sides=("inputs",)).read(0)
        check_complete(exchange.redacted, str(path))
        inputs = exchange.inputs
    except InputError as error:
        raise ArtifactError(str(error)) from None
    except (ArtifactError, IndexError) as error:
        raise ArtifactError(f"{path} is no saved counterexample: {error}") from error
    return dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}


def _array_literal(array: NDArray[Any]) -> str:
    dtype = "object" if array.dtype.kind in "OUT" else array.dtype.name
    values = _value_literal(
        array.tolist() if is_builtin_dtype(array.dtype) else array.astype(np.float64).tolist(), array
    )
    shape = f".reshape({array.shape})" if array.size == 0 and array.shape != (0,) else ""
    return f"np.array({values}, dtype={dtype!r}){shape}"


def _value_literal(values: Any, array: NDArray[Any]) -> str:
    if isinstance(values, list):
        return "[" + ", ".join(_value_literal(value, array) for value in values) + "]"
    if isinstance(values, float):
        if not np.isfinite(values):
            return "np.nan" if values != values else ("np.inf" if values > 0 else "-np.inf")
        return _shortest(array.dtype.type(values))
    return repr(values)


def _shortest(number: Any) -> str:
    """Return the fewest digits that give the number in its dtype: 0.1 of float32 is 0.10000000149011612 as a float."""
    text = str(number)
    return text if any(mark in text for mark in ".en") else f"{text}.0"


def _change(
    found: Counterexample, layout: Coordinates, row: int, index: int, names: Sequence[str] | None, rows: int
) -> tuple[str, str]:
    part, place = layout.locate(index)
    at = f"[{', '.join(map(str, place))}]" if place else ""
    feature = f"{part.name}{at}" if names is None else f"{names[index]}"
    if any(map(settings.is_redacted, (part.name or "input", f"{part.name or 'input'}{at}", feature))):
        return (f"row {row}, {feature}" if rows > 1 else feature), "redacted"
    before, after = (
        flatten_rows(take_rows(feed, [row]))[part.name][0, index - part.offset] for feed in (found.base, found.rows)
    )
    return (f"row {row}, {feature}" if rows > 1 else feature), f"{_number(before)} → {_number(after)}"


def _number(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _numbers(array: NDArray[Any]) -> str:
    values = np.ravel(array)
    shown = [_short(value) for value in values[:_MAX_NUMBERS]]
    return " ".join([*shown, *([f"… ({values.size} in all)"] if values.size > _MAX_NUMBERS else [])])


def _short(value: Any) -> str:
    return f"{float(value):.4g}" if isinstance(value, np.floating) else _number(value)
