"""What a call of an endpoint costs over `http.client` alone, with one row, in interleaved blocks of one run.

    python benchmarks/endpoint_overhead.py [--rounds 40]

A server on the standard library in another process answers at once with fixed bytes; both clients send the same request
over one open connection. What is left is the client's own: checks, JSON or bytes, and reading the answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http import client
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

import pytest_modelserve as ms

CALLS = 50
LIMIT_MS = 1.0
SIZES = {"30 features": (1, 30), "image 28 × 28": (1, 784), "image 3 × 224 × 224 as bytes": (1, 3, 224, 224)}
# Beside the limit: 150,528 numbers as JSON are what binary tensors and gRPC are for.
JSON_IMAGE = ("image 3 × 224 × 224 as JSON", (1, 3, 224, 224))
OUTPUTS = 10


class Handler(BaseHTTPRequestHandler):
    """Answers at once: metadata of a model whose input has the shape in its name, and fixed outputs."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with the metadata."""
        name = self.path.rpartition("/")[2]
        if name == "v2":
            self.answer({"name": "fixed", "extensions": ["binary_tensor_data"]})
            return
        shape = [-1, *map(int, name.split("x")[1:])]
        inputs = [{"name": "x", "datatype": "FP32", "shape": shape}]
        self.answer(
            {"name": name, "inputs": inputs, "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, OUTPUTS]}]}
        )

    def do_POST(self) -> None:
        """Answer with fixed outputs, and not with the id, which is new in each request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        output = {"name": "y", "datatype": "FP32", "shape": [1, OUTPUTS], "data": [i / 7 for i in range(OUTPUTS)]}
        self.answer({"outputs": [output]})

    def answer(self, value: object) -> None:
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def blocks(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a call in each block; the clients take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(CALLS):
            call()
    for number in range(rounds):
        for name in [*calls] if number % 2 else [*calls][::-1]:
            begin = time.perf_counter()
            for _ in range(CALLS):
                calls[name]()
            found[name].append((time.perf_counter() - begin) / CALLS * 1e3)
    return found


def measure(origin: str, title: str, shape: tuple[int, ...], rounds: int) -> float:
    """Print the overhead for one size of input, and return it in milliseconds."""
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    url = f"{origin}/v2/models/{'x'.join(map(str, ('m', *shape[1:])))}"
    with ms.serve(ms.Endpoint(url, binary="bytes" in title)) as predictor:
        _, parts = predictor.client.request({"x": rows})
        body = b"".join(parts)
        headers = {"Content-Type": "application/json", "Inference-Header-Content-Length": str(len(parts[0]))}
        plain = client.HTTPConnection(origin.partition("://")[2])

        def alone() -> None:
            plain.request("POST", f"/v2/models/{url.rpartition('/')[2]}/infer", body, headers)
            plain.getresponse().read()

        found = blocks({"http.client": alone, "endpoint": lambda: predictor.predict(rows)}, rounds)
        plain.close()
    differences = [ours - theirs for ours, theirs in zip(found["endpoint"], found["http.client"], strict=True)]
    overhead = statistics.median(differences)
    low, _, high = statistics.quantiles(differences, n=4)
    theirs, ours = (statistics.median(found[name]) for name in ("http.client", "endpoint"))
    print(
        f"{title:30} {len(body):9,} bytes   http.client {theirs:.3f} ms   endpoint {ours:.3f} ms   "
        f"overhead {overhead:.3f} ms (quartiles {low:.3f} to {high:.3f})"
    )
    return overhead


def main() -> None:
    """Start the server in another process and print one line for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            print(server.server_port, flush=True)
            server.serve_forever()
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            origin = f"http://127.0.0.1:{int(process.stdout.readline())}"
            worst = max(measure(origin, title, shape, arguments.rounds) for title, shape in SIZES.items())
            measure(origin, *JSON_IMAGE, rounds=3)
        finally:
            process.kill()
    result = "kept" if worst <= LIMIT_MS else "NOT KEPT"
    print(f"largest overhead of the first three {worst:.3f} ms, limit {LIMIT_MS:g} ms: {result}")


if __name__ == "__main__":
    main()
