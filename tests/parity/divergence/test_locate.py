"""Which node is located when one thing in a graph is broken; most faults are made in the fixture `net`."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.parity.divergence import locate as locate_module, subgraphs

F32 = np.float32


def node(model, tensor):
    return next(each for each in model.graph.node if tensor in each.output)


def weight(name, change):
    def apply(model):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        array = np.array(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array)), name))

    return apply


def last_bits(array):
    return np.nextafter(array, F32(9))


def attribute(tensor, name, value):
    def apply(model):
        changed = node(model, tensor)
        others = [each for each in changed.attribute if each.name != name]
        del changed.attribute[:]
        changed.attribute.extend([*others, helper.make_attribute(name, value)])

    return apply


def operator(tensor, op):
    return lambda model: setattr(node(model, tensor), "op_type", op)


def dropped(tensor):
    def apply(model):
        lost = node(model, tensor)
        before = lost.input[0]
        model.graph.node.remove(lost)
        for each in model.graph.node:
            each.input[:] = [before if name == tensor else name for name in each.input]

    return apply


def last_dropped(model):
    """The node of the output is dropped, and the one before it computes the output."""
    dropped("y")(model)
    node(model, "e").output[0] = "y"


def in_half(model):
    """ "c" passes through float16."""
    for each in model.graph.node:
        each.input[:] = ["up" if name == "c" else name for name in each.input]
    at = next(i for i, each in enumerate(model.graph.node) if "c" in each.output)
    model.graph.node.insert(at + 1, helper.make_node("Cast", ["c"], ["down"], to=10, name="to_half"))
    model.graph.node.insert(at + 2, helper.make_node("Cast", ["down"], ["up"], to=1, name="to_float"))


def swapped_inputs(model):
    """LayerNormalization scales by its shift and shifts by its gain."""
    node(model, "b").input[1:] = ["shift", "gain"]


def gemm_split(*, op="Add"):
    """Gemm as MatMul and Add."""

    def apply(model):
        node(model, "a").CopyFrom(helper.make_node("MatMul", ["x", "w1"], ["product"], name="product"))
        model.graph.node.insert(1, helper.make_node(op, ["product", "b1"], ["a"], name="sum"))

    return apply


FAULTS = {
    "operator": (operator("e", "Sub"), "node_e", "e", "operator is Sub where the reference has Add"),
    "axis": (attribute("y", "axis", 0), "node_y", "y", "attribute axis is 0 where the reference has 1"),
    "epsilon": (attribute("b", "epsilon", 1e-3), "node_b", "b", "attribute epsilon is 0.001 where the reference has 1"),
    "default": (attribute("a", "alpha", 1.01), "node_a", "a", "attribute alpha is 1.01 where the reference has 1"),
    "bias": (
        weight("b2", lambda b: b + F32(1e-2) * (np.arange(16) == 3)),
        "node_e",
        "e",
        "weight 'b2' differs in 1 of 16 elements, most at [3]: ",
    ),
    "noise": (weight("w2", lambda w: w * F32(1.001)), "node_d", "d", "weight 'w2' differs in 256 of 256 elements, mo"),
    "sixteen roundings": (weight("w2", lambda w: w * F32(1 + 60 * 2**-23)), "node_d", "d", "weight 'w2' differs in "),
    "undone later": (weight("b2", lambda b: b + F32(1)), "node_e", "e", "weight 'b2' differs in 16 of 16 elements"),
    "half": (weight("w1", lambda w: w.astype(np.float16).astype(F32)), "node_a", "a", "weight 'w1' differs in "),
    "transposed": (weight("w2", lambda w: w.T), "node_d", "d", "weight 'w2' is the reference's transposed"),
    "dropped": (dropped("c"), "node_c", "d", "the candidate has no Relu 'node_c'"),
    "dropped last": (last_dropped, "node_y", "y", "the candidate has no Softmax 'node_y'"),
    "dtype": (in_half, "to_half", "d", "the reference has no Cast 'to_half'"),
    "wiring": (swapped_inputs, "node_b", "b", "weight 'shift' differs in 16 of 16 elements, most at "),
    "split": (gemm_split(op="Sub"), "node_a", "a", "the candidate has no Gemm 'node_a'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_located_at_its_own_node(locate, fault):
    change, name, tensor, sentence = FAULTS[fault]
    found = locate(change)
    assert (found.node, found.tensor, found.kind, found.local) == (name, tensor, "operator", True)
    assert found.changes[0].startswith(sentence)
    assert found.candidate_value != found.reference_value
    assert len(found.index) == 2


def test_text_has_the_place_the_values_and_the_tensors_that_agree(locate):
    found = locate(weight("b2", lambda b: np.where(np.arange(16) == 3, F32(100), b)))
    assert str(found) == (
        "first diverging node: Add 'node_e', given the reference's inputs to it; "
        f"tensor 'e' at {list(found.index)} is {found.candidate_value:.7g} where the reference has "
        f"{found.reference_value:.7g}; weight 'b2' differs in 1 of 16 elements, most at [3]: 100.0 where the reference "
        "has 1.080533; the 4 tensors before it agree"
    )


def renamed(model):
    for each in model.graph.node:
        each.name = f"other_{each.name}"
        each.input[:] = ["renamed" if name == "w2" else name for name in each.input]
    next(each for each in model.graph.initializer if each.name == "w2").name = "renamed"


def constant_node(model):
    """A weight is a Constant node instead of an initializer."""
    tensor = next(each for each in model.graph.initializer if each.name == "b2")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b2"], value=tensor))
    model.graph.initializer.remove(tensor)


def all_split(model):
    """Gemm as MatMul and Add, Relu as Max with zero."""
    gemm_split()(model)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, F32), "zero"))
    node(model, "c").CopyFrom(helper.make_node("Max", ["b", "zero"], ["c"], name="node_c"))


def exchanged(model):
    """The candidate calls "c" what the reference calls "b", and the other way round."""
    names = {"b": "c", "c": "b"}
    for each in model.graph.node:
        each.input[:] = [names.get(name, name) for name in each.input]
        each.output[:] = [names.get(name, name) for name in each.output]
    weight("w1", last_bits)(model)


@pytest.mark.parametrize(
    "change",
    [lambda model: None, renamed, constant_node, weight("w2", last_bits), all_split, exchanged],
    ids=["same", "names", "constant-node", "last-bits", "several-operators", "shifted-numbers"],
)
def test_equivalent_graph_has_no_divergence(locate, change):
    assert locate(change) is None


def test_last_bits_of_weights_are_no_fault_if_their_products_cancel(locate, build, rows):
    """The sum is a thousandth of its terms: the outputs differ, and rounding of the inputs does as much."""
    signs = np.tile(np.array([1000, -1000], F32), 4)[:, None]
    model = build([("MatMul", ["x", "w"], "a", {}), ("Neg", ["a"], "y", {})], {"w": np.repeat(signs, 3, axis=1)})
    twice = F32(1 + 2**-22)
    found = locate(weight("w", lambda w: np.where(w > 0, w * twice, w)), model, inputs=1 + rows / F32(1e3))
    assert found is None or found.kind == "accumulated"


def test_rounding_that_a_cancellation_amplifies_is_no_fault_of_a_node(locate, build, rows):
    """A third by division and by multiplication, from which a thousand is subtracted."""
    nodes = [("Div", ["x", "three"], "a", {}), ("Sub", ["a", "k"], "y", {})]
    model = build(nodes, {"three": np.array([3], F32), "k": np.array([1000], F32)})

    def multiplied(model):
        weight("three", lambda three: 1 / three)(model)
        node(model, "a").CopyFrom(helper.make_node("Mul", ["x", "three"], ["third"], name="third"))
        node(model, "y").input[0] = "third"

    assert locate(multiplied, model, inputs=3000 + rows / 10).kind == "accumulated"


def test_first_of_two_faults_is_located(locate):
    def both(model):
        operator("e", "Sub")(model)
        attribute("b", "epsilon", 1e-2)(model)

    assert locate(both).node == "node_b"


def test_nan_is_located_where_it_first_appears(locate):
    found = locate(weight("b1", lambda b: np.where(np.arange(16) == 2, F32("nan"), b)))
    assert (found.node, found.tensor, found.index) == ("node_a", "a", (0, 2))
    assert found.problem == "NaN in only one of the two, at 6 of 96 elements"
    assert np.isnan(found.candidate_value)


def test_nan_of_the_reference_itself_is_no_divergence(locate, rows):
    nan = np.where(np.arange(6)[:, None] == 1, F32("nan"), rows)
    assert locate(lambda model: None, inputs=nan) is None
    assert locate(operator("e", "Sub"), inputs=nan).node == "node_e"


def test_difference_in_shape_is_described(locate, build):
    nodes = [("MatMul", ["x", "w"], "a", {}), ("ReduceSum", ["a"], "y", {"keepdims": 1})]
    found = locate(attribute("y", "keepdims", 0), build(nodes, {"w": np.eye(8, dtype=F32)}))
    assert (found.node, found.index, found.problem) == ("node_y", None, "shape is [] where the reference has [1, 1]")
    assert "tensor 'y': shape is [] where the reference has [1, 1]" in str(found)


def test_subgraph_that_cannot_run_on_the_references_values_is_located(locate, build):
    """Both nodes changed together, so that the candidate runs by itself."""
    weights = {"w": np.ones((8, 3), F32), "v": np.ones((3, 2), F32)}
    model = build([("MatMul", ["x", "w"], "a", {}), ("MatMul", ["a", "v"], "y", {})], weights)

    def wider(model):
        weight("w", lambda _: np.ones((8, 5), F32))(model)
        weight("v", lambda _: np.ones((5, 2), F32))(model)

    found = locate(wider, model)
    assert (found.node, found.problem) == ("node_a", "shape is [6, 5] where the reference has [6, 3]")


def test_tolerance_of_masked_scores_ignores_the_mask(locate, build):
    mask = np.where(np.arange(8) > 4, F32(-1e9), F32(0))
    nodes = [("Mul", ["x", "half"], "s", {}), ("Add", ["s", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]
    found = locate(dropped("s"), build(nodes, {"half": np.array([0.5], F32), "mask": mask}))
    assert (found.node, found.tensor) == ("node_s", "m")


def test_difference_that_no_node_makes_alone_is_accumulated(locate, build, rows):
    """Products near 1000 that are off in their last bits, minus 1000: each node by itself agrees."""
    thousand = np.array([1000], F32)
    nodes = [("Mul", ["x", "w"], "a", {}), ("Sub", ["a", "k"], "b", {}), ("Relu", ["b"], "y", {})]
    model = build(nodes, {"w": thousand, "k": thousand})
    found = locate(weight("w", lambda w: w * F32(1 + 3e-7)), model, inputs=1 + rows / F32(1e5))
    assert (found.kind, found.local, found.tensor, found.agreeing) == ("accumulated", False, "b", 1)
    assert str(found).startswith(
        "no single node diverges; small differences accumulate and first exceed the tolerance at Sub 'node_b'; "
        "tensor 'b' at ["
    )


def test_difference_that_only_the_optimizer_makes_is_located(locate, monkeypatch):
    def outputs(graph, feed):
        return {"y": np.full((6, 16), 0.5 if graph.nodes[0].op_type == "MatMul" else 0.25, F32)}

    monkeypatch.setattr(locate_module, "_optimized_outputs", outputs)
    found = locate(gemm_split())
    assert (found.kind, found.local, found.changes) == ("optimizer", False, ())
    assert str(found) == (
        "the graphs agree until onnxruntime optimizes them; then the output of Softmax 'node_y' differs; "
        "tensor 'y' at [0, 0] is 0.5 where the reference has 0.25; the 5 tensors before it agree"
    )


def test_optimizer_that_changes_each_graph_within_rounding_is_not_at_fault(locate, net, rows, save, monkeypatch):
    """In opposite directions: together it is more than rounding."""
    (plain,) = ms.serve(save(net, "plain")).predict(rows).values()

    def outputs(graph, feed):
        sign = 1 if graph.nodes[0].op_type == "MatMul" else -1
        return {"y": plain * F32(1 + sign * 3500 * 2**-23)}

    monkeypatch.setattr(locate_module, "_optimized_outputs", outputs)
    assert locate(gemm_split()) is None


def test_weight_that_nothing_reads_does_no_harm(locate):
    def unread(model):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, F32), "unread"))
        operator("e", "Sub")(model)

    assert locate(unread).node == "node_e"


def test_other_output_of_one_node_is_a_divergence(locate, build):
    model = build([("Relu", ["first"], "y", {})])
    split = helper.make_node("Split", ["x"], ["first", "second"], name="split", axis=1, num_outputs=2)
    model.graph.node.insert(0, split)

    def other(model):
        model.graph.node[0].output[:] = ["one", "two"]
        node(model, "y").input[0] = "two"

    assert locate(other, model).tensor == "y"


def test_branches_read_tensors_from_outside(locate, build):
    """An If whose branches read "a" of the graph around it."""
    then, other = (
        helper.make_graph([helper.make_node(op, ["a"], [op])], op, [], [helper.make_tensor_value_info(op, 1, None)])
        for op in ("Neg", "Abs")
    )
    nodes = [
        ("Mul", ["x", "w"], "a", {}),
        ("If", ["yes"], "b", {"then_branch": then, "else_branch": other}),
        ("Relu", ["b"], "y", {}),
    ]
    model = build(nodes, {"w": np.array([2], F32), "yes": np.array(True)})

    def flip(model):
        for branch in node(model, "b").attribute:
            branch.g.node[0].op_type = "Abs"

    found = locate(flip, model)
    assert (found.node, found.problem) == ("node_b", "")
    assert "then_branch" in found.changes[0]
    assert locate(weight("w", lambda w: w * 2), model).node == "node_a"


def test_sequences_are_passed_through(locate, build):
    nodes = [
        ("SplitToSequence", ["x"], "s", {"axis": 1}),
        ("ConcatFromSequence", ["s"], "j", {"axis": 1}),
        ("Mul", ["j", "w"], "y", {}),
    ]
    model = build(nodes, {"w": np.array([2], F32)})
    assert locate(weight("w", lambda w: w * 2), model).node == "node_y"
    assert locate(attribute("j", "axis", 0), model).node == "node_j"


def test_large_graph_is_compared_in_batches(locate, build, rows, monkeypatch):
    """40 layers, all changed in the last bits, the last one for good: held memory stays below the limit."""
    depth = 40
    nodes = [("Mul", [f"t{i}" if i else "x", f"w{i}"], f"t{i + 1}", {}) for i in range(depth)]
    weights = {f"w{i}": np.full(8, 1.01, F32) for i in range(depth)}
    model = build(nodes, weights, outputs=[f"t{depth}"])
    held = []
    open_session = subgraphs.session_with_outputs

    def counted(graph, tensors):
        held.append(len(list(tensors)))
        return open_session(graph, tensors)

    def change(model):
        for i in range(depth):
            weight(f"w{i}", last_bits)(model)
        weight(f"w{depth - 1}", lambda w: w * F32(1.1))(model)

    monkeypatch.setattr(subgraphs, "session_with_outputs", counted)
    monkeypatch.setattr(subgraphs, "MAX_HELD_BYTES", 6 * rows.nbytes)
    found = locate(change, model)
    assert (found.node, found.agreeing) == (f"node_t{depth}", depth - 1)
    assert max(held[2:]) <= 6  # after the first batch
    assert len(held) > 6


def test_predictors_artifacts_and_paths_are_accepted(locate, net, rows, save):
    broken = onnx.ModelProto()
    broken.CopyFrom(net)
    operator("e", "Sub")(broken)
    with ms.serve(save(broken, "candidate")) as candidate:
        found = ms.locate_divergence(candidate, ms.open_artifact(save(net, "reference")), {"x": rows})
    assert found is not None
    assert found.node == "node_e"


def test_models_without_a_graph_and_inputs_that_do_not_fit_are_refused(net, rows, save):
    path = save(net, "net")
    with pytest.raises(ms.UsageError, match="candidate eager has no ONNX file"):
        ms.locate_divergence(ms.serve(lambda x: x, name="eager"), path, rows)
    with pytest.raises(ms.InputError, match="input 'x' has shape"):
        ms.locate_divergence(path, path, rows[:, :3])
    with pytest.raises(ms.ArtifactError, match="there is no such file"):
        ms.locate_divergence("nowhere.onnx", path, rows)


def test_models_without_a_common_output_are_refused(build, rows, save):
    def two(first, second):
        return save(build([("Relu", ["x"], first, {}), ("Abs", ["x"], second, {})], outputs=(first, second)), first)

    with pytest.raises(
        ms.UsageError, match="no output name in common: the candidate has 'a', 'b', the reference 'c', "
    ):
        ms.locate_divergence(two("a", "b"), two("c", "d"), rows)


def test_candidate_that_fails_without_a_diverging_node_is_an_input_error(build, rows, save):
    reference = build([("Mul", ["x", "w"], "y", {})], {"w": np.full(8, 2, F32)})
    candidate = build(
        [("Mul", ["x", "w"], "y", {}), ("Reshape", ["x", "five"], "z", {})],
        {"w": last_bits(np.full(8, 2, F32)), "five": np.array([5], np.int64)},
        outputs=("y", "z"),
    )
    with pytest.raises(ms.InputError, match="run the graph on these inputs"):
        ms.locate_divergence(save(candidate, "candidate"), save(reference, "reference"), rows)


def test_source_is_the_line_of_the_torch_module(locate, net):
    trace = (
        'File "/models/net.py", line 12, in forward\n    x = self.norm(x)\n'
        '  File "/env/lib/python3.11/site-packages/torch/nn/modules/normalization.py", line 229, in forward\n'
        "    return F.layer_norm(input)"
    )
    node(net, "b").metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    found = locate(attribute("b", "epsilon", 1e-2))
    assert found.source == "/models/net.py:12: x = self.norm(x)"
    assert str(found).endswith("; from /models/net.py:12: x = self.norm(x)")


def test_dropped_node_whose_output_name_moves_to_an_earlier_tensor_is_located(build, save, rows):
    """The candidate computes "y" before "n", and the reference computes its "y" from "n"."""
    weights = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(F32)}
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
