from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from pytest_modelserve._onnx.graph import names_in, rename_value, unused_prefix


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
