"""Models and inputs that crash onnxruntime: refused before the run, or run below the optimization that crashes."""

import json
import platform
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import open_artifact, read_graph
from pytest_modelserve.errors import InputError
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.serving.crash_guards import KnownCrashes, crashes_when_optimized, find_known_crashes

NODE = helper.make_node
INT64, INT32 = onnx.TensorProto.INT64, onnx.TensorProto.INT32
LEAST = {"int32": np.iinfo(np.int32).min, "int64": np.iinfo(np.int64).min}

# Runs the bare runtime on each model and its inputs in a forked child, and prints the signal that ended each, or 0.
BARE_RUNTIME = """
import json, os, sys
import numpy as np, onnxruntime
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
fate = {}
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        session = onnxruntime.InferenceSession(path, options)
        try:
            session.run(None, dict(np.load(path + ".npz")))
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    fate[path] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
print(json.dumps(fate))
"""


def recurrent(operator):
    """A graph of one recurrent operator on x of shape [time, batch, 3]."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[operator]
    return {
        "nodes": [NODE(operator, ["x", "w", "r"], ["y"], hidden_size=5)],
        "inputs": {"x": ("float32", ["time", "batch", 3])},
        "outputs": {"y": ("float32", None)},
        "constants": {
            "w": np.full((1, gates * 5, 3), 0.1, np.float32),
            "r": np.full((1, gates * 5, 5), 0.1, np.float32),
        },
    }


def quantized_lstm():
    names = ["x", "w", "r", "", "", "", "", "", "scale", "zero", "scale", "zero"]
    return recurrent("LSTM") | {
        "nodes": [NODE("DynamicQuantizeLSTM", names, ["y"], hidden_size=5, domain="com.microsoft")],
        "constants": {
            "w": np.ones((1, 3, 20), np.uint8),
            "r": np.ones((1, 5, 20), np.uint8),
            "scale": np.ones(1, np.float32),
            "zero": np.zeros(1, np.uint8),
        },
        "domains": ["com.microsoft"],
    }


def in_branches(model):
    """The nodes of `model` inside both branches of an If."""
    output = helper.make_empty_tensor_value_info("y")
    branches = {name: helper.make_graph(model["nodes"], name, [], [output]) for name in ("then_branch", "else_branch")}
    constants = model["constants"] | {"yes": np.array(True)}
    return model | {"nodes": [NODE("If", ["yes"], ["y"], **branches)], "constants": constants}


def division(dtype, **changes):
    """y = x / d."""
    vector = (dtype, ["n"])
    nodes = [NODE("Div", ["x", "d"], ["y"])]
    return {"nodes": nodes, "inputs": {"x": vector, "d": vector}, "outputs": {"y": vector}} | changes


def cast_division(source, target):
    """y = target(x) / d."""
    to = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    nodes = [NODE("Cast", ["x"], ["i"], to=to), NODE("Div", ["i", "d"], ["y"])]
    return division(target, nodes=nodes, inputs={"x": (source, ["n"]), "d": (target, ["n"])})


def function_division():
    """y = x / d inside a local function, which tells no types."""
    body = [NODE("Div", ["a", "b"], ["c"])]
    function = helper.make_function("local", "Halve", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)])
    nodes = [NODE("Halve", ["x", "d"], ["y"], domain="local")]
    return division("int64", nodes=nodes, functions=[function], domains=["local"])


def divided(source, value, target=None):
    """x = value and d = -1, of the dtypes given."""
    return {"x": np.array([1, value], source), "d": np.array([-1, -1], target or source)}


def empty(*shape):
    return {"x": np.zeros(shape, np.float32)}


DEADLY = {
    "gru-batch": (recurrent("GRU"), empty(2, 0, 3)),
    "gru-time": (recurrent("GRU"), empty(0, 2, 3)),
    "lstm-batch": (recurrent("LSTM"), empty(2, 0, 3)),
    "quantized-lstm-batch": (quantized_lstm(), empty(2, 0, 3)),
    "gru-in-branch": (in_branches(recurrent("GRU")), empty(2, 0, 3)),
    "div-int32": (division("int32"), divided("int32", LEAST["int32"])),
    "div-int64": (division("int64"), divided("int64", LEAST["int64"])),
    "div-in-function": (function_division(), divided("int64", LEAST["int64"])),
    "div-cast-nan": (cast_division("float32", "int64"), divided("float32", np.nan, "int64")),
    "div-cast-inf": (cast_division("float64", "int32"), divided("float64", np.inf, "int32")),
    "div-cast-wrap": (cast_division("int64", "int32"), divided("int64", 2**31, "int32")),
}
HARMLESS = {
    "rnn-batch": (recurrent("RNN"), empty(2, 0, 3)),
    "div-int8": (division("int8"), divided("int8", -(2**7))),
    "div-int16": (division("int16"), divided("int16", -(2**15))),
    "div-next": (division("int64"), divided("int64", LEAST["int64"] + 1)),
    "div-float-nan": (division("float32"), divided("float32", np.nan)),
    "mod-int64": (division("int64", nodes=[NODE("Mod", ["x", "d"], ["y"])]), divided("int64", LEAST["int64"])),
}


@pytest.fixture(scope="module")
def fate(tmp_path_factory, build_model):
    """The signal that ends a process in which the bare runtime runs each model, by name; 0 where it survives."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, (model, feed) in (DEADLY | HARMLESS).items():
        paths[name] = str(folder / f"{name}.onnx")
        onnx.save(build_model(**model), paths[name])
        np.savez(paths[name] + ".npz", **feed)
    ran = subprocess.run(
        [sys.executable, "-c", BARE_RUNTIME, *paths.values()], capture_output=True, text=True, check=True
    )
    signals = json.loads(ran.stdout)
    return {name: signals[path] for name, path in paths.items()}


@pytest.mark.parametrize("name", DEADLY)
def test_what_kills_the_bare_runtime_is_refused(name, fate, onnx_file):
    if name.startswith("div") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only x86 traps on this division")
    model, feed = DEADLY[name]
    assert fate[name] in (signal.SIGABRT, signal.SIGFPE), "this onnxruntime survives it: the guard may go"
    with OnnxPredictor(onnx_file(**model)) as predictor, pytest.raises(InputError, match="onnxruntime crashes"):
        predictor.predict(feed)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_the_runtime_survives_is_run(name, fate, onnx_file):
    model, feed = HARMLESS[name]
    assert fate[name] == 0
    assert OnnxPredictor(onnx_file(**model)).predict(feed)["y"].shape


def test_an_empty_input_is_refused_in_full(onnx_file):
    with pytest.raises(InputError, match=r"input 'x' is empty \(shape \[2, 0, 3\]\)"):
        OnnxPredictor(onnx_file(**recurrent("GRU"))).predict(empty(2, 0, 3))


def test_a_least_value_is_refused_in_full(onnx_file):
    predictor = OnnxPredictor(onnx_file(**cast_division("float32", "int32")))
    with pytest.raises(InputError, match=r"input 'x' holds nan at \[1\], which is -2147483648 as int32"):
        predictor.predict(divided("float32", np.nan, "int32"))


def test_values_are_checked_in_every_call(onnx_file):
    predictor = OnnxPredictor(onnx_file(**division("int64")))
    assert predictor.predict(divided("int64", 6))["y"].tolist() == [-1, -6]
    for _ in range(2):
        with pytest.raises(InputError):
            predictor.predict(divided("int64", LEAST["int64"]))


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        ({"d": np.array([2])}, ()),
        ({"d": np.array([2, -1])}, ("int64",)),
        ({"x": np.array([5])}, ()),
        ({"x": np.array([LEAST["int64"]])}, ("int64",)),
    ],
    ids=["harmless-divisor", "divisor-with-minus-one", "harmless-dividend", "least-dividend"],
)
def test_constants_can_rule_the_trap_out(build_model, constants, expected):
    inputs = {name: ("int64", ["n"]) for name in {"x", "d"} - constants.keys()}
    assert find_known_crashes(build_model(**division("int64", inputs=inputs, constants=constants))).minimum == expected


def test_a_constant_node_rules_it_out_like_an_initializer(build_model):
    nodes = [NODE("Constant", [], ["d"], value_ints=[2]), NODE("Div", ["x", "d"], ["y"])]
    model = build_model(**division("int64", nodes=nodes, inputs={"x": ("int64", ["n"])}))
    assert find_known_crashes(model) == KnownCrashes()


def test_types_are_followed_through_operators_that_keep_them(build_model):
    nodes = [
        NODE("Relu", ["x"], ["a"]),
        NODE("Exp", ["a"], ["b"]),
        NODE("ReduceSum", ["b"], ["c"]),
        NODE("Div", ["b", "c"], ["y"]),
        NODE("Shape", ["x"], ["s"]),
        NODE("Cast", ["s"], ["t"], to=onnx.TensorProto.FLOAT),
        NODE("Div", ["t", "t"], ["z"]),
    ]
    floats = ("float32", ["n"])
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("y", "z")]
    assert find_known_crashes(build_model(nodes, {"x": floats}, outputs)) == KnownCrashes()


def test_both_traps_count_where_the_type_is_unknown(build_model):
    assert find_known_crashes(build_model(**function_division())).minimum == ("int32", "int64")


def test_an_unknown_division_does_not_forbid_nan(build_model):
    model = function_division()
    model["nodes"].append(NODE("Cast", ["x"], ["unused"], to=onnx.TensorProto.INT64))
    assert find_known_crashes(build_model(**model)).from_float == ()


def test_an_operator_of_another_domain_is_not_taken_for_a_division(build_model):
    model = division("int64", nodes=[NODE("Div", ["x"], ["y"], domain="local")], domains=["local"])
    assert find_known_crashes(build_model(**model)) == KnownCrashes()


def test_a_loop_does_not_lend_the_type_of_one_value_to_another(build_model):
    """Loop returns values of several types under one type parameter; its body tells which is which."""
    body = helper.make_graph(
        [NODE("Identity", ["go"], ["go_on"]), NODE("Identity", ["f"], ["f_next"]), NODE("Div", ["i", "i"], ["i_next"])],
        "body",
        [
            helper.make_tensor_value_info(name, dtype, [])
            for name, dtype in (
                ("k", INT64),
                ("go", onnx.TensorProto.BOOL),
                ("f", onnx.TensorProto.FLOAT),
                ("i", INT32),
            )
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("go_on", "f_next", "i_next")],
    )
    nodes = [NODE("Loop", ["", "", "x", "n"], ["y", "m"], body=body), NODE("Div", ["m", "m"], ["z"])]
    model = build_model(nodes, {"x": ("float32", []), "n": ("int32", [])}, [helper.make_empty_tensor_value_info("z")])
    assert find_known_crashes(model).minimum == (
        "int32",
        "int64",
    )  # int32 in the body; what comes out of it is not told


def test_functions_that_multiply_are_read_once(build_model):
    """Thirty functions, each calling the next twice: a walk of the calls would visit a thousand million nodes."""
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function(
            "local",
            f"F{level}",
            ["a"],
            ["c"],
            [NODE(f"F{level + 1}", ["a"], ["b"], domain="local"), NODE(f"F{level + 1}", ["b"], ["c"], domain="local")],
            opset,
        )
        for level in range(30)
    ]
    floats = {"x": ("float32", ["n"])}
    model = build_model(
        [NODE("F0", ["x"], ["y"], domain="local")],
        floats,
        {"y": ("float32", ["n"])},
        functions=functions,
        domains=["local"],
    )
    assert find_known_crashes(model) == KnownCrashes()


TURN = {"perm": [1, 0, 2]}
WEIGHTS = {"w": np.ones((8, 8), np.float16), "shape": np.array([0, 3, 8])}

_SERVE = """
import sys
import numpy as np
from pytest_modelserve.serving import serve
x = np.arange(48, dtype=np.float16).reshape(2, 3, 8)
for path in sys.argv[1:]:
    with serve(path) as predictor:
        y = predictor.predict(x)["y"]
    np.testing.assert_array_equal(y, x.transpose(1, 0, 2).astype(np.float32) @ np.ones((8, 8), np.float32))
    print(path, flush=True)
"""


def between(*nodes):
    """Nodes one after another from x to y."""
    names = ["x", *(f"v{place}" for place in range(len(nodes) - 1)), "y"]
    return [
        NODE(operator, [names[place], *more], [names[place + 1]], **attributes)
        for place, (operator, more, attributes) in enumerate(nodes)
    ]


TRANSPOSE, PRODUCT = ("Transpose", [], TURN), ("MatMul", ["w"], {})
FATAL = [
    [TRANSPOSE, PRODUCT],
    [("Cast", [], {"to": TensorProto.FLOAT16}), TRANSPOSE, PRODUCT],
    [("Reshape", ["shape"], {}), TRANSPOSE, PRODUCT],
    [TRANSPOSE, ("Identity", [], {}), PRODUCT],
]


@pytest.fixture
def half(onnx_file):
    def write(nodes, dtype="float16", name="model"):
        weights = {name: a.astype(dtype) if name == "w" else a for name, a in WEIGHTS.items()}
        return onnx_file(between(*nodes), {"x": (dtype, ["n", 3, 8])}, {"y": (dtype, [3, "n", 8])}, weights, name=name)

    return write


def test_transposed_inputs_in_float16_are_served(half, tmp_path):
    """onnxruntime 1.32 with all its optimizations ends the process (SIGSEGV) on each."""
    paths = [half(nodes, name=str(number)) for number, nodes in enumerate(FATAL)]
    ran = subprocess.run([sys.executable, "-c", _SERVE, *paths], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, [str(path) for path in paths]), ran.stderr


@pytest.mark.parametrize(
    ("nodes", "dtype"),
    [
        ([TRANSPOSE, PRODUCT], "float32"),
        ([TRANSPOSE, ("Relu", [], {}), PRODUCT], "float16"),
        ([PRODUCT, TRANSPOSE, PRODUCT], "float16"),
        ([PRODUCT, TRANSPOSE], "float16"),
    ],
    ids=["float32", "through a Relu", "of a product", "last"],
)
def test_other_models_keep_every_optimization(half, nodes, dtype):
    assert not crashes_when_optimized(read_graph(open_artifact(half(nodes, dtype)).path))
