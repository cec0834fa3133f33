"""Requests and the answers they got, kept on disk and replayed: production traffic as a regression test."""

from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.parity.recordings.recording import Recording, open_recording, record_answers

__all__ = ["Exchange", "Recording", "open_recording", "record_answers"]
