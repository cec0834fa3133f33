"""Requests and the answers they got, kept on disk and replayed: production traffic as a regression test."""

from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.parity.recordings.opening import open_recording, record_answers
from pytest_modelserve.parity.recordings.recording import Recording

__all__ = ["Exchange", "Recording", "open_recording", "record_answers"]
