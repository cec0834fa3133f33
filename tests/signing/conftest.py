import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.onnx_models import make_model


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def run_in(folder, *arguments):
    """Run pytest in this process, which has imported what it needs; return its exit status."""
    names = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        status = pytest.main(["-p", "no:cacheprovider", f"--rootdir={folder}", *arguments])
    for name in set(sys.modules) - names:
        if name.startswith(("test_", "conftest")):
            del sys.modules[name]
    return status


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A folder of keys: release and other on P-256, and one of RSA."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "other"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / f"{name}.pem")
        openssl("ec", "-in", folder / f"{name}.pem", "-pubout", "-out", folder / f"{name}.pub")
    openssl("genrsa", "-out", folder / "rsa.pem", "2048")
    openssl("rsa", "-in", folder / "rsa.pem", "-pubout", "-out", folder / "rsa.pub")
    return folder


@pytest.fixture
def models(tmp_path):
    """A folder with a model whose weights lie in a file of their own."""
    folder = tmp_path / "models"
    (folder / "weights").mkdir(parents=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make_model(nodes, {"x": ("float32", ["n", 4])}, {"y": ("float32", ["n", 3])}, {"w": np.ones((4, 3), "f4")})
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights/w.bin", size_threshold=0)
    onnx.save(model, folder / "m.onnx")
    return folder


@pytest.fixture(autouse=True)
def no_trust(monkeypatch):
    monkeypatch.delenv("MODELSERVE_TRUST", raising=False)
    monkeypatch.delenv("MODELSERVE_SIGN_KEY", raising=False)
