"""The pytest door: options, the `modelserve` fixture, and which hooks run in which process.

Imported in every pytest run of the environment, so it imports nothing heavy and does nothing visible until a test
records evidence or an option of ours is given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import pytest

from pytest_modelserve.errors import unknown_choice
from pytest_modelserve.evidence import INCONCLUSIVE_POLICIES
from pytest_modelserve.plugin_recording import RecordingHooks
from pytest_modelserve.plugin_telling import TellingHooks, WorkerHooks

if TYPE_CHECKING:
    from pytest_modelserve.pipeline import Pipeline


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare every option with its ini twin; an option on the command line wins."""
    group = parser.getgroup("modelserve", "modelserve: model acceptance gates")
    for name, metavar, default, text in (
        ("json", "PATH", "", "write the evidence of the run to PATH as one JSON document (default: not written)"),
        ("html", "PATH", "", "draw the evidence of the run on one page at PATH (default: not written)"),
        ("inconclusive", "fail|skip|warn", "fail", "what a gate does that can decide neither way (default: fail)"),
        ("cache", "DIR", ".modelserve/cache", "where trained, exported and compressed models are kept "
         "(default: .modelserve/cache in the root directory)"),
        ("seed", "N", "0", "the seed of training (default: 0)"),
        ("baselines", "DIR", "baselines", "where modelserve.baseline() finds stored models, to be committed "
         "(default: baselines in the root directory)"),
    ):  # fmt: skip
        group.addoption(f"--modelserve-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"modelserve_{name}", help=text, type="string", default=default)
    group.addoption(
        "--modelserve-update",
        action="store_true",
        help="let modelserve.baseline(name, candidate) replace the stored model by its candidate; refused where the "
        "environment variable CI is set (default: off)",
    )


def _setting(config: pytest.Config, name: str) -> str:
    given = config.getoption(f"--modelserve-{name}")
    return str(config.getini(f"modelserve_{name}") if given is None else given)


def _path_setting(config: pytest.Config, name: str) -> Path:
    """A path on the command line starts at the working directory, one in the ini file at the root directory."""
    given = config.getoption(f"--modelserve-{name}")
    if given is not None:
        return Path(config.invocation_params.dir, given)
    return Path(config.rootpath, str(config.getini(f"modelserve_{name}")))


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings and register the hooks of the role that this process has."""
    policy = _setting(config, "inconclusive")
    if policy not in INCONCLUSIVE_POLICIES:
        raise pytest.UsageError(unknown_choice("--modelserve-inconclusive", policy, INCONCLUSIVE_POLICIES))
    seed = _setting(config, "seed")
    if not seed.isdecimal():
        raise pytest.UsageError(f"--modelserve-seed is a whole number of 0 or more, not {seed!r}")
    if config.getoption("--modelserve-update") and os.environ.get("CI", "") not in ("", "0", "false"):
        raise pytest.UsageError(
            "--modelserve-update replaces the baselines that CI is to judge against, and CI is set here: "
            "run it on your own machine and commit the files"
        )
    samples = _path_setting(config, "json").parent / "samples" if _setting(config, "json") else None
    config.pluginmanager.register(RecordingHooks(policy, samples), "modelserve-recording")
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(WorkerHooks(config), "modelserve-worker")
    else:
        paths = {kind: _path_setting(config, kind) for kind in ("json", "html") if _setting(config, kind)}
        config.pluginmanager.register(TellingHooks(config, paths), "modelserve-telling")


@pytest.fixture(scope="session")
def modelserve(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """The pipeline of this run: train, export, compress and serve models; what it serves it closes at the end."""
    from pytest_modelserve.pipeline import Pipeline
    from pytest_modelserve.progress import progress_to

    config = request.config
    store = _path_setting(config, "cache")
    pipeline = Pipeline(
        store,
        seed=int(_setting(config, "seed")),
        baselines=_path_setting(config, "baselines"),
        update=config.getoption("--modelserve-update"),
        root=config.rootpath,
    )
    with progress_to(cast(TextIO, _Terminal(config))), pipeline:
        yield pipeline


class _Terminal:
    """Standard error as it is outside pytest's capture, for progress bars."""

    def __init__(self, config: pytest.Config) -> None:
        capture: Any = config.pluginmanager.getplugin("capturemanager")
        self._uncaptured = nullcontext if capture is None else capture.global_and_fixture_disabled
        self._shown = not hasattr(config, "workerinput") and config.get_verbosity() > -2

    def isatty(self) -> bool:
        with self._uncaptured():
            return self._shown and sys.stderr.isatty()

    def write(self, text: str) -> int:
        with self._uncaptured():
            written = sys.stderr.write(text)
            sys.stderr.flush()
            return written

    def flush(self) -> None:
        """Every write is flushed already."""
