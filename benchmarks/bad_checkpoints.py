"""Bad checkpoints, pickles, archives and arrays that the scanner names, and good ones that it does not refuse.

Columns: the files, those named by the rule of their kind, the slowest scan in seconds (the process that has imported
torch is warm), and the most memory that scanning added to this process. The good ones are state dicts and optimizers of
common modules, estimators of scikit-learn and arrays of numpy; for them, "named" counts findings of severity error.

With `--interpreter PYTHON`, an environment with `modelaudit`, the last column counts the files of which ModelAudit says
anything of severity "warning" or above.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn import ensemble, linear_model, pipeline, preprocessing
from torch import nn

from benchmarks.scan_peers import SAID, Peer
from fixtures.bad_checkpoints import write_bad_checkpoints
from pytest_modelserve.scanning import scan_file


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--interpreter", help="the Python of an environment with modelaudit")
    options = parser.parse_args()
    peer = None
    if options.interpreter:
        peer = Peer([options.interpreter, str(Path(__file__).with_name("scan_peer.py"))])
    with tempfile.TemporaryDirectory() as name:
        bad_folder, good_folder = Path(name) / "bad", Path(name) / "good"
        bad_folder.mkdir()
        good_folder.mkdir()
        bad = write_bad_checkpoints(bad_folder)
        good = list(write_good(good_folder))
        scan_file(good[0])  # starts the process that imports torch
        print(f"{'':6} {'files':>6} {'kinds':>6} {'named':>6} {'slowest s':>10} {'added MiB':>10}  ModelAudit")
        report("bad", list(bad), bad, peer)
        report("good", good, {}, peer)


def report(title: str, paths: list[Path], rules: dict[Path, str], peer: Peer | None) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, named, others = 0.0, 0, []
    for path in paths:
        began = time.perf_counter()
        findings = [each.rule for each in scan_file(path).findings if each.refuses]
        slowest = max(slowest, time.perf_counter() - began)
        is_named = rules[path] in findings if rules else bool(findings)
        named += is_named
        if is_named != bool(rules):
            others.append(f"  {path.name}: {', '.join(findings) or 'no finding'}")
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{title:6} {len(paths):6} {len(set(rules.values())):6} {named:6} {slowest:10.2f} {added:10.0f}", end="  ")
    print("" if peer is None else sum(peer.outcome(path) == SAID for path in paths))
    print("\n".join(others), end="\n" * bool(others))


def write_good(folder: Path) -> Iterator[Path]:
    """Yield the paths of good checkpoints, estimators and arrays."""
    torch.manual_seed(0)
    modules = {
        "linear": nn.Linear(3, 2),
        "convolutions": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        "lstm": nn.LSTM(4, 5, num_layers=2),
        "transformer": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        "embedding": nn.Embedding(10, 3),
        "attention": nn.MultiheadAttention(8, 2),
        "group norm": nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.PReLU()),
    }
    for name, module in modules.items():
        torch.save(module.state_dict(), path := folder / f"{name}.pt")
        yield path
        torch.save(module.state_dict(), path := folder / f"{name} before ZIP.pth", _use_new_zipfile_serialization=False)
        yield path
    for optimizer in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop):
        module = nn.Linear(3, 2)
        steps = optimizer(module.parameters(), lr=0.1)
        module(torch.ones(2, 3)).sum().backward()
        steps.step()
        values = {
            "model": module.state_dict(),
            "optimizer": steps.state_dict(),
            "epoch": 3,
            "rng": torch.get_rng_state(),
        }
        torch.save(values, path := folder / f"{optimizer.__name__}.ckpt")
        yield path
    rows = np.random.default_rng(0).random((80, 4))
    estimators = (
        linear_model.LogisticRegression(),
        ensemble.RandomForestClassifier(5),
        ensemble.GradientBoostingClassifier(n_estimators=3),
        ensemble.HistGradientBoostingClassifier(max_iter=3),
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.SGDClassifier()),
    )
    for number, estimator in enumerate(estimators):
        estimator.fit(rows, rows[:, 0] > 0.5)
        path = folder / f"{number}.pkl"
        path.write_bytes(pickle.dumps(estimator))
        yield path
        for level in (0, 3):
            joblib.dump(estimator, path := folder / f"{number} {level}.joblib", compress=level)
            yield path
    np.savez(path := folder / "stored.npz", x=rows, text=np.array(["a", "bc"]))
    yield path
    np.savez_compressed(path := folder / "deflated.npz", x=np.zeros((300, 200)))
    yield path
    np.save(path := folder / "fields.npy", np.zeros(3, [("a", "f4"), ("b", "i8", (2,))]))
    yield path


if __name__ == "__main__":
    main()
