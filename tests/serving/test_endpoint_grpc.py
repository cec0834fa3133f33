"""The Open Inference Protocol by gRPC, against a server whose answers are planted."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pytest_modelserve as ms

grpc = pytest.importorskip("grpc")
from pytest_modelserve.serving import open_inference_pb2 as pb  # noqa: E402

X = np.array([[1, 2], [3, 4]], np.float32)
SERVICE = "inference.GRPCInferenceService"


class Server:
    """Serves y = 2 x as "m"; `answer` edits a right answer, or raises."""

    def __init__(self, answer=lambda answer, context: answer):
        self.answer, self.metadata = answer, []
        methods = {"ModelReady": self.ready, "ModelMetadata": self.describe, "ModelInfer": self.infer}
        self.server = grpc.server(ThreadPoolExecutor(8))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=getattr(pb, f"{name}Request").FromString,
                response_serializer=getattr(pb, f"{name}Response").SerializeToString,
            )
            for name, method in methods.items()
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}/m"

    def ready(self, _request, _context):
        return pb.ModelReadyResponse(ready=True)

    def describe(self, request, _context):
        x, y = ({"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "xy")
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], inputs=[x], outputs=[y])

    def infer(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        values = np.frombuffer(request.raw_input_contents[0], np.float32)
        answer = pb.ModelInferResponse(
            model_name="m",
            id=request.id,
            outputs=[{"name": "y", "datatype": "FP32", "shape": request.inputs[0].shape}],
            raw_output_contents=[(2 * values).tobytes()],
        )
        return self.answer(answer, context)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop(None).wait()


def edited(**fields):
    """An answer without its bytes, with other fields."""

    def answer(found, context):
        del found.raw_output_contents[:]
        found.MergeFrom(pb.ModelInferResponse(**fields))
        return found

    return answer


def test_tensors_are_bytes_and_headers_are_metadata(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")
    with Server() as server, ms.serve(ms.Endpoint(server.url, headers={"Authorization": "$MODEL_TOKEN"})) as predictor:
        assert str(predictor.signature) == "x: float32[?, 2] -> y: float32[?, 2]"
        np.testing.assert_array_equal(predictor.predict(X)["y"], 2 * X)
        assert server.metadata["authorization"] == "s3cret-t0ken"
        assert "s3cret" not in predictor.describe() + repr(predictor.endpoint)


def test_values_and_texts_of_an_answer_are_read_as_well():
    output = {"name": "t", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"a", "ü".encode()]}}

    def answer(found, context):
        del found.raw_output_contents[:]
        found.outputs[0].contents.fp32_contents.extend([1, 2, 3, np.nan])
        found.outputs.append(pb.ModelInferResponse.InferOutputTensor(**output))
        found.parameters["sha256"].string_param = "ab" * 32
        return found

    with Server(answer) as server, ms.serve(server.url) as predictor:
        found, sha256 = predictor.answer(X)
    np.testing.assert_array_equal(found["y"], np.array([[1, 2], [3, np.nan]], np.float32))
    assert (found["t"].tolist(), sha256) == (["a", "ü"], "ab" * 32)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda found, context: time.sleep(1), r"did not answer ModelInfer within 0\.3 s \(timeout_s\)"),
        (lambda found, context: context.abort(grpc.StatusCode.INTERNAL, "out of memory"), r"answered ModelInfer with status INTERNAL: out of memory"),
        (lambda found, context: 1 / 0, r"answered ModelInfer with status UNKNOWN: Exception calling application: division by zero"),
        (edited(raw_output_contents=[bytes(2_000_000)]), r"answered ModelInfer with status RESOURCE_EXHAUSTED: .*larger than max"),
        (edited(raw_output_contents=[b"1", b"2"]), r"has 1 outputs, and the bytes of 2"),
        (edited(raw_output_contents=[bytes(6)]), r"output 'y' of model 'm' has 6 bytes, which are no whole number of FP32 values"),
        (edited(raw_output_contents=[bytes(4)]), r"output 'y' of model 'm' has shape \[2, 2\] and 1 values"),
        (edited(model_name="other"), r"answered for model 'other', and model 'm' was asked"),
        (edited(id="77"), r"sent the answer of request '77' to request '1': answers are mixed up"),
    ],
)  # fmt: skip
def test_each_fault_of_a_server_is_one_sentence(answer, message):
    with Server(answer) as server:
        endpoint = ms.Endpoint(server.url, timeout_s=0.3, max_bytes=1_000_000)
        with ms.serve(endpoint) as predictor, pytest.raises(ms.EndpointError, match=message):
            predictor.predict(X)


def test_no_server_is_named_and_closed_predictors_are_refused():
    with pytest.raises(ms.EndpointError, match=r"no server answers ModelMetadata at grpc://127\.0\.0\.1:1: "):
        ms.serve(ms.Endpoint("grpc://127.0.0.1:1/m", retries=1, timeout_s=5))
    with Server() as server, ms.serve(server.url) as predictor:
        predictor.close()
        with pytest.raises(ms.UsageError, match="is closed: serve the model again"):
            predictor.predict(X)


def test_settings_of_https_are_refused():
    with pytest.raises(ms.UsageError, match="verify=False is for https"):
        ms.serve(ms.Endpoint("grpcs://127.0.0.1:1/m", verify=False))
    with pytest.raises(ms.UsageError, match="encode and decode are for HTTP"):
        ms.serve(ms.Endpoint("grpc://127.0.0.1:1/m", encode=dict, decode=dict))
    with pytest.raises(ms.UsageError, match=r"ca_file 'missing\.pem' cannot be read as certificates"):
        ms.serve(ms.Endpoint("grpcs://127.0.0.1:1/m", ca_file="missing.pem"))


@pytest.mark.parametrize(("name", "end"), [("X-Bin", ""), ("Grpc-X", ""), ("A!B", ""), ("A", "ü")])
def test_headers_that_grpc_cannot_send_are_named(monkeypatch, name, end):
    monkeypatch.setenv("MODEL_TOKEN", "s3c" + "ret" + end)  # the source of this function is shown, too
    with pytest.raises(ms.UsageError, match=f"header '{name.lower()}' cannot be sent by gRPC") as caught:
        ms.serve(ms.Endpoint("grpc://127.0.0.1:1/m", headers={name: "$MODEL_TOKEN"}))
    assert "s3cret" not in str(caught.getrepr(showlocals=True))


def test_without_grpc_the_extra_is_named():
    code = (
        "import sys; sys.modules['grpc'] = None\nimport pytest_modelserve as ms\n"
        "try: ms.serve('grpc://127.0.0.1:1/m')\nexcept ms.MissingDependencyError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        "an endpoint by gRPC needs grpc, which is not installed: pip install 'pytest-modelserve[grpc]'"
    )
