"""Explanations of a failed gate: the diverging node, the stage at fault, and the layers most sensitive to int8."""

import json
import math

import numpy as np
import onnx
import pytest
import torch

import pytest_modelserve as ms
from pytest_modelserve import compression
from pytest_modelserve.artifacts import LineageStep, save_artifact
from pytest_modelserve.parity import diagnosis
from pytest_modelserve.parity.diagnosis import Diagnosis, diagnose_divergence

ONES = np.ones((2, 3), np.float32)
ROWS = np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32)


@pytest.fixture
def served(operator):
    """y = op(x, 2)"""
    return lambda op: ms.serve(operator(op, two=[2]))


class Doubled(torch.nn.Module):
    def forward(self, x):
        return x * 2


def test_diverging_node_is_found_between_two_files(served):
    found = diagnose_divergence(served("Add"), served("Mul"), ONES)
    assert found.finding == (
        "first diverging node: Add 'node_y', given the reference's inputs to it; tensor 'y' at [0, 0] is 3 where the "
        "reference has 2; operator is Add where the reference has Mul"
    )
    assert found.details["divergence"]["node"] == "node_y"
    assert diagnose_divergence(served("Mul"), served("Mul"), ONES) == Diagnosis()


def test_stage_at_fault_is_found_between_a_file_and_eager_torch(served):
    found = diagnose_divergence(served("Add"), ms.serve(Doubled().eval()), ONES)
    assert found.finding == ("the exported graph differs from the eager model: output 'output' at [0, 0] is 3, not 2")
    assert found.details["origin"]["fault"] == "export"
    assert diagnose_divergence(served("Mul"), ms.serve(Doubled().eval()), ONES) == Diagnosis()


def test_callables_have_no_diagnosis(served):
    assert diagnose_divergence(served("Add"), ms.serve(lambda x: x * 2, name="f"), ONES) == Diagnosis()
    assert diagnose_divergence(ms.serve(lambda x: x * 2, name="f"), served("Add"), ONES) == Diagnosis()


def test_search_that_fails_is_reported_and_not_raised(served):
    candidate, reference = served("Add"), served("Mul")
    candidate.artifact.path.write_bytes(b"gone")
    found = diagnose_divergence(candidate, reference, ONES)
    assert found.finding.startswith("searching for the diverging node failed: ")
    assert (found.advice, found.details) == ("", {})


@pytest.fixture(autouse=True)
def _no_earlier_failure(monkeypatch):
    monkeypatch.setattr(diagnosis, "_RANKED", {})


@pytest.fixture(scope="module")
def artifact(build, tmp_path_factory):
    """An exported artifact of a model."""

    def save(name, *parts):
        path = tmp_path_factory.mktemp(name) / f"{name}.onnx"
        lineage = (LineageStep("export", {}, None, {}),)
        model = build(*parts, inputs={"x": ["batch", 64]})
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["batch", None]))
        return save_artifact(model, path, name=name, variant="fp32", lineage=lineage)

    return save


@pytest.fixture(scope="module")
def deep(artifact):
    """Three Gemm; the second has one large weight in each channel that takes all of its steps."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal((64, size)).astype(np.float32) / 8
        for name, size in (("w1", 64), ("w2", 64), ("w3", 4))
    }
    weights["w1"][:, 0] = 0
    weights["w2"][0] = 40
    nodes = [
        ("Gemm", ["x", "w1"], "a", {}),
        ("Tanh", ["a"], "t", {}),
        ("Gemm", ["t", "w2"], "b", {}),
        ("Tanh", ["b"], "u", {}),
        ("Gemm", ["u", "w3"], "y", {}),
    ]
    return artifact("net", nodes, weights)


@pytest.fixture(scope="module")
def masked(artifact):
    """Attention weights: a product, a mask of -200 on every other score, and the softmax."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.standard_normal((64, 8)).astype(np.float32) / 8, "mask": np.array([0, -200] * 4, np.float32)}
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]
    return artifact("shares", nodes, weights)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    with ms.Pipeline(tmp_path_factory.mktemp("cache")) as pipeline:
        yield pipeline


@pytest.fixture
def pair(deep, pipeline):
    """The served int8 variant of `deep` and `deep` itself."""
    return pipeline.serve(pipeline.compress(deep, "int8-dynamic")), pipeline.serve(deep)


def test_overflow_inside_a_model_in_fp16_is_named_although_outputs_here_are_sound(artifact, pipeline):
    """A row over the root of its mean square: the CPU computes in float32 what a GPU computes in fp16."""
    weights = {"w": np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32), "last": np.array([1])}
    nodes = [
        ("Mul", ["x", "x"], "squares", {}),
        ("ReduceMean", ["squares", "last"], "mean", {}),
        ("Sqrt", ["mean"], "size", {}),
        ("Div", ["x", "size"], "unit", {}),
        ("MatMul", ["unit", "w"], "y", {}),
    ]
    source = artifact("rms", nodes, weights)
    candidate, reference = pipeline.serve(pipeline.compress(source, "fp16")), pipeline.serve(source)
    evidence = ms.measure_output_fidelity(candidate, reference, ROWS * np.float32(500), min_sqnr_db=55)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.findings[-1].startswith("value 'squares' of Mul 'node_squares' reaches ")
    assert "exclude=('node_squares', 'node_mean', 'node_size')" in evidence.findings[-1]
    assert ms.measure_output_fidelity(candidate, reference, ROWS, min_sqnr_db=55).findings == ()


@pytest.mark.parametrize("factor", [255, 1 / 255])
def test_calibration_in_another_unit_is_named_instead_of_a_node(artifact, pipeline, factor):
    """Pixels to 255 where shares are served, or the reverse: every node by itself is sound."""
    rng = np.random.default_rng(2)
    weights = {"w1": rng.standard_normal((64, 64)).astype(np.float32), "w2": rng.standard_normal((64, 4), np.float32)}
    nodes = [("Gemm", ["x", "w1"], "a", {}), ("Relu", ["a"], "r", {}), ("Gemm", ["r", "w2"], "y", {})]
    source = artifact("sound", nodes, weights)
    served = rng.random((64, 64), np.float32) * np.float32(1 if factor > 1 else 255)
    candidate = pipeline.serve(pipeline.compress(source, "int8-static", calibration=served * np.float32(factor)))
    evidence = ms.measure_output_fidelity(candidate, pipeline.serve(source), served, min_sqnr_db=25)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings[-1].startswith("the calibration data do not fit: input 'x' was calibrated on values from ")
    assert evidence.advice == "pass calibration= rows that are scaled as the served ones are"
    assert evidence.details["calibration"]["sqnr_db_if_calibrated_on_these_rows"] > 25


def test_calibration_that_fits_is_not_named(deep, pipeline):
    candidate = pipeline.serve(pipeline.compress(deep, "int8-static", calibration=ROWS, exclude="node_b"))
    evidence = ms.measure_output_fidelity(candidate, pipeline.serve(deep), ROWS[:100], min_sqnr_db=90)
    assert evidence.findings[-1].startswith("most sensitive to int8-static when quantized alone")


def test_failure_text_names_the_node_to_exclude(pair):
    candidate, reference = pair
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_fidelity(candidate, reference, ROWS, min_sqnr_db=60)
    evidence = failure.value.evidence
    ranking = evidence.details["sensitivity"]["ranking"]
    assert ranking[0]["node"] == "node_b"
    first, second, third = (each["sqnr_db"] for each in ranking)
    others = [each["node"] for each in ranking[1:]]
    assert (
        str(failure.value)
        == f"""\
output fidelity: outputs differ from the reference's by more than allowed

  SQNR       {evidence.quantities[0].value:.1f} dB
  method     every row compared, worst channel decides, n = 200 rows
  budget     at least 60.0 dB (min_sqnr_db=60)
  verdict    FAIL: the value lies below the budget

  most sensitive to int8-dynamic when quantized alone (50 of 200 rows): Gemm 'node_b', SQNR {first:.1f} dB; next Gemm '{others[0]}' {second:.1f} dB, Gemm '{others[1]}' {third:.1f} dB
  candidate  net / int8-dynamic  sha256 {candidate.artifact.sha256[:12]}…
  reference  net / fp32  sha256 {reference.artifact.sha256[:12]}…
  next       keep the most sensitive nodes in full precision: compress with exclude=('node_b',)"""
    )
    assert first < second <= third
    assert {**evidence.details["sensitivity"], "ranking": ()} == {
        "recipe": "int8-dynamic",
        "rows": 50,
        "layers": 3,
        "tried": 3,
        "ranking": (),
    }
    assert json.loads(evidence.to_json())["details"]["sensitivity"]["ranking"][0]["node"] == "node_b"


def test_pair_that_fails_again_is_not_ranked_again(pair, monkeypatch):
    first = ms.measure_output_fidelity(*pair, ROWS, min_sqnr_db=60)
    monkeypatch.setattr(diagnosis, "_rank", lambda *_: pytest.fail("ranked twice"))
    again = ms.measure_output_fidelity(*pair, ROWS[:3], min_sqnr_db=60)
    assert again.findings == (f"{first.findings[0]}; ranked on the rows of an earlier failure",)
    assert (again.advice, again.details) == (first.advice, first.details)


def test_pass_ranks_nothing(pair, monkeypatch):
    monkeypatch.setattr(diagnosis, "_rank", lambda *_: pytest.fail("ranked on PASS"))
    evidence = ms.assert_output_fidelity(*pair, ROWS, min_sqnr_db=-100)
    assert (evidence.findings, evidence.advice, evidence.details) == ((), "", {})


def test_reference_that_the_candidate_was_not_made_from_is_not_ranked(pair, tmp_path):
    candidate, reference = pair
    copy = tmp_path / "other.onnx"
    # An empty producer_name: the same model in another file.
    copy.write_bytes(reference.artifact.path.read_bytes() + b"\x12\x00")
    evidence = ms.measure_output_fidelity(candidate, ms.serve(copy), ROWS, min_sqnr_db=60)
    assert evidence.verdict is ms.Verdict.FAIL
    assert (evidence.findings, evidence.details) == ((), {})
    assert evidence.advice.startswith("if the candidate was quantized, keep its most sensitive layers")


def test_recipe_further_back_in_the_lineage_is_found(deep, pipeline):
    candidate = pipeline.serve(pipeline.compress(deep, ["int8-dynamic", "optimize"]))
    evidence = ms.measure_output_fidelity(candidate, pipeline.serve(deep), ROWS, min_sqnr_db=60)
    assert evidence.details["sensitivity"]["ranking"][0]["node"] == "node_b"


def test_excluded_nodes_are_not_ranked_again(pair, deep, pipeline):
    whole, reference = pair
    candidate = pipeline.serve(pipeline.compress(deep, "int8-dynamic", exclude=("node_b",)))
    before = ms.measure_output_fidelity(whole, reference, ROWS, min_sqnr_db=60)
    evidence = ms.measure_output_fidelity(candidate, reference, ROWS, min_sqnr_db=60)
    assert evidence.quantities[0].value > before.quantities[0].value + 10  # the advice was right
    ranked = [each["node"] for each in evidence.details["sensitivity"]["ranking"]]
    assert sorted(ranked) == ["node_a", "node_y"]
    assert evidence.advice.endswith(f": compress with exclude=('node_b', {ranked[0]!r})")


def test_time_limit_is_reported(pair, monkeypatch):
    monkeypatch.setattr(diagnosis, "_TIME_LIMIT_S", 0.0)
    evidence = ms.measure_output_fidelity(*pair, ROWS[:64], min_sqnr_db=60)
    assert "(the first 1 of 3 nodes within 0 s): Gemm 'node_a', SQNR " in evidence.findings[0]
    assert evidence.details["sensitivity"]["tried"] == 1


def test_ranking_that_fails_leaves_the_verdict(pair, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no space")

    monkeypatch.setattr(compression, "rank_layers", fail)
    evidence = ms.measure_output_fidelity(*pair, ROWS, min_sqnr_db=60)
    assert evidence.verdict is ms.Verdict.FAIL
    assert evidence.findings == ("ranking the layers by quantization damage failed: no space",)


def test_layers_without_damage_are_not_reported(pair, monkeypatch):
    harmless = compression.SensitivityRanking((ms.LayerSensitivity("node_a", "Gemm", math.inf),), 1, 1)
    monkeypatch.setattr(compression, "rank_layers", lambda *_, **__: harmless)
    evidence = ms.measure_output_fidelity(*pair, ROWS, min_sqnr_db=60)
    assert (evidence.findings, evidence.details) == ((), {})


def test_nodes_that_round_the_same_value_are_excluded_together(masked, pipeline):
    """Neither has a weight. Without one of them the other still rounds the masked scores."""
    reference = pipeline.serve(masked)
    whole, spared = (
        pipeline.serve(pipeline.compress(masked, "int8-static", calibration=ROWS, exclude=exclude))
        for exclude in ((), ("node_m", "node_y"))
    )
    evidence = ms.measure_output_fidelity(whole, reference, ROWS, min_sqnr_db=30)
    nodes = tuple(each["node"] for each in evidence.details["sensitivity"]["ranking"][:2])
    assert set(nodes) == {"node_m", "node_y"}
    assert evidence.advice.endswith(f"compress with exclude={nodes!r}")
    assert ms.measure_output_fidelity(spared, reference, ROWS, min_sqnr_db=30).verdict is ms.Verdict.PASS


def test_ranking_uses_the_candidates_calibration(masked, pipeline, monkeypatch):
    calls = []
    monkeypatch.setattr(compression, "rank_layers", lambda *_, **options: calls.append(options))
    small = pipeline.compress(masked, "int8-static", calibration=ROWS, calibration_method="percentile", percentile=99.9)
    ms.measure_output_fidelity(pipeline.serve(small), pipeline.serve(masked), ROWS, min_sqnr_db=60)
    assert calls == [{"calibration_method": "percentile", "percentile": 99.9, "time_limit_s": 30.0}]
