"""Models made of a few nodes, and an artifact and a store to put them in."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_modelserve.artifacts import LineageStep, Store, save_artifact
from pytest_modelserve.compression import RECIPES, compress
from pytest_modelserve.errors import RecipeError
from pytest_modelserve.serving import serve


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def weight():
    """Normal random values of a shape, the same in every run."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def built():
    """A model of `nodes`, each (operator, inputs, output, attributes)."""

    def build(nodes, inputs, outputs, weights, *, dtype=TensorProto.FLOAT):
        def values(shapes):
            return [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]

        made = [
            helper.make_node(op, takes, [gives], name=f"node_{gives}", **attributes)
            for op, takes, gives, attributes in nodes
        ]
        stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(made, "g", values(inputs), values(outputs), stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    return build


@pytest.fixture
def save(tmp_path):
    """The artifact of a model that torch might have exported."""

    def write(model, *, variant="fp32"):
        lineage = (LineageStep("export", {"traced": {"batch": 2, "time": 12}}, None, {}),)
        return save_artifact(model, tmp_path / "net.onnx", name="net", variant=variant, lineage=lineage)

    return write


@pytest.fixture
def saved(built, save):
    """The artifact of a model of `nodes`, as `built` takes them."""
    return lambda *graph, variant="fp32", **options: save(built(*graph, **options), variant=variant)


@pytest.fixture
def mlp(saved, weight):
    """Two Gemm with a Relu between them; weights can be replaced by name."""

    def save(*, variant="fp32", **changes):
        weights = {"w1": weight(8, 32), "b1": weight(32), "w2": weight(32, 4), "b2": weight(4), **changes}
        nodes = [("Gemm", ["x", "w1", "b1"], "h", {}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "w2", "b2"], "y", {})]
        dtype = helper.np_dtype_to_tensor_dtype(weights["w1"].dtype)
        return saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, weights, dtype=dtype, variant=variant)

    return save


@pytest.fixture
def wordy(saved, weight):
    """A product behind a constant to fold and a node that does nothing."""
    nodes = [
        ("Add", ["one", "one"], "two", {}),
        ("Mul", ["x", "two"], "scaled", {}),
        ("Identity", ["scaled"], "same", {}),
        ("MatMul", ["same", "w"], "y", {}),
    ]
    weights = {"one": np.ones(8, np.float32), "w": weight(8, 4)}
    return lambda: saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, weights)


@pytest.fixture
def outlier_layer(saved, weight):
    """Three layers; the second has a large weight in each channel, always multiplied by 0, that takes most steps."""

    def make(op="Gemm", *, largest=8):
        first, second = weight(64, 64) / 8, weight(64, 64) / 8
        first[:, 0] = 0
        second[0] = largest
        weights = {"w1": first, "w2": second, "w3": weight(64, 4) / 8}
        nodes = [
            (op, ["x", "w1"], "a", {}),
            ("Tanh", ["a"], "t", {}),
            (op, ["t", "w2"], "b", {}),
            ("Tanh", ["b"], "u", {}),
            (op, ["u", "w3"], "y", {}),
        ]
        return saved(nodes, {"x": ["batch", 64]}, {"y": ["batch", 4]}, weights)

    return make


@pytest.fixture
def masked(saved, weight):
    """Attention shares: scores of which the mask hides every other."""

    def save(hidden):
        nodes = [("MatMul", ["x", "w"], "h", {}), ("Add", ["h", "mask"], "m", {}), ("Softmax", ["m"], "y", {})]
        mask = np.array([0, hidden] * 4, np.float32)
        return saved(nodes, {"x": ["batch", 8]}, {"y": ["batch", 8]}, {"w": weight(8, 8), "mask": mask})

    return save


@pytest.fixture
def needed():
    """The options of `compress` that a recipe cannot do without: rows to calibrate on, or nothing."""
    return lambda recipe, rows: {"calibration": rows} if RECIPES[recipe].calibrates else {}


@pytest.fixture
def outputs_of():
    """The outputs of an artifact."""

    def predict(artifact, inputs):
        with serve(artifact) as predictor:
            return predictor.predict(inputs)

    return predict


@pytest.fixture
def noise_db(outputs_of):
    """How far the noise of each output lies below its signal; inf for none."""

    def measure(artifact, source, inputs):
        got, expected = outputs_of(artifact, inputs), outputs_of(source, inputs)
        with np.errstate(divide="ignore"):
            return {name: 10 * np.log10((y**2).sum() / ((y - got[name]) ** 2).sum()) for name, y in expected.items()}

    return measure


@pytest.fixture
def refusal(store):
    """The message with which a recipe is refused; nothing may be left in the store."""

    def refuse(artifact, recipe, **options):
        with pytest.raises(RecipeError) as caught:
            compress(artifact, recipe, store=store, **options)
        for folder in ("entries", "building"):
            assert not (store.root / folder).exists() or not list((store.root / folder).iterdir())
        return str(caught.value)

    return refuse
