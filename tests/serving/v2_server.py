"""A server of the Open Inference Protocol on the standard library, which checks requests, and can be made faulty."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

DTYPES = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "INT64": np.int64, "BYTES": object}
DATATYPES = {np.dtype(dtype).name: name for name, dtype in DTYPES.items() if name != "BYTES"}


class RefusedError(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, reason, status=400):
        super().__init__(reason)
        self.status = status


class V2Server(ThreadingHTTPServer):
    """Serves `model`, a function from inputs by name to outputs by name, as "m" on a port of 127.0.0.1.

    `inputs` and `outputs` are the metadata: (datatype, shape) by name. `json` maps other paths to functions from JSON to
    JSON. `faults` maps a path's last part ("infer",
    "ready", "m") to a function of the handler and the answer that it would send, which answers in its place.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model, inputs, outputs, *, extensions=(), sha256=None, version="1", faults=None, tls=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.extensions, self.sha256, self.version, self.faults = extensions, sha256, version, faults or {}
        self.json, self.requests, self.connections = {}, [], 0
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.origin = f"{scheme}://127.0.0.1:{self.server_port}"
        self.url = f"{self.origin}/v2/models/m"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def get_request(self):
        self.connections += 1
        return super().get_request()

    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # so that a line that is no HTTP gets a status
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 10

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer("GET")

    def do_POST(self):
        self._answer("POST")

    def _answer(self, method):
        server = self.server
        server.requests.append((method, self.path, dict(self.headers)))
        try:
            status, headers, body = 200, {}, self._result(method)
            if isinstance(body, tuple):
                headers, body = body
        except RefusedError as error:
            status, headers, body = error.status, {}, {"error": str(error)}
        fault = server.faults.get(self.path.rpartition("/")[2])
        if fault is not None and fault(self, body) is not False:
            return
        self.send(body, status, headers)

    def send(self, body, status=200, headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _result(self, method):
        server = self.server
        lengths = self.headers.get_all("Content-Length") or ["0"]
        if len(lengths) > 1 or not lengths[0].isdecimal() or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise RefusedError("give one Content-Length")
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            self.close_connection = True
            raise RefusedError("the body ended early")
        parts = self.path.split("/")
        if self.path in server.json:
            return server.json[self.path](json.loads(body))
        if self.path == "/v2":
            return {"name": "tests", "version": "1", "extensions": list(server.extensions)}
        if parts[1:3] != ["v2", "models"]:
            raise RefusedError("no such path", 404)
        if parts[3] != "m" or (parts[4:5] == ["versions"] and parts[5] != server.version):
            raise RefusedError("no such model", 404)
        if parts[-1] == "ready":
            return {"ready": True}
        if parts[-1] == "infer":
            if method != "POST":
                raise RefusedError("POST it", 405)
            return self._infer(body)
        sides = {
            side: [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]
            for side, tensors in (("inputs", server.inputs), ("outputs", server.outputs))
        }
        return {"name": "m", "versions": [server.version], "platform": "tests", **sides, **self._told()}

    def _told(self):
        return {"parameters": {"sha256": self.server.sha256}} if self.server.sha256 else {}

    def _infer(self, body):
        server = self.server
        if self.headers.get_content_type() not in ("application/json", "application/octet-stream", "text/plain"):
            raise RefusedError("send JSON", 415)
        end = int(self.headers.get("Inference-Header-Content-Length") or len(body))
        try:
            content = json.loads(body[:end], parse_constant=lambda name: int(name))
            feed = self._feed(content, body[end:])
        except RefusedError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from None
        outputs = server.model(feed)
        told = {"model_name": "m", "model_version": server.version, "id": content.get("id"), **self._told()}
        asked = {each["name"] for each in content.get("outputs", [])}
        if asked - outputs.keys():
            raise RefusedError(f"no outputs {sorted(asked - outputs.keys())}")
        if not (content.get("parameters") or {}).get("binary_data_output"):
            return {**told, "outputs": [_json(name, array) for name, array in outputs.items()]}
        raw = [_bytes(array) for array in outputs.values()]
        tensors = [
            {**_declared(name, array), "parameters": {"binary_data_size": len(part)}}
            for (name, array), part in zip(outputs.items(), raw, strict=True)
        ]
        head = json.dumps({**told, "outputs": tensors}).encode()
        return {"Inference-Header-Content-Length": str(len(head))}, head + b"".join(raw)

    def _feed(self, content, raw):
        if not isinstance(content.get("parameters") or {}, dict):
            raise RefusedError("parameters must be an object")
        feed = {}
        for tensor in content["inputs"]:
            name, shape = tensor["name"], tensor["shape"]
            if name not in self.server.inputs or name in feed:
                raise RefusedError(f"input {name} is unknown or repeated")
            datatype, declared = self.server.inputs[name]
            if tensor["datatype"] != datatype:
                raise RefusedError(f"input {name} is {datatype}")
            if len(shape) != len(declared) or any(
                not isinstance(size, int) or size < 0 or (dim != -1 and size != dim)
                for size, dim in zip(shape, declared, strict=True)
            ):
                raise RefusedError(f"input {name} has the shape {shape}")
            if "binary_data_size" in tensor.get("parameters", {}):
                size = tensor["parameters"]["binary_data_size"]
                array, raw = _array(raw[:size], datatype), raw[size:]
            else:
                array = np.array(tensor["data"], dtype=object).ravel()
                if not all(map(_is_text if datatype == "BYTES" else _is_number, array)):
                    raise RefusedError(f"input {name} has values of another type")
                array = array.astype(DTYPES[datatype])
            feed[name] = array.reshape(shape)
        if feed.keys() != self.server.inputs.keys():
            raise RefusedError("an input is missing")
        return feed


def _is_text(value):
    return isinstance(value, str)


def _is_number(value):
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _declared(name, array):
    datatype = "BYTES" if array.dtype == object else DATATYPES[array.dtype.name]
    return {"name": name, "datatype": datatype, "shape": list(array.shape)}


def _json(name, array):
    return {**_declared(name, array), "data": array.ravel().tolist()}


def _bytes(array):
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(each.encode()).to_bytes(4, "little") + each.encode() for each in array.ravel())


def _array(raw, datatype):
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype])
    texts = []
    while raw:
        size = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:size].decode())
        raw = raw[size:]
    return np.array(texts, dtype=object)


# Faults: each answers in place of the server.


def hang(handler, body):
    """Never answer."""
    time.sleep(60)
    handler.close_connection = True


def drip(handler, body):
    """Send a byte at a time, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def die(handler, body):
    """Close the connection without more of an answer."""
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def cut(handler, body):
    """Announce more bytes than are sent, and close the connection."""
    handler.send(json.dumps(body).encode()[:-20], headers={"Content-Length": str(len(json.dumps(body)))})
    die(handler, body)


def huge(handler, body):
    """Announce 1 GiB."""
    handler.send(b"{", headers={"Content-Length": str(1 << 30)})
    handler.close_connection = True


def endless(handler, body):
    """Send an answer of unknown length that does not end."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    while True:
        handler.wfile.write(b" " * (1 << 16))


def chunked(handler, body):
    """Send the right answer in chunks of 7 bytes."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    text = json.dumps(body).encode()
    for part in (*(text[begin : begin + 7] for begin in range(0, len(text), 7)), b""):
        handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")


def until_closed(handler, body):
    """Send the right answer without its length, and close the connection."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(json.dumps(body).encode())
    handler.close_connection = True


def answer(body, status=200, **headers):
    """Return a fault: an answer of fixed bytes or JSON."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.send(body, status, names)


def change(edit):
    """Return a fault: the right answer, edited."""

    def fault(handler, body):
        edit(body)
        handler.send(body)

    return fault


def tls_of(certificate, key):
    """Return the server's TLS settings."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(certificate, key)
    return settings
