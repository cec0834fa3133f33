"""Sessions built again: how the memory of one happens to lie moves its time, and only another one can tell."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pytest_modelserve.serving import Predictor

SESSION_SPREAD = 1.03
"""Two sessions of one model differ by 1 to 3 % (measured with fresh sessions of small and middling models)."""


def can_be_rebuilt(predictor: Predictor) -> bool:
    """Whether `rebuilt` gives another session: true of a model file in onnxruntime, of nothing else."""
    return predictor.artifact is not None and predictor.transport == "in-process"


@contextmanager
def rebuilt(pair: tuple[Predictor, Predictor], *, rng: random.Random) -> Iterator[tuple[Predictor, Predictor]]:
    """Another session of each predictor, built in an order that `rng` draws; one that cannot be rebuilt is itself.

    They have the providers, threads and graph optimisations of the first ones and are closed at the end.
    """
    with ExitStack() as stack:
        built = list(pair)
        for which in rng.sample((0, 1), 2):
            if can_be_rebuilt(pair[which]):
                built[which] = stack.enter_context(_another(pair[which]))
        yield built[0], built[1]


def _another(predictor: Predictor) -> Predictor:
    from pytest_modelserve.serving import OnnxPredictor

    assert isinstance(predictor, OnnxPredictor)
    return OnnxPredictor(
        predictor.artifact, providers=predictor.providers, threads=predictor.threads, optimise=predictor.optimise
    )
