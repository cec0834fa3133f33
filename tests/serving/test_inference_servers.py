"""Real servers: MLServer by the Open Inference Protocol, LitServe by JSON of its own."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pytest_modelserve as ms

X = np.random.default_rng(3).normal(size=(16, 4)).astype(np.float32)

# What MLServer 1.7.1 (uvicorn) is known to accept, with the runtime of fixtures/server.
ACCEPTED_BY_MLSERVER = (
    "an unknown output",
    "an input twice",
    "a negative size",
    "null as a value",
    "a header of 1 MiB",
    "2,000 headers",
)


@pytest.fixture
def rest(mlserver):
    with ms.serve(f"{mlserver.http}/v2/models/classifier/versions/1") as predictor:
        yield predictor


@pytest.fixture
def grpc(mlserver):
    pytest.importorskip("grpc")
    with ms.serve(f"{mlserver.grpc}/classifier/versions/1") as predictor:
        yield predictor


def test_rest_and_grpc_return_the_outputs_of_the_file(mlserver, rest, grpc):
    with ms.serve(mlserver.files["1"]) as file:
        for predictor, transport in ((rest, "http"), (grpc, "grpc")):
            assert predictor.transport == transport
            assert str(predictor.signature) == "x: float32[?, 4] -> p: float32[?, 3], label: int64[?]"
            ms.assert_output_parity(predictor, file, X)


def test_both_serve_many_threads(rest, grpc):
    expected = rest.predict(X)["p"]
    for predictor in (rest, grpc):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda row, served=predictor: served.predict(row[np.newaxis])["p"][0], X))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_served_version_is_the_file_and_the_other_is_not(mlserver, rest, grpc):
    files = mlserver.files
    for predictor in (rest, grpc):
        ms.assert_serves(predictor, files["1"], X)
        wrong = ms.measure_served_model(predictor, files["2"], X, others={"version 1": files["1"]})
        assert "another file is served" in wrong.findings[0]
        assert "the answers are those of version 1 (classifier_1)" in wrong.findings


def test_gates_of_every_kind_take_an_endpoint(rest):
    labels = rest.predict(X)["label"]
    ms.assert_accuracy(rest, np.tile(X, (20, 1)), np.tile(labels, 20), min_value=0.9, output="label")
    ms.assert_relation(rest, X, ms.relations.batch_invariance(output="p"))
    assert ms.measure_latency(rest, X[:1], max_ms=1000).n > 100
    with pytest.raises(ms.UsageError, match=r"is an endpoint, whose memory is not this process's"):
        ms.assert_no_leak(rest, X[:1], max_kib_per_call=1000)


def test_unknown_models_are_told_apart_from_no_server(mlserver):
    with pytest.raises(ms.EndpointError, match="status 404: Model nothing not found"):
        ms.serve(f"{mlserver.http}/v2/models/nothing")
    pytest.importorskip("grpc")
    with pytest.raises(ms.EndpointError, match=r"answered ModelMetadata with status .* Model nothing"):
        ms.serve(f"{mlserver.grpc}/nothing")


def test_mlserver_conforms_but_for_what_is_known(mlserver):
    endpoint = ms.Endpoint(f"{mlserver.http}/v2/models/classifier", timeout_s=30)
    evidence = ms.assert_conformant(endpoint, accepted=ACCEPTED_BY_MLSERVER, pid=mlserver.pid, max_memory_mib=64)
    failing = [each["name"] for each in evidence.details["requests"] if each["problem"]]
    assert set(failing) <= set(ACCEPTED_BY_MLSERVER)
    assert [each.name for each in evidence.quantities] == ["failing requests", "open files", "memory growth"]


def test_litserve_is_reached_by_two_functions(litserve):
    endpoint = ms.Endpoint(f"{litserve.http}/predict", encode=lambda rows: {"rows": rows}, decode=dict)
    with ms.serve(endpoint) as predictor:
        ms.assert_serves(predictor, litserve.files["1"], X, rtol=1e-5, atol=1e-6)
