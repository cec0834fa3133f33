"""Recordings as predictors: for a recorded request they return its recorded outputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, digest_of
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import Outputs
from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.parity.recordings.npz import NpzExchanges, write_npz
from pytest_modelserve.parity.recordings.onnx_test_data import OnnxTestDataExchanges, write_onnx_test_data
from pytest_modelserve.parity.recordings.parquet import Columns, ParquetExchanges, write_parquet
from pytest_modelserve.parity.recordings.redaction import Redact, Redaction, check_complete
from pytest_modelserve.serving import Inputs, Predictor, Servable
from pytest_modelserve.serving.inputs import iterate_batches
from pytest_modelserve.serving.serve import as_predictor

_SUFFIXES = (".npz", ".parquet", "")
_VARIANT = "recorded"


def record_answers(
    predictor: Servable, inputs: Inputs | Iterable[Inputs], path: str | os.PathLike[str], *, redact: Redact = ()
) -> Recording:
    """Run `predictor` on `inputs`, write requests and outputs to `path`, and open the recording.

    Nothing appears at `path` before everything is written: an error, also of the predictor, leaves what was there.

    Args:
        predictor: The model to record: whatever `ms.serve` takes.
        inputs: One request (an array or a mapping from names to arrays), or an iterable of requests, taken one by one.
        path: The suffix selects the format. `.npz` stores every dtype and shape; `.parquet` stores arrays with one
            value for each row; a folder (no suffix) is ONNX test data and must not exist yet. A file is replaced.
        redact: Inputs that the file must not hold, by name, pattern ("id*") or column ("x[3]"), besides those of the
            setting `modelserve_redact`; a mapping to "hash" hashes them with the secret in MODELSERVE_PROJECT_KEY. The
            recording then has outputs for complete inputs, and cannot be replayed by itself.

    Returns:
        The recording, as `open_recording` returns it.

    Raises:
        InputError: There is no request.
        UsageError: Another suffix, values that the format cannot store, or a `redact` that leaves no input.
        ArtifactError: The path cannot be written.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> predictor = ms.serve(lambda x: x + 1, name="model")
        >>> recording = ms.record_answers(predictor, np.zeros((4, 3)), "traffic.npz")
        >>> ms.assert_output_parity(predictor, recording, recording.inputs, rtol=0, atol=0).n
        4
    """
    path = _checked(path)
    redaction = Redaction.of(redact)
    if redaction.rules and path.suffix == "":
        raise UsageError("redact needs a file, .npz or .parquet: a folder of ONNX test data has every input")
    with as_predictor(predictor) as model:
        exchanges = redaction.exchanges(_exchanges(model, inputs))
        if path.suffix == ".npz":
            write_npz(path, exchanges, model.subject)
        elif path.suffix == ".parquet":
            write_parquet(path, exchanges)
        else:
            write_onnx_test_data(path, exchanges, model.signature)
    return open_recording(path, signature=model.signature if path.suffix == "" else None)


def open_recording(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    signature: Signature | None = None,
    inputs: Columns | None = None,
    outputs: Columns | None = None,
    rows: int | None = None,
) -> Recording:
    """Open a recording as a reference for parity gates.

    Args:
        path: An .npz or .parquet file, or a folder of ONNX test data. Files are hashed now, requests are read on use.
        name: Its name in evidence; by default the recorded model if the file names it, else the file's stem.
        signature: Names and types of ONNX test data without a model.onnx beside it, and the dtypes that columns of
            Parquet are cast to.
        inputs: For Parquet logs: the columns of each input; `{"x": ["age", "income"]}` is an array of two columns.
        outputs: For Parquet logs: the columns of each output.
        rows: For Parquet logs: the number of rows in one request; by default the column `request`, else all rows.

    Returns:
        The recording.

    Raises:
        ArtifactError: The path is missing, truncated or damaged, or holds no request.
        UsageError: Another suffix, or an option that does not apply to the format.

    Example:
        >>> import numpy as np
        >>> np.savez("log.npz", **{"inputs/x": np.zeros((4, 3)), "outputs/y": np.ones((4, 2))})
        >>> import pytest_modelserve as ms
        >>> len(ms.open_recording("log.npz").exchanges)
        1
    """
    path = _checked(path)
    if not path.exists():
        raise ArtifactError(f"cannot read the recording {path}: there is no such file or folder")
    if path.suffix != ".parquet" and (inputs is not None or outputs is not None or rows is not None):
        raise UsageError("inputs, outputs and rows apply to Parquet files only: leave them out for other recordings")
    if rows is not None and rows < 1:
        raise UsageError(f"rows must be a whole number of at least 1, got {rows}")
    exchanges: NpzExchanges | ParquetExchanges | OnnxTestDataExchanges
    model = Subject(path.stem)
    if path.suffix == ".npz":
        exchanges = NpzExchanges.of(path)
        model = exchanges.model or model
        sha256 = _sha256([("", path)])
    elif path.suffix == ".parquet":
        exchanges = ParquetExchanges.of(path, inputs=inputs, outputs=outputs, rows=rows, signature=signature)
        sha256 = _sha256([("", path)])
    else:
        exchanges = OnnxTestDataExchanges.of(path, signature)
        sha256 = _sha256(exchanges.files)
    variant = f"{model.variant}, {_VARIANT}" if model.variant else _VARIANT
    return Recording(Subject(name or model.name, variant, sha256), exchanges, source=str(path))


class Recording(Predictor):
    """Recorded requests and outputs: a reference whose model is no longer available, or never was.

    `assert_output_parity(candidate, recording, recording.inputs, rtol=..., atol=...)` replays all requests, one at a
    time. Evidence identifies a recording by the sha256 of its files.

    Args:
        subject: The model that the outputs come from.
        exchanges: The requests with their outputs; `recording.exchanges[0].inputs` is the first request.
        source: The name of the file in messages.

    Raises:
        ArtifactError: There is no exchange.
    """

    transport = "recorded"

    def __init__(self, subject: Subject, exchanges: Sequence[Exchange], *, source: str = "memory") -> None:
        if not len(exchanges):
            raise ArtifactError(f"the recording {source} has no requests")
        super().__init__(subject)
        self.exchanges = exchanges
        self.redacted: Mapping[str, str] = getattr(exchanges, "redacted", {})
        self._source = source
        self._indices: dict[str, int] | None = None

    @property
    def inputs(self) -> Requests:
        """The recorded requests in order, read one by one; they can be iterated repeatedly."""
        return Requests(self.exchanges, self._source)

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the recorded outputs of `inputs`.

        Raises:
            InputError: `inputs` is not one of the recorded requests, as a whole and with every value the same.
            ArtifactError: One request was recorded with two different outputs.
        """
        if self.closed:
            raise self._closed_error()
        if self._indices is None:
            self._indices = self._index_requests()
        if self.redacted:
            inputs, _ = Redaction(self.redacted).inputs(inputs)
        index = self._indices.get(request_key(inputs))
        if index is None:
            raise InputError(
                f"inputs: not among the {len(self.exchanges)} requests of {self._source}; a recording has outputs only "
                "for recording.inputs"
            )
        return {name: np.array(array) for name, array in self.exchanges[index].outputs.items()}

    def describe(self) -> str:
        """Return one line with the subject, the number of requests and their source."""
        return f"{self.subject}, {len(self.exchanges)} recorded requests of {self._source}"

    def _index_requests(self) -> dict[str, int]:
        indices: dict[str, int] = {}
        for index in range(len(self.exchanges)):
            exchange = self.exchanges[index]
            first = indices.setdefault(request_key(exchange.inputs), index)
            if first != index and outputs_key(self.exchanges[first].outputs) != outputs_key(exchange.outputs):
                without = f" without what was redacted ({', '.join(self.redacted)})" if self.redacted else ""
                raise ArtifactError(
                    f"requests {first} and {index} of {self._source} are equal{without} but have different outputs: a "
                    "recording holds the outputs of one model"
                )
        return indices


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a recording, to iterate over."""

    exchanges: Sequence[Exchange]
    source: str = "the recording"

    def __len__(self) -> int:
        return len(self.exchanges)

    def __iter__(self) -> Iterator[Inputs]:
        for index in range(len(self.exchanges)):
            exchange = self.exchanges[index]
            check_complete(exchange.redacted, self.source)
            yield exchange.inputs


def request_key(inputs: Inputs) -> str:
    """Return a digest of `inputs`. A mapping of one array is the same request as the array, whatever its name."""
    if isinstance(inputs, Mapping):
        if len(inputs) != 1:
            return digest_of({name: _normalized(array) for name, array in inputs.items()})
        (inputs,) = inputs.values()
    return digest_of(_normalized(inputs))


def outputs_key(outputs: Outputs) -> str:
    """Return a digest of `outputs`, including their names."""
    return digest_of({name: _normalized(array) for name, array in outputs.items()})


def _normalized(array: NDArray[Any]) -> NDArray[Any]:
    """Return text as objects, because files and onnxruntime store it differently."""
    return array.astype(object) if array.dtype.kind in "UT" else np.asarray(array)


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path).absolute()
    if path.suffix not in _SUFFIXES and not path.is_dir():
        raise UsageError(f"{path}: {unknown_choice('kind of recording', path.suffix, _SUFFIXES)}")
    return path


def _exchanges(predictor: Predictor, inputs: Inputs | Iterable[Inputs]) -> Iterator[Exchange]:
    count = 0
    for request in iterate_batches(inputs):
        count += 1
        yield Exchange(request, predictor.predict(request))
    if not count:
        raise InputError("inputs: there is no request to record")


def _sha256(files: Iterable[tuple[str, Path]]) -> str:
    """Return the digest of one file as `sha256sum` prints it; of several, with their names and sizes."""
    several = hashlib.sha256()
    for name, path in files:
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        if not name:
            return content.hexdigest()
        several.update(f"{name}\0{path.stat().st_size}\0".encode() + content.digest())
    return several.hexdigest()
