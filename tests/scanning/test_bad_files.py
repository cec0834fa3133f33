"""Every bad file is named by the rule of its kind, and good files of the same making are not."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fixtures.bad_models import bad_files
from fixtures.onnx_parts import const, good, make_node, model, saved, tensor, value_info, vector
from pytest_modelserve.scanning import RULES, scan_file
from pytest_modelserve.scanning.scan import SCANNERS

# These take a second each: the benchmark scans them.
SLOW = ("too-many-fields", "too-many-nodes", "deadline", "refused", "crash")


@pytest.fixture(scope="module")
def by_rule():
    found = {}
    for bad in bad_files():
        if bad.kind not in SLOW:
            found.setdefault(bad.rule, []).append(bad)
    return found


def test_generator_makes_150_files_of_40_kinds(by_rule):
    files = [bad for every in by_rule.values() for bad in every]
    assert len(files) >= 150
    assert len({bad.kind for bad in files}) >= 40
    assert len(set(map(str, files))) == len(files)


ONNX_RULES = [name for name in RULES if name.partition(".")[0] in
              ("file", "external", "protobuf", "names", "tensor", "graph", "function", "compute", "tree")]  # fmt: skip
NOT_MADE = ("file.changed", "file.size", "file.unreadable", "protobuf.count", "graph.node-count", "names.look-alike",
            "graph.duplicate-name", "graph.order", "graph.runtime-settings")  # fmt: skip


@pytest.mark.parametrize("rule", [name for name in ONNX_RULES if name not in NOT_MADE])
def test_bad_files_are_named_by_the_rule_of_their_kind(by_rule, tmp_path, rule):
    for number, bad in enumerate(by_rule[rule]):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = scan_file(bad.write(folder), mode="static")
        assert rule in [each.rule for each in report.findings], f"{bad}\n{report}"
        assert not report.is_safe
        assert all(line.isprintable() for line in str(report).split("\n"))


@pytest.mark.parametrize("kind", ["refused", "crash"])
def test_trial_names_what_only_opening_and_running_show(tmp_path, kind):
    for number, bad in enumerate(each for each in bad_files() if each.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = scan_file(bad.write(folder))
        assert bad.rule in [each.rule for each in report.findings], report


def warned(found, tmp_path):
    return [each.rule for each in scan_file(saved(found)(tmp_path), mode="static").findings]


def test_what_is_suspicious_and_may_be_meant_is_a_warning(tmp_path):
    unsorted = model([make_node("Neg", ["a"], ["y"]), make_node("Abs", ["x"], ["a"])])
    assert warned(unsorted, tmp_path) == ["graph.order"]
    configured = good()
    helper.set_model_props(configured, {"ort_config": "{}"})
    assert warned(configured, tmp_path) == ["graph.runtime-settings"]
    same = model([make_node("Neg", ["x"], ["а"]), make_node("Neg", ["x"], ["a"])], outputs=[vector("а"), vector("a")])
    assert warned(same, tmp_path) == ["names.look-alike"]
    named = model([make_node("Neg", ["x"], ["a"], name="n"), make_node("Neg", ["a"], ["y"], name="n")])
    assert warned(named, tmp_path) == ["graph.duplicate-name"]


def test_file_that_grows_while_it_is_read_is_named(tmp_path, monkeypatch):
    path = saved(good())(tmp_path)
    scanner = SCANNERS[""]

    def grows(path, file, size):
        found = scanner.static(path, file, size)
        with open(path, "ab") as writer:
            writer.write(b"more")
        return found

    monkeypatch.setitem(SCANNERS, "", type(scanner)(scanner.suffixes, grows, scanner.target, scanner.cpu_s))
    (found,) = scan_file(path).findings
    assert (found.rule, found.message) == ("file.changed", f"the file grew from {path.stat().st_size - 4} to {path.stat().st_size} bytes")  # fmt: skip


def _shape_divided(*, by, operator="Div"):
    """Divide a size by something, as exporters do."""
    shape = [make_node("Shape", ["x"], ["s"]), const("zero", [0]), make_node("Gather", ["s", "zero"], ["d"])]
    return model([*shape, *by, make_node(operator, ["d", "b"], ["y"])], outputs=[vector("y", TensorProto.INT64, None)])


def _divided_by_an_input(version):
    """Divide by a weight that is an input, too: up to version 3 of the format every weight was."""
    ints = [vector("x", TensorProto.INT64), vector("b", TensorProto.INT64)]
    stored = [tensor("b", [2] * 4, np.int64)]
    outputs = [vector("y", TensorProto.INT64)]
    found = model([make_node("Div", ["x", "b"], ["y"])], ints, outputs, opset=8, stored=stored)
    found.ir_version = version
    return found


def _loop(trips):
    body = helper.make_graph(
        [make_node("Concat", ["s", "r"], ["t"], axis=0), make_node("Identity", ["c"], ["co"])], "body",
        [vector("i", TensorProto.INT64, ()), value_info("c", TensorProto.BOOL, ()), vector("s", shape=None)],
        [value_info("co", TensorProto.BOOL, ()), vector("t", shape=None)], [tensor("r", np.ones(1, np.float32))],
    )  # fmt: skip
    return model([*trips, const("k", True, bool), make_node("Loop", ["m", "k", "x"], ["y"], body=body)])


LENGTH = [make_node("Shape", ["x"], ["s0"]), make_node("Squeeze", ["s0"], ["m"])]
GOOD = {
    "plain": good(),
    "size by a constant": _shape_divided(by=[const("b", [2])]),
    "size by a negative constant": _shape_divided(by=[const("b", [-3])]),
    "size by a size": _shape_divided(by=[make_node("Shape", ["x"], ["b"])]),
    "size by a product of sizes": _shape_divided(by=[const("h", [8]), make_node("Mul", ["d", "h"], ["b"])]),
    "size by a number of at least 1": _shape_divided(by=[const("one", [1]), make_node("Sub", ["d", "one"], ["e"]),
                                                         make_node("Max", ["e", "one"], ["b"])]),
    "size by a computed constant": _shape_divided(by=[const("p", [12]), const("q", [3]), make_node("Div", ["p", "q"], ["b"])]),
    "size by minus one": _shape_divided(by=[const("b", [-1])]),
    "remainder by a constant": _shape_divided(by=[const("b", [2])], operator="Mod"),
    "weight that is an input, too, in version 3": _divided_by_an_input(3),
    "floats": model([make_node("Div", ["x", "x"], ["y"])]),
    "loop of a few trips": _loop([const("m", 40)]),
    "loop over the rows": _loop(LENGTH),
    "repeats": model([const("n", [1000]), make_node("Tile", ["x", "n"], ["y"])]),
    "mask": model([const("n", [512, 512]), make_node("ConstantOfShape", ["n"], ["y"])], outputs=[vector("y", shape=None)]),
    "operator of onnxruntime": model([make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], domains=["com.microsoft"]),
    "function of anything that nothing calls": model(
        [make_node("Neg", ["x"], ["y"])], domains=["f"], functions=[helper.make_function(
            "f", "a", ["x", "b", "m"], ["y"], [make_node("Div", ["x", "b"], ["y"])], [helper.make_opsetid("", 21)])]),
    "tokens of one control character": model([make_node("Identity", ["w"], ["y"])], outputs=[vector("y", TensorProto.STRING)], stored=[
        TensorProto(name="w", data_type=TensorProto.STRING, dims=[4], string_data=[b"\x1b", b"\x1bA", b"\r\n", "\x9b".encode()])]),
    "bytes of another format": model([make_node("Constant", [], ["y"], value_string=b"\xff\x1b[1m\xfe")],
                                     outputs=[vector("y", TensorProto.STRING, None)]),
    "numbers in int32_data": model([make_node("Sum", ["x", "a", "b"], ["y"])], inputs=[vector("x", TensorProto.INT8)],
                                   outputs=[vector("y", TensorProto.INT8)], stored=[
        TensorProto(name="a", data_type=TensorProto.INT8, dims=[2], int32_data=[-128, 127]),
        TensorProto(name="b", data_type=TensorProto.INT4, dims=[3], int32_data=[255, 15])]),
    "names of any language": model([make_node("Neg", ["größe/層.0 <lambda>"], ["y"])], inputs=[vector("größe/層.0 <lambda>")]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_exporters_write_is_no_error(tmp_path, name):
    report = scan_file(saved(GOOD[name])(tmp_path), mode="static")
    assert report.findings == (), report


def test_a_loop_of_many_nodes_with_a_state_that_grows_by_a_sum_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_modelserve.scanning.compute_rules._MAX_STEPS", 700)
    grown = _loop([const("m", 40)])
    body = grown.graph.node[-1].attribute[0].g
    body.node.extend(make_node("Neg", ["s"], [f"n{number}"]) for number in range(98))
    assert warned(grown, tmp_path) == []


def test_good_files_pass_the_trial_with_external_data(tmp_path):
    onnx.save(good(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    assert os.path.getsize(tmp_path / "w.bin")
    report = scan_file(tmp_path / "m.onnx")
    assert (report.is_safe, report.opened, len(report.states)) == (True, True, 2), report


def test_file_on_which_a_rule_fails_is_refused(tmp_path, monkeypatch):
    def fails(path, file, size):
        raise RecursionError("too deep")

    scanner = SCANNERS[""]
    monkeypatch.setitem(SCANNERS, "", type(scanner)(scanner.suffixes, fails, scanner.target, scanner.cpu_s))
    report = scan_file(saved(good())(tmp_path))
    assert (report.is_safe, report.opened) == (False, False)
    assert [(each.rule, each.message) for each in report.findings] == [("file.unreadable", "RecursionError: too deep")]


def test_links_of_a_cache_are_followed_where_they_are_allowed(tmp_path):
    (tmp_path / "blobs").mkdir()
    onnx.save(good(), tmp_path / "blobs" / "a", save_as_external_data=True, size_threshold=0, location="w.bin")
    (tmp_path / "model.onnx").symlink_to("blobs/a")
    (tmp_path / "w.bin").symlink_to("blobs/w.bin")
    assert not scan_file(tmp_path / "model.onnx").opened
    report = scan_file(tmp_path / "model.onnx", allow={"file.link": "cache of the hub", "external.link": "the same"})
    assert (report.is_safe, report.opened) == (True, True), report
    assert "0 errors, 0 warnings, 2 allowed" in str(report)


@pytest.mark.parametrize(
    ("node", "constants", "severity"),
    [
        (
            helper.make_node(
                "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=32, N=4, bits=4, block_size=0
            ),
            {"b": np.zeros((4, 1, 16), np.uint8), "s": np.zeros(4, np.float32)},
            "error",
        ),
        (
            helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=2, layout=1),
            {"w": np.zeros((1, 6, 3), np.float32), "r": np.zeros((1, 6, 2), np.float32)},
            "warning",
        ),
    ],
    ids=["invalid", "lacking in this runtime"],
)
def test_initialization_that_fails_is_an_error_unless_the_runtime_lacks_the_setting(
    tmp_path, node, constants, severity
):
    rows = [1, 32] if node.op_type == "MatMulNBits" else [1, 4, 3]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, rows)],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), tmp_path / "m.onnx")
    found = scan_file(tmp_path / "m.onnx").findings
    assert [(each.rule, each.severity) for each in found] == [("trial.refused", severity)]
