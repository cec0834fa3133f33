"""A monitor with one false-alarm budget over its life, and the streams that it reads."""

from pytest_modelserve.monitoring.monitor import streams
from pytest_modelserve.monitoring.monitor.monitor import Monitor, MonitorEvent, MonitorPlan, measure_alarm

__all__ = ["Monitor", "MonitorEvent", "MonitorPlan", "measure_alarm", "streams"]
