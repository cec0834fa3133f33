"""The `modelserve` fixture in real projects: one training for all workers, predictors closed, caches that fail in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pytest_modelserve as ms

TRAINING = """
    import numpy as np, pytest, torch
    import pytest_modelserve as ms

    def fit(model, data, progress):
        with open({log!r}, "a") as log:
            log.write("trained\\n")

    @pytest.fixture(scope="session")
    def trained(modelserve):
        x = np.ones((4, 3), np.float32)
        return modelserve.train(ms.ModelSource(name="tiny", build=lambda: torch.nn.Linear(3, 2), fit=fit, data={{"x": x}}, example_inputs=x))

    @pytest.mark.parametrize("case", range(4))
    def test_uses_it(trained, case):
        assert trained.module()(torch.ones(1, 3)).shape == (1, 2)
"""


def test_workers_that_need_the_same_training_do_it_once(pytester: pytest.Pytester) -> None:
    log = Path(pytester.path, "log.txt")
    pytester.makepyfile(TRAINING.format(log=str(log)))
    pytester.runpytest_inprocess("-n", "2").assert_outcomes(passed=4)
    pytester.runpytest_inprocess().assert_outcomes(passed=4)  # from the store
    assert log.read_text() == "trained\n"


def test_what_the_fixture_serves_it_closes(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest
        served = []
        def pytest_sessionfinish():
            print("closed:", [predictor.closed for predictor in served])
    """)
    pytester.makepyfile("""
        import conftest
        def test_it(modelserve):
            conftest.served.append(modelserve.serve(lambda x: x))
            assert not conftest.served[0].closed
    """)
    result = pytester.runpytest_inprocess("-s", "--import-mode=prepend")
    result.stdout.fnmatch_lines(["*closed: [[]True]"])


def test_unwritable_cache_is_one_clear_error(pytester: pytest.Pytester) -> None:
    """A regular file where the folder should be stops root too."""
    Path(pytester.path, "occupied").write_text("")
    pytester.makepyfile("""
        import numpy as np
        import pytest_modelserve as ms
        def test_it(modelserve):
            modelserve.prepare([ms.Scale(0.5)], np.ones((1, 2), np.float32))
    """)
    result = pytester.runpytest_inprocess("--modelserve-cache", "occupied/cache")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*ArtifactError: the cache folder */occupied/cache cannot be written: *--modelserve-cache"]
    )


def test_bars_leave_a_redirected_standard_output_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import contextlib, io
        from pytest_modelserve.progress import progress

        def test_it(modelserve):
            with contextlib.redirect_stdout(io.StringIO()) as redirected:
                list(progress(range(3), "training"))
                print("still here")
            assert redirected.getvalue() == "still here\\n"
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_fixture_lists_every_method_of_the_pipeline(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider").stdout.str()
    methods = {name for name in dir(ms.Pipeline) if not name.startswith("_")}
    assert set(re.findall(r"^ +modelserve\.(\w+)\(", shown, re.MULTILINE)) == methods


def test_marker_of_slow_tests_is_registered_and_leaves_them_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.modelserve_slow
        def test_slow(): pass
        def test_quick(): pass
        """
    )
    result = pytester.runpytest_inprocess("--strict-markers", "-m", "not modelserve_slow", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, deselected=1)
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.modelserve_slow: a test whose gates *"]
    )


def test_help_has_every_option_in_one_group(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_inprocess("--help").stdout.str()
    group = shown.partition("modelserve: model acceptance gates:\n")[2].partition("\n\n")[0]
    options = set(re.findall(r"--modelserve-[\w-]+", shown))
    assert len(options) >= 12
    assert set(re.findall(r"^  (--modelserve-[\w-]+)", group, re.MULTILINE)) == options
