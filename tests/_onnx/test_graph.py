"""Counts, names and metadata of nodes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve._onnx.graph import (
    copy_node_metadata,
    graph_summary,
    names_in,
    node_counts,
    rename_value,
    unused_prefix,
)


def make_graph_of(nodes, weights=()):
    stored = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    return helper.make_graph(nodes, "g", [], [], stored)


def branching():
    branch = make_graph_of([helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Abs", ["b"], ["c"])])
    other = make_graph_of([helper.make_node("Neg", ["a"], ["c"])])
    return helper.make_model(
        make_graph_of([helper.make_node("If", ["p"], ["c"], then_branch=branch, else_branch=other)])
    )


def test_nodes_inside_branches_count():
    assert node_counts(branching()) == {"Neg": 2, "Abs": 1, "If": 1}


def test_commonest_operator_comes_first():
    assert list(node_counts(branching())) == ["Neg", "Abs", "If"]


def test_make_up_sees_dtype_and_shape_of_weights_but_not_their_names():
    one = helper.make_model(make_graph_of([], [np.zeros(3, np.float32), np.zeros(2)]))
    renamed = helper.make_model(make_graph_of([], [np.ones(2), np.zeros(3, np.float32)]))
    narrower = helper.make_model(make_graph_of([], [np.zeros(3, np.float32), np.zeros(2, np.float32)]))
    assert graph_summary(one) == graph_summary(renamed)
    assert graph_summary(one) != graph_summary(narrower)


def test_metadata_go_to_the_node_of_the_same_name_and_operator_only():
    def model(op, name, note=None):
        node = helper.make_node(op, ["a"], ["b"], name=name)
        if note:
            node.metadata_props.add(key="line", value=note)
        return helper.make_model(make_graph_of([node]))

    def kept(after, before):
        copy_node_metadata(after, before)
        return [entry.value for entry in after.graph.node[0].metadata_props]

    source = model("Neg", "n", "7")
    assert kept(model("Neg", "n"), source) == ["7"]
    assert kept(model("Abs", "n"), source) == []
    assert kept(model("Neg", "m"), source) == []
    assert kept(model("Neg", "n", "8"), source) == ["8"]


@pytest.fixture
def graph():
    """A value "a" that is made in the graph and read in it, in a branch and in a branch of that."""

    def branch(name, *nodes):
        output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(list(nodes), name, [], [output])

    inner = branch("inner", helper.make_node("Neg", ["a"], ["deep"]))
    outer = branch("outer", helper.make_node("If", ["c", "a"], ["o"], then_branch=inner, else_branch=inner))
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="preprocess/neg"),
        helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("x", "a")]
    return helper.make_graph(nodes, "graph", *ends, value_info=[helper.make_tensor_value_info("a", 1, None)])


def test_names_are_found_in_branches_of_branches(graph):
    assert {"x", "a", "y", "o", "deep", "preprocess/neg"} <= names_in(graph)


def test_a_value_is_renamed_wherever_it_is_used(graph):
    rename_value(graph, "a", "b")
    assert "a" not in names_in(graph)
    assert graph.output[0].name == graph.value_info[0].name == "b"
    assert graph.node[0].output[0] == "b"


def test_a_prefix_that_is_taken_gets_a_number(graph):
    assert unused_prefix(graph, "postprocess") == "postprocess/"
    assert unused_prefix(graph, "preprocess") == "preprocess_2/"
    graph.node[1].name = "preprocess_2/if"
    assert unused_prefix(graph, "preprocess") == "preprocess_3/"
