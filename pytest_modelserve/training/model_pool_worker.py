"""One of several processes that each train models of their own."""

from __future__ import annotations

import pickle
import warnings

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.train import train_entry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `python -W error` is inherited, and would end the process
    # Imports torch and what its deterministic algorithms need, a second of each training process, in the fork server.
    with reproducible(0):
        pass


def run(payload: bytes) -> bytes:
    """Train one model into the store; return None, or the ModelServeError that was raised, pickled."""
    source, identity, seed, store = pickle.loads(payload)
    try:
        train_entry(source, identity, seed=seed, store=store)
    except ModelServeError as error:
        return pickle.dumps(error)
    return pickle.dumps(None)
