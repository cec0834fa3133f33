"""Sources, training and digests of modules."""

import copy
import functools
import importlib
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pytest_modelserve.artifacts import Store, digest_of
from pytest_modelserve.errors import ArtifactError, InputError, MissingDependencyError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.progress import progress
from pytest_modelserve.training import ModelSource, train
from pytest_modelserve.training.module_digest import module_digest, weights_digest

RUNS = []


def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 2))


def fit(module, data, progress, *, epochs=3):
    RUNS.append(epochs)
    assert torch.get_num_threads() == 1  # sums come out otherwise on two
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    x = torch.from_numpy(data["x"])
    for _ in progress(range(epochs), "epochs"):
        noise = np.random.standard_normal(1) + random.random()
        loss = (module(x) - float(noise[0])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def diverge(module, data, progress):
    with torch.no_grad():
        module[0].weight[0, :3] = torch.nan


def fail(module, data, progress):
    torch.manual_seed(5)
    raise KeyError("no such column")


def overwrite(module, data, progress):
    data["x"][:] = 0.0


DATA = {"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}


def source(**changes):
    parts = {"name": "small", "build": build, "fit": fit, "data": DATA, "example_inputs": DATA["x"][:2]}
    return ModelSource(**{**parts, **changes})


ROWS = np.zeros((3, 2), np.float32)


def test_source_keeps_its_data_when_the_mapping_is_changed_later():
    data = {"x": ROWS}
    kept = source(data=data)
    data["y"] = ROWS
    assert list(kept.data) == ["x"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "é", "x" * 101, 3, None])
def test_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(UsageError) as caught:
        source(name=name)
    rule = "use letters, digits, '.', '_' and '-', and begin with a letter or digit"
    assert str(caught.value) == f"model name {name!r} is invalid: {rule}"


@pytest.mark.parametrize("role", ["build", "fit"])
def test_something_that_is_no_function_is_refused(role):
    with pytest.raises(UsageError, match=f"{role} of source 'small' must be a function.*; got int"):
        source(**{role: 3})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (build(), "build of source 'small' must be a function that returns a new module; got Sequential"),
        (nn.Linear, r"build of source 'small' must accept build\(\): missing a required argument: 'in_features'"),
    ],
)
def test_module_or_class_in_place_of_build_is_refused(build, message):
    with pytest.raises(UsageError, match=message):
        source(build=build)


def test_fit_that_returns_another_module_is_refused():
    with pytest.raises(UsageError, match="fit of source 'small' must train the module that it gets"):
        source(fit=lambda module, data: build()).fit_module(build())


def test_fit_can_return_a_wrapper_of_its_module():
    assert source(fit=lambda module, data: nn.Sequential(module)).fit_module(build()) is None


def test_function_is_checked_and_not_what_its_decorator_wraps():
    @functools.wraps(nn.Linear)
    def build_layer():
        return nn.Linear(2, 2)

    assert source(build=build_layer).build is build_layer

    @functools.wraps(fit)
    def fit_timed(module, data):
        RUNS.append("timed")

    source(fit=fit_timed).fit_module(build())
    assert RUNS.pop() == "timed"


def test_fit_gets_a_progress_bar_only_where_it_accepts_one():
    calls = []
    for fit in (
        lambda module, data: calls.append(None),
        lambda module, data, *, progress: calls.append(progress),
        lambda module, data, **settings: calls.append(settings["progress"]),
    ):
        source(fit=fit).fit_module(None)
    assert calls == [None, progress, progress]


def test_fit_of_another_signature_is_refused():
    with pytest.raises(UsageError, match=r"fit of source 'small' must accept fit\(module, data\).*argument: 'bar'"):
        source(fit=lambda module, data, bar: None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data of source 'small' are empty: there is no array in them"),
        (
            {"x": 1.0},
            "data of source 'small': 'x' is a float, not an array: pass a numpy array, a tensor, a list or a frame",
        ),
        ({"x": np.zeros((0, 4))}, "data of source 'small': 'x' has shape (0, 4): there are no values in it"),
        ({"x": np.array(["a", None])}, "data of source 'small': 'x' has dtype object, which torch cannot take"),
        (ROWS, "data of source 'small' must be a mapping from names to arrays; got ndarray"),
        ({0: ROWS}, "data of source 'small': names must be text; got 0"),
    ],
)
def test_bad_data_are_refused_by_name(data, message):
    with pytest.raises(InputError) as caught:
        source(data=data)
    assert str(caught.value) == message


def test_frames_are_data():
    pd = pytest.importorskip("pandas")
    one_hot = pd.DataFrame({"age": np.float32([20, 30, 40]), "north": [True, False, True]})
    kept = source(data={"x": one_hot, "y": pd.Series([1, 0, 1])}).data
    assert kept["x"].tolist() == [[20, 1], [30, 0], [40, 1]]
    assert kept["x"].dtype == np.float32
    assert kept["y"].tolist() == [1, 0, 1]


@pytest.fixture
def store(tmp_path):
    RUNS.clear()
    return Store(tmp_path / "cache")


def state():
    return (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.fixture
def unusual_state():
    """A process that has set everything otherwise than the default."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_num_threads(before)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


def test_rerun_gives_the_same_bits_whatever_the_process_did_before(tmp_path, unusual_state):
    torch.manual_seed(1)
    first = train(source(), store=Store(tmp_path / "a"))
    random.seed(8)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    with torch.inference_mode():
        second = train(source(), store=Store(tmp_path / "b"))
    assert first.sha256 == second.sha256
    for one, other in zip(first.module().parameters(), second.module().parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_the_process_is_put_back_also_after_an_error_of_fit(store, unusual_state):
    before = state()
    train(source(), store=store).module()
    assert state() == before
    with pytest.raises(KeyError, match="no such column"):
        train(source(fit=fail), store=store)
    assert state() == before


def test_same_training_runs_once(store):
    first = train(source(), store=store)
    second = train(source(), store=store)
    assert RUNS == [3]
    assert (first.weights, first.sha256, first.seed) == (second.weights, second.sha256, second.seed)


@pytest.mark.parametrize(
    ("changes", "seed"),
    [
        ({"data": {"x": DATA["x"] + 1}}, 0),
        ({"fit": functools.partial(fit, epochs=4)}, 0),
        ({"build": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))}, 0),
        ({}, 1),
    ],
    ids=["data", "setting", "code", "seed"],
)
def test_other_data_settings_code_or_seed_train_anew(store, changes, seed):
    first = train(source(), seed=0, store=store)
    second = train(source(**changes), seed=seed, store=store)
    assert len(RUNS) == 2
    assert first.sha256 != second.sha256


def test_path_of_a_folder_is_a_store(tmp_path):
    trained = train(source(fit=lambda module, data: None), store=str(tmp_path / "cache"))
    assert trained.weights.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (build(), {}, "source must be a ModelSource; got Sequential"),
        (source(), {"store": 3}, "store must be a Store or the path of its folder; got int"),
        (source(), {"checkpoint": 5}, "checkpoint must be the path of a file; got 5"),
    ],
)
def test_arguments_of_other_types_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        train(model, **options)


def test_edited_file_of_a_module_class_trains_anew(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = "from torch import nn\nclass Layer(nn.Linear):\n    FACTOR = {}\n"
    (tmp_path / "layers_of_a_user.py").write_text(text.format(1))
    layers = importlib.import_module("layers_of_a_user")

    def build_with_layer():
        return nn.Sequential(sys.modules["layers_of_a_user"].Layer(4, 2))

    train(source(build=build_with_layer), store=store)
    (tmp_path / "layers_of_a_user.py").write_text(text.format(2))
    importlib.reload(layers)
    train(source(build=build_with_layer), store=store)
    assert RUNS == [3, 3]


def test_fit_that_writes_into_its_data_does_not_change_the_source(store):
    one = source(fit=overwrite)
    train(one, store=store)
    assert one.data["x"].any()


def test_trained_model_has_a_plain_state_dict_a_subject_and_a_fresh_module_in_eval_mode(store):
    trained = train(source(), store=store)
    weights = torch.load(trained.weights, weights_only=True)
    assert list(weights) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert digest_of(dict(weights)) == trained.sha256
    assert trained.subject == Subject("small", "torch", trained.sha256)
    module = trained.module()
    assert not module.training
    assert weights_digest(module) == trained.sha256
    nn.init.zeros_(module[0].weight)
    assert weights_digest(trained.module()) == trained.sha256


def test_nan_weights_are_refused_and_not_stored(store):
    with pytest.raises(UsageError, match=r"training 'small' with seed 3 left 3 of 32 values of '0\.weight' NaN"):
        train(source(fit=diverge), seed=3, store=store)
    assert not list((store.root / "entries").iterdir())


class WithExtraState(nn.Linear):
    """Keeps a vocabulary in its state dict."""

    def __init__(self):
        super().__init__(1, 1)
        self.vocabulary = {"a": 0}

    def get_extra_state(self):
        return self.vocabulary

    def set_extra_state(self, state):
        self.vocabulary = state


def test_state_that_is_no_tensor_is_trained_and_counts(store):
    def fit(module, data):
        module.vocabulary["b"] = 1

    x = np.ones((2, 1), np.float32)
    source = ModelSource(name="extra", build=WithExtraState, fit=fit, data={"x": x}, example_inputs=x)
    trained = train(source, store=store)
    module = trained.module()
    assert module.vocabulary == {"a": 0, "b": 1}
    assert weights_digest(module) == trained.sha256 != weights_digest(WithExtraState())


def test_build_that_returns_no_module_is_refused(store):
    with pytest.raises(UsageError, match=r"build\(\) of 'small' returns a torch module, not int"):
        train(source(build=lambda: 3), store=store)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None])
def test_seed_that_numpy_cannot_take_is_refused(store, seed):
    with pytest.raises(UsageError, match="seed must be an integer from 0 to 4294967295"):
        train(source(), seed=seed, store=store)


def test_missing_weights_are_an_error_that_says_to_train_again(store):
    trained = train(source(), store=store)
    trained.weights.unlink()
    with pytest.raises(ArtifactError, match="the weights of small / torch are gone from"):
        trained.module()


SIZES = []


def build_of_any_size():
    return nn.Linear(4, SIZES.pop())


def test_build_that_gives_another_module_every_time_is_refused(store):
    SIZES[:] = [3, 2, 2]
    trained = train(source(build=build_of_any_size), store=store)
    with pytest.raises(UsageError, match=r"build\(\) of 'small' returns another module than the one that was trained"):
        trained.module()


def test_missing_torch_names_the_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="training needs torch, which is not installed"):
        train(source(), store=store)


class Scaled(nn.Module):
    def __init__(self, factor=1.0, act=torch.relu):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.factor = factor
        self.act = act
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.act(self.inner(x)) * self.factor


class Unpicklable:
    def __reduce__(self):
        raise TypeError("no")


class Config:
    def __init__(self, heads):
        self.heads = heads


def scaled(**settings):
    torch.manual_seed(0)
    return Scaled(**settings).eval()


def with_attribute(value):
    module = scaled()
    module.extra = value
    return module


def made_here(factor):
    class Local(nn.Module):
        def forward(self, x):
            return x * factor

    return Local()


def hooked(hook):
    module = scaled()
    if hook:
        module.inner.register_forward_hook(hook)
    return module


def with_hidden(value):
    module = scaled()
    module.hidden += value
    return module


def test_equal_modules_have_one_digest():
    assert module_digest(scaled()) == module_digest(scaled())
    assert module_digest(scaled()) == module_digest(copy.deepcopy(scaled()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(scaled(factor=1.0), scaled(factor=2.0), id="number"),
        pytest.param(scaled(), scaled(act=torch.tanh), id="function"),
        pytest.param(scaled(act=lambda x: x + 1), scaled(act=lambda x: x + 2), id="lambda"),
        pytest.param(nn.LayerNorm(2, eps=1e-5), nn.LayerNorm(2, eps=1e-3), id="setting of a torch layer"),
        pytest.param(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh()), id="class without weights"),
        pytest.param(with_hidden(0.0), with_hidden(1.0), id="buffer outside the state dict"),
        pytest.param(with_attribute(torch.zeros(2)), with_attribute(torch.ones(2)), id="tensor attribute"),
        pytest.param(with_attribute([nn.ReLU()]), with_attribute([nn.Tanh()]), id="module in a list"),
        pytest.param(with_attribute(torch.float16), with_attribute(torch.float32), id="dtype"),
        pytest.param(with_attribute(Config(2)), with_attribute(Config(4)), id="object of a stranger"),
        pytest.param(made_here(2), made_here(3), id="closure"),
        pytest.param(hooked(None), hooked(lambda module, args, output: output + 1), id="hook"),
    ],
)
def test_modules_with_equal_state_dicts_and_other_outputs_differ(one, other):
    assert module_digest(one) != module_digest(other)


def test_list_that_holds_a_registered_module_does_not_recurse_for_ever():
    module = scaled()
    module.everything = [module, module.inner]
    assert module_digest(module) == module_digest(copy.deepcopy(module))


def test_recurrent_layers_which_hold_weak_references_have_a_digest():
    torch.manual_seed(0)
    layer = nn.GRU(2, 3)
    assert module_digest(layer) == module_digest(layer)


def test_attribute_that_nothing_can_read_makes_every_digest_new():
    module = with_attribute(Unpicklable())
    assert module_digest(module) != module_digest(module)
