"""The formats of other systems, read back by their own libraries."""

import json
import math

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.parser import text_string_to_metric_families

import pytest_modelserve as ms
from pytest_modelserve.evidence import Budget, Interval, Quantity, Subject
from pytest_modelserve.reporting import Row, as_json


def samples(document):
    """The samples of the text as prometheus-client reads them, by name."""
    found = {}
    for family in text_string_to_metric_families(ms.prometheus_text(document)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def points(document):
    """The points of the request as OpenTelemetry's protobuf reads them: attributes and value, by metric."""
    request = json_format.Parse(ms.otlp_json(document), ExportMetricsServiceRequest())
    (resource,) = request.resource_metrics
    return {
        metric.name: [
            ({a.key: a.value.string_value for a in point.attributes}, point.as_double)
            for point in metric.gauge.data_points
        ]
        for metric in resource.scope_metrics[0].metrics
    }


LABELS = {"gate": "accuracy_parity", "model": "digits_cnn", "variant": "int8-static", "reference": "digits_cnn / fp32"}


def test_prometheus_reads_value_bounds_budget_and_verdict(record_of, document_of):
    found = samples(document_of(Row("t", "FAIL", record_of(0.02, 0.03, node_id="t"), "failed")))
    drop = {**LABELS, "label": "", "test": "t", "call": "0", "quantity": "drop", "unit": "proportion_difference"}
    assert found["modelserve_gate_value"][0] == (drop, 0.025)
    assert found["modelserve_gate_interval_low"] == [(drop, 0.02)]
    assert found["modelserve_gate_interval_high"] == [(drop, 0.03)]
    assert found["modelserve_gate_budget"] == [(drop, 0.01)]
    ((labels, one),) = found["modelserve_gate_verdict"]
    assert (labels["verdict"], one) == ("FAIL", 1.0)
    assert found["modelserve_run_start_time_seconds"] == [({}, 1_790_000_000.0)]


def test_prometheus_has_no_two_samples_with_equal_labels(record_of, document_of):
    same = [Row("t", "PASS", record_of(node_id="t", index=index), "passed") for index in (0, 1)]
    other = Row("u", "ERROR", None, "failed", error="x")
    for found in samples(document_of(*same, other, other)).values():
        keys = [tuple(sorted(labels.items())) for labels, _ in found]
        assert len(keys) == len(set(keys))


def test_opentelemetry_reads_value_bounds_budget_and_verdict(record_of, document_of):
    found = points(document_of(Row("t", "FAIL", record_of(0.02, 0.03, node_id="t"), "failed")))
    drop = {**LABELS, "label": "", "test": "t", "verdict": "FAIL", "quantity": "drop", "unit": "proportion_difference"}
    assert found["modelserve.gate.value"][0] == (drop, 0.025)
    assert found["modelserve.gate.interval_low"] == [(drop, 0.02)]
    assert found["modelserve.gate.interval_high"] == [(drop, 0.03)]
    assert found["modelserve.gate.budget"] == [(drop, 0.01)]


def test_numbers_that_are_not_finite_reach_prometheus_and_are_left_out_elsewhere(record_of, document_of):
    quantity = Quantity("q", math.inf, "", Interval(-math.inf, math.inf, 0.9, 0.9), Budget("at_most", 1.0))
    document = document_of(Row("t", "FAIL", record_of(node_id="t", quantities=(quantity,)), "failed"))
    assert samples(document)["modelserve_gate_interval_low"][0][1] == -math.inf
    assert {name: len(found) for name, found in points(document).items()} == {
        "modelserve.gate.value": 0,
        "modelserve.gate.interval_low": 0,
        "modelserve.gate.interval_high": 0,
        "modelserve.gate.budget": 1,
    }


class FakeClient:
    """An MLflow client that checks names as MLflow does."""

    def __init__(self):
        self.metrics, self.tags, self.texts = {}, {}, {}

    def log_metric(self, run_id, key, value):
        assert run_id == "run"
        self._check(key)
        assert key not in self.metrics, f"a second value of {key}"
        self.metrics[key] = value

    def set_tag(self, _, key, value):
        self._check(key)
        self.tags[key] = value

    def log_text(self, _, text, artifact_file):
        self.texts[artifact_file] = text

    def _check(self, name):
        assert len(name) <= 250
        assert all(c.isascii() and (c.isalnum() or c in "_-. /:") for c in name), name
        assert not {"", ".", ".."} & set(name.split("/")), name


def test_mlflow_gets_metrics_verdicts_and_both_documents(run_of_all_kinds):
    client = FakeClient()
    ms.log_to_mlflow(run_of_all_kinds, client, "run")
    base = "accuracy_parity/digits_cnn/int8-static"
    assert client.metrics[f"{base}/drop/value"] == 0.025
    assert client.metrics[f"{base}/drop/budget"] == 0.01
    assert client.tags[f"modelserve/{base}"] == "FAIL"
    assert client.metrics["modelserve/INCONCLUSIVE"] == 2
    assert client.metrics["modelserve/measured"] == 1
    assert json.loads(client.texts["modelserve/evidence.json"]) == run_of_all_kinds
    assert client.texts["modelserve/evidence.html"].startswith("<!doctype html>")


def test_any_name_is_one_that_mlflow_takes(nasty_document, record_of, document_of):
    ms.log_to_mlflow(nasty_document, FakeClient(), "run")
    for name in ("..", "/", "é" * 300):
        row = Row("t", "PASS", record_of(subject=Subject(name)), "passed")
        ms.log_to_mlflow(document_of(row), FakeClient(), "run")


def test_names_stay_label_values(nasty_document):
    found = samples(nasty_document)
    model = found["modelserve_gate_value"][0][0]["model"]
    assert model.startswith(r"\x1b[31mred</script>")
    assert r"\n::error::pwned" in model
    ((attributes, _),) = points(nasty_document)["modelserve.gate.value"]
    assert attributes["model"].startswith(r"\x1b[31mred</script>")
    assert set(found) == {
        "modelserve_run_start_time_seconds", "modelserve_run_duration_seconds", "modelserve_run_complete",
        "modelserve_gate_verdict", "modelserve_gate_value", "modelserve_gate_interval_low",
        "modelserve_gate_interval_high", "modelserve_gate_budget",
    }  # fmt: skip


def test_document_that_was_written_is_read_and_a_cut_one_is_an_error(run_of_all_kinds, tmp_path):
    path = tmp_path / "evidence.json"
    text = as_json(run_of_all_kinds)
    path.write_text(text, encoding="utf-8")
    assert ms.read_report(path) == run_of_all_kinds
    path.write_text(text[:-20], encoding="utf-8")
    with pytest.raises(ms.InputError, match="no JSON document, or cut short"):
        ms.read_report(path)
    path.write_text('{"schema_version": 2, "gates": []}')
    with pytest.raises(ms.InputError, match="is not the document of a run: it lacks commit, complete, counts"):
        ms.read_report(path)
    path.write_text('{"schema_version": 1}')
    with pytest.raises(ms.InputError, match="has schema version 1; this release reads version 2"):
        ms.read_report(path)
