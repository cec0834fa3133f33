"""Endpoints as predictors: requests and answers of the protocols, and one sentence for each fault of a server."""

import dataclasses
import datetime
import gc
import ipaddress
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.serving.http_client import Redaction, pause_s
from tests.serving import v2_server as faults
from tests.serving.v2_server import V2Server

W = np.arange(6, dtype=np.float32).reshape(3, 2)
X = np.array([[1, 0, 0], [0, 0.1, 0.2]], np.float32)
INPUTS, OUTPUTS = {"x": ("FP32", [-1, 3])}, {"y": ("FP32", [-1, 2]), "label": ("INT64", [-1])}
LIMIT_S = 0.3


def model(feed):
    y = feed["x"] @ W
    return {"y": y, "label": y.argmax(axis=1)}


def serve_faulty(fault=None, *, part="infer", **settings):
    return V2Server(model, INPUTS, OUTPUTS, faults={part: fault} if fault else None, **settings)


@pytest.fixture
def server():
    with serve_faulty() as running:
        yield running


@pytest.mark.parametrize("extensions", [(), ("binary_tensor_data",)], ids=["json", "binary"])
def test_an_endpoint_returns_the_outputs_with_their_dtypes(extensions):
    with serve_faulty(extensions=extensions) as server, ms.serve(server.url) as predictor:
        assert str(predictor.signature) == "x: float32[?, 3] -> y: float32[?, 2], label: int64[?]"
        found, expected = predictor.predict(X), model({"x": X})
        assert list(found) == ["y", "label"]
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
        sent = server.requests[-1][2]
    assert ("Inference-Header-Content-Length" in sent) == bool(extensions)
    assert predictor.transport == "http"
    assert str(predictor.subject) == f"m / 127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("extensions", [(), ("binary_tensor_data",)], ids=["json", "binary"])
def test_text_nan_and_half_precision_come_back(extensions):
    texts, halves = np.array([["a", "ü"], ["", "d"]], object), np.array([0.1, np.nan], np.float16)
    inputs, outputs = {"t": ("BYTES", [-1, 2])}, {"t": ("BYTES", [-1, 2]), "h": ("FP16", [-1])}
    server = V2Server(lambda feed: {"t": feed["t"], "h": halves}, inputs, outputs, extensions=extensions)
    with server, ms.serve(server.url) as predictor:
        found = predictor.predict(texts)
        np.testing.assert_array_equal(found["t"], texts)
        np.testing.assert_array_equal(found["h"], halves)
        assert found["h"].dtype == np.float16


def test_nan_is_sent_as_bytes_and_refused_for_json():
    rows = np.array([[1, 2, 3], [np.nan, 0, 0]], np.float32)
    with serve_faulty(extensions=("binary_tensor_data",)) as server:
        with ms.serve(server.url) as predictor:
            assert np.isnan(predictor.predict(rows)["y"][1]).all()
        with ms.serve(ms.Endpoint(server.url, binary=False)) as predictor:
            with pytest.raises(ms.InputError, match=r"input 'x' holds NaN or an infinity in row 1, which JSON cannot"):
                predictor.predict(rows)


def test_null_in_an_answer_is_nan():
    fault = faults.change(lambda body: body["outputs"][0]["data"].__setitem__(0, None))
    with serve_faulty(fault) as server, ms.serve(server.url) as predictor:
        assert np.isnan(predictor.predict(X)["y"][0, 0])


@pytest.mark.parametrize("send", [faults.chunked, faults.until_closed])
def test_answers_without_a_length_are_read_to_their_end(send):
    with serve_faulty(send) as server, ms.serve(server.url) as predictor:
        for _ in range(3):
            np.testing.assert_array_equal(predictor.predict(X)["y"], X @ W)


def test_connections_stay_open_and_threads_get_their_own_answers(server):
    with ms.serve(server.url) as predictor, ThreadPoolExecutor(8) as pool:
        rows = [np.full((1, 3), number, np.float32) for number in range(200)]
        for row, found in zip(rows, pool.map(predictor.predict, rows), strict=True):
            np.testing.assert_array_equal(found["y"], row @ W)
        assert server.connections <= 9  # one for the metadata


def test_a_connection_that_the_server_closed_is_opened_again(server):
    def close_after(handler, body):
        handler.send(body, headers={})
        faults.die(handler, body)

    server.faults["infer"] = close_after
    with ms.serve(server.url) as predictor:
        for _ in range(3):
            predictor.predict(X)
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.hang, r"did not answer POST /v2/models/m/infer within 0\.3 s \(timeout_s\)"),
        (faults.drip, r"did not answer POST /v2/models/m/infer within 0\.3 s \(timeout_s\)"),
        (faults.die, r"closed the connection before it answered POST /v2/models/m/infer"),
        (faults.cut, r"closed the connection after \d+ of \d+ bytes of its answer"),
        (faults.huge, r"answers POST /v2/models/m/infer with 1,073,741,824 bytes, and max_bytes=1,000,000 are accepted"),
        (faults.endless, r"with more than 1,\d+,\d+ bytes, and max_bytes=1,000,000 are accepted"),
        (faults.answer({"error": "out of\nmemory"}, 500), r"with status 500: out of memory$"),
        (faults.answer(b"", 503), r"with status 503: no reason is given"),
        (faults.answer({"error": "busy"}, 429, Retry_After="900"), r"with status 429: busy"),
        (faults.answer(b"\x1f\x8b", Content_Encoding="gzip"), r"compressed \(Content-Encoding: gzip\), and plain answers are read"),
        (faults.answer(b"", 307, Location="http://127.0.0.1:1/?token=1"), r"redirects .* to 'http://127.0.0.1:1/' .* not followed"),
        (faults.answer(b'{"outputs": ['), r"with 13 bytes that are not JSON \(.*\): \{\"outputs\": \["),
        (faults.answer(b"[" * 100_000), r"bytes that are not JSON"),
        (faults.answer([1]), r"has no list `outputs`: \[1\]"),
        (faults.answer({"outputs": []}), r"an answer of model 'm' has no outputs"),
        (faults.answer({"outputs": [{"datatype": "FP32"}]}), r"an output of model 'm' has no name"),
        (lambda handler, _: handler.wfile.write(b"SSH-2.0\r\n\r\n"), r"with what is not HTTP \(BadStatusLine: SSH-2.0\)"),
        (faults.change(lambda body: body.update(model_name="other")), r"answered for model 'other', and model 'm' was asked"),
        (faults.change(lambda body: body.update(id="7x")), r"sent the answer of request '7x' to request '1': answers are mixed up"),
        (faults.change(lambda body: body["outputs"].append(body["outputs"][0])), r"output 'y' of model 'm' stands twice"),
        (faults.change(lambda body: body["outputs"][0].update(shape=[3, 2])), r"output 'y' of model 'm' has shape \[3, 2\] and 4 values"),
        (faults.change(lambda body: body["outputs"][0].update(shape=[-1, 2])), r"output 'y' of model 'm' has the shape \[-1, 2\]"),
        (faults.change(lambda body: body["outputs"][0].update(shape=[True], data=[1])), r"output 'y' of model 'm' has the shape \[True\]"),
        (faults.change(lambda body: body["outputs"][0].update(shape=[0, 1 << 62], data=[])), r"has shape \[0, 4611686018427387904\], which no array has"),
        (faults.change(lambda body: body["outputs"][0].update(shape=[1] * 65, data=[1])), r"has shape \[1, 1, .*…, which no array has"),
        (faults.change(lambda body: body["outputs"][0].update(datatype=["FP32"])), r"output 'y' .* datatype \['FP32'\] is not one of BOOL"),
        (faults.change(lambda body: body["outputs"][0].update(datatype="FP8")), r"output 'y' .* datatype 'FP8' is not one of BOOL"),
        (faults.change(lambda body: body["outputs"][0].update(data=["0"] * 4)), r"output 'y' of model 'm' has values that are no FP32"),
        (faults.change(lambda body: body["outputs"][1].update(data=[0.5, 1])), r"output 'label' of model 'm' has values that are no INT64"),
        (faults.change(lambda body: body["outputs"][1].update(data=None)), r"output 'label' of model 'm' has no list `data`: None"),
        (faults.change(lambda body: body["outputs"][1].update(data=[[1, 2], [3]])), r"values that are no INT64"),
    ],
)  # fmt: skip
def test_each_fault_of_a_server_is_one_sentence(fault, message):
    began = time.monotonic()
    with serve_faulty(fault) as server:
        endpoint = ms.Endpoint(server.url, timeout_s=LIMIT_S, max_bytes=1_000_000, retries=int("429" in message))
        with ms.serve(endpoint) as predictor, pytest.raises(ms.EndpointError, match=message) as caught:
            predictor.predict(X)
    assert str(caught.value).startswith(server.origin)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"parameters": {"binary_data_size": 99}}, "has binary_data_size 99, and 8 bytes are left"),
        ({"parameters": {"binary_data_size": 6}}, "has 6 bytes, which are no whole number of FP32 values"),
        ({"parameters": {"binary_data_size": 4}}, r"has shape \[2\] and 1 values"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(tensor, message):
    head = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], **tensor}]}).encode()
    fault = faults.answer(head + bytes(8), Inference_Header_Content_Length=str(len(head)))
    with serve_faulty(fault, extensions=("binary_tensor_data",)) as server, ms.serve(server.url) as predictor:
        with pytest.raises(ms.EndpointError, match=f"output 'y' of model 'm' {message}"):
            predictor.predict(X)


def test_the_version_in_the_url_must_be_that_of_the_answer():
    fault = faults.change(lambda body: body.update(model_version="2"))
    with (
        serve_faulty(fault) as server,
        ms.serve(f"{server.url}/versions/1") as predictor,
        pytest.raises(ms.EndpointError, match=r"answered with version '2' of model 'm', and version '1' was asked"),
    ):
        predictor.predict(X)


def test_numbers_in_place_of_texts_are_read():
    fault = faults.change(
        lambda body: body.update(id=int(body["id"]), model_version=1, outputs=[{**body["outputs"][0], "parameters": 5}])
    )
    with serve_faulty(fault) as server, ms.serve(f"{server.url}/versions/1") as predictor:
        np.testing.assert_array_equal(predictor.predict(X)["y"], X @ W)
    with serve_faulty(faults.change(lambda body: body.update(versions=5)), part="m") as server:
        with ms.serve(server.url) as predictor:
            assert predictor.served.versions == ()


def test_metadata_that_cannot_be_read_are_refused_before_any_request():
    for fault, message in (
        (faults.change(lambda body: body["inputs"][0].update(shape="13")), "have inputs that cannot be read"),
        (faults.change(lambda body: body["inputs"].append(body["inputs"][0])), "have the input 'x' twice"),
        (faults.change(lambda body: body["outputs"].append(body["outputs"][0])), "have the output 'y' twice"),
        (faults.answer([]), "the metadata of model 'm' are no JSON object"),
        (faults.change(lambda body: body["inputs"][0].update(shape=None)), "have inputs that cannot be read"),
        (faults.change(lambda body: body["inputs"][0].update(datatype="X")), "datatype 'X' is not one of"),
        (faults.change(lambda body: body.update(name="n")), "answered for model 'n', and model 'm' was asked"),
    ):
        with serve_faulty(fault, part="m") as server, pytest.raises(ms.EndpointError, match=message):
            ms.serve(server.url)


def test_no_server_and_an_unknown_model_are_told_apart():
    with serve_faulty() as server, pytest.raises(ms.EndpointError, match="status 404: no such model"):
        ms.serve(f"{server.origin}/v2/models/unknown")
    with pytest.raises(ms.EndpointError, match=rf"no server listens at {server.origin}: start it"):
        ms.serve(server.url)


def test_a_server_that_never_becomes_ready_is_named_in_time():
    with serve_faulty(faults.answer({"error": "loading"}, 503), part="ready") as server:
        began = time.monotonic()
        with pytest.raises(
            ms.EndpointError, match=r"model 'm' at .* was not ready within ready_timeout_s=0\.3: it says"
        ):
            ms.serve(ms.Endpoint(server.url, ready_timeout_s=0.3))
        assert time.monotonic() - began < 20


def test_a_server_that_hangs_while_it_starts_ends_the_wait_in_time():
    with serve_faulty(faults.hang, part="ready") as server:
        began = time.monotonic()
        with pytest.raises(ms.EndpointError, match=r"was not ready within ready_timeout_s=0\.3: .* did not answer GET"):
            ms.serve(ms.Endpoint(server.url, ready_timeout_s=0.3, timeout_s=30))
        assert time.monotonic() - began < 20


def test_serve_waits_until_the_model_is_ready():
    def later(handler, body):
        handler.send(body, 200 if len(server.requests) > 2 else 503)

    with serve_faulty(later, part="ready") as server:
        with ms.serve(ms.Endpoint(server.url, ready_timeout_s=20)) as predictor:
            assert list(predictor.predict(X)) == ["y", "label"]


def test_requests_are_sent_again_only_if_asked_for():
    def busy_twice(handler, body):
        handler.send(body, 503 if sum(path.endswith("infer") for _, path, _ in server.requests) <= 2 else 201)

    with serve_faulty(busy_twice) as server:
        with ms.serve(server.url) as predictor, pytest.raises(ms.EndpointError, match="status 503"):
            predictor.predict(X)
        server.requests.clear()
        with ms.serve(ms.Endpoint(server.url, retries=2)) as predictor:
            assert predictor.predict(X)["label"].tolist() == [1, 1]


def test_a_server_says_after_how_many_seconds_a_request_is_sent_again():
    times = []

    def busy_once(handler, body):
        times.append(time.monotonic())
        handler.send(body, 429 if len(times) == 1 else 200, {"Retry-After": "1" if len(times) == 1 else "no number"})

    with serve_faulty(busy_once) as server, ms.serve(ms.Endpoint(server.url, retries=1)) as predictor:
        predictor.predict(X)
    assert times[1] - times[0] >= 1


def test_pauses_between_tries_grow_up_to_five_seconds():
    assert [pause_s(attempt) for attempt in (0, 1, 2, 6, 5_000)] == [0.1, 0.2, 0.4, 5.0, 5.0]


def test_headers_come_from_the_environment_and_stand_nowhere(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")
    headers = {"Authorization": "Bearer $MODEL_TOKEN", "X-Price": "5 $$"}

    def echo(handler, body):
        handler.send({"error": f"bad credentials: {handler.headers['Authorization']}"}, 401)

    with serve_faulty(echo) as server:
        endpoint = ms.Endpoint(server.url, headers=headers)
        with ms.serve(endpoint) as predictor:
            with pytest.raises(ms.EndpointError, match=r"status 401: bad credentials: \*\*\*") as caught:
                predictor.predict(X)
            texts = [repr(endpoint), repr(predictor), predictor.describe(), str(predictor.subject), str(caught.value)]
    sent = server.requests[-1][2]
    assert (sent["Authorization"], sent["X-Price"]) == ("Bearer s3cret-t0ken", "5 $")
    assert not any("s3cret" in text for text in texts)


@pytest.mark.parametrize("padding", ["", "-" * 50, "-" * 54])  # the last ones are cut off in the secret
def test_secrets_that_come_back_in_a_broken_answer_are_removed(monkeypatch, padding):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")

    def echo(handler, body):
        handler.send({"outputs": padding + handler.headers["Authorization"]})

    with serve_faulty(echo) as server:
        with ms.serve(ms.Endpoint(server.url, headers={"Authorization": "Bearer $MODEL_TOKEN"})) as predictor:
            with pytest.raises(ms.EndpointError, match=r"has no list `outputs`: .*\*\*\*") as caught:
                predictor.predict(X)
    assert "s3cr" not in str(caught.value)


def test_variables_of_tracebacks_hold_no_secret(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")
    headers = {"Authorization": "Bearer $MODEL_TOKEN"}

    def echo(handler, body):
        handler.send({"error": handler.headers["Authorization"]}, 401)

    def check(call):
        with pytest.raises(ms.ModelServeError) as caught:
            call()
        assert "s3cret" not in str(caught.getrepr(showlocals=True))

    with serve_faulty(echo) as server, ms.serve(ms.Endpoint(server.url, headers=headers)) as predictor:
        check(lambda: predictor.predict(X))
    with serve_faulty(echo, part="m") as server:
        check(lambda: ms.serve(ms.Endpoint(server.url, headers=headers)))
    check(lambda: ms.Endpoint("http://127.0.0.1:1/v2/models/m", headers={**headers, "two words": "x"}))
    check(lambda: ms.Endpoint("http://127.0.0.1:1/v2/models/m", headers={**headers, "X-Other": "$UNSET_VARIABLE"}))


def test_a_long_answer_is_searched_for_secrets_only_where_it_is_quoted(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken" * 20)
    searched = []
    monkeypatch.setattr(Redaction, "__call__", lambda self, text: searched.append(len(text)) or text)
    with serve_faulty(faults.answer(b"x" * (1 << 20))) as server:
        with ms.serve(ms.Endpoint(server.url, headers={"Authorization": "$MODEL_TOKEN"})) as predictor:
            with pytest.raises(ms.EndpointError, match="with 1,048,576 bytes that are not JSON"):
                predictor.predict(X)
    assert max(searched) < 30_000


def test_a_proxy_that_only_knows_models_is_served_by_json():
    with serve_faulty(faults.answer({"error": "no such path"}, 404), part="v2") as server:
        with ms.serve(server.url) as predictor:
            assert predictor.predict(X)["label"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"headers": {"Authorization": "$MODELSERVE_UNSET"}}, "needs the environment variable MODELSERVE_UNSET, which is not set"),
        ({"headers": {"Authorization": "100 $"}}, r"header 'Authorization' must be text, with \$NAME for a variable"),
        ({"headers": {"A": "x\r\nHost: y"}}, "header 'A' has characters that HTTP does not allow in a header, such as a line break"),
        ({"headers": ["A"]}, "headers must be a mapping from names to values; got list"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0 and at most 86,400; got 0"),
        ({"timeout_s": 1e20}, r"timeout_s must be a number of seconds .*; got 1e\+20"),
        ({"timeout_s": "5"}, "timeout_s must be a number of seconds .*; got '5'"),
        ({"ready_timeout_s": float("inf")}, "ready_timeout_s must be a number of seconds"),
        ({"retries": -1}, "retries must be a whole number of at least 0; got -1"),
        ({"encode": dict}, "encode and decode are two functions: give both"),
        ({"url": "http://user:pw@127.0.0.1/v2/models/m"}, "url 'http://127.0.0.1/v2/models/m' holds credentials"),
        ({"url": "ftp://127.0.0.1/v2/models/m"}, "is no address of a model in ASCII"),
        ({"url": "http://127.0.0.1:99999/v2/models/m"}, "is no address: give"),
        ({"url": "http://127.0.0.1/v2/models/a b"}, "is no address of a model in ASCII"),
        ({"encode": 5, "decode": 5}, "encode and decode are two functions"),
        ({"max_bytes": "5"}, "max_bytes must be a positive number of bytes; got '5'"),
        ({"url": None}, "url 'None' is no address"),
        ({"url": " http://127.0.0.1/v2/models/m"}, "is no address of a model in ASCII"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ms.UsageError, match=message) as caught:
        ms.Endpoint(**{"url": "http://127.0.0.1:1/v2/models/m", **settings})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/m", "http://127.0.0.1:1/v2/models/m?key=1", "grpc://127.0.0.1:1"])
def test_a_url_without_a_model_is_refused(url):
    with pytest.raises(ms.UsageError, match="names no model") as caught:
        ms.serve(url)
    assert "key=1" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 2}, "threads=2 does not apply to"),
        ({"interpreter": "python"}, "interpreter applies to ONNX files only: remove it for an endpoint"),
        ({"scan": "static"}, "scan applies to ONNX files only"),
        ({"manifest": "m.json"}, "manifest applies to ONNX files only"),
    ],
)
def test_settings_of_files_do_not_apply_to_endpoints(settings, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.serve("http://127.0.0.1:1/v2/models/m", **settings)


def test_gates_of_files_ask_for_the_file():
    with pytest.raises(ms.UsageError, match=r"http://… is the address of an endpoint: the model's file is needed here"):
        ms.measure_size("http://127.0.0.1:1/v2/models/m", max_bytes=1)


def test_connections_of_a_forgotten_predictor_are_closed(server):
    predictor = ms.serve(server.url)
    predictor.predict(X)
    (http,) = predictor.client.http._idle
    del predictor
    gc.collect()
    assert http.sock is None


def test_a_server_without_tls_is_named():
    with serve_faulty() as server:
        with pytest.raises(
            ms.EndpointError, match=r"TLS with https://.* fails \(.*\): check whether it is a server of https"
        ):
            ms.serve(server.url.replace("http:", "https:"))


def test_inputs_are_checked_before_they_are_sent(server):
    with ms.serve(server.url) as predictor:
        with pytest.raises(ms.InputError, match=r"input 'x' has shape \[2, 2\] where the model takes \[\?, 3\]"):
            predictor.predict(X[:, :2])
    with pytest.raises(ms.UsageError, match="is closed: serve the model again"):
        predictor.predict(X)


def test_kserve_v1_is_served_by_its_url(server):
    server.json["/v1/models/m:predict"] = lambda body: {"predictions": (np.array(body["instances"]) @ W).tolist()}
    with ms.serve(f"{server.origin}/v1/models/m") as predictor:
        np.testing.assert_allclose(predictor.predict(X)["predictions"], X @ W, rtol=1e-6)
        assert (predictor.transport, predictor.subject.name) == ("json", "m")
        assert ms.measure_output_parity(predictor, lambda x: x @ W, X, rtol=1e-6, atol=0).passed


def test_rows_of_kserve_v1_have_names_where_there_are_several_inputs(server):
    server.json["/v1/models/m:predict"] = lambda body: {
        "predictions": [{"s": row["a"] + row["b"]} for row in body["instances"]]
    }
    with ms.serve(f"{server.origin}/v1/models/m:predict") as predictor:
        assert predictor.predict({"a": np.array([1, 2]), "b": np.array([3, 4])})["s"].tolist() == [4, 6]


@pytest.fixture
def scorer(server):
    server.json["/score?key=1"] = lambda body: {"result": [{"score": sum(row)} for row in body["rows"]]}
    return ms.Endpoint(
        f"{server.origin}/score?key=1",
        encode=lambda rows: {"rows": rows},
        decode=lambda answer: {"score": [each["score"] for each in answer["result"]]},
    )


def test_json_of_any_shape_is_served_by_two_functions(scorer):
    with ms.serve(scorer) as predictor:
        np.testing.assert_allclose(predictor.predict(X)["score"], X.sum(axis=1), rtol=1e-6)
        with pytest.raises(ms.InputError, match=r"is no JSON: .* JSON has no NaN or infinity"):
            predictor.predict(X * np.nan)


def test_an_answer_that_decode_cannot_read_is_quoted(scorer):
    wrong = dataclasses.replace(scorer, decode=lambda answer: answer["scores"])
    with (
        ms.serve(wrong) as predictor,
        pytest.raises(
            ms.EndpointError, match=r"POST /score is not what decode expects \(KeyError: 'scores'\)"
        ) as caught,
    ):
        predictor.predict(X)
    assert "key=1" not in str(caught.value)


def test_decode_that_returns_none_is_named(scorer):
    with ms.serve(dataclasses.replace(scorer, decode=lambda answer: None)) as predictor:
        with pytest.raises(ms.EndpointError, match=r"is not what decode expects \(TypeError: it returned None\)"):
            predictor.predict(X)


@pytest.mark.parametrize("predictions", [None, "text"])
def test_predictions_of_kserve_v1_are_a_list(server, predictions):
    server.json["/v1/models/m:predict"] = lambda body: {"predictions": predictions}
    with ms.serve(f"{server.origin}/v1/models/m:predict") as predictor:
        with pytest.raises(ms.EndpointError, match="`predictions` is no list"):
            predictor.predict(X)


def _certificate(folder, *, days):
    """Return the paths of a self-signed certificate of 127.0.0.1, valid from long ago until `days` from now, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(today - datetime.timedelta(days=1000))
        .not_valid_after(today + datetime.timedelta(days=days))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    plain = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    return folder / "cert.pem", folder / "key.pem"


def test_certificates_are_verified_by_the_given_authority(tmp_path):
    certificate, key = _certificate(tmp_path, days=1)
    with serve_faulty(tls=faults.tls_of(certificate, key)) as server:
        with ms.serve(ms.Endpoint(server.url, ca_file=certificate)) as predictor:
            assert predictor.predict(X)["label"].tolist() == [1, 1]
        with ms.serve(ms.Endpoint(server.url, verify=False)) as predictor:
            assert predictor.predict(X)["label"].tolist() == [1, 1]
        with pytest.raises(
            ms.EndpointError, match=r"is not valid: self-signed certificate. Renew it; .* give ca_file="
        ):
            ms.serve(server.url)
    with pytest.raises(ms.UsageError, match="cannot be read as certificates in PEM"):
        ms.serve(ms.Endpoint(server.url, ca_file=key))


def test_an_expired_certificate_is_named(tmp_path):
    certificate, key = _certificate(tmp_path, days=-1)
    with (
        serve_faulty(tls=faults.tls_of(certificate, key)) as server,
        pytest.raises(
            ms.EndpointError, match=r"certificate of https://127.0.0.1:.* is not valid: certificate has expired"
        ),
    ):
        ms.serve(ms.Endpoint(server.url, ca_file=certificate))
