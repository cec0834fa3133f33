"""Recordings as ONNX test data: a folder `test_data_set_0` with `input_0.pb`, `output_0.pb` and so on for each request.

The files do not say whether they hold tensors, sequences, maps or optional values; older ones lack names. Both come
from the model (`model.onnx` in the same folder) or from a signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._files import new_folder
from pytest_modelserve.artifacts import Signature, TensorSpec, open_artifact
from pytest_modelserve.artifacts.metadata import elem_type
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.parity.recordings.exchange import Exchange, StoredExchanges
from pytest_modelserve.serving.onnx_predictor import as_arrays, as_value, part_names

if TYPE_CHECKING:
    from google.protobuf.message import Message


def proto_of(spec: TensorSpec, value: Any) -> Message:
    """Return the named protobuf message for `value` of type `spec.dtype` ("" for a tensor of any dtype)."""
    import onnx

    kind, _, rest = spec.dtype.rpartition(")")[0].partition("(")
    if kind == "sequence":
        return _sequence(spec.name, rest, value)
    if kind == "map":
        return _map(spec.name, rest, value)
    if kind == "optional":
        return _optional(spec.name, rest, value)
    array = np.asarray(value)
    return onnx.numpy_helper.from_array(array.astype(object) if array.dtype.kind in "UT" else array, spec.name)


def value_of(path: Path, spec: TensorSpec | None) -> tuple[str, Any]:
    """Return the name and value in the file at `path`, of the type of `spec` (a tensor without one).

    ArtifactError if the file is damaged or holds another type.
    """
    import onnx
    from google.protobuf.message import DecodeError

    kind = spec.dtype.partition("(")[0] if spec is not None and not spec.is_tensor else ""
    try:
        content = path.read_bytes()
        if kind == "sequence":
            sequence = onnx.SequenceProto.FromString(content)
            return sequence.name, _plain(onnx.numpy_helper.to_list(sequence))
        if kind == "optional":
            optional = onnx.OptionalProto.FromString(content)
            return optional.name, _plain(onnx.numpy_helper.to_optional(optional))
        if kind == "map":
            pairs = onnx.MapProto.FromString(content)
            return pairs.name, _plain(onnx.numpy_helper.to_dict(pairs))
        tensor = onnx.TensorProto.FromString(content)
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise ValueError("it has no element type")
        return tensor.name, _plain(onnx.numpy_helper.to_array(tensor))
    except (DecodeError, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        hint = "" if spec is not None else "; other types need model.onnx in the same folder, or signature="
        raise ArtifactError(
            f"cannot read {path} as {spec.dtype if spec is not None else 'a tensor'}: it is truncated, damaged or "
            f"of another type ({error}){hint}"
        ) from error


def _plain(value: Any) -> Any:
    """Return `value` with all text as str objects: onnx returns some as bytes."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return np.array([_text(item) for item in value.ravel()], dtype=object).reshape(value.shape)
    return value


def _text(item: Any) -> Any:
    return item.decode() if isinstance(item, bytes) else item


def _sequence(name: str, inner: str, items: Sequence[Any]) -> Message:
    import onnx

    proto = onnx.SequenceProto(name=name)
    if inner.startswith("map("):
        proto.elem_type = onnx.SequenceProto.MAP
        proto.map_values.extend(_map("", inner[len("map(") : -1], item) for item in items)
    else:
        proto.elem_type = onnx.SequenceProto.TENSOR
        proto.tensor_values.extend(proto_of(TensorSpec("", inner, None), item) for item in items)
    return proto


def _map(name: str, pair: str, values: Mapping[Any, Any]) -> Message:
    import onnx

    key_dtype, value_dtype = pair.split(", ", 1)
    kind = np.dtype(object if value_dtype == "str" else value_dtype)
    proto = onnx.MapProto(name=name, key_type=elem_type(key_dtype))
    if key_dtype == "str":
        proto.string_keys.extend(key.encode() for key in values)
    else:
        proto.keys.extend(values)
    proto.values.CopyFrom(_sequence("", "", [np.array(value, dtype=kind) for value in values.values()]))
    return proto


def _optional(name: str, inner: str, value: Any) -> Message:
    import onnx

    proto = onnx.OptionalProto(name=name, elem_type=onnx.OptionalProto.UNDEFINED)
    if value is None:
        return proto
    held = proto_of(TensorSpec(name, inner, None), value)
    if isinstance(held, onnx.SequenceProto):
        proto.elem_type = onnx.OptionalProto.SEQUENCE
        proto.sequence_value.CopyFrom(held)
    else:
        proto.elem_type = onnx.OptionalProto.TENSOR
        proto.tensor_value.CopyFrom(held)
    return proto


_SET = re.compile(r"test_data_set_(\d+)")
_FILE = re.compile(r"(input|output)_(\d+)\.pb")


def write_onnx_test_data(path: Path, exchanges: Iterable[Exchange], signature: Signature | None) -> None:
    """Write `exchanges`, taken one by one, as a new folder that appears complete.

    `signature` gives the order of the files and the arrays that form a sequence, a map or an optional value. Without it
    every array is a tensor, in the order of the mapping.
    """
    with new_folder(path) as folder:
        for index, exchange in enumerate(exchanges):
            data_set = folder / f"test_data_set_{index}"
            data_set.mkdir()
            sides = (
                ("input", exchange.inputs, signature.inputs if signature else ()),
                ("output", exchange.outputs, signature.outputs if signature else ()),
            )
            for side, arrays, specs in sides:
                for place, proto in enumerate(_protos(arrays, specs)):
                    (data_set / f"{side}_{place}.pb").write_bytes(proto.SerializeToString(deterministic=True))


def _protos(arrays: NDArray[Any] | Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> Iterator[Message]:
    if not isinstance(arrays, Mapping):
        yield proto_of(TensorSpec(specs[0].name if specs else "", "", None), arrays)
        return
    left = dict(arrays)
    for spec in specs:
        parts = part_names(spec, left) if not spec.is_tensor else [spec.name] if spec.name in left else []
        if parts:
            yield proto_of(spec, as_value(spec, left) if not spec.is_tensor else left[spec.name])
        for part in parts:
            del left[part]
    for name, array in left.items():
        yield proto_of(TensorSpec(name, "", None), array)


@dataclass(frozen=True, slots=True)
class OnnxTestDataExchanges(StoredExchanges):
    """The exchanges of a folder of ONNX test data."""

    folder: Path
    sets: tuple[Path, ...]
    signature: Signature | None

    @classmethod
    def of(cls, folder: Path, signature: Signature | None) -> OnnxTestDataExchanges:
        """Open a folder of data sets, or one data set; its model stands in for a missing `signature`.

        ArtifactError if there is no data set, or a file is missing.
        """
        sets = (folder,) if _SET.fullmatch(folder.name) else tuple(sorted(_sets(folder), key=_number))
        if not sets:
            raise ArtifactError(f"cannot read the recording {folder}: there is no test_data_set_0 in it")
        model = (folder.parent if sets == (folder,) else folder) / "model.onnx"
        if signature is None and model.is_file():
            signature = open_artifact(model).signature
        for data_set in sets:
            for side in ("input", "output"):
                _check_complete(data_set, side)
        return cls(folder, sets, signature)

    @property
    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every file with its name in the recording, in order."""
        for index, data_set in enumerate(self.sets):
            for side in ("input", "output"):
                for place, path in enumerate(_files(data_set, side)):
                    yield f"{index}/{side}_{place}", path

    def __len__(self) -> int:
        return len(self.sets)

    def read(self, index: int) -> Exchange:
        """Return the exchange at `index`."""
        known = self.signature or Signature((), ())
        inputs = self._read(index, "input", known.inputs)
        return Exchange(inputs[""] if list(inputs) == [""] else inputs, self._read(index, "output", known.outputs))

    def _read(self, index: int, side: str, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        files = _files(self.sets[index], side)
        for place, path in enumerate(files):
            spec = specs[place] if place < len(specs) else None
            name, value = value_of(path, spec)
            if spec is None:
                unnamed = "" if side == "input" and len(files) == 1 else f"{side}_{place}"
                arrays[name or unnamed] = np.asarray(value)
            else:
                arrays.update(as_arrays(spec, value))
        return arrays


def _sets(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_dir() and _SET.fullmatch(path.name))


def _number(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _files(data_set: Path, side: str) -> list[Path]:
    found = {}
    for path in data_set.iterdir():
        match = _FILE.fullmatch(path.name)
        if match and match[1] == side:
            found[int(match[2])] = path
    return [found[place] for place in sorted(found)]


def _check_complete(data_set: Path, side: str) -> None:
    places = [int(path.stem.rpartition("_")[2]) for path in _files(data_set, side)]
    missing = next((place for place in range(max(places, default=-1) + 1) if place not in places), None)
    if side == "output" and not places:
        missing = 0
    if missing is not None:
        raise ArtifactError(f"cannot read the recording {data_set}: {side}_{missing}.pb is missing")
