"""Release gates of the carbon dioxide forecaster: it has to earn its place beside the forecast that needs no model.

Trained on the years 1958-1979 and judged on 1980-2001, whose level it has never seen, by forecasts of one week from the
two years before. Neighbouring weeks have errors alike, so that every error is judged over blocks of a year. The last
test shows what a catch looks like.
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
    """Any number of windows, of any length."""
    return modelserve.export(co2_gru, dynamic={"window": {0: "batch", 1: "time"}})


@pytest.fixture(scope="module")
def champion(modelserve: ms.Pipeline, exported: ms.Artifact) -> ms.Predictor:
    return modelserve.serve(exported)


@pytest.fixture(scope="module")
def like_this_week(modelserve: ms.Pipeline) -> ms.Predictor:
    """The reference: next week is like this week."""
    return modelserve.serve(persistence)


@pytest.mark.parametrize(("windows", "weeks"), [(1, 104), (7, 53), (64, 104), (3, 520)])
def test_export_answers_as_torch_does_at_any_size(
    modelserve: ms.Pipeline, co2_gru: ms.TrainedModel, champion: ms.Predictor, co2: CO2, windows: int, weeks: int
) -> None:
    """The data are rounded to 0.1 ppm; float32 to 0.00003 ppm."""
    stretches = np.lib.stride_tricks.sliding_window_view(co2.series.ppm, weeks)
    rows = stretches[np.linspace(0, len(stretches) - 1, windows).astype(int)].astype(np.float32)
    ms.assert_output_parity(champion, modelserve.serve(co2_gru), rows, rtol=0, atol=5e-4)


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_forecast_is_better_than_persistence(
    champion: ms.Predictor, like_this_week: ms.Predictor, co2: CO2, metric: Literal["mae", "rmse"]
) -> None:
    """At least 0.05 ppm better, an eighth of what persistence misses by: for less nobody would run a model."""
    windows, targets = co2.held_out.windows, co2.held_out.targets
    decade = {"decade": co2.held_out.weeks.astype("datetime64[Y]").astype(int) // 10 * 10 + 1970}
    ms.assert_accuracy_parity(
        champion,
        like_this_week,
        windows,
        targets,
        metric=metric,
        max_rise=-0.05,
        sampling=ms.Sampling(block=YEAR),
        slices=decade,
    )


def test_forecast_misses_by_less_than_half_a_ppm(champion: ms.Predictor, co2: CO2) -> None:
    ms.assert_accuracy(
        champion,
        co2.held_out.windows,
        co2.held_out.targets,
        metric="rmse",
        max_value=0.5,
        sampling=ms.Sampling(block=YEAR),
    )


def test_simplified_answers_as_torch_does(
    modelserve: ms.Pipeline, exported: ms.Artifact, co2_gru: ms.TrainedModel, co2: CO2
) -> None:
    simplified = modelserve.serve(modelserve.compress(exported, "simplify"))
    ms.assert_output_parity(simplified, modelserve.serve(co2_gru), co2.held_out.windows[:64], rtol=0, atol=5e-4)


def test_deployed_model_answers_in_time(champion: ms.Predictor, co2: CO2) -> None:
    ms.assert_latency(champion, co2.held_out.windows[:1], max_ms=2.0)


def test_empty_batch_is_refused(champion: ms.Predictor, co2: CO2) -> None:
    """onnxruntime would end the whole process on it: a GRU without a row is no error that a server could catch."""
    with pytest.raises(ms.InputError, match="is empty"):
        champion.predict(co2.held_out.windows[:0])


@pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="the gate catches time that runs backwards")
def test_candidate_that_is_fed_backwards_is_caught(modelserve: ms.Pipeline, champion: ms.Predictor, co2: CO2) -> None:
    """A query sorted by "newest first": every window has the right weeks, the right shape and the wrong order."""
    candidate = modelserve.serve(
        lambda windows: champion.predict(windows[:, ::-1]), name="co2_gru", variant="newest week first"
    )
    windows, targets = co2.held_out.windows, co2.held_out.targets
    ms.assert_accuracy_parity(
        candidate, champion, windows, targets, metric="mae", max_rise=0.01, sampling=ms.Sampling(block=YEAR)
    )
