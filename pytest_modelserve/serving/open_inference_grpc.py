"""Open Inference Protocol (v2) over gRPC; the extra `grpc` installs what it needs.

`open_inference_pb2.py` is generated from `open_inference.proto`; old generators make code for old protobufs, too:

    pip install grpcio-tools==1.67.1
    python -m grpc_tools.protoc -Ipytest_modelserve/serving --python_out=pytest_modelserve/serving open_inference.proto
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult

import grpc
from numpy.typing import NDArray

from pytest_modelserve.errors import EndpointError, UsageError
from pytest_modelserve.serving.http_client import Redaction, pause_s, tls_settings
from pytest_modelserve.serving.open_inference import (
    ServedModel,
    Tensors,
    check_answer,
    check_model,
    datatype_of,
    signature_of,
    tensor_bytes,
    tensor_of_bytes,
    tensor_of_values,
    told_sha256,
)

if TYPE_CHECKING:
    from pytest_modelserve.serving.endpoint import Endpoint

_SERVICE = "/inference.GRPCInferenceService"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcClient:
    """A model behind the v2 gRPC interface of a server; one channel carries the calls of all threads."""

    transport = "grpc"

    def __init__(self, endpoint: Endpoint, url: SplitResult, model: str, version: str) -> None:
        from pytest_modelserve.serving import open_inference_pb2 as messages

        self._messages: Any = messages
        self.model, self.version = model, version
        self.address = f"{url.scheme}://{url.netloc}"
        headers = endpoint.expanded_headers()
        self._metadata = tuple(_metadata(name.lower(), value) for name, value in headers.items())
        self._redaction = Redaction(headers.values())
        self._timeout_s, self._retries = endpoint.timeout_s, endpoint.retries
        self._ids = itertools.count(1)
        options = [
            ("grpc.max_receive_message_length", min(endpoint.max_bytes, 2**31 - 1)),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        if url.scheme == "grpcs":
            if not endpoint.verify:
                raise UsageError("verify=False is for https: gRPC verifies every certificate, give ca_file=")
            tls_settings(endpoint.ca_file, verify=True)  # refuses what is no certificate
            ca = None if endpoint.ca_file is None else Path(endpoint.ca_file).read_bytes()
            self._channel = grpc.secure_channel(url.netloc, grpc.ssl_channel_credentials(ca), options)
        else:
            self._channel = grpc.insecure_channel(url.netloc, options)
        self._methods = {
            name: self._channel.unary_unary(
                f"{_SERVICE}/{name}",
                request_serializer=getattr(messages, f"{name}Request").SerializeToString,
                response_deserializer=getattr(messages, f"{name}Response").FromString,
            )
            for name in ("ModelReady", "ModelMetadata", "ModelInfer")
        }

    def is_ready(self, timeout_s: float) -> bool:
        """Return whether the model is ready."""
        return bool(self._call("ModelReady", timeout_s, name=self.model, version=self.version).ready)

    def describe(self) -> ServedModel:
        """Return what the server tells of the model."""
        found = self._call("ModelMetadata", name=self.model, version=self.version)
        check_model(self, found.name)
        inputs, outputs = (
            [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in side]
            for side in (found.inputs, found.outputs)
        )
        return ServedModel(
            signature=signature_of(f"{self.address}: the metadata of model {self.model!r}", inputs, outputs),
            versions=tuple(found.versions),
        )

    def infer(self, feed: Mapping[str, NDArray[Any]]) -> tuple[Tensors, str | None]:
        """Return the outputs of one request, and the sha256 of the model's file if the answer tells it."""
        number = str(next(self._ids))
        tensors = [
            {"name": name, "datatype": datatype_of(name, array), "shape": array.shape} for name, array in feed.items()
        ]
        raw = [tensor_bytes(array) for array in feed.values()]
        found = self._call(
            "ModelInfer",
            model_name=self.model,
            model_version=self.version,
            id=number,
            inputs=tensors,
            raw_input_contents=raw,
        )
        check_answer(self, number, found.id, found.model_name, found.model_version)
        if found.raw_output_contents and len(found.raw_output_contents) != len(found.outputs):
            raise EndpointError(
                f"{self.address}: an answer of model {self.model!r} has {len(found.outputs)} outputs, and the bytes of "
                f"{len(found.raw_output_contents)}"
            )
        outputs: Tensors = {}
        for index, output in enumerate(found.outputs):
            what = f"{self.address}: output {output.name!r} of model {self.model!r}"
            if output.name in outputs:
                raise EndpointError(f"{what} stands twice in one answer")
            shape = list(output.shape)
            if found.raw_output_contents:
                raw_values = found.raw_output_contents[index]
                outputs[output.name] = tensor_of_bytes(what, output.datatype, shape, raw_values)
                continue
            values = list(getattr(output.contents, _CONTENTS.get(output.datatype, "bytes_contents")))
            if output.datatype == "BYTES":
                values = [each.decode("utf-8", "backslashreplace") for each in values]
            outputs[output.name] = tensor_of_values(what, output.datatype, shape, values)
        told = {name: value.string_param for name, value in found.parameters.items()}
        return outputs, told_sha256(told)

    def _call(self, method: str, timeout_s: float = math.inf, **fields: Any) -> Any:
        request = getattr(self._messages, f"{method}Request")(**fields)
        limit_s = min(timeout_s, self._timeout_s)
        for attempt in itertools.count():
            try:
                return self._methods[method](request, timeout=limit_s, metadata=self._metadata)
            except grpc.RpcError as error:
                if attempt == self._retries or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise EndpointError(self._failure(error, method, limit_s)) from None
            except ValueError:  # what grpc raises for a channel that is closed
                raise UsageError(f"the connection to {self.address} is closed") from None
            time.sleep(pause_s(attempt))
        raise AssertionError

    def _failure(self, error: Any, method: str, limit_s: float) -> str:
        code, reason = error.code(), self._redaction.quoted(error.details() or "")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{self.address} did not answer {method} within {limit_s:.3g} s (timeout_s)"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"no server answers {method} at {self.address}: {reason}"
        return f"{self.address} answered {method} with status {code.name}: {reason}"

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _metadata(name: str, value: str) -> tuple[str, str]:
    """Return a header as gRPC sends it; UsageError for what gRPC does not send as text."""
    if not re.fullmatch(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)", name) or not re.fullmatch(r"[ -~]*", value):
        raise UsageError(
            f"header {name!r} cannot be sent by gRPC: a name has letters, digits, '_', '.' and '-', and does not begin "
            "with 'grpc-' or end with '-bin'; a value has printable ASCII characters"
        )
    return name, value
