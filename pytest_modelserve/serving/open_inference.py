"""Open Inference Protocol (v2) over HTTP: metadata as a signature, tensors as JSON or as bytes.

Source: github.com/kserve/open-inference-protocol; bytes by its extension "binary_tensor_data".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import EndpointError, InputError
from pytest_modelserve.serving.http_client import HttpClient

_DTYPES = {
    "BOOL": "bool",
    **{f"{kind.upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "BYTES": "str",
}
"""The protocol's types, and their numpy names as in a signature."""
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}
BINARY = "binary_tensor_data"
HEADER_LENGTH = "Inference-Header-Content-Length"

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server tells of a model: its signature, versions, and the sha256 of its file, each if told."""

    signature: Signature | None = None
    versions: tuple[str, ...] = ()
    sha256: str | None = None


class OpenInferenceClient:
    """A model behind the v2 REST interface of a server.

    Args:
        http: The connections to the server.
        prefix: Path before `/v2`.
        model: Name of the model.
        version: Version of the model; "" for the one that the server chooses.
        binary: Whether tensors are sent as bytes; None for a server that offers them.
    """

    transport = "http"

    def __init__(self, http: HttpClient, prefix: str, model: str, version: str, *, binary: bool | None) -> None:
        self.http, self.model, self.version = http, model, version
        self.address = http.origin
        self.root = f"{prefix}/v2"
        self.path = f"{self.root}/models/{quote(model, safe='')}"
        if version:
            self.path += f"/versions/{quote(version, safe='')}"
        self._binary, self._is_binary = binary, bool(binary)
        self._ids = itertools.count(1)

    def is_ready(self, timeout_s: float) -> bool:
        """Return whether the model is ready; EndpointError for a model that the server does not know."""
        answer = self.http.request("GET", f"{self.path}/ready", timeout_s=timeout_s)
        if answer.status == 404:
            self.http.check_status(answer, "GET", f"{self.path}/ready")
        return answer.status == 200

    def describe(self) -> ServedModel:
        """Return what the server tells of the model."""
        found = self.http.json("GET", self.path)
        what = f"{self.address}: the metadata of model {self.model!r}"
        if not isinstance(found, Mapping):
            raise EndpointError(f"{what} are no JSON object, but {_shown(found)}")
        check_model(self, str(found.get("name") or ""))
        if self._binary is None:
            self._is_binary = BINARY in self._extensions()
        versions = found.get("versions")
        return ServedModel(
            signature=signature_of(what, found.get("inputs"), found.get("outputs")),
            versions=tuple(map(str, versions)) if isinstance(versions, list) else (),
            sha256=told_sha256(found.get("parameters")),
        )

    def _extensions(self) -> Sequence[Any]:
        """Return what the server offers beyond the protocol; nothing for a proxy that only knows paths of models."""
        try:
            server = self.http.json("GET", self.root)
        except EndpointError as error:
            if error.status is None:
                raise
            return ()
        found = server.get("extensions") if isinstance(server, Mapping) else None
        return found if isinstance(found, list) else ()

    def infer(self, feed: Mapping[str, NDArray[Any]]) -> tuple[Tensors, str | None]:
        """Return the outputs of one request, and the sha256 of the model's file if the answer tells it."""
        head, parts = self.request(feed)
        headers = {"Content-Type": "application/json"}
        if self._is_binary:
            headers |= {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(parts[0]))}
        path = f"{self.path}/infer"
        answer = self.http.request("POST", path, b"".join(parts), headers)
        self.http.check_status(answer, "POST", path)
        length = answer.headers[HEADER_LENGTH]
        if length is not None and not (length.isdecimal() and int(length) <= len(answer.body)):
            raise EndpointError(
                f"{self.address}: {HEADER_LENGTH} is {length!r}, in an answer of {len(answer.body):,} bytes"
            )
        end = len(answer.body) if length is None else int(length)
        found = self.http.parse(answer.body[:end], "POST", path)
        if not isinstance(found, Mapping) or not isinstance(found.get("outputs"), list):
            raise EndpointError(
                f"{self.address}: the answer of model {self.model!r} has no list `outputs`: {_shown(found)}"
            )
        told = (found.get(key) for key in ("id", "model_name", "model_version"))
        check_answer(self, head["id"], *("" if each is None else str(each) for each in told))  # some send numbers
        return self._outputs(found["outputs"], memoryview(answer.body)[end:]), told_sha256(found.get("parameters"))

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def request(self, feed: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], list[bytes]]:
        """Return the JSON object of a request, and its body: the object as bytes, then the tensors sent as bytes."""
        import msgspec

        tensors: list[dict[str, Any]] = []
        parts = [b""]
        for name, array in feed.items():
            tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(name, array)}
            if self._is_binary:
                parts.append(tensor_bytes(array))
                tensor["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                tensor["data"] = _json_values(name, array)
            tensors.append(tensor)
        head: dict[str, Any] = {"id": str(next(self._ids)), "inputs": tensors}
        if self._is_binary:
            head["parameters"] = {"binary_data_output": True}
        parts[0] = msgspec.json.encode(head)
        return head, parts

    def _outputs(self, outputs: Sequence[Any], raw: memoryview) -> Tensors:
        found: Tensors = {}
        for output in outputs:
            if not isinstance(output, Mapping) or not isinstance(output.get("name"), str):
                raise EndpointError(f"{self.address}: an output of model {self.model!r} has no name: {_shown(output)}")
            name = output["name"]
            what = f"{self.address}: output {name!r} of model {self.model!r}"
            if name in found:
                raise EndpointError(f"{what} stands twice in one answer")
            parameters = output.get("parameters")
            size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
            if size is None:
                found[name] = tensor_of_values(what, output.get("datatype"), output.get("shape"), output.get("data"))
                continue
            if not isinstance(size, int) or not 0 <= size <= len(raw):
                raise EndpointError(f"{what} has binary_data_size {size!r}, and {len(raw):,} bytes are left")
            found[name] = tensor_of_bytes(what, output.get("datatype"), output.get("shape"), bytes(raw[:size]))
            raw = raw[size:]
        return found


# What REST and gRPC share.


def signature_of(what: str, inputs: object, outputs: object) -> Signature | None:
    """Return the signature in a model's metadata; None if the server tells no inputs."""

    def specs(side: str, tensors: object) -> tuple[TensorSpec, ...]:
        try:
            return tuple(
                TensorSpec(str(each["name"]), _dtype(what, each["datatype"]), _declared_shape(each["shape"]))
                for each in tensors or ()  # type: ignore[attr-defined]
            )
        except (KeyError, TypeError, ValueError):
            raise EndpointError(f"{what} have {side} that cannot be read: {_shown(tensors)}") from None

    if not inputs:
        return None
    signature = Signature(specs("inputs", inputs), specs("outputs", outputs))
    for side, found in (("input", signature.inputs), ("output", signature.outputs)):
        names = [spec.name for spec in found]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise EndpointError(f"{what} have the {side} {repeated[0]!r} twice")
    return signature


def check_model(client: Any, name: str) -> None:
    """Raise EndpointError for metadata or an answer of another model; "" is no name."""
    if name not in ("", client.model):
        raise EndpointError(f"{client.address} answered for model {name!r}, and model {client.model!r} was asked")


def check_answer(client: Any, sent: str, found: str, name: str, version: str) -> None:
    """Raise EndpointError for the answer of another request, another model, or another version than was asked for.

    What the server does not tell is "".
    """
    check_model(client, name)
    if client.version and version not in ("", client.version):
        raise EndpointError(
            f"{client.address} answered with version {version!r} of model {client.model!r}, and version "
            f"{client.version!r} was asked"
        )
    if found not in ("", sent):
        raise EndpointError(
            f"{client.address} sent the answer of request {found!r} to request {sent!r}: answers are mixed up"
        )


def told_sha256(parameters: object) -> str | None:
    """Return the parameter `sha256` that a server adds to metadata or answers."""
    found = str(parameters.get("sha256")).lower() if isinstance(parameters, Mapping) else ""
    return found if re.fullmatch("[0-9a-f]{64}", found) else None


def datatype_of(name: str, array: NDArray[Any]) -> str:
    """Return the protocol's type of an array; InputError for a dtype that it lacks."""
    dtype = "str" if array.dtype.kind in "OUT" else array.dtype.name
    if dtype not in _DATATYPES:
        raise InputError(f"input {name!r} has dtype {dtype}, which the Open Inference Protocol lacks")
    return _DATATYPES[dtype]


def _dtype(what: str, datatype: object) -> str:
    if str(datatype) not in _DTYPES:
        raise EndpointError(f"{what}: datatype {datatype!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[str(datatype)]


def _declared_shape(dims: object) -> tuple[int | None, ...]:
    if not isinstance(dims, list):
        raise TypeError
    return tuple(None if int(dim) < 0 else int(dim) for dim in dims)


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 (numpy knows the name afterwards)

    return np.dtype(object if dtype == "str" else dtype)


def _json_values(name: str, array: NDArray[Any]) -> list[Any]:
    """Return the values of an input, row by row; InputError for NaN and infinities, which JSON lacks."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = "" if array.ndim == 0 else f" in row {np.argwhere(~np.isfinite(array))[0][0]}"
        raise InputError(
            f"input {name!r} holds NaN or an infinity{row}, which JSON cannot carry: use the server's gRPC address "
            "(grpc://…), or a server that offers binary tensors"
        )
    values: list[Any] = array.ravel().tolist()
    return values


def tensor_bytes(array: NDArray[Any]) -> bytes:
    """Return the bytes of a tensor: little-endian, row by row; each text after its length."""
    if array.dtype.kind not in "OUT":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(text).encode() for text in array.ravel()]
    return b"".join(part for text in texts for part in (len(text).to_bytes(4, "little"), text))


def _checked_shape(what: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(dim) is int and dim >= 0 for dim in shape):
        raise EndpointError(f"{what} has the shape {_shown(shape)}")
    return tuple(shape)


def _reshaped(what: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.size != np.prod(shape, dtype=object):
        raise EndpointError(f"{what} has shape {_shown(list(shape))} and {array.size:,} values")
    try:
        return array.reshape(shape)
    except ValueError as error:  # more axes than numpy has, or a size beyond its integers beside one of 0
        raise EndpointError(f"{what} has shape {_shown(list(shape))}, which no array has: {error}") from None


def tensor_of_bytes(what: str, datatype: object, shape: object, raw: bytes) -> NDArray[Any]:
    """Return a tensor that was sent as bytes; EndpointError if they do not fit its type and shape."""
    dtype, dims = _dtype(what, datatype), _checked_shape(what, shape)
    if dtype == "str":
        return _reshaped(what, _texts(what, raw), dims)
    numbers = _numpy_dtype(dtype).newbyteorder("<")
    if len(raw) % numbers.itemsize:
        raise EndpointError(f"{what} has {len(raw):,} bytes, which are no whole number of {datatype} values")
    values = np.frombuffer(raw, numbers).astype(numbers.newbyteorder("="))  # a copy, which may be written to
    return _reshaped(what, values, dims)


def _texts(what: str, raw: bytes) -> NDArray[np.object_]:
    found, begin = [], 0
    while begin < len(raw):
        end = begin + 4 + int.from_bytes(raw[begin : begin + 4], "little")
        if end > len(raw):
            raise EndpointError(f"{what} has a text that ends after its bytes")
        found.append(raw[begin + 4 : end].decode("utf-8", "backslashreplace"))
        begin = end
    return np.array(found, dtype=object)


def tensor_of_values(what: str, datatype: object, shape: object, data: object) -> NDArray[Any]:
    """Return a tensor that was sent as JSON values, flat or nested; null is NaN.

    EndpointError if the values do not fit its type and shape.
    """
    dtype, dims = _dtype(what, datatype), _checked_shape(what, shape)
    wanted = _numpy_dtype(dtype)
    if not isinstance(data, list):
        raise EndpointError(f"{what} has no list `data`: {_shown(data)}")
    try:
        with np.errstate(all="ignore"):  # 1e39 becomes infinite in FP32, as in the server's own arithmetic
            array, fits = _cast(np.asarray(data, object if dtype == "str" else None), wanted)
    except (TypeError, ValueError, OverflowError):  # ragged lists, numbers that are too long
        fits = False
    if not fits:
        raise EndpointError(f"{what} has values that are no {datatype}: {_shown(data)}")
    return _reshaped(what, array, dims)


def _cast(values: NDArray[Any], wanted: np.dtype[Any]) -> tuple[NDArray[Any], bool]:
    """Return values of JSON as another dtype, and whether they are of its kind, and integers unchanged."""
    if wanted.kind == "O":
        return values, all(isinstance(each, str) for each in values.flat)
    if values.dtype.kind == "O" and wanted.kind in "fV":  # null, which is how many servers write NaN
        fits = all(each is None or type(each) in (int, float) for each in values.flat)
        return np.array([np.nan if each is None else each for each in values.flat] if fits else [], wanted), fits
    array = values.astype(wanted)
    kinds = {"f": "fiu", "V": "fiu", "b": "b"}.get(wanted.kind, "iu")
    return array, values.size == 0 or (values.dtype.kind in kinds and (kinds != "iu" or bool((array == values).all())))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
