"""Invalid requests of the Open Inference Protocol, as a table: each is a change of a valid request."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

_UNKNOWN = "modelserve_unknown"
_PLACE = "@number@"
"""Stands for a number that Python's JSON does not write."""
# Servers accept 8 to 64 KiB of a header, and 100 to 1,000 of them.
_LONG_HEADER = "x" * (1 << 20)
_MANY_HEADERS = "".join(f"X-{number}: 1\r\n" for number in range(2_000))
_DEPTH = 100_000

Accepts = Literal["4xx", "4xx or no rows", "4xx or closed", "nothing"]
"""What is right: status 400 to 499 with a reason, or outputs without rows; or a closed connection, where bytes cannot
be told apart as requests; or nothing, as the client is gone."""


@dataclass(slots=True)
class Request:
    """A request to change: `content` is its JSON object, sent unless there is a `body`.

    `root` is the path of the protocol, and `path` that of the request. `fixed_axis` is an axis of the first input whose
    size the model fixes, None if there is none. `start` replaces the first line, `lines` are headers that are sent as
    they are, and `sent` is the proportion of the body that is sent.
    """

    root: str
    path: str
    content: Any
    headers: dict[str, str]
    fixed_axis: int | None = None
    method: str = "POST"
    start: str = ""
    lines: str = ""
    length: str | None = None
    body: bytes | None = None
    sent: float = 1.0

    @property
    def first(self) -> dict[str, Any]:
        """The first input."""
        tensor: dict[str, Any] = self.content["inputs"][0]
        return tensor

    @property
    def is_text(self) -> bool:
        """Whether the first input is text."""
        return bool(self.first["datatype"] == "BYTES")

    def to_bytes(self) -> bytes:
        """Return the bytes on the wire."""
        body = json.dumps(self.content).encode() if self.body is None else self.body
        headers = {**self.headers, "Content-Length": str(len(body)) if self.length is None else self.length}
        head = self.start or f"{self.method} {self.path} HTTP/1.1"
        head += "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value) + self.lines
        return f"{head}\r\n".encode("latin-1") + body[: int(len(body) * self.sent)]


@dataclass(frozen=True, slots=True)
class BadRequest:
    """One line of the table: `change` spoils a valid request, or returns False if it does not apply to the model."""

    name: str
    change: Callable[[Request], object]
    accepts: Accepts = field(default="4xx", kw_only=True)

    def of(self, valid: Request) -> Request | None:
        """Return the request; None if it does not apply."""
        request = copy.deepcopy(valid)
        return None if self.change(request) is False else request


def _with(**attributes: Any) -> Callable[[Request], object]:
    """Set attributes of the request."""

    def change(request: Request) -> None:
        for name, value in attributes.items():
            setattr(request, name, value)

    return change


def _content(**keys: Any) -> Callable[[Request], object]:
    """Set keys of the JSON object."""
    return lambda request: request.content.update(keys)


def _input(**keys: Any) -> Callable[[Request], object]:
    """Set keys of the first input."""
    return lambda request: request.first.update(keys)


def _input_without(key: str) -> Callable[[Request], object]:
    return lambda request: request.first.pop(key)


def _values(change: Callable[[list[Any]], list[Any]]) -> Callable[[Request], object]:
    """Change the values of the first input, if there are any."""
    return lambda request: bool(request.first["data"]) and request.first.update(data=change(request.first["data"]))


def _shape(change: Callable[[list[int]], list[Any]]) -> Callable[[Request], object]:
    """Change the shape of the first input, and not its values."""
    return lambda request: request.first.update(shape=change(request.first["shape"]))


def _header(**headers: str) -> Callable[[Request], object]:
    return lambda request: request.headers.update({name.replace("_", "-"): value for name, value in headers.items()})


def _flattened(request: Request) -> bool:
    tensor = request.first
    if len(tensor["shape"]) < 2:
        return False
    tensor["shape"] = [len(tensor["data"])]
    return True


def _empty_batch(request: Request) -> None:
    for tensor in request.content["inputs"]:
        tensor.update(shape=[0, *tensor["shape"][1:]], data=[])


def _unknown_version(request: Request) -> None:
    model = request.path.removesuffix("/infer").partition("/versions/")[0]
    request.path = f"{model}/versions/{_UNKNOWN}/infer"


def _without_last_input(request: Request) -> bool:
    del request.content["inputs"][-1]
    return bool(request.content["inputs"])  # "an empty list of inputs" is a line of its own


def _other_datatype(request: Request) -> None:
    tensor = request.first
    datatype, value = ("FP32", 0.5) if request.is_text else ("BYTES", "text")
    tensor.update(datatype=datatype, data=[value] * len(tensor["data"]))


def _larger_fixed_axis(request: Request) -> bool:
    if request.fixed_axis is None:
        return False
    request.first["shape"][request.fixed_axis] *= 2
    request.first["data"] *= 2
    return True


def _number(number: str) -> Callable[[Request], bool]:
    def change(request: Request) -> bool:
        if not request.first["datatype"].startswith("FP") or not request.first["data"]:
            return False
        request.first["data"][0] = _PLACE
        request.body = json.dumps(request.content).replace(f'"{_PLACE}"', number).encode()
        return True

    return change


BAD_REQUESTS = (
    # The JSON object.
    BadRequest("an empty body", _with(body=b"")),
    BadRequest(
        "JSON that is cut off", lambda request: setattr(request, "body", json.dumps(request.content).encode()[:-9])
    ),
    BadRequest("a body that is not UTF-8", _with(body=b"\xff\xfe{}")),
    BadRequest("a JSON list", _with(content=[1, 2])),
    BadRequest("a JSON text", _with(content="inputs")),
    BadRequest("lists nested 100,000 deep", _with(body=b'{"inputs": ' + b"[" * _DEPTH + b"]" * _DEPTH + b"}")),
    BadRequest("no inputs", lambda request: request.content.pop("inputs")),
    BadRequest("an empty list of inputs", _content(inputs=[])),
    BadRequest("inputs as an object", lambda request: request.content.update(inputs={"0": request.first})),
    BadRequest("parameters as a list", _content(parameters=[1])),
    BadRequest("an unknown output", _content(outputs=[{"name": _UNKNOWN}])),
    # Names.
    BadRequest("a missing input", _without_last_input),
    BadRequest("an extra input", lambda request: request.content["inputs"].append({**request.first, "name": _UNKNOWN})),
    BadRequest("an input twice", lambda request: request.content["inputs"].append(request.first)),
    BadRequest("an unknown input", _input(name=_UNKNOWN)),
    BadRequest("an input without a name", _input_without("name")),
    # Shapes.
    BadRequest("an input without a shape", _input_without("shape")),
    BadRequest("an empty batch", _empty_batch, accepts="4xx or no rows"),
    BadRequest("an axis too few", _flattened),
    BadRequest("an axis too many", _shape(lambda shape: [1, *shape])),
    BadRequest("a fixed axis of another size", _larger_fixed_axis),
    BadRequest("a negative size", _shape(lambda shape: [-1, *shape[1:]])),
    BadRequest("a shape larger than memory", _shape(lambda shape: [1 << 40, *shape[1:]])),
    BadRequest("a shape of texts", _shape(lambda shape: [str(size) + "x" for size in shape] or ["x"])),
    # Types and values.
    BadRequest("an input without a datatype", _input_without("datatype")),
    BadRequest("an unknown datatype", _input(datatype="FP99")),
    BadRequest("another datatype", _other_datatype),
    BadRequest("an input without data", _input_without("data")),
    BadRequest("values of another type", lambda request: request.first.update(data=[{}] * len(request.first["data"]))),
    BadRequest("a value too few", _values(lambda data: data[:-1])),
    BadRequest("a value too many", _values(lambda data: data + data[:1])),
    BadRequest("null as a value", _values(lambda data: [None, *data[1:]])),
    BadRequest("NaN as a value", _number("NaN")),
    BadRequest("a number beyond its type", _number("1e999")),
    # HTTP.
    BadRequest("an unknown model", lambda request: setattr(request, "path", f"{request.root}/models/{_UNKNOWN}/infer")),
    BadRequest("an unknown version", _unknown_version),
    BadRequest("an unknown path", lambda request: setattr(request, "path", f"{request.root}/{_UNKNOWN}")),
    BadRequest("the method GET", _with(method="GET")),
    BadRequest("the wrong content type", _header(Content_Type="image/png")),
    BadRequest("a header of 1 MiB", _header(X_Long=_LONG_HEADER), accepts="4xx or closed"),
    BadRequest("2,000 headers", _with(lines=_MANY_HEADERS), accepts="4xx or closed"),
    BadRequest("a Content-Length that is negative", _with(length="-1"), accepts="4xx or closed"),
    BadRequest("a Content-Length that is no number", _with(length="many"), accepts="4xx or closed"),
    BadRequest("two lengths", _with(lines="Content-Length: 1\r\n"), accepts="4xx or closed"),
    BadRequest(
        "a chunk whose size is no number",
        _with(length="", lines="Transfer-Encoding: chunked\r\n", body=b"zz\r\n"),
        accepts="4xx or closed",
    ),
    BadRequest("a line that is no HTTP", _with(start="GARBAGE"), accepts="4xx or closed"),
    BadRequest("a client that leaves in mid-body", _with(sent=0.5), accepts="nothing"),
)
"""Each request with its own name, by which a failure is told and may be accepted."""
