from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from pytest_modelserve._onnx.graph import copy_node_metadata, graph_summary, node_counts


def graph(nodes, weights=()):
    stored = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    return helper.make_graph(nodes, "g", [], [], stored)


def branching():
    branch = graph([helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Abs", ["b"], ["c"])])
    other = graph([helper.make_node("Neg", ["a"], ["c"])])
    return helper.make_model(graph([helper.make_node("If", ["p"], ["c"], then_branch=branch, else_branch=other)]))


def test_nodes_inside_branches_count():
    assert node_counts(branching()) == {"Neg": 2, "Abs": 1, "If": 1}


def test_commonest_operator_comes_first():
    assert list(node_counts(branching())) == ["Neg", "Abs", "If"]


def test_make_up_sees_dtype_and_shape_of_weights_but_not_their_names():
    one = helper.make_model(graph([], [np.zeros(3, np.float32), np.zeros(2)]))
    renamed = helper.make_model(graph([], [np.ones(2), np.zeros(3, np.float32)]))
    narrower = helper.make_model(graph([], [np.zeros(3, np.float32), np.zeros(2, np.float32)]))
    assert graph_summary(one) == graph_summary(renamed)
    assert graph_summary(one) != graph_summary(narrower)


def test_metadata_go_to_the_node_of_the_same_name_and_operator_only():
    def model(op, name, note=None):
        node = helper.make_node(op, ["a"], ["b"], name=name)
        if note:
            node.metadata_props.add(key="line", value=note)
        return helper.make_model(graph([node]))

    def kept(after, before):
        copy_node_metadata(after, before)
        return [entry.value for entry in after.graph.node[0].metadata_props]

    source = model("Neg", "n", "7")
    assert kept(model("Neg", "n"), source) == ["7"]
    assert kept(model("Abs", "n"), source) == []
    assert kept(model("Neg", "m"), source) == []
    assert kept(model("Neg", "n", "8"), source) == ["8"]
