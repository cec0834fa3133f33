"""HTTP requests of the standard library: connections that stay open, a time limit, a size limit, and clear errors."""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http import client
from multiprocessing import connection
from typing import Any
from urllib.parse import SplitResult

from pytest_modelserve.errors import EndpointError, UsageError

# Statuses of a server or a proxy that is not ready or too busy: another try may succeed.
_RETRIED = (429, 502, 503, 504)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_PART_BYTES = 1 << 16
_MAX_QUOTED = 200
_MOST_SEARCHED = 20_000
_SHORTEST_SECRET = 4
_CLOSED = (client.RemoteDisconnected, client.IncompleteRead, ConnectionError, ssl.SSLEOFError)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers and body of an answer."""

    status: int
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)


class Redaction:
    """Texts of a server without the values of secret headers."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value, value.rpartition(" ")[2])}  # "Bearer TOKEN"
        self._secrets = sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text with every secret replaced by ***, also one that an ellipsis cuts off."""
        for secret in self._secrets:
            for end in range(len(secret), _SHORTEST_SECRET - 1, -1):
                text = text.replace(secret[:end] + "…" * (end < len(secret)), "***")
        return text

    def quoted(self, text: str | bytes) -> str:
        """Return the beginning of the text in one line, without secrets."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if len(text) > _MOST_SEARCHED:  # every part of a long secret is searched for
            text = text[:_MOST_SEARCHED] + "…"
        line = "".join(each if each.isprintable() else "?" for each in " ".join(self(text).split()))
        return (line if len(line) <= _MAX_QUOTED else line[:_MAX_QUOTED] + "…") or "no reason is given"


class HttpClient:
    """A client of one server. It is thread-safe: each request in flight has a connection of its own.

    Redirects are answers like others. `headers` are sent with every request, and their values are removed from every
    text of the server that an error quotes.

    Args:
        url: Scheme, host and port.
        headers: Headers of every request.
        timeout_s: The longest that one request may take, from connecting to the last byte.
        retries: How often a request is sent again that found no connection, or an answer of status 429, 502, 503, 504;
            after the seconds of `Retry-After`, if they are within the time limit.
        max_bytes: The longest body of an answer.
        tls: Settings of TLS; None for http.
    """

    def __init__(
        self,
        url: SplitResult,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        retries: int,
        max_bytes: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.origin = f"{url.scheme}://{url.netloc}"
        self._host, self._port = url.hostname or "", url.port
        self.headers = dict(headers)
        self.redaction = Redaction(headers.values())
        self._timeout_s, self._retries, self._max_bytes, self._tls = timeout_s, retries, max_bytes, tls
        self._idle: deque[_Connection] = deque()
        weakref.finalize(self, _close_all, self._idle)
        self.is_closed = False

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = math.inf,
    ) -> HttpAnswer:
        """Return the answer, whatever its status, within the time limit of the client and `timeout_s`.

        Raises:
            EndpointError: There is no answer within the time limit, or none that is complete, or it is too long.
        """
        limit_s = min(timeout_s, self._timeout_s)
        for attempt in range(self._retries + 1):
            is_last, pause = attempt == self._retries, pause_s(attempt)
            try:
                answer = self._request_once(method, path, body, headers or {}, limit_s)
            except (OSError, client.HTTPException) as error:
                if is_last or isinstance(error, TimeoutError):
                    raise EndpointError(self._failure(error, _shown(method, path), limit_s)) from None
            else:
                asked = answer.headers.get("Retry-After", "")
                pause = max(pause, float(asked) if re.fullmatch("[0-9]{1,9}", asked) else 0.0)
                if is_last or answer.status not in _RETRIED or pause > limit_s:
                    break
            time.sleep(pause)
        return answer

    @contextmanager
    def sent(self, request: bytes) -> Iterator[_Connection]:
        """Send bytes over a connection of their own, which stays open inside the block; OSError if it fails."""
        http = _Connection.open_to(self._host, self._port, self._tls)
        try:
            http.start_clock(self._timeout_s)
            http.connect()
            with suppress(ConnectionError):  # a server that refuses a request answers before it has read all of it
                http.sock.sendall(request)
            yield http
        finally:
            http.close()

    def exchange(self, request: bytes) -> HttpAnswer | None:
        """Return the answer to bytes over a connection of their own, None if the server closes the connection.

        Raises:
            EndpointError: There is no server, no answer within the time limit, or none that is HTTP.
        """
        try:
            with (
                self.sent(request) as http,
                closing(client.HTTPResponse(_TimedFile(http.sock, http))) as response,  # type: ignore[arg-type]
            ):
                response.begin()
                return HttpAnswer(response.status, response.headers, self._read(response, "the request"))
        except (OSError, client.HTTPException) as error:
            if isinstance(error, _CLOSED) and not isinstance(error, ConnectionRefusedError):
                return None
            raise EndpointError(self._failure(error, "the request", self._timeout_s)) from None

    def json(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON value of an answer of status 200 to 299; EndpointError for any other answer."""
        answer = self.request(method, path, body, headers)
        self.check_status(answer, method, path)
        return self.parse(answer.body, method, path)

    def check_status(self, answer: HttpAnswer, method: str, path: str) -> None:
        """Raise EndpointError with the server's reason unless the status is 200 to 299 and the body plain."""
        what, coding = _shown(method, path), answer.headers.get("Content-Encoding", "identity").lower()
        if 200 <= answer.status < 300:
            if coding == "identity":
                return
            raise EndpointError(
                f"{self.origin} answered {what} compressed (Content-Encoding: {self.redaction.quoted(coding)}), and "
                "plain answers are read: turn it off, and remove Accept-Encoding from headers="
            )
        if 300 <= answer.status < 400:
            location = self.redaction(answer.headers.get("Location", "")).partition("?")[0]
            raise EndpointError(
                f"{self.origin} redirects {what} to {location!r} (status {answer.status}), which is not "
                "followed, as headers would be sent there: give that address",
                status=answer.status,
            )
        raise EndpointError(
            f"{self.origin} answered {what} with status {answer.status}: {self.reason(answer.body)}",
            status=answer.status,
        )

    def parse(self, body: bytes, method: str, path: str) -> Any:
        """Return a JSON value; NaN and Infinity, which JSON lacks, are read as many servers write them."""
        import msgspec

        try:
            try:
                return msgspec.json.decode(body)
            except msgspec.DecodeError:
                return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise EndpointError(
                f"{self.origin} answered {_shown(method, path)} with {len(body):,} bytes that are not JSON ({error}): "
                f"{self.redaction.quoted(body)}"
            ) from None

    def reason(self, body: bytes) -> str:
        """Return what the body of an error says: its `error`, `detail` or `message`, or all of it, cut off."""
        with suppress(ValueError, RecursionError):
            found = json.loads(body)
            if isinstance(found, Mapping):
                found = next((found[key] for key in ("error", "detail", "message") if found.get(key)), found)
            return self.redaction.quoted(found if isinstance(found, str) else json.dumps(found))
        return self.redaction.quoted(body)

    def _request_once(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> HttpAnswer:
        if self.is_closed:
            raise UsageError(f"the connections to {self.origin} are closed")
        http = self._idle_connection() or _Connection.open_to(self._host, self._port, self._tls)
        keeps_open = False
        try:
            http.start_clock(timeout_s)
            try:
                http.request(method, path, body or None, {**self.headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                if http.sock is None:
                    raise
                # A server that refuses a long body answers before it has read all of it.
            with closing(http.getresponse()) as response:
                answer = HttpAnswer(response.status, response.headers, self._read(response, _shown(method, path)))
            keeps_open = not response.will_close
            return answer
        finally:
            if keeps_open and not self.is_closed:
                self._idle.append(http)
            else:
                http.close()

    def _idle_connection(self) -> _Connection | None:
        """Return an open connection; one that the server has closed, or sent unasked bytes on, is not used again."""
        while True:
            try:
                http = self._idle.pop()
            except IndexError:
                return None
            if http.sock is not None and not connection.wait([http.sock], 0):
                return http
            http.close()

    def _read(self, response: client.HTTPResponse, what: str) -> bytes:
        if response.length is not None and response.length > self._max_bytes:
            raise EndpointError(self._too_long(what, f"{response.length:,} bytes"))
        if response.length is not None:
            return response.read()
        parts, size = [], 0
        while part := response.read1(_PART_BYTES):
            parts.append(part)
            size += len(part)
            if size > self._max_bytes:
                raise EndpointError(self._too_long(what, f"more than {size:,} bytes"))
        return b"".join(parts)

    def _too_long(self, what: str, size: str) -> str:
        return (
            f"{self.origin} answers {what} with {size}, and max_bytes={self._max_bytes:,} are accepted: ask for fewer "
            "rows, or raise max_bytes of ms.Endpoint"
        )

    def _failure(self, error: OSError | client.HTTPException, what: str, limit_s: float) -> str:
        """Return what went wrong on the way, and what to do."""
        if isinstance(error, TimeoutError):
            return f"{self.origin} did not answer {what} within {limit_s:.3g} s (timeout_s)"
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self.origin} is not valid: {error.verify_message}. Renew it; for an authority of "
                "your own give ca_file= to ms.Endpoint"
            )
        if isinstance(error, client.IncompleteRead):
            known = "" if error.expected is None else f" of {len(error.partial) + error.expected:,}"
            return (
                f"{self.origin} closed the connection after {len(error.partial):,}{known} bytes of its answer to {what}"
            )
        if isinstance(error, ConnectionRefusedError):
            return f"no server listens at {self.origin}: start it, or wait for it with ready_timeout_s= of ms.Endpoint"
        if isinstance(error, _CLOSED):
            return (
                f"{self.origin} closed the connection before it answered {what}: look for a crash in its log; if it "
                "closes idle connections, give retries= to ms.Endpoint"
            )
        if isinstance(error, ssl.SSLError):
            return f"TLS with {self.origin} fails ({error.reason or error}): check whether it is a server of https"
        if isinstance(error, socket.gaierror):
            return f"the host of {self.origin} is not known ({error.strerror}): check the address"
        if isinstance(error, client.HTTPException):
            reason = f"{type(error).__name__}: {self.redaction.quoted(str(error))}"
            return f"{self.origin} answered {what} with what is not HTTP ({reason})"
        return f"{self.origin} cannot be reached for {what}: {error.strerror or self.redaction.quoted(str(error))}"

    def close_idle(self) -> None:
        """Close the connections that no request is using."""
        _close_all(self._idle)

    def close(self) -> None:
        """Close the connections, those of requests in flight when they end."""
        self.is_closed = True
        self.close_idle()


def pause_s(attempt: int) -> float:
    """Return the seconds before a request is sent again after the attempt of this number: 0.1, 0.2, 0.4, … 5."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(attempt, 10), _LONGEST_PAUSE_S)


def _close_all(connections: deque[_Connection]) -> None:
    while connections:
        connections.pop().close()


def _shown(method: str, path: str) -> str:
    """Return a request for a message: a query may hold a secret."""
    return f"{method} {path.partition('?')[0]}"


def tls_settings(ca_file: str | os.PathLike[str] | None, *, verify: bool) -> ssl.SSLContext:
    """Return the settings of TLS: certificates are verified, by those of the system or of `ca_file`."""
    try:
        settings = ssl.create_default_context(cafile=None if ca_file is None else os.fspath(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"ca_file {str(ca_file)!r} cannot be read as certificates in PEM: {error}") from None
    if not verify:
        settings.check_hostname = False
        settings.verify_mode = ssl.CERT_NONE
    return settings


class _Connection(client.HTTPConnection):
    """A connection whose requests end at a deadline, however slowly bytes arrive.

    The timeout of a socket begins anew with each byte.
    """

    tls: ssl.SSLContext | None = None
    deadline = 0.0

    @classmethod
    def open_to(cls, host: str, port: int | None, tls: ssl.SSLContext | None) -> _Connection:
        default = client.HTTP_PORT if tls is None else client.HTTPS_PORT
        http = cls(host, default if port is None else port)
        http.tls = tls
        http.default_port = default  # the Host header leaves it out
        return http

    def start_clock(self, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s

    def connect(self) -> None:
        self.timeout = self.left_s()
        super().connect()
        if self.tls is not None:
            self.sock.settimeout(self.left_s())
            self.sock = self.tls.wrap_socket(self.sock, server_hostname=self.host)

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.left_s())
        super().send(data)

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, *args: Any, **kwargs: Any
    ) -> client.HTTPResponse:
        return client.HTTPResponse(_TimedFile(sock, self), *args, **kwargs)  # type: ignore[arg-type]

    def left_s(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _TimedFile(io.RawIOBase):
    """The bytes of a socket as a file, until the deadline of its connection."""

    def __init__(self, sock: socket.socket, http: _Connection) -> None:
        self._sock, self._http = sock, http
        self._raw = sock.makefile("rb", buffering=0)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self, _PART_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._http.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
