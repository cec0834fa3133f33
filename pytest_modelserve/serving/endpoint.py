"""Endpoints: models behind a server as predictors, by the Open Inference Protocol or by a user's own JSON."""

from __future__ import annotations

import json
import os
import re
import string
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Signature
from pytest_modelserve.errors import EndpointError, InputError, ModelServeError, UsageError, require
from pytest_modelserve.evidence import Subject
from pytest_modelserve.progress import progress
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.http_client import HttpClient, Redaction, tls_settings
from pytest_modelserve.serving.inputs import Inputs, as_batch, check_positive, check_time_limit, checked_feed
from pytest_modelserve.serving.open_inference import OpenInferenceClient, ServedModel, Tensors
from pytest_modelserve.serving.predictor import Predictor, is_url

_V2 = re.compile(r"(?P<prefix>.*?)/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?(/infer)?/?")
_V1 = re.compile(r".*/v1/models/(?P<model>[^/:]+)(:predict)?")
_GRPC = re.compile(r"/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?/?")
_FORMS = (
    "http://host:8080/v2/models/NAME (or …/versions/VERSION), grpc://host:8081/NAME, "
    "http://host/v1/models/NAME:predict, or any address with encode= and decode= of ms.Endpoint"
)
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model behind a server, for `ms.serve` where more than its URL is needed.

    The URL says the protocol: `http://host:8080/v2/models/NAME` and `grpc://host:8081/NAME` (extra `grpc`) are the Open
    Inference Protocol, each also with `/versions/VERSION`; `http://host/v1/models/NAME:predict` is that of KServe v1.
    `https` and `grpcs` use TLS. Any other server is reached by `encode` and `decode`.

    Args:
        url: The address of the model, without credentials.
        headers: Headers of every request. `$NAME` in a value is the environment variable NAME: `{"Authorization":
            "Bearer $MODEL_TOKEN"}`; `$$` is a dollar sign. Values appear in no evidence, message or report.
        timeout_s: The longest that one request may take, in seconds.
        ready_timeout_s: How long `ms.serve` waits for the model to be ready, in seconds; 0 does not wait.
        retries: How often a request is sent again if the connection fails or the server is not available (status 429,
            502, 503, 504; UNAVAILABLE), after the seconds of `Retry-After` if the server sends it. Only for a model
            whose answers do not depend on earlier requests.
        ca_file: Certificates in PEM of an authority of your own.
        verify: Whether the server's certificate is verified; gRPC always verifies it.
        max_bytes: The longest answer that is read.
        binary: Whether tensors are sent as bytes instead of JSON; None for a server that offers it.
        signature: Inputs and outputs for a server that does not tell them; `ms.open_artifact(path).signature` has them.
        encode: A function from the inputs of `predict` to a JSON value, or to the bytes of the request.
        decode: A function from the JSON value of an answer to outputs: an array or lists of numbers, or a mapping from
            names to them, or a tuple of them.

    Raises:
        UsageError: The URL has another form or holds credentials, a variable is not set, or a setting is out of range.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.Endpoint("http://127.0.0.1:8080/v2/models/digits", timeout_s=2)
        Endpoint('http://127.0.0.1:8080/v2/models/digits')
        >>> scorer = ms.Endpoint(
        ...     "http://127.0.0.1:8000/score",
        ...     encode=lambda rows: {"rows": rows.tolist()},
        ...     decode=lambda answer: {"score": answer["scores"]},
        ... )
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    timeout_s: float = 30.0
    ready_timeout_s: float = 0.0
    retries: int = 0
    ca_file: str | os.PathLike[str] | None = None
    verify: bool = True
    max_bytes: int = 256 << 20
    binary: bool | None = None
    signature: Signature | None = None
    encode: Callable[[Any], Any] | None = field(default=None, repr=False)
    decode: Callable[[Any], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        split_url(self.url)
        check_time_limit("timeout_s", self.timeout_s)
        check_positive("max_bytes", self.max_bytes, "bytes")
        if self.ready_timeout_s:
            check_time_limit("ready_timeout_s", self.ready_timeout_s)
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise UsageError(f"retries must be a whole number of at least 0; got {self.retries!r}")
        if (self.encode, self.decode) != (None, None) and not (callable(self.encode) and callable(self.decode)):
            raise UsageError("encode and decode are two functions: give both, or neither for a protocol of the URL")
        if not isinstance(self.headers, Mapping):
            raise UsageError(f"headers must be a mapping from names to values; got {type(self.headers).__name__}")
        try:
            self.expanded_headers()
        except UsageError as error:
            raise error.with_traceback(None) from None  # `pytest --showlocals` would print the values of other headers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown_url(self.url)!r})"

    def expanded_headers(self) -> dict[str, str]:
        """Return the headers with the values of environment variables; UsageError for one that is not set."""
        found = {}
        for name, value in self.headers.items():
            try:
                found[name] = string.Template(value).substitute(os.environ)
            except KeyError as error:
                raise UsageError(
                    f"header {name!r} needs the environment variable {error.args[0]}, which is not set"
                ) from None
            except (ValueError, TypeError):  # without the value, which may be a secret
                raise UsageError(
                    f"header {name!r} must be text, with $NAME for a variable and $$ for a dollar"
                ) from None
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", str(name)) or re.search(
                r"[\r\n\0]|[^\x00-\xff]", found[name]
            ):
                raise UsageError(
                    f"header {name!r} has characters that HTTP does not allow in a header, such as a line break"
                )
        return found


class Client(Protocol):
    """One protocol of a server: what it tells of the model, and its answers."""

    transport: Any
    address: str
    model: str

    def is_ready(self, timeout_s: float) -> bool:
        """Return whether the model is ready; EndpointError if the server does not say so within the time limit."""

    def describe(self) -> ServedModel:
        """Return what the server tells of the model."""

    def infer(self, feed: Any) -> tuple[Tensors, str | None]:
        """Return the outputs of one request, and the sha256 of the model's file if the answer tells it."""

    def close(self) -> None:
        """Close the connections."""


class EndpointPredictor(Predictor):
    """A model behind a server. Thread-safe: each call in flight has a connection of its own.

    Attributes:
        endpoint: The settings that it was served with.
        served: What the server tells of the model.
        client: The protocol.
    """

    def __init__(self, endpoint: Endpoint, *, name: str | None = None, variant: str | None = None) -> None:
        url = split_url(endpoint.url)
        self.endpoint = endpoint
        self._redaction = Redaction(endpoint.expanded_headers().values())
        with ExitStack() as stack:
            try:
                self.client = _client(endpoint, url)
                stack.callback(self.client.close)
                self.transport = self.client.transport
                self._wait_until_ready()
                self.served = self.client.describe()
            except ModelServeError as error:
                raise self._without_secrets(error) from None
            stack.pop_all()
        model = self.client.model
        subject = Subject(
            model if name is None else name, url.netloc if variant is None else variant, self.served.sha256
        )
        super().__init__(subject, endpoint.signature or self.served.signature)
        self._is_own_json = endpoint.encode is not None

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the outputs of one request, in the order of the answer.

        Raises:
            InputError: The inputs do not match the signature, or cannot be sent.
            EndpointError: The server does not answer within the time limit, or its answer cannot be used.
            UsageError: The predictor is closed.
        """
        return self.answer(inputs)[0]

    def answer(self, inputs: Inputs) -> tuple[dict[str, NDArray[Any]], str | None]:
        """Return the outputs as `predict` does, and the sha256 of the model's file if the answer tells it."""
        if self.closed:
            raise self._closed_error()
        feed = self._feed(inputs)
        try:
            outputs, sha256 = self.client.infer(feed)
        except ModelServeError as error:
            raise self._without_secrets(error) from None
        if not outputs:
            raise EndpointError(f"{self.client.address}: an answer of model {self.client.model!r} has no outputs")
        return outputs, sha256

    def _without_secrets(self, error: ModelServeError) -> ModelServeError:
        """Return an error without values of headers, which a server may send back wherever an error quotes it.

        It has no traceback: `pytest --showlocals` prints variables, and some hold headers or what a server sent.
        """
        error.args = (self._redaction(str(error)),)
        return error.with_traceback(None)

    def _feed(self, inputs: Inputs) -> Any:
        if self.signature is not None:
            feed = checked_feed(inputs, self.signature)
            return next(iter(feed.values())) if self._is_own_json and not isinstance(inputs, Mapping) else feed
        batch = as_batch(inputs)
        if self.transport == "json":
            return batch.native if isinstance(batch, Frame) and self._is_own_json else _arrays(batch)
        if not isinstance(batch, Mapping) or isinstance(batch, Frame):
            raise InputError(
                f"{self.subject} does not tell its inputs: pass a mapping from their names to arrays, or give "
                "signature= to ms.Endpoint"
            )
        return batch

    def _wait_until_ready(self) -> None:
        limit_s = self.endpoint.ready_timeout_s
        if not limit_s:
            return
        deadline, last = time.monotonic() + limit_s, "it is not ready"

        def tries() -> Iterable[int]:
            number = 0
            while time.monotonic() < deadline:
                yield number
                number += 1
                time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))

        for _ in progress(tries(), f"waiting for {self.client.address}"):
            try:
                if self.client.is_ready(max(_POLL_S, deadline - time.monotonic())):
                    return
                last = "it says that it is not ready"
            except EndpointError as error:
                last = str(error)
        raise EndpointError(
            f"model {self.client.model!r} at {self.client.address} was not ready within ready_timeout_s={limit_s:g}: "
            f"{last}"
        )

    def describe(self) -> str:
        """Return one line: the subject, its address, and what the server tells of its versions."""
        versions = f", versions {', '.join(self.served.versions)}" if self.served.versions else ""
        return f"{self.subject}, {self.transport} endpoint {shown_url(self.endpoint.url)}{versions}"

    def close(self) -> None:
        """Close the connections to the server."""
        super().close()
        self.client.close()


def split_url(url: str) -> SplitResult:
    """Return the parts of the URL of an endpoint; UsageError for one that cannot be used, or that holds credentials."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        raise UsageError(f"url {shown_url(url)!r} is no address: give {_FORMS}") from None
    if not is_url(url) or not parts.hostname or not re.fullmatch(r"[!-~]+", url):
        raise UsageError(f"url {shown_url(url)!r} is no address of a model in ASCII without spaces: give {_FORMS}")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"url {shown_url(url)!r} holds credentials, which would appear in reports: give them as headers= of "
            'ms.Endpoint, {"Authorization": "Bearer $NAME"} with the name of an environment variable'
        )
    return parts


def shown_url(url: str) -> str:
    """Return a URL without what may be a secret: credentials, query and fragment."""
    return re.sub(r"(?<=://)[^/?#]*@", "", str(url)).partition("?")[0].partition("#")[0]


def _client(endpoint: Endpoint, url: SplitResult) -> Client:
    if url.scheme in ("grpc", "grpcs"):
        found = _GRPC.fullmatch(url.path)
        if not found:
            raise UsageError(f"url {shown_url(endpoint.url)!r} names no model: give grpc://host:8081/NAME")
        if endpoint.encode is not None:
            raise UsageError("encode and decode are for HTTP: remove them, or give an address of http or https")
        require("grpc", "an endpoint by gRPC", extra="grpc")
        from pytest_modelserve.serving.open_inference_grpc import GrpcClient

        return GrpcClient(endpoint, url, unquote(found["model"]), unquote(found["version"] or ""))
    v1, v2 = _V1.fullmatch(url.path), _V2.fullmatch(url.path)
    if endpoint.encode is None and ((not v1 and not v2) or url.query):
        raise UsageError(f"url {shown_url(endpoint.url)!r} names no model, or has a query: give {_FORMS}")
    http = HttpClient(
        url,
        headers=endpoint.expanded_headers(),
        timeout_s=endpoint.timeout_s,
        retries=endpoint.retries,
        max_bytes=endpoint.max_bytes,
        tls=tls_settings(endpoint.ca_file, verify=endpoint.verify) if url.scheme == "https" else None,
    )
    if endpoint.encode is None and v2:
        model, version = unquote(v2["model"]), unquote(v2["version"] or "")
        return OpenInferenceClient(http, v2["prefix"], model, version, binary=endpoint.binary)
    if endpoint.encode is None and v1:
        path = url.path if url.path.endswith(":predict") else f"{url.path}:predict"
        return JsonClient(
            http, path, unquote(v1["model"]), _instances, _predictions, ready=path.removesuffix(":predict")
        )
    assert endpoint.encode is not None
    assert endpoint.decode is not None
    path = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
    model = unquote(url.path.rstrip("/").rpartition("/")[2]) or url.netloc
    return JsonClient(http, path, model, endpoint.encode, endpoint.decode)


class JsonClient:
    """A model behind JSON of any shape: `encode` makes the request, `decode` makes outputs of the answer."""

    transport = "json"

    def __init__(
        self,
        http: HttpClient,
        path: str,
        model: str,
        encode: Callable[[Any], Any],
        decode: Callable[[Any], Any],
        *,
        ready: str | None = None,
    ) -> None:
        self.http, self.path, self.model = http, path, model
        self.address = http.origin
        self._encode, self._decode, self._ready = encode, decode, ready

    def is_ready(self, timeout_s: float) -> bool:
        """Return whether the model is ready; without a path that tells it, whether the server answers."""
        answer = self.http.request("GET", self._ready or "/", timeout_s=timeout_s)
        return answer.status == 200 if self._ready else answer.status not in (502, 503, 504)

    def describe(self) -> ServedModel:
        """Return nothing: there is no place for it in the protocol."""
        return ServedModel()

    def infer(self, feed: Any) -> tuple[Tensors, None]:
        """Return the outputs that `decode` makes of the answer, as arrays."""
        value = self._encode(feed)
        try:
            body = value if isinstance(value, bytes) else json.dumps(value, allow_nan=False, default=_listed).encode()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the request to {self.address} is no JSON: {error}. JSON has no NaN or infinity: let encode= of "
                "ms.Endpoint return what the server reads, as bytes if need be"
            ) from None
        answer = self.http.request("POST", self.path, body, {"Content-Type": "application/json"})
        self.http.check_status(answer, "POST", self.path)
        found = self.http.parse(answer.body, "POST", self.path)
        try:
            outputs = self._decode(found)
            if outputs is None:
                raise TypeError("it returned None")
            if not isinstance(outputs, Mapping):
                is_one = not isinstance(outputs, tuple)
                outputs = {"output": outputs} if is_one else {f"output_{i}": each for i, each in enumerate(outputs)}
            return {str(name): _decoded(values) for name, values in outputs.items()}, None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = self.http.redaction.quoted(f"{type(error).__name__}: {error}")
            raise EndpointError(
                f"the answer of {self.address} to POST {self.path.partition('?')[0]} is not what decode expects "
                f"({reason}): {self.http.redaction.quoted(answer.body)}"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self.http.close()


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no counterpart")


def _decoded(values: Any) -> NDArray[Any]:
    """Return values of JSON as an array; null is NaN."""
    array = np.array(values)
    return array.astype(np.float64) if array.dtype.kind == "O" else array


def _arrays(batch: Any) -> Any:
    return {name: batch[name] for name in batch} if isinstance(batch, Frame) else batch


def _instances(inputs: Any) -> dict[str, Any]:
    """Return a request of KServe v1: one instance a row, with names if the model has several inputs."""
    if not isinstance(inputs, Mapping):
        return {"instances": np.asarray(inputs).tolist()}
    if len(inputs) == 1:
        return {"instances": np.asarray(next(iter(inputs.values()))).tolist()}
    columns = {name: np.asarray(array).tolist() for name, array in inputs.items()}
    return {"instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _predictions(answer: Any) -> Any:
    """Return the outputs of an answer of KServe v1: `predictions`, or the names of its rows."""
    rows = answer["predictions"]
    if not isinstance(rows, list):
        raise TypeError("`predictions` is no list")
    if rows and isinstance(rows[0], Mapping):
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {"predictions": np.array(rows)}
