"""OnnxPredictor: outputs from any memory layout, providers, refusals, and nothing printed or shared."""

import gc
import threading
import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from pytest_modelserve.artifacts import open_artifact
from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving import OnnxPredictor
from tests.onnx_models import make_model

NODE = helper.make_node
W = np.arange(6, dtype=np.float32).reshape(3, 2)
B = np.array([10, 20], np.float32)


def rows(n, seed=0):
    return np.random.default_rng(seed).integers(-9, 9, size=(n, 3)).astype(np.float32)


def test_an_operator_whose_name_is_not_utf8_is_an_artifact_error(tmp_path):
    model = make_model([helper.make_node("Identical", ["x"], ["y"])], {"x": ("float32", [1])}, {"y": ("float32", [1])})
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(b"Identical", b"Identi\xff\xfel"))
    with pytest.raises(ArtifactError, match="is not UTF-8"):
        OnnxPredictor(path)


def test_outputs_are_the_model_s_own(linear):
    with OnnxPredictor(linear) as predictor:
        for n in (1, 4, 0):
            answers = predictor.predict(rows(n))
            assert list(answers) == ["y"]
            np.testing.assert_array_equal(answers["y"], rows(n) @ W + B)


@pytest.mark.parametrize("give", [open_artifact, str, lambda path: path], ids=["artifact", "str", "path"])
def test_an_artifact_and_its_path_are_the_same_subject_under_the_name_that_is_given(linear, give):
    artifact = open_artifact(linear)
    predictor = OnnxPredictor(give(linear))
    assert predictor.subject == Subject("linear", "", artifact.sha256)
    assert predictor.signature == artifact.signature
    assert predictor.transport == "in-process"
    renamed = OnnxPredictor(give(linear), name="digits", variant="int8", threads=2)
    assert renamed.describe() == (
        f"digits / int8 on onnxruntime {onnxruntime.__version__}, CPUExecutionProvider, 2 threads"
    )


def test_outputs_come_in_the_order_of_the_model(onnx_file):
    path = onnx_file(
        [NODE("Neg", ["x"], ["b"]), NODE("Abs", ["x"], ["a"])],
        {"x": ("float32", ["n"])},
        {"b": ("float32", ["n"]), "a": ("float32", ["n"])},
    )
    answers = OnnxPredictor(path).predict(np.array([2.0], np.float32))
    assert {name: array.tolist() for name, array in answers.items()} == {"b": [-2.0], "a": [2.0]}
    assert list(answers) == ["b", "a"]


@pytest.mark.parametrize(
    "layout",
    [
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1][::-1],
        lambda a: np.flip(a, 0),
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
        lambda a: a.view(type("Array", (np.ndarray,), {})),
    ],
    ids=["fortran", "strided", "double-flip", "flip", "broadcast", "byte-swapped", "unaligned", "subclass"],
)
def test_memory_layout_does_not_change_the_outputs(linear, layout):
    predictor = OnnxPredictor(linear)
    array = layout(rows(5))
    for _ in range(2):  # checked in full, then remembered
        np.testing.assert_array_equal(predictor.predict(array)["y"], np.asarray(array, np.float32) @ W + B)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: {"x": a}], ids=["array", "mapping"])
def test_a_remembered_input_does_not_let_another_one_through(linear, wrap):
    predictor = OnnxPredictor(linear)
    predictor.predict(wrap(rows(2)))
    unlike = [rows(2).astype(np.float64), rows(2)[:, :2], rows(2).T, rows(2).tolist()[0], rows(2).view(np.int32)]
    for wrong in (*map(wrap, unlike), {"y": rows(2)}, {"x": rows(2), "z": rows(2)}, {}):
        with pytest.raises(InputError) as caught:
            predictor.predict(wrong)
        assert caught.value.__cause__ is None  # our own check, not the runtime's


def test_remembered_inputs_still_have_to_agree_with_each_other(onnx_file):
    path = onnx_file(
        [NODE("Identity", ["a"], ["c"]), NODE("Identity", ["b"], ["d"])],
        {"a": ("float32", ["n"]), "b": ("float32", ["n"])},
        {"c": ("float32", ["n"]), "d": ("float32", ["n"])},
    )
    two, three = np.zeros(2, np.float32), np.zeros(3, np.float32)
    predictor = OnnxPredictor(path)
    predictor.predict({"a": two, "b": two})
    predictor.predict({"a": three, "b": three})
    with pytest.raises(InputError, match="the model has 2 inputs"):
        predictor.predict(three)
    with pytest.raises(InputError, match="inputs disagree on 'n': axis 0 of 'a' is 2 and axis 0 of 'b' is 3"):
        predictor.predict({"a": two, "b": three})


@pytest.mark.parametrize("operator", ["Identity", "Relu"])
def test_outputs_share_memory_with_nothing(onnx_file, operator):
    path = onnx_file([NODE(operator, ["x"], ["y"])], {"x": ("float32", ["n"])}, {"y": ("float32", ["n"])})
    predictor = OnnxPredictor(path)
    array = np.array([1.0, 2.0], np.float32)
    first, second = predictor.predict(array)["y"], predictor.predict(array)["y"]
    first[:] = 99
    assert second.tolist() == array.tolist() == [1.0, 2.0]


def test_an_output_made_of_weights_can_be_changed_without_harm(onnx_file):
    path = onnx_file(
        [NODE("Identity", ["x"], ["y"]), NODE("Identity", ["w"], ["z"])],
        {"x": ("float32", ["n"])},
        {"y": ("float32", ["n"]), "z": ("float32", [3])},
        {"w": np.ones(3, np.float32)},
    )
    predictor = OnnxPredictor(path)
    predictor.predict(np.zeros(1, np.float32))["z"][:] = 99
    assert predictor.predict(np.zeros(1, np.float32))["z"].tolist() == [1.0, 1.0, 1.0]


def test_text_goes_in_and_comes_out(onnx_file):
    path = onnx_file([NODE("Identity", ["t"], ["u"])], {"t": ("str", ["n"])}, {"u": ("str", ["n"])})
    predictor = OnnxPredictor(path)
    answer = predictor.predict(np.array(["a", "bé"]))["u"]
    assert predictor.predict(answer)["u"].tolist() == ["a", "bé"]  # an answer is an input of the next model
    with pytest.raises(InputError):  # objects are looked at in every call
        predictor.predict(np.array(["a", None], dtype=object))


def test_a_closed_predictor_refuses(linear):
    predictor = OnnxPredictor(linear)
    with predictor:
        predictor.predict(rows(1))
    predictor.close()
    for inputs in (rows(1), rows(2), {"x": rows(1)}):
        with pytest.raises(UsageError, match="the predictor of linear is closed"):
            predictor.predict(inputs)
    assert repr(predictor).endswith(", closed>")


def test_closing_lets_go_of_the_session(linear):
    predictor = OnnxPredictor(linear)
    session = weakref.ref(predictor._run.__self__)
    predictor.close()
    gc.collect()
    assert session() is None


def test_a_predictor_closed_by_another_thread_during_a_call_says_so(linear, monkeypatch):
    predictor = OnnxPredictor(linear)
    monkeypatch.setattr(predictor, "_like_last", lambda inputs: predictor.close() or {"x": inputs})
    with pytest.raises(UsageError, match="the predictor of linear is closed"):
        predictor.predict(rows(1))


def test_threads_that_alternate_shapes_get_their_own_outputs(linear):
    predictor = OnnxPredictor(linear)
    wrong = []

    def work(n):
        for seed in range(200):
            array = rows(n, seed)
            if not np.array_equal(predictor.predict(array)["y"], array @ W + B):
                wrong.append((n, seed))

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_defaults_are_one_thread_without_spinning(linear):
    options = OnnxPredictor(linear)._run.__self__.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_value_that_the_runtime_refuses_is_the_input_s_fault(onnx_file, capfd):
    path = onnx_file(
        [NODE("Gather", ["w", "x"], ["y"], name="pick")],
        {"x": ("int64", ["n"])},
        {"y": ("float32", ["n"])},
        {"w": np.ones(3, np.float32)},
    )
    predictor = OnnxPredictor(path)
    with pytest.raises(InputError) as caught:
        predictor.predict(np.array([7]))
    assert str(caught.value) == (
        "onnxruntime could not run model on these inputs: 2 : INVALID_ARGUMENT : Non-zero status code returned while "
        "running Gather node. Name:'pick' Status Message: indices element out of data bounds, idx=7 must be within "
        "the inclusive range [-3,2]"
    )
    assert caught.value.__cause__ is not None
    assert predictor.predict(np.array([2]))["y"].tolist() == [1.0]
    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_take_what_it_promises_is_its_own_fault(onnx_file, capfd):
    path = onnx_file(
        [NODE("Reshape", ["x", "shape"], ["y"])],
        {"x": ("float32", ["batch", 3])},
        {"y": ("float32", [2, 3])},
        {"shape": np.array([2, 3])},
    )
    with pytest.raises(ArtifactError, match=r"onnxruntime could not run model on these inputs: .*Reshape"):
        OnnxPredictor(path).predict(rows(4))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_the_runtime_refuses_is_an_error_with_its_reason(onnx_file, capfd):
    path = onnx_file([NODE("Erf", ["x"], ["y"])], {"x": ("float64", ["n"])}, {"y": ("float64", ["n"])})
    with pytest.raises(ArtifactError) as caught:
        OnnxPredictor(path)
    assert str(caught.value) == (
        f"onnxruntime refuses the model {path}: 9 : NOT_IMPLEMENTED : Could not find an implementation for Erf(13) "
        "node with name ''"
    )
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("opset", "ir_version", "message"),
    [
        (
            90,
            10,
            r"the model has opset 90, and onnxruntime \S+ supports up to \d+: upgrade onnxruntime, or export with",
        ),
        (20, 99, r"the file has IR version 99, and onnxruntime \S+ supports up to \d+: upgrade onnxruntime, or write"),
    ],
)
def test_a_model_newer_than_the_runtime_is_refused_in_one_line(tmp_path, opset, ir_version, message):
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]> g (float[n] x) => (float[n] y) {{ y = Relu(x) }}'
    )
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ArtifactError, match=message) as caught:
        OnnxPredictor(tmp_path / "newer.onnx")
    assert "\n" not in str(caught.value)


def test_a_file_that_changed_after_it_was_opened_is_refused(linear):
    artifact = open_artifact(linear)
    model = onnx.load(linear)
    model.graph.initializer[0].raw_data = bytes(24)
    onnx.save(model, linear)
    with pytest.raises(ArtifactError, match="changed after it was opened: open it again"):
        OnnxPredictor(artifact)


def test_outputs_that_no_array_can_hold_are_refused(onnx_file):
    sparse = helper.make_value_info("y", helper.make_sparse_tensor_type_proto(onnx.TensorProto.FLOAT, ["n"]))
    path = onnx_file([NODE("Identity", ["x"], ["y"])], {"x": ("float32", ["n"])}, [sparse])
    with pytest.raises(ArtifactError, match=r"has output 'y' of type sparse\(float32\), which cannot be served"):
        OnnxPredictor(path)


def test_bfloat16_outputs_cannot_be_combined_with_text(onnx_file):
    bfloat16 = helper.make_tensor_value_info("y", onnx.TensorProto.BFLOAT16, ["n"])
    text = helper.make_tensor_value_info("u", onnx.TensorProto.STRING, ["n"])
    path = onnx_file(
        [NODE("Cast", ["x"], ["y"], to=onnx.TensorProto.BFLOAT16), NODE("Identity", ["t"], ["u"])],
        {"x": ("float32", ["n"]), "t": ("str", ["n"])},
        [bfloat16, text],
    )
    with pytest.raises(ArtifactError, match="has output 'y' of type bfloat16 and 't' of type str"):
        OnnxPredictor(path)


def test_the_unoptimized_predictor_runs_the_graph_as_stored(linear):
    predictor = OnnxPredictor(linear, name="digits", threads=2)
    twin = predictor.unoptimized()
    level = twin._run.__self__.get_session_options().graph_optimization_level
    assert level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert twin.describe() == predictor.describe()
    np.testing.assert_array_equal(twin.predict(rows(3))["y"], predictor.predict(rows(3))["y"])


AVAILABLE = onnxruntime.get_available_providers()
KNOWN = ", ".join(map(repr, AVAILABLE))


def test_a_locale_that_the_machine_lacks_is_an_error_with_what_to_install(onnx_file):
    lower = NODE("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="xx_XX.UTF-8")
    path = onnx_file([lower], {"x": ("object", ["n"])}, {"y": ("object", ["m"])})
    assert refusal(path, ArtifactError) == (
        f"onnxruntime refuses the model {path}: it changes the case of text in the locale xx_XX.UTF-8, which this "
        "machine does not have: install it (on Debian `apt-get install locales && localedef -i xx_XX -f UTF-8 "
        "xx_XX.UTF-8`), or convert the model with skl2onnx's option locale='C'"
    )


def test_a_model_of_mixed_floats_is_an_error_with_the_conversion_that_avoids_them(onnx_file):
    mixed = NODE("Mul", ["x", "w"], ["y"])
    path = onnx_file([mixed], {"x": ("float64", ["n"]), "w": ("float32", ["n"])}, {"y": ("float64", ["n"])})
    assert refusal(path, ArtifactError).endswith(
        "; convert number columns as float32: skl2onnx leaves parts of a model of float64 inputs in float32"
    )


needs_no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in AVAILABLE, reason="this build has the CUDA provider")


def refusal(path, error=UsageError, **settings):
    with pytest.raises(error) as caught:
        OnnxPredictor(path, **settings)
    return str(caught.value)


def test_an_unknown_provider_names_the_nearest(linear):
    assert refusal(linear, providers=["CPUExecutionProvder"]) == (
        f"unknown provider 'CPUExecutionProvder': did you mean 'CPUExecutionProvider'? Known: {KNOWN}"
    )


@needs_no_cuda
def test_a_provider_that_this_build_lacks_is_refused(linear):
    assert refusal(linear, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]) == (
        f"provider 'CUDAExecutionProvider' is not in the installed build of onnxruntime, which has {KNOWN}: install "
        "the onnxruntime package for that hardware"
    )


@needs_no_cuda
def test_a_provider_that_silently_falls_back_is_an_error(linear, monkeypatch, capfd):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *AVAILABLE])
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert refusal(linear, ArtifactError, providers=providers) == (
        f"provider 'CUDAExecutionProvider' did not start for the model {linear}, and onnxruntime would have run it on "
        "'CPUExecutionProvider': check the driver and the libraries that the provider needs"
    )
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_fails_to_start_is_not_replaced(linear, monkeypatch, capfd):
    def fail(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    assert refusal(linear, ArtifactError) == f"onnxruntime refuses the model {linear}: no driver"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="needs a second provider that always starts")
def test_nodes_do_not_fall_back_to_a_cpu_that_was_not_named(linear):
    message = refusal(linear, ArtifactError, providers=["AzureExecutionProvider"])
    assert message.startswith(f"onnxruntime refuses the model {linear}: ")
    assert "assigned to the default CPU EP" in message
    with_cpu = OnnxPredictor(linear, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert with_cpu.predict(np.zeros((1, 3), np.float32))["y"].tolist() == [[10.0, 20.0]]


def test_no_provider_and_a_bare_string_are_refused(linear):
    assert refusal(linear, providers=()) == (
        "providers is empty: pass at least one execution provider, for example ('CPUExecutionProvider',)"
    )
    assert refusal(linear, providers="CPUExecutionProvider") == (
        "providers must be a sequence of names: pass ('CPUExecutionProvider',)"
    )


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number(linear, threads):
    assert refusal(linear, threads=threads) == f"threads must be an integer of at least 1; got {threads!r}"
