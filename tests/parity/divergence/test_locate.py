"""Which node is named when one thing in a graph is broken; the faults of the first test are made in `net`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.parity.divergence import subgraphs


def node(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if tensor in each.output)


def weight(name: str, change: Any) -> Any:
    def apply(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array)), name))

    return apply


def nudged(array: Any, by: float = 1e-2) -> Any:
    array[..., 3] += np.float32(by)
    return array


def attribute(tensor: str, name: str, value: Any) -> Any:
    def apply(model: onnx.ModelProto) -> None:
        changed = node(model, tensor)
        kept = [each for each in changed.attribute if each.name != name]
        del changed.attribute[:]
        changed.attribute.extend([*kept, helper.make_attribute(name, value)])

    return apply


def operator(tensor: str, op: str) -> Any:
    return lambda model: setattr(node(model, tensor), "op_type", op)


def dropped(tensor: str) -> Any:
    def apply(model: onnx.ModelProto) -> None:
        lost = node(model, tensor)
        before = lost.input[0]
        model.graph.node.remove(lost)
        for each in model.graph.node:
            each.input[:] = [before if name == tensor else name for name in each.input]

    return apply


def last_dropped(model: onnx.ModelProto) -> None:
    """The node behind the output goes, and the one before it makes the output."""
    dropped("y")(model)
    node(model, "e").output[0] = "y"


def in_half(model: onnx.ModelProto) -> None:
    """ "c" goes through float16."""
    for each in model.graph.node:
        each.input[:] = ["up" if name == "c" else name for name in each.input]
    place = next(i for i, each in enumerate(model.graph.node) if "c" in each.output)
    model.graph.node.insert(place + 1, helper.make_node("Cast", ["c"], ["down"], to=10, name="to_half"))
    model.graph.node.insert(place + 2, helper.make_node("Cast", ["down"], ["up"], to=1, name="to_float"))


def swapped_inputs(model: onnx.ModelProto) -> None:
    """LayerNormalization scales by its shift and shifts by its gain."""
    node(model, "b").input[1:] = ["shift", "gain"]


FAULTS = {
    "operator": (operator("e", "Sub"), "node_e", "e", "operator is Sub where the reference has Add"),
    "axis": (attribute("y", "axis", 0), "node_y", "y", "attribute axis is 0 where the reference has 1"),
    "epsilon": (
        attribute("b", "epsilon", 1e-3),
        "node_b",
        "b",
        "attribute epsilon is 0.001 where the reference has 1e-05",
    ),
    "default": (attribute("a", "alpha", 1.01), "node_a", "a", "attribute alpha is 1.01 where the reference has 1"),
    "bias": (weight("b2", nudged), "node_e", "e", "weight 'b2' differs in 1 of 16 elements, most at [3]: "),
    "noise": (
        weight("w2", lambda w: w * np.float32(1.001)),
        "node_d",
        "d",
        "weight 'w2' differs in 256 of 256 elements, most at ",
    ),
    "half": (weight("w1", lambda w: w.astype(np.float16).astype(np.float32)), "node_a", "a", "weight 'w1' differs in "),
    "transposed": (weight("w2", lambda w: w.T), "node_d", "d", "weight 'w2' is the reference's transposed"),
    "dropped": (dropped("c"), "node_c", "d", "the candidate has no Relu 'node_c'"),
    "dropped last": (last_dropped, "node_y", "y", "the candidate has no Softmax 'node_y'"),
    "dtype": (in_half, "to_half", "d", "the reference has no Cast 'to_half'"),
    "wiring": (swapped_inputs, "node_b", "b", "weight 'shift' differs in 16 of 16 elements, most at "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_told_by_its_own_node(locate: Any, fault: str) -> None:
    change, name, tensor, sentence = FAULTS[fault]
    found = locate(change)
    assert (found.node, found.tensor, found.kind, found.local) == (name, tensor, "operator", True)
    assert found.changes[0].startswith(sentence)
    assert found.candidate_value != found.reference_value
    assert len(found.index) == 2


def test_sentence_says_what_where_and_how_far_upstream_agrees(locate: Any) -> None:
    found = locate(weight("b2", lambda b: np.where(np.arange(16) == 3, np.float32(100), b)))
    assert str(found) == (
        "first diverging node: Add 'node_e', given the reference's inputs to it; "
        f"tensor 'e' at {list(found.index)} is {found.candidate_value:.7g} where the reference has "
        f"{found.reference_value:.7g}; weight 'b2' differs in 1 of 16 elements, most at [3]: 100.0 where the reference "
        "has 1.080533; the 4 tensors before it agree"
    )


def test_same_graph_has_no_divergence(locate: Any) -> None:
    assert locate(lambda model: None) is None


def test_names_of_nodes_and_weights_do_not_matter(locate: Any) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for each in model.graph.node:
            each.name = f"other_{each.name}"
            each.input[:] = ["renamed" if name == "w2" else name for name in each.input]
        next(each for each in model.graph.initializer if each.name == "w2").name = "renamed"

    assert locate(rename) is None


def test_last_bits_of_weights_are_no_divergence(locate: Any) -> None:
    assert locate(weight("w2", lambda w: np.nextafter(w, np.float32(9)))) is None


def test_last_bits_of_weights_are_no_fault_where_their_products_cancel(locate: Any, build: Any, rows: Any) -> None:
    """The sum is a thousandth of its terms: the answers differ, and rounding of the inputs does as much."""
    signs = np.tile(np.array([1000, -1000], np.float32), 4)[:, None]
    model = build([("MatMul", ["x", "w"], "a", {}), ("Neg", ["a"], "y", {})], {"w": np.repeat(signs, 3, axis=1)})
    twice = np.float32(1 + 2**-22)
    found = locate(weight("w", lambda w: np.where(w > 0, w * twice, w)), model, inputs=1 + rows / np.float32(1e3))
    assert found is None or found.kind == "accumulated"


def test_change_of_a_weight_is_told_from_sixteen_roundings_on(locate: Any) -> None:
    assert locate(weight("w2", lambda w: w * np.float32(1 + 60 * 2**-23))).node == "node_d"


def test_rounding_that_a_cancellation_blows_up_is_no_fault_of_an_operator(locate: Any, build: Any, rows: Any) -> None:
    """A third by division and by multiplication, of which a thousand is taken."""
    model = build(
        [("Div", ["x", "three"], "a", {}), ("Sub", ["a", "k"], "y", {})],
        {"three": np.array([3], np.float32), "k": np.array([1000], np.float32)},
    )

    def multiplied(model: onnx.ModelProto) -> None:
        weight("three", lambda three: 1 / three)(model)
        node(model, "a").CopyFrom(helper.make_node("Mul", ["x", "three"], ["third"], name="third"))
        node(model, "y").input[0] = "third"

    found = locate(multiplied, model, inputs=3000 + rows / 10)
    assert found.kind == "accumulated"


def test_first_of_two_faults_is_told(locate: Any) -> None:
    def both(model: onnx.ModelProto) -> None:
        operator("e", "Sub")(model)
        attribute("b", "epsilon", 1e-2)(model)

    assert locate(both).node == "node_b"


def test_fault_that_a_later_one_undoes_is_none(locate: Any) -> None:
    """Softmax does not see a constant that is added to all of a row: the answers are the same but for rounding."""
    found = locate(weight("b2", lambda b: b + np.float32(1)))
    assert found.node == "node_e"  # the operator errs all the same


def test_nan_is_told_where_it_is_born(locate: Any) -> None:
    found = locate(weight("b1", lambda b: np.where(np.arange(16) == 2, np.float32("nan"), b)))
    assert (found.node, found.tensor, found.index) == ("node_a", "a", (0, 2))
    assert found.problem == "NaN in one and not in the other at 6 of 96 elements"
    assert np.isnan(found.candidate_value)


def test_nan_of_the_reference_itself_is_none(locate: Any, net: onnx.ModelProto, rows: Any) -> None:
    rows[1] = np.nan
    assert locate(lambda model: None, inputs=rows) is None
    assert locate(operator("e", "Sub"), inputs=rows).node == "node_e"


def test_other_shape_is_a_sentence(locate: Any, build: Any) -> None:
    weights = {"w": np.eye(8, dtype=np.float32), "two": np.array([2], np.int64)}
    nodes = [("MatMul", ["x", "w"], "a", {}), ("ReduceSum", ["a"], "y", {"keepdims": 1})]
    found = locate(attribute("y", "keepdims", 0), build(nodes, {"w": weights["w"]}))
    assert (found.node, found.index, found.problem) == ("node_y", None, "shape is [] where the reference has [1, 1]")
    assert "tensor 'y': shape is [] where the reference has [1, 1]" in str(found)


def test_stretch_that_cannot_run_on_the_references_values_is_told(locate: Any, build: Any) -> None:
    """Both nodes changed together, so that the candidate runs by itself."""
    weights = {"w": np.ones((8, 3), np.float32), "v": np.ones((3, 2), np.float32)}
    model = build([("MatMul", ["x", "w"], "a", {}), ("MatMul", ["a", "v"], "y", {})], weights)

    def wider(model: onnx.ModelProto) -> None:
        weight("w", lambda _: np.ones((8, 5), np.float32))(model)
        weight("v", lambda _: np.ones((5, 2), np.float32))(model)

    found = locate(wider, model)
    assert (found.node, found.problem) == ("node_a", "shape is [6, 5] where the reference has [6, 3]")


def test_masked_scores_are_not_judged_by_the_size_of_the_mask(locate: Any, build: Any) -> None:
    mask = np.where(np.arange(8) > 4, np.float32(-1e9), np.float32(0))
    nodes = [("Mul", ["x", "half"], "s", {}), ("Add", ["s", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]
    model = build(nodes, {"half": np.array([0.5], np.float32), "mask": mask})
    found = locate(dropped("s"), model)
    assert (found.node, found.tensor) == ("node_s", "m")


def test_operator_written_as_several_is_no_divergence(locate: Any) -> None:
    def split(model: onnx.ModelProto) -> None:
        """Gemm as MatMul and Add, Relu as Max with zero."""
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
        gemm, relu = node(model, "a"), node(model, "c")
        gemm.CopyFrom(helper.make_node("MatMul", ["x", "w1"], ["product"], name="product"))
        model.graph.node.insert(1, helper.make_node("Add", ["product", "b1"], ["a"], name="sum"))
        node(model, "c").CopyFrom(helper.make_node("Max", ["b", "zero"], ["c"], name=relu.name))

    assert locate(split) is None


def test_fault_inside_an_operator_written_as_several_is_found(locate: Any) -> None:
    def split(model: onnx.ModelProto) -> None:
        node(model, "a").CopyFrom(helper.make_node("MatMul", ["x", "w1"], ["product"], name="product"))
        model.graph.node.insert(1, helper.make_node("Sub", ["product", "b1"], ["a"], name="sum"))

    assert locate(split).tensor == "a"


def test_numbered_tensors_that_shifted_do_not_alarm(locate: Any) -> None:
    """The candidate calls "c" what the reference calls "b", and the other way round; its answers are the same."""

    def exchange(model: onnx.ModelProto) -> None:
        names = {"b": "c", "c": "b"}
        for each in model.graph.node:
            each.input[:] = [names.get(name, name) for name in each.input]
            each.output[:] = [names.get(name, name) for name in each.output]
        weight("w1", lambda w: np.nextafter(w, np.float32(9)))(model)

    assert locate(exchange) is None


def test_difference_that_no_operator_makes_alone_is_told_as_such(locate: Any, build: Any, rows: Any) -> None:
    """Products near 1000 that are off in their last bits, of which 1000 is taken: each operator by itself agrees."""
    thousand = np.array([1000], np.float32)
    nodes = [("Mul", ["x", "w"], "a", {}), ("Sub", ["a", "k"], "b", {}), ("Relu", ["b"], "y", {})]
    model = build(nodes, {"w": thousand, "k": thousand})
    found = locate(weight("w", lambda w: w * np.float32(1 + 3e-7)), model, inputs=1 + rows / np.float32(1e5))
    assert (found.kind, found.local, found.tensor, found.agreeing) == ("accumulated", False, "b", 1)
    assert str(found).startswith(
        "no single node diverges; small differences accumulate and first exceed the tolerance at Sub 'node_b'; "
        "tensor 'b' at ["
    )


def test_difference_that_only_the_optimiser_makes_is_told_as_such(locate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_modelserve.parity.divergence import locate as walk

    def fused(graph: Any, feed: Any) -> Any:
        wrong = graph.nodes[0].op_type == "MatMul"
        return {"y": np.full((6, 16), 0.5 if wrong else 0.25, np.float32)}

    def split(model: onnx.ModelProto) -> None:
        node(model, "a").CopyFrom(helper.make_node("MatMul", ["x", "w1"], ["product"], name="product"))
        model.graph.node.insert(1, helper.make_node("Add", ["product", "b1"], ["a"], name="sum"))

    monkeypatch.setattr(walk, "_optimized_outputs", fused)
    found = locate(split)
    assert (found.kind, found.local, found.changes) == ("optimizer", False, ())
    assert str(found) == (
        "the graphs agree until onnxruntime optimizes them; then the output of Softmax 'node_y' differs; "
        "tensor 'y' at [0, 0] is 0.5 where the reference has 0.25; the 5 tensors before it agree"
    )


def test_optimiser_that_leaves_both_graphs_as_they_were_is_not_blamed(
    locate: Any, net: onnx.ModelProto, rows: Any, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each moves by less than rounding may, and in opposite directions: together it is more."""
    from pytest_modelserve.parity.divergence import locate as walk

    (plain,) = ms.serve(save(net, "plain")).predict(rows).values()

    def fused(graph: Any, feed: Any) -> Any:
        sign = 1 if graph.nodes[0].op_type == "MatMul" else -1
        return {"y": plain * np.float32(1 + sign * 3500 * 2**-23)}

    def split(model: onnx.ModelProto) -> None:
        node(model, "a").CopyFrom(helper.make_node("MatMul", ["x", "w1"], ["product"], name="product"))
        model.graph.node.insert(1, helper.make_node("Add", ["product", "b1"], ["a"], name="sum"))

    monkeypatch.setattr(walk, "_optimized_outputs", fused)
    assert locate(split) is None


def test_weight_that_nothing_reads_does_no_harm(locate: Any) -> None:
    def unread(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "unread"))
        operator("e", "Sub")(model)

    assert locate(unread).node == "node_e"


def test_other_output_of_one_node_is_told(locate: Any, build: Any) -> None:
    model = build([("Relu", ["first"], "y", {})], {})
    split = helper.make_node("Split", ["x"], ["first", "second"], name="split", axis=1, num_outputs=2)
    model.graph.node.insert(0, split)

    def other(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[:] = ["one", "two"]
        node(model, "y").input[0] = "two"

    assert locate(other, model).tensor == "y"


def test_branches_read_tensors_from_outside(locate: Any, build: Any, net: onnx.ModelProto) -> None:
    """An If whose branch reads "a" of the graph around it."""
    then = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["t"])], "t", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["a"], ["o"])], "o", [], [helper.make_tensor_value_info("o", 1, None)]
    )
    nodes = [
        ("Mul", ["x", "w"], "a", {}),
        ("If", ["yes"], "b", {"then_branch": then, "else_branch": other}),
        ("Relu", ["b"], "y", {}),
    ]
    model = build(nodes, {"w": np.array([2], np.float32), "yes": np.array(True)})

    def flip(model: onnx.ModelProto) -> None:
        node(model, "b").attribute[0].g.node[0].op_type = "Abs"
        node(model, "b").attribute[1].g.node[0].op_type = "Abs"

    found = locate(flip, model)
    assert (found.node, found.problem) == ("node_b", "")
    assert "then_branch" in found.changes[0]
    assert locate(weight("w", lambda w: w * 2), model).node == "node_a"


def test_sequences_are_passed_through(locate: Any, build: Any) -> None:
    nodes = [
        ("SplitToSequence", ["x"], "s", {"axis": 1}),
        ("ConcatFromSequence", ["s"], "j", {"axis": 1}),
        ("Mul", ["j", "w"], "y", {}),
    ]
    model = build(nodes, {"w": np.array([2], np.float32)})
    assert locate(weight("w", lambda w: w * 2), model).node == "node_y"
    assert locate(attribute("j", "axis", 0), model).node == "node_j"


def test_single_input_and_output_belong_together_whatever_their_names(locate: Any) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = node(model, "a").input[0] = "features"
        model.graph.output[0].name = node(model, "y").output[0] = "scores"
        operator("e", "Sub")(model)

    assert locate(rename).node == "node_e"


def test_large_graph_is_taken_in_pieces(locate: Any, build: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 layers, all changed in the last bits, the last one for good: no more is held than is allowed."""
    depth = 40
    nodes = [("Mul", [f"t{i}" if i else "x", f"w{i}"], f"t{i + 1}", {}) for i in range(depth)]
    weights = {f"w{i}": np.full(8, 1.01, np.float32) for i in range(depth)}
    model = build(nodes, weights, outputs=[f"t{depth}"])
    held = []
    marked = subgraphs.session_with_outputs

    def counted(graph: Any, tensors: Any) -> Any:
        held.append(len(list(tensors)))
        return marked(graph, tensors)

    def change(model: onnx.ModelProto) -> None:
        for i in range(depth):
            weight(f"w{i}", lambda w: np.nextafter(w, np.float32(9)))(model)
        weight(f"w{depth - 1}", lambda w: w * np.float32(1.1))(model)

    monkeypatch.setattr(subgraphs, "session_with_outputs", counted)
    monkeypatch.setattr(subgraphs, "MAX_HELD_BYTES", 6 * rows.nbytes)
    found = locate(change, model)
    assert (found.node, found.agreeing) == (f"node_t{depth}", depth - 1)
    assert max(held[2:]) <= 6
    assert len(held) > 6


def test_predictor_is_taken_by_its_file(net: onnx.ModelProto, rows: Any, save: Any) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(net)
    operator("e", "Sub")(broken)
    with ms.serve(save(broken, "candidate")) as candidate:
        found = ms.locate_divergence(candidate, ms.open_artifact(save(net, "reference")), {"x": rows})
    assert found is not None
    assert found.node == "node_e"


def test_what_has_no_graph_is_refused(net: onnx.ModelProto, rows: Any, save: Any) -> None:
    path = save(net, "net")
    with pytest.raises(ms.UsageError) as caught:
        ms.locate_divergence(ms.serve(lambda x: x, name="eager"), path, rows)
    assert str(caught.value) == (
        "candidate eager has no ONNX file: give an artifact, the path of an ONNX file, or a predictor of one"
    )
    with pytest.raises(ms.InputError, match="input 'x' has shape"):
        ms.locate_divergence(path, path, rows[:, :3])
    with pytest.raises(ms.ArtifactError, match="there is no such file"):
        ms.locate_divergence("nowhere.onnx", path, rows)


def test_models_without_a_common_output_are_refused(build: Any, rows: Any, save: Any) -> None:
    def two(first: str, second: str) -> Any:
        return build([("Relu", ["x"], first, {}), ("Abs", ["x"], second, {})], {}, outputs=(first, second))

    with pytest.raises(ms.UsageError) as caught:
        ms.locate_divergence(save(two("a", "b"), "candidate"), save(two("c", "d"), "reference"), rows)
    assert str(caught.value) == (
        "the models have no output name in common: the candidate has 'a', 'b', the reference 'c', 'd'; rename them alike"
    )


def test_candidate_that_does_not_run_and_has_no_fault_of_its_own_is_an_input_error(
    build: Any, rows: Any, save: Any
) -> None:
    reference = build([("Mul", ["x", "w"], "y", {})], {"w": np.full(8, 2, np.float32)})
    candidate = build(
        [("Mul", ["x", "w"], "y", {}), ("Reshape", ["x", "five"], "z", {})],
        {"w": np.nextafter(np.full(8, 2, np.float32), np.float32(9)), "five": np.array([5], np.int64)},
        outputs=("y", "z"),
    )
    with pytest.raises(ms.InputError, match="onnxruntime could not run the graph on these inputs"):
        ms.locate_divergence(save(candidate, "candidate"), save(reference, "reference"), rows)


def test_line_of_the_torch_module_is_told(locate: Any, net: onnx.ModelProto) -> None:
    trace = (
        'File "/models/net.py", line 12, in forward\n    x = self.norm(x)\n'
        '  File "/env/lib/python3.11/site-packages/torch/nn/modules/normalization.py", line 229, in forward\n'
        "    return F.layer_norm(input)"
    )
    node(net, "b").metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    found = locate(attribute("b", "epsilon", 1e-2))
    assert found.source == "/models/net.py:12: x = self.norm(x)"
    assert str(found).endswith("; from /models/net.py:12: x = self.norm(x)")


def test_node_is_lost_whose_output_gives_its_name_to_an_earlier_tensor(build: Any, save: Any, rows: Any) -> None:
    """What the candidate calls "y" is made before "n", and the reference's "y" out of it."""
    weights = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    reference = build(
        [("MatMul", ["x", "w"], "h", {}), ("Exp", ["h"], "n", {}), ("Div", ["h", "n"], "y", {})],
        weights,
        outputs=("y", "n"),
    )
    candidate = build([("MatMul", ["x", "w"], "y", {}), ("Exp", ["y"], "n", {})], weights, outputs=("y", "n"))
    candidate.graph.node[0].name = "node_h"
    found = ms.locate_divergence(save(candidate, "candidate"), save(reference, "reference"), rows)
    assert found is not None
    assert (found.node, found.tensor, found.changes) == ("node_y", "y", ("the candidate has no Div 'node_y'",))
