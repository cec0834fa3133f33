"""The calibration kernel, and durations in multiples of it."""

from __future__ import annotations

import numpy as np

from pytest_modelserve.performance.timing import CallTimes, calibration_kernel, in_machine_units


def test_kernel_computes_the_same_finite_numbers_each_time() -> None:
    kernel = calibration_kernel()
    assert np.array_equal(kernel(), np.full((64, 64), 0.5, np.float32))
    assert np.array_equal(kernel(), kernel())


def test_speed_of_the_host_cancels() -> None:
    """The host becomes three times slower half way; the calls are of 5 kernels throughout."""
    speed = np.repeat([1.0, 3.0], 50)
    found = in_machine_units(CallTimes(5 * speed, 5 * speed), CallTimes(speed, speed))
    away = np.r_[0:42, 58:100]  # from the change
    assert np.allclose(found.wall_ms[away], 5)
    assert np.allclose(found.cpu_ms[away], 5)


def test_single_slow_kernel_changes_nothing() -> None:
    kernel = np.ones(100)
    kernel[50] = 1000
    assert np.array_equal(
        in_machine_units(CallTimes(np.ones(100), np.ones(100)), CallTimes(kernel, kernel)).wall_ms, np.ones(100)
    )


def test_few_calls_share_one_median() -> None:
    found = in_machine_units(CallTimes(np.full(3, 6.0), np.full(3, 6.0)), CallTimes(np.array([1.0, 2, 9]), np.ones(3)))
    assert found.wall_ms.tolist() == [3, 3, 3]
