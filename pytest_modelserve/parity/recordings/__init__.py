"""Recordings: requests and a model's outputs on disk, replayed as a regression test."""

from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.parity.recordings.recording import Recording, open_recording, record_answers

__all__ = ["Exchange", "Recording", "open_recording", "record_answers"]
