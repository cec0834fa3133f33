"""assert_conformant: a server that refuses what is invalid passes; each way of not doing so is named with its request."""

import os
import re
import time

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.robustness.bad_requests import BAD_REQUESTS
from tests.serving import v2_server
from tests.serving.v2_server import V2Server

INPUTS, OUTPUTS = {"x": ("FP32", [-1, 3])}, {"y": ("FP32", [-1, 3])}


def doubled(feed):
    return {"y": 2 * feed["x"]}


def measured(fault=None, *, timeout_s=5.0, **settings):
    with V2Server(doubled, INPUTS, OUTPUTS, faults={"infer": fault} if fault else None) as server:
        return ms.measure_conformance(ms.Endpoint(server.url, timeout_s=timeout_s), **settings)


def refused(status, body=None):
    """A fault: invalid requests are answered with a status and a body."""

    def fault(handler, answer):
        if isinstance(answer, dict) and "error" in answer:
            handler.send(answer if body is None else body, status)
            return True
        return False

    return fault


def problems(evidence):
    return {each["name"]: each["problem"] for each in evidence.details["requests"] if each["problem"]}


def test_a_server_that_refuses_every_invalid_request_passes():
    evidence = measured()
    assert evidence.passed, evidence
    assert problems(evidence) == {}
    assert evidence.n >= 44
    assert [each.name for each in evidence.quantities] == ["failing requests"]
    assert evidence.summary == "all invalid requests are refused"


def test_several_inputs_of_text_and_numbers_are_spoiled_as_well_behind_a_named_host():
    inputs = {"words": ("BYTES", [-1, 2]), "n": ("INT64", [-1])}
    with V2Server(lambda feed: {"y": feed["n"].astype(np.float32)}, inputs, {"y": ("FP32", [-1])}) as server:
        endpoint = ms.Endpoint(server.url, headers={"host": "digits.example.org"})
        evidence = ms.assert_conformant(endpoint, {"words": np.array([["a", "b"]], object), "n": np.array([7])})
        hosts = {
            value for _, _, headers in server.requests for name, value in headers.items() if name.lower() == "host"
        }
    assert hosts == {"digits.example.org"}
    names = [each["name"] for each in evidence.details["requests"]]
    assert "a missing input" in names
    assert "NaN as a value" not in names


def test_names_of_requests_are_unique():
    names = [each.name for each in BAD_REQUESTS]
    assert len(set(names)) == len(names)


def test_status_500_is_a_failure_and_its_reason_is_shown():
    evidence = measured(refused(500))
    assert evidence.verdict.name == "FAIL"
    assert re.fullmatch(
        "status 500: RefusedError|status 500: input x has the shape .*", problems(evidence)["a negative size"]
    )
    assert "accepted=['" in evidence.advice


def test_a_refusal_without_a_reason_is_a_failure():
    assert problems(measured(refused(400, b"")))["an unknown input"] == "status 400 without a reason"


def test_answering_an_invalid_request_is_a_failure():
    found = problems(measured(refused(200, {"outputs": []})))
    assert found["a value too many"] == "answered as if it were valid (status 200)"


@pytest.mark.parametrize("outputs", ["text", 5, [5], [{"shape": 5}], []])
def test_outputs_that_cannot_be_read_are_no_answer_to_an_empty_batch(outputs):
    def fault(handler, answer):
        is_empty = "outputs" in answer and answer["outputs"][0]["shape"][0] == 0
        if is_empty:
            handler.send({"outputs": outputs})
        return is_empty

    evidence = measured(fault)
    assert problems(evidence)["an empty batch"] == "answered as if it were valid (status 200)"


def test_known_failures_are_accepted_by_name_and_still_reported():
    failing = problems(measured(refused(500)))
    evidence = measured(refused(500), accepted=[*failing])
    assert evidence.passed
    assert evidence.summary == "all invalid requests are refused, but those accepted"
    assert any(each.startswith("no inputs (accepted): status 500") for each in evidence.findings)
    assert evidence.findings[10] == f'and {len(failing) - 10} more, all in details["requests"]'


def test_a_request_that_hangs_is_named_within_its_time_limit():
    def hang(handler, answer):
        if "shape [-1" not in str(answer):
            return False
        v2_server.hang(handler, answer)
        return True

    began = time.monotonic()
    found = problems(measured(hang, timeout_s=0.5))
    assert found == {"a negative size": found["a negative size"]}
    assert "did not answer the request within 0.5 s (timeout_s)" in found["a negative size"]
    assert time.monotonic() - began < 20


def test_a_server_that_lets_every_invalid_request_wait_ends_the_table_early():
    def waits(handler, answer):
        if "error" not in answer:
            return False
        v2_server.hang(handler, answer)
        return True

    evidence = measured(waits, timeout_s=0.2, pid=os.getpid())
    assert evidence.n == 5
    assert evidence.findings[-1] == "no further request was sent"
    assert [each.name for each in evidence.quantities] == ["failing requests"]


def test_a_server_that_dies_ends_the_table_with_the_request_that_it_died_of():
    with V2Server(doubled, INPUTS, OUTPUTS) as server:

        def dies(handler, answer):
            if "unknown or repeated" in str(answer):
                server.faults["infer"] = v2_server.die
            return False

        server.faults["infer"] = dies
        evidence = ms.measure_conformance(ms.Endpoint(server.url, timeout_s=5))
    last = evidence.details["requests"][-1]
    assert last["name"] == "an extra input"
    assert last["problem"].startswith("the next valid request has no answer: ")
    assert "no further request was sent" in evidence.findings[-1]
    assert evidence.n < 20


def test_other_answers_after_an_invalid_request_are_named():
    with V2Server(doubled, INPUTS, OUTPUTS) as server:

        def spoil(handler, answer):
            if "unknown or repeated" in str(answer):
                server.model = lambda feed: {"y": 3 * feed["x"]}
            return False

        server.faults["infer"] = spoil
        found = problems(ms.measure_conformance(server.url))
    assert found["an extra input"] == "the next valid request has another answer than before"


def test_requests_at_once_that_fail_are_counted():
    with V2Server(doubled, INPUTS, OUTPUTS) as server:
        busy = []

        def limited(handler, answer):
            busy.append(handler)
            time.sleep(0.01)
            too_many = len(busy) > 4
            busy.remove(handler)
            if too_many:
                handler.send({"error": "busy"}, 503)
            return too_many

        server.faults["infer"] = limited
        found = problems(ms.measure_conformance(server.url))
    assert re.match(r"\d+ of 32 failed, such as: .* status 503: busy", found["32 requests at once"])


def test_files_and_memory_that_requests_leave_behind_are_found(tmp_path):
    kept = []

    def leak(handler, answer):
        if isinstance(answer, dict) and "error" in answer:
            kept.append((open(tmp_path / "leak", "w"), b"x" * (1 << 20)))  # noqa: SIM115
        return False

    try:
        evidence = measured(leak, pid=os.getpid(), max_memory_mib=8)
    finally:
        for file, _ in kept:
            file.close()
    failing = {each.name: each.value for each in evidence.quantities if each.verdict.name == "FAIL"}
    assert set(failing) == {"open files", "memory growth"}
    assert failing["open files"] >= 40
    assert failing["memory growth"] >= 40 << 20


def test_without_a_leak_files_are_as_before_and_memory_without_a_budget_is_measured():
    evidence = measured(pid=os.getpid())
    assert evidence.passed, evidence
    assert [each.verdict and each.verdict.name for each in evidence.quantities] == ["PASS", "PASS", None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accepted": ["an input twic"]}, "unknown request in accepted 'an input twic': did you mean 'an input twice'"),
        ({"max_memory_mib": 5}, "max_memory_mib needs pid, the number of the server's process"),
        ({"max_memory_mib": 0, "pid": 1}, "max_memory_mib must be a positive number of MiB; got 0"),
        ({"pid": 2**22 + 7}, "process 4194311 cannot be read in /proc: No such file or directory"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_any_request(settings, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.measure_conformance("http://127.0.0.1:1/v2/models/m", **settings)


def test_only_the_open_inference_protocol_by_rest_is_measured():
    with pytest.raises(ms.UsageError, match=r"must be the URL of a model or an ms\.Endpoint; got function"):
        ms.measure_conformance(doubled)
    with pytest.raises(ms.UsageError, match=r"is no address by REST, over which conformance is tested: give http://"):
        ms.measure_conformance("http://127.0.0.1:1/v1/models/m:predict")


def test_a_valid_request_that_is_refused_is_no_verdict_on_the_server():
    with V2Server(doubled, INPUTS, OUTPUTS, faults={"infer": v2_server.answer({"error": "no"}, 400)}) as server:
        with pytest.raises(
            ms.EndpointError, match=r"the valid request is not answered, pass inputs= for another: .* 400: no"
        ):
            ms.measure_conformance(server.url)
        with pytest.raises(ms.InputError, match="inputs are empty: at least one row is needed"):
            ms.measure_conformance(server.url, np.zeros((0, 3), np.float32))


def test_requests_about_values_are_left_out_for_an_input_without_any():
    with V2Server(lambda feed: {"y": feed["x"]}, {"x": ("FP32", [0, 3])}, {"y": ("FP32", [-1, 3])}) as server:
        names = [each["name"] for each in ms.measure_conformance(server.url).details["requests"]]
    assert "an axis too many" in names
    assert "a value too many" not in names
