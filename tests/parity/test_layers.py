"""The ranking of layers that a failed fidelity gate tells."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import LineageStep, save_artifact
from pytest_modelserve.parity import fidelity as layers


@pytest.fixture(autouse=True)
def _no_earlier_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_RANKED", {})


@pytest.fixture
def deep(tmp_path: Any) -> ms.Artifact:
    """Three Gemm; the second has one large weight in each channel that takes all of its steps."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, size)).astype(np.float32) / 8 for name, size in (("w1", 64), ("w2", 64))}
    weights["w3"] = rng.standard_normal((64, 4)).astype(np.float32) / 8
    weights["w1"][:, 0] = 0
    weights["w2"][0] = 40
    chain = [("Gemm", "x", "w1", "a"), ("Tanh", "a", "", "t"), ("Gemm", "t", "w2", "b"), ("Tanh", "b", "", "u")]
    nodes = [
        helper.make_node(op, [name for name in (x, w) if name], [y], name=f"node_{y}")
        for op, x, w, y in [*chain, ("Gemm", "u", "w3", "y")]
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return save_artifact(
        model, tmp_path / "net.onnx", name="net", variant="fp32", lineage=(LineageStep("export", {}, None, {}),)
    )


@pytest.fixture
def pair(deep: ms.Artifact, tmp_path: Any) -> Any:
    """The served int8 variant of `deep` and `deep` itself."""
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        yield pipeline.serve(pipeline.compress(deep, "int8-dynamic")), pipeline.serve(deep)


ROWS = np.random.default_rng(1).standard_normal((200, 64)).astype(np.float32)


def test_failure_names_the_layer_to_leave_out(pair: Any) -> None:
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
output fidelity: outputs are further from the reference than allowed

  SQNR       {evidence.quantities[0].value:.1f} dB
  method     every row compared, worst output judged, n = 200 rows
  budget     at least 60.0 dB
  verdict    FAIL: the value lies below the budget

  quantised alone by int8-dynamic (50 of 200 rows), Gemm 'node_b' costs most: SQNR {first:.1f} dB; next Gemm '{others[0]}' {second:.1f} dB, Gemm '{others[1]}' {third:.1f} dB
  candidate  net / int8-dynamic  sha256 {candidate.artifact.sha256[:12]}…
  reference  net / fp32  sha256 {reference.artifact.sha256[:12]}…
  next       keep what loses most in full precision: compress with exclude=('node_b',)"""
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


def test_pair_that_fails_again_is_not_ranked_again(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ms.measure_output_fidelity(*pair, ROWS, min_sqnr_db=60)
    monkeypatch.setattr(layers, "_told", lambda *_: pytest.fail("ranked twice"))
    again = ms.measure_output_fidelity(*pair, ROWS[:3], min_sqnr_db=60)
    assert again.findings == (f"{first.findings[0]}; ranked on the rows of an earlier failure",)
    assert (again.advice, again.details) == (first.advice, first.details)


def test_pass_ranks_nothing(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_told", lambda *_: pytest.fail("ranked on PASS"))
    evidence = ms.assert_output_fidelity(*pair, ROWS, min_sqnr_db=-100)
    assert (evidence.findings, evidence.advice, evidence.details) == ((), "", {})


def test_reference_that_the_candidate_was_not_made_from_is_not_ranked(pair: Any, tmp_path: Any) -> None:
    candidate, reference = pair
    model = ms.open_artifact(reference.artifact.path)
    copy = tmp_path / "other.onnx"
    copy.write_bytes(model.path.read_bytes() + b"\x12\x00")  # an empty producer_name: the same model, another file
    evidence = ms.measure_output_fidelity(candidate, ms.serve(copy), ROWS, min_sqnr_db=60)
    assert evidence.verdict is ms.Verdict.FAIL
    assert (evidence.findings, evidence.details) == ((), {})
    assert evidence.advice == "keep the layers that lose the signal in full precision"


def test_recipe_further_back_in_the_line_is_found(deep: ms.Artifact, tmp_path: Any) -> None:
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        candidate = pipeline.serve(pipeline.compress(deep, ["int8-dynamic", "optimize"]))
        evidence = ms.measure_output_fidelity(candidate, pipeline.serve(deep), ROWS, min_sqnr_db=60)
    assert evidence.details["sensitivity"]["ranking"][0]["node"] == "node_b"


def test_layers_left_out_already_are_not_told_again(deep: ms.Artifact, tmp_path: Any) -> None:
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        reference = pipeline.serve(deep)
        whole = pipeline.serve(pipeline.compress(deep, "int8-dynamic"))
        candidate = pipeline.serve(pipeline.compress(deep, "int8-dynamic", exclude=("node_b",)))
        before = ms.measure_output_fidelity(whole, reference, ROWS, min_sqnr_db=60)
        evidence = ms.measure_output_fidelity(candidate, reference, ROWS, min_sqnr_db=60)
    assert evidence.quantities[0].value > before.quantities[0].value + 10  # the advice was right
    ranked = [each["node"] for each in evidence.details["sensitivity"]["ranking"]]
    assert sorted(ranked) == ["node_a", "node_y"]
    assert evidence.advice.endswith(f": compress with exclude=('node_b', {ranked[0]!r})")


def test_time_limit_is_told(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_TIME_LIMIT_S", 0.0)
    evidence = ms.measure_output_fidelity(*pair, ROWS[:64], min_sqnr_db=60)
    assert evidence.findings[0].startswith(
        "quantised alone by int8-dynamic (the first 1 of 3 nodes within 0 s), Gemm 'node_a' costs most: SQNR "
    )
    assert evidence.details["sensitivity"]["tried"] == 1


def test_ranking_that_fails_leaves_the_verdict(pair: Any) -> None:
    candidate, reference = pair
    reference.artifact.path.write_bytes(b"gone")
    with pytest.raises(ms.GateFailure) as failure:
        ms.assert_output_fidelity(candidate, reference, ROWS, min_sqnr_db=60)
    (finding,) = failure.value.evidence.findings
    assert finding.startswith("its layers could not be ranked by what quantising each costs: cannot open the model ")


def test_layers_that_do_no_damage_are_not_blamed(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_modelserve import compression

    harmless = compression.SensitivityRanking((ms.LayerSensitivity("node_a", "Gemm", math.inf),), 1, 1)
    monkeypatch.setattr(compression, "rank_layers", lambda *_, **__: harmless)
    evidence = ms.measure_output_fidelity(*pair, ROWS, min_sqnr_db=60)
    assert (evidence.findings, evidence.details) == ((), {})


@pytest.fixture
def masked(tmp_path: Any) -> ms.Artifact:
    """Attention shares: a product, a mask of -200 on every other, and the softmax."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.standard_normal((64, 8)).astype(np.float32) / 8, "mask": np.array([0, -200] * 4, np.float32)}
    nodes = [
        helper.make_node(op, takes, [gives], name=f"node_{gives}")
        for op, takes, gives in (("MatMul", ["x", "w"], "h"), ("Add", ["h", "mask"], "m"), ("Softmax", ["m"], "y"))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return save_artifact(
        model, tmp_path / "shares.onnx", name="shares", variant="fp32", lineage=(LineageStep("export", {}, None, {}),)
    )


def test_nodes_that_round_the_same_value_are_told_together(masked: ms.Artifact, tmp_path: Any) -> None:
    """Neither has a weight. Without one of them the other still rounds the masked scores."""
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        reference = pipeline.serve(masked)
        whole, spared = (
            pipeline.serve(pipeline.compress(masked, "int8-static", calibration=ROWS, exclude=exclude))
            for exclude in ((), ("node_m", "node_y"))
        )
        evidence = ms.measure_output_fidelity(whole, reference, ROWS, min_sqnr_db=30)
        after = ms.measure_output_fidelity(spared, reference, ROWS, min_sqnr_db=30)
    assert {each["operator"] for each in evidence.details["sensitivity"]["ranking"][:2]} == {"Add", "Softmax"}
    first, second = (each["node"] for each in evidence.details["sensitivity"]["ranking"][:2])
    assert evidence.advice == f"keep what loses most in full precision: compress with exclude={(first, second)!r}"
    assert {first, second} == {"node_m", "node_y"}
    assert after.verdict is ms.Verdict.PASS


def test_ranking_takes_its_ranges_as_the_candidate_did(
    masked: ms.Artifact, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_modelserve import compression

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        compression, "rank_layers", lambda *_, **options: asked.append(options) or pytest.fail("ranked")
    )
    with ms.Pipeline(tmp_path / "cache") as pipeline:
        small = pipeline.compress(
            masked, "int8-static", calibration=ROWS, calibration_method="percentile", percentile=99.9
        )
        with pytest.raises(pytest.fail.Exception, match="ranked"):
            ms.measure_output_fidelity(pipeline.serve(small), pipeline.serve(masked), ROWS, min_sqnr_db=90)
    assert asked == [{"calibration_method": "percentile", "percentile": 99.9, "time_limit_s": 30.0}]
