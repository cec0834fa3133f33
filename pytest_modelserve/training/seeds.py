"""Seeds of a training: one for each step, and generators and settings that make a rerun give the same bits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from pytest_modelserve.errors import UsageError


def check_seed(seed: int) -> int:
    """Return `seed`; UsageError unless all three random generators accept it."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 4294967295; got {seed!r}")
    return int(seed)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random, use one thread and deterministic algorithms; restore everything afterwards.

    Gradients are on and float32 is the default dtype inside, whatever the caller has set. One thread, because a sum
    that two threads share is rounded in another order (and was measured 8 times slower on small models).
    """
    import torch

    with ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        undo.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(True)
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        yield


def derived_seed(*parts: object) -> int:
    """Return a seed of 32 bits, another one for each sequence of parts."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest())


def seed_generators(seed: int, device: str) -> None:
    """Start the generators of random, numpy and torch anew."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device == "cuda":
        torch.cuda.manual_seed(seed)
