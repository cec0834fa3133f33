"""One of several processes that train together on one host."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import traceback
import warnings

import numpy as np

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.training.data_parallel import (
    LOST_PEER,
    DistributedGroup,
    TrainingJob,
    is_lost_peer,
    join_group,
    loopback,
)
from pytest_modelserve.training.seeds import reproducible
from pytest_modelserve.training.training_loop import TrainingMetrics, run_training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # `python -W error` is inherited, and would end the process
    import torch
    import torch._dynamo  # DistributedDataParallel imports it: the fork server shares it with each child


def run(payload: bytes) -> bytes:
    """Train as one of the processes of a TrainingJob, given the job's file and the rank, pickled.

    Returns, pickled, the TrainingMetrics or the ModelServeError that was raised.
    """
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=False)
    path, rank = pickle.loads(payload)
    try:
        return pickle.dumps(_train(pickle.loads(path.read_bytes()), rank))
    except ModelServeError as error:
        return pickle.dumps(error)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(LOST_PEER)


def _train(job: TrainingJob, rank: int) -> TrainingMetrics:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback()
    # The process that started this one ends a hang first.
    join_group(
        job.spec.device,
        2 * job.hang_limit_s + 60,
        store=torch.distributed.FileStore(str(job.folder / "rendezvous"), job.size),  # type: ignore[attr-defined]
        rank=rank,
        size=job.size,
    )
    group = DistributedGroup(rank, job.spec.device, job.beats())
    data = {name: np.load(job.array(number), mmap_mode="r") for number, name in enumerate(job.names)}
    with reproducible(job.seed):
        metrics = run_training(
            job.module, job.spec, data, seed=job.seed, name=job.name, checkpoint=job.checkpoint, group=group
        )
    if rank == 0:
        torch.save(job.module.state_dict(), job.weights)
    return metrics
