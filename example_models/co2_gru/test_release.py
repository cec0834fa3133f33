"""Release gates of the carbon dioxide forecaster, which must be more accurate than the persistence forecast.

It is trained on 1958-1979 and tested on 1980-2001, at levels outside the training range, by forecasts of one week from
the previous two years. Errors of neighboring weeks are correlated, so all gates use blocks of a year. The last test
shows a detected fault.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

import pytest_modelserve as ms
from example_models.co2_gru.model import persistence
from fixtures.co2 import CO2

YEAR = 52


@pytest.fixture(scope="module")
def exported(modelserve: ms.Pipeline, co2_gru: ms.TrainedModel) -> ms.Artifact:
    """The export with dynamic batch size and window length."""
    return modelserve.export(co2_gru, dynamic={"window": {0: "batch", 1: "time"}})


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, exported: ms.Artifact) -> ms.Predictor:
    return modelserve.serve(exported)


@pytest.fixture(scope="module")
def reference(modelserve: ms.Pipeline) -> ms.Predictor:
    """The reference: next week equals this week."""
    return modelserve.serve(persistence)


@pytest.mark.parametrize(("windows", "weeks"), [(1, 104), (7, 53), (64, 104), (3, 520)])
def test_export_matches_torch_at_any_size(
    modelserve: ms.Pipeline, co2_gru: ms.TrainedModel, champion: ms.Predictor, co2: CO2, windows: int, weeks: int
) -> None:
    """The resolution of the data is 0.1 ppm, that of float32 0.00003 ppm."""
    sections = np.lib.stride_tricks.sliding_window_view(co2.series.ppm, weeks)
    rows = sections[np.linspace(0, len(sections) - 1, windows).astype(int)].astype(np.float32)
    ms.assert_output_parity(champion, modelserve.serve(co2_gru), rows, rtol=0, atol=5e-4)


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_forecast_is_better_than_persistence(
    champion: ms.Predictor, reference: ms.Predictor, co2: CO2, metric: Literal["mae", "rmse"]
) -> None:
    """The required improvement of 0.05 ppm is an eighth of the error of persistence."""
    windows, targets = co2.held_out.windows, co2.held_out.targets
    decade = {"decade": co2.held_out.weeks.astype("datetime64[Y]").astype(int) // 10 * 10 + 1970}
    ms.assert_accuracy_parity(
        champion,
        reference,
        windows,
        targets,
        metric=metric,
        max_rise=-0.05,
        sampling=ms.Sampling(block=YEAR),
        slices=decade,
    )


def test_forecast_error_is_below_half_a_ppm(champion: ms.Predictor, co2: CO2) -> None:
    ms.assert_accuracy(
        champion,
        co2.held_out.windows,
        co2.held_out.targets,
        metric="rmse",
        max_value=0.5,
        sampling=ms.Sampling(block=YEAR),
    )


def test_simplified_model_matches_torch(
    modelserve: ms.Pipeline, exported: ms.Artifact, co2_gru: ms.TrainedModel, co2: CO2
) -> None:
    simplified = modelserve.serve(modelserve.compress(exported, "simplify"))
    ms.assert_output_parity(simplified, modelserve.serve(co2_gru), co2.held_out.windows[:64], rtol=0, atol=5e-4)


def test_deployed_model_is_fast_enough(champion: ms.Predictor, co2: CO2) -> None:
    ms.assert_latency(champion, co2.held_out.windows[:1], max_ms=2.0)


def test_empty_batch_is_refused(champion: ms.Predictor, co2: CO2) -> None:
    """onnxruntime would crash the process on a GRU without rows, which no server could handle as an error."""
    with pytest.raises(ms.InputError, match="is empty"):
        champion.predict(co2.held_out.windows[:0])


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate detects reversed time")
def test_candidate_with_reversed_windows_is_detected(modelserve: ms.Pipeline, champion: ms.Predictor, co2: CO2) -> None:
    """The query is sorted by "newest first", so every window has the correct weeks and shape in the wrong order."""
    candidate = modelserve.serve(
        lambda windows: champion.predict(windows[:, ::-1]), name="co2_gru", variant="newest week first"
    )
    windows, targets = co2.held_out.windows, co2.held_out.targets
    ms.assert_accuracy_parity(
        candidate, champion, windows, targets, metric="mae", max_rise=0.01, sampling=ms.Sampling(block=YEAR)
    )
