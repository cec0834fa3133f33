"""Recorded answers as a predictor: of the inputs that it knows, it gives what was answered then."""

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
from pytest_modelserve.parity.recordings.exchange import Exchange, Outputs
from pytest_modelserve.parity.recordings.npz import NpzExchanges, write_npz
from pytest_modelserve.parity.recordings.onnx_test_data import PbExchanges, write_pb
from pytest_modelserve.parity.recordings.parquet import Columns, ParquetExchanges, write_parquet
from pytest_modelserve.serving import Inputs, Predictor
from pytest_modelserve.serving.inputs import Inputs as Inputs_opening, iterate_batches

# One request and its answer.


def request_key(inputs: Inputs) -> str:
    """A digest of `inputs`: a mapping that holds one array is the same request as the array, whatever its name."""
    if isinstance(inputs, Mapping):
        if len(inputs) != 1:
            return digest_of({name: _plain(array) for name, array in inputs.items()})
        (inputs,) = inputs.values()
    return digest_of(_plain(inputs))


def answer_key(outputs: Outputs) -> str:
    """A digest of `outputs`, names included."""
    return digest_of({name: _plain(array) for name, array in outputs.items()})


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Text in one form, however it is stored, because files and onnxruntime store it in different ones."""
    return array.astype(object) if array.dtype.kind in "UT" else np.asarray(array)


class Recording(Predictor):
    """Requests and their answers, to hold any model against: a reference that is not there any more, or never was.

    `assert_output_parity(candidate, recording, recording.inputs, rtol=..., atol=...)` replays all of it, one exchange
    at a time; `recording.exchanges[0].inputs` is the first request. Evidence names it by the sha256 of its files.
    """

    transport = "recorded"

    def __init__(self, subject: Subject, exchanges: Sequence[Exchange], *, source: str = "memory") -> None:
        if not len(exchanges):
            raise ArtifactError(f"the recording {source} holds no request")
        super().__init__(subject)
        self.exchanges = exchanges
        self._source = source
        self._places: dict[str, int] | None = None

    @property
    def inputs(self) -> Requests:
        """The recorded requests in their order, read one by one and as often as they are asked for."""
        return Requests(self.exchanges)

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """The answer that was recorded for `inputs`.

        InputError for inputs that are not among the recorded requests, as whole calls with every value the same;
        ArtifactError where one request was recorded with two answers.
        """
        if self.closed:
            raise self._closed_error()
        if self._places is None:
            self._places = self._found()
        place = self._places.get(request_key(inputs))
        if place is None:
            raise InputError(
                f"these inputs are none of the {len(self.exchanges)} requests of {self._source}: a recording answers "
                "what was recorded, as recording.inputs gives it"
            )
        return {name: np.array(array) for name, array in self.exchanges[place].outputs.items()}

    def describe(self) -> str:
        """One line: the subject, and how many requests were recorded where."""
        return f"{self.subject}, {len(self.exchanges)} recorded requests of {self._source}"

    def _found(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for index, exchange in enumerate(self.exchanges):
            first = places.setdefault(request_key(exchange.inputs), index)
            if first != index and answer_key(self.exchanges[first].outputs) != answer_key(exchange.outputs):
                raise ArtifactError(
                    f"requests {first} and {index} of {self._source} are the same and have different answers: a "
                    "recording holds the answers of one model"
                )
        return places


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a recording, to iterate over."""

    exchanges: Sequence[Exchange]

    def __len__(self) -> int:
        return len(self.exchanges)

    def __iter__(self) -> Iterator[Inputs]:
        for index in range(len(self.exchanges)):
            yield self.exchanges[index].inputs


# Recordings from files and to files, by the kind that the path says.


_SUFFIXES = (".npz", ".parquet", "")
_VARIANT = "recorded"


def record_answers(
    predictor: Predictor, inputs: Inputs_opening | Iterable[Inputs_opening], path: str | os.PathLike[str]
) -> Recording:
    """What `predictor` answers to `inputs`, written to `path` and opened again.

    `inputs` is one request, or an iterable of requests, taken and answered one by one. `path` says the format: `.npz`
    holds everything, `.parquet` arrays with a value for each row, and a folder (no suffix) is ONNX test data, which
    must not exist yet; a file is replaced. Nothing appears before everything is written: an error on the way, the
    predictor's own included, leaves what was there.

    InputError for inputs that hold no request, UsageError for another suffix, and for values that the format lacks.
    """
    path = _checked(path)
    exchanges = _answered(predictor, inputs)
    if path.suffix == ".npz":
        write_npz(path, exchanges, predictor.subject)
    elif path.suffix == ".parquet":
        write_parquet(path, exchanges)
    else:
        write_pb(path, exchanges, predictor.signature)
    return open_recording(path, signature=predictor.signature if path.suffix == "" else None)


def open_recording(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    signature: Signature | None = None,
    inputs: Columns | None = None,
    outputs: Columns | None = None,
    rows: int | None = None,
) -> Recording:
    """The recording at `path`: an .npz or .parquet file, or a folder of ONNX test data.

    The files are hashed, requests are read when they are asked for. `name` is what evidence calls it: the model that
    answered where the file says so, else the stem. `signature` names and types the values of ONNX test data that has no
    model.onnx beside it, and the dtypes that columns of Parquet become. For logs in Parquet, `inputs` and `outputs` say
    which columns are meant, `{"x": ["age", "income"]}` is an array of two columns, and `rows` how many are one call.

    ArtifactError for what is missing, cut short, damaged or holds no request; UsageError for another suffix, and for
    options that the format has no use for.
    """
    path = _checked(path)
    if not path.exists():
        raise ArtifactError(f"cannot read the recording {path}: there is no such file or folder")
    if path.suffix != ".parquet" and (inputs is not None or outputs is not None or rows is not None):
        raise UsageError("inputs, outputs and rows say what columns of Parquet mean: leave them out for other files")
    if rows is not None and rows < 1:
        raise UsageError(f"rows is a whole number of at least 1, not {rows}")
    exchanges: NpzExchanges | ParquetExchanges | PbExchanges
    told = Subject(path.stem)
    if path.suffix == ".npz":
        exchanges = NpzExchanges.of(path)
        told = exchanges.answered_by or told
        sha256 = _sha256([("", path)])
    elif path.suffix == ".parquet":
        exchanges = ParquetExchanges.of(path, inputs=inputs, outputs=outputs, rows=rows, signature=signature)
        sha256 = _sha256([("", path)])
    else:
        exchanges = PbExchanges.of(path, signature)
        sha256 = _sha256(exchanges.files)
    variant = f"{told.variant}, {_VARIANT}" if told.variant else _VARIANT
    return Recording(Subject(name or told.name, variant, sha256), exchanges, source=str(path))


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path).absolute()
    if path.suffix not in _SUFFIXES and not path.is_dir():
        raise UsageError(f"{path}: {unknown_choice('kind of recording', path.suffix, _SUFFIXES)}")
    return path


def _answered(predictor: Predictor, inputs: Inputs_opening | Iterable[Inputs_opening]) -> Iterator[Exchange]:
    count = 0
    for request in iterate_batches(inputs):
        count += 1
        yield Exchange(request, predictor.predict(request))
    if not count:
        raise InputError("there is nothing to record: the inputs hold no request")


def _sha256(files: Iterable[tuple[str, Path]]) -> str:
    """The digest of one file as `sha256sum` prints it; of several with their names and lengths."""
    several = hashlib.sha256()
    for name, path in files:
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        if not name:
            return content.hexdigest()
        several.update(f"{name}\0{path.stat().st_size}\0".encode() + content.digest())
    return several.hexdigest()
