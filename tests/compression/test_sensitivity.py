from functools import partial

import numpy as np
import pytest

from pytest_modelserve.compression import rank_layers, sensitivity
from pytest_modelserve.errors import RecipeError, UsageError


@pytest.fixture
def deep(outlier_layer):
    """Three layers, of which the second has a large weight in each channel that takes all its steps."""
    return partial(outlier_layer, largest=40)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static", "int4-weights"])
def test_planted_layer_comes_first(deep, weight, recipe, op):
    ranked = sensitivity(deep(op), recipe, weight(128, 64))
    assert {damage.node for damage in ranked} == {"node_a", "node_b", "node_y"}
    assert (ranked[0].node, ranked[0].operator) == ("node_b", op)
    assert [damage.sqnr_db for damage in ranked] == sorted(damage.sqnr_db for damage in ranked)
    assert all(np.isfinite(damage.sqnr_db) for damage in ranked)
    assert ranked[0].sqnr_db < ranked[1].sqnr_db


@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_int8_static_ranks_what_has_no_weights_and_does_the_damage(masked, weight, hidden):
    """Adding the mask and the softmax behind it both round what lies between them; the product does no harm."""
    ranked = sensitivity(masked(hidden), "int8-static", weight(64, 8))
    assert {damage.node for damage in ranked[:2]} == {"node_m", "node_y"}
    assert {damage.operator for damage in ranked[:2]} == {"Add", "Softmax"}
    assert ranked[1].sqnr_db < 10
    assert ranked[2].node == "node_h"
    assert ranked[2].sqnr_db > 20
    assert (ranked[0].sqnr_db == -np.inf) == (hidden == -np.inf)


def test_node_that_only_moves_values_is_not_ranked(saved, weight):
    nodes = [("Transpose", ["x"], "t", {"perm": [0, 1]}), ("MatMul", ["t", "w"], "y", {})]
    source = saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, {"w": weight(8, 4)})
    ranking = rank_layers(source, "int8-static", weight(64, 8))
    assert [damage.node for damage in ranking.ranked] == ["node_y"]
    assert (ranking.evaluated, ranking.total) == (2, 2)


def test_ranges_are_measured_once_for_all_nodes(deep, weight, monkeypatch):
    import sys

    alone = sys.modules["pytest_modelserve.compression.static_quantization"]

    measured = []
    whole = alone.measure_ranges
    monkeypatch.setattr(alone, "measure_ranges", lambda *given: measured.append(given) or whole(*given))
    assert len(sensitivity(deep(), "int8-static", weight(64, 64))) == 3
    assert len(measured) == 1


def test_calibration_method_decides_the_ranges(masked, weight):
    """Clipping half of all values costs much."""
    source, rows = masked(-10), weight(64, 8)

    def damage(**options):
        ranked = {each.node: each.sqnr_db for each in sensitivity(source, "int8-static", rows, **options)}
        return ranked["node_h"]

    assert damage(calibration_method="percentile", percentile=50) < damage() - 10


def test_source_with_infinite_outputs_is_ranked_by_the_others(saved, weight):
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "ends"], "y", {})]
    ends = np.array([0, 0, 0, -np.inf], np.float32)
    source = saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, {"w": weight(8, 4), "ends": ends})
    (damage,) = sensitivity(source, "int8-dynamic", weight(64, 8))
    assert 20 < damage.sqnr_db < 60


def test_layers_that_cannot_be_quantized_alone_are_left_out(saved, weight):
    nodes = [("Gemm", ["x", "w"], "h", {"alpha": 0.5}), ("MatMul", ["h", "v"], "y", {})]
    source = saved(nodes, {"x": ["batch", 64]}, {"y": None}, {"w": weight(64, 64), "v": weight(64, 8)})
    assert [damage.node for damage in sensitivity(source, "int4-weights", weight(8, 64))] == ["node_y"]


def test_ranking_that_runs_out_of_time_says_how_far_it_came(deep, weight):
    source, rows = deep(), weight(8, 64)
    cut = rank_layers(source, "int8-dynamic", rows, time_limit_s=0)
    assert ([damage.node for damage in cut.ranked], cut.evaluated, cut.total) == (["node_a"], 1, 3)
    whole = rank_layers(source, "int8-dynamic", rows)
    assert (whole.ranked, whole.evaluated, whole.total) == (sensitivity(source, "int8-dynamic", rows), 3, 3)


def test_source_is_left_as_it_was(deep, weight):
    source = deep()
    before = source.path.read_bytes()
    sensitivity(source, "int8-dynamic", weight(8, 64))
    assert source.path.read_bytes() == before


@pytest.mark.parametrize("recipe", ["fp16", "simplify", "int8"])
def test_recipe_that_treats_no_single_layer_is_a_usage_error(deep, weight, recipe):
    with pytest.raises(UsageError) as caught:
        sensitivity(deep(), recipe, weight(8, 64))
    assert str(caught.value).startswith(f"unknown recipe of single layers '{recipe}': ")
    assert "'int8-dynamic', 'int8-static', 'int4-weights'" in str(caught.value)


def test_model_without_layers_is_refused(saved, weight):
    source = saved([("Relu", ["x"], "y", {})], {"x": ["batch", 8]}, {"y": ["batch", 8]}, {})
    with pytest.raises(RecipeError, match="no layer of net / fp32 can be quantized by 'int8-dynamic': it has none"):
        sensitivity(source, "int8-dynamic", weight(8, 8))


def test_inputs_that_do_not_fit_are_refused(deep, weight):
    with pytest.raises(RecipeError, match="inputs= does not fit the model: input 'x' has shape"):
        sensitivity(deep(), "int8-dynamic", weight(8, 8))
