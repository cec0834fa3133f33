"""Training by several processes, each on a part of every batch: child processes of one host, or those of torchrun."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._processes import ChildProcess, Crash, format_log
from pytest_modelserve.errors import TrainingError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.training.checkpoint import CheckpointFile
from pytest_modelserve.training.module_pickle import pickle_job
from pytest_modelserve.training.train_spec import TrainSpec
from pytest_modelserve.training.training_loop import Group, Shared, TrainingMetrics, count_steps

if TYPE_CHECKING:
    from torch import nn

# Exit status of a process that lost the connection to another one: the other one has the cause.
LOST_PEER = 75
_WORKER = "pytest_modelserve.training.data_parallel_worker:run"
_POLL_S = 0.05
# How long the process that failed first may take to end after another one that lost its connection to it.
_CAUSE_S = 5.0
# How long the processes may take to start, on a busy host.
_START_S = 120.0
# How long a process has to write where it hangs.
_TRACE_S = 1.0
_CLUSTER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingJob:
    """What several processes train; the job itself, the arrays and the result are files of `folder`."""

    module: nn.Module
    spec: TrainSpec
    names: Sequence[str]
    name: str
    seed: int
    size: int
    folder: Path
    checkpoint: CheckpointFile
    hang_limit_s: float

    @property
    def weights(self) -> Path:
        """File of the trained weights."""
        return self.folder / "weights.pt"

    def array(self, number: int) -> Path:
        """Return the file of an array of the data."""
        return self.folder / f"{number}.npy"

    def beats(self) -> np.memmap[Any, Any]:
        """Return the shared table of progress: of each process a counter, the steps done and the last loss."""
        path = self.folder / "beats"
        return np.memmap(path, np.float64, "r+" if path.exists() else "w+", shape=(self.size, 3))


def check_processes(processes: int, spec: object, size: int) -> None:
    """Raise UsageError unless `processes` can train `spec`; `size` is the number of processes of torchrun, or 1."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise UsageError(f"processes must be an integer of at least 1; got {processes!r}")
    if processes == size == 1:
        return
    if not isinstance(spec, TrainSpec):
        if processes == 1:
            return  # by the first process of torchrun that asks; the others read its result
        raise UsageError(
            f"processes={processes} needs a source whose fit is ms.TrainSpec(...): a function trains in one process. "
            "Write its loss and optimizer as a TrainSpec, or start processes in your function"
        )
    if spec.privacy is not None:
        raise UsageError(
            f"processes={max(processes, size)} cannot train with privacy=: one process draws the rows and the noise of "
            "each step. Use processes=1"
        )
    if size > 1 and processes not in (1, size):
        raise UsageError(f"processes={processes}, but torchrun started {size}: leave processes out, or pass {size}")
    count = max(processes, size)
    here = processes if size == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = _cores()
    if spec.device == "cuda":
        import torch

        if here > torch.cuda.device_count():
            raise UsageError(
                f"processes: {here} processes on this host need as many GPUs; torch sees {torch.cuda.device_count()}"
            )
    elif here > cores:
        raise UsageError(
            f"processes: {here} processes on this host are more than its {cores} cores, which only makes the training "
            f"slower: use at most {cores}"
        )
    if spec.batch_size < count:
        raise UsageError(f"batch_size={spec.batch_size} leaves no row of a batch for some of {count} processes")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_hang_limit(hang_limit_s: float) -> None:
    """Raise UsageError for a time limit that is no finite positive number."""
    if isinstance(hang_limit_s, bool) or not isinstance(hang_limit_s, (int, float)) or not 0 < hang_limit_s < 1e9:
        raise UsageError(f"hang_limit_s must be a number of seconds above 0; got {hang_limit_s!r}")


def fit_in_processes(
    module: nn.Module,
    spec: TrainSpec,
    data: Mapping[str, NDArray[Any]],
    *,
    name: str,
    seed: int,
    processes: int,
    checkpoint: CheckpointFile,
    hang_limit_s: float,
    folder: Path,
) -> TrainingMetrics:
    """Train `module` in place by child processes of this host; files go to a temporary folder in `folder`.

    Raises:
        TrainingError: A process ended, or none made progress for `hang_limit_s`; the message has the end of its log.
        UsageError: The module or a function of `spec` cannot be sent to another process.
    """
    import torch

    with TemporaryDirectory(dir=folder) as work, ExitStack() as stack:
        job = TrainingJob(module, spec, list(data), name, seed, processes, Path(work), checkpoint, hang_limit_s)
        for number, array in enumerate(data.values()):
            np.save(job.array(number), array, allow_pickle=False)
        path = Path(work, "job")
        path.write_bytes(pickle_job(job, module, list(spec.functions().values()), purpose="training"))
        children = [stack.enter_context(ChildProcess(_WORKER, preload=True)) for _ in range(processes)]
        payloads = [pickle.dumps((path, rank)) for rank in range(processes)]
        results = _Supervisor(children, job.beats(), name, hang_limit_s, count_steps(spec, data, seed)).call(payloads)
        module.load_state_dict(torch.load(job.weights, map_location="cpu", weights_only=True))
    metrics: TrainingMetrics = results[0]
    return metrics


@dataclass(frozen=True, slots=True, eq=False)
class _Supervisor:
    """Calls of all processes at once, which end with the first one that fails."""

    children: Sequence[ChildProcess]
    beats: NDArray[np.float64]
    name: str
    hang_limit_s: float
    steps: int

    def call(self, payloads: Sequence[bytes]) -> list[Any]:
        """Return the unpickled results by rank; what a process raised on purpose is raised here."""
        with ThreadPoolExecutor(len(self.children)) as pool:
            calls = [
                pool.submit(child.call, payload, timeout_s=threading.TIMEOUT_MAX)
                for child, payload in zip(self.children, payloads, strict=True)
            ]
            try:
                for _ in progress(self._steps(calls), f"training {self.name}", total=self.steps, note=self._note):
                    pass
                if not all(call.done() for call in calls):
                    self._raise_cause(calls)
                return [self._result(rank, call.result()) for rank, call in enumerate(calls)]
            finally:
                for child in self.children:
                    child.kill()

    def _steps(self, calls: Sequence[Future[bytes | Crash]]) -> Iterator[None]:
        """Yield once a step, until all calls are done or one of them failed; TrainingError for a hang."""
        done, counters, moved_at = 0, 0.0, time.monotonic()
        while not all(call.done() for call in calls) and not any(map(_has_failed, calls)):
            wait([call for call in calls if not call.done()], timeout=_POLL_S, return_when=FIRST_COMPLETED)
            while done < int(self.beats[0, 1]):
                done += 1
                yield
            if (total := float(self.beats[:, 0].sum())) != counters:
                counters, moved_at = total, time.monotonic()
            elif time.monotonic() - moved_at > (self.hang_limit_s if total else max(self.hang_limit_s, _START_S)):
                self._raise_hang(calls)

    def _raise_cause(self, calls: Sequence[Future[bytes | Crash]]) -> None:
        """Raise what the process that failed first has raised, or how it ended."""
        deadline = time.monotonic() + _CAUSE_S
        while True:
            failed = [(rank, call.result()) for rank, call in enumerate(calls) if _has_failed(call)]
            causes = [each for each in failed if not isinstance(each[1], Crash) or each[1].exit_code != LOST_PEER]
            waiting = [call for call in calls if not call.done()]
            if causes or not waiting or time.monotonic() > deadline:
                self._result(*(causes or failed)[0])
            wait(waiting, timeout=_POLL_S)

    def _raise_hang(self, calls: Sequence[Future[bytes | Crash]]) -> None:
        waiting = [rank for rank, call in enumerate(calls) if not call.done()]
        slowest = self.beats[waiting, 0].min()
        late = [rank for rank in waiting if self.beats[rank, 0] == slowest]
        for rank in late:
            if hasattr(signal, "SIGUSR1"):
                with suppress(OSError):
                    os.kill(self.children[rank].pid, signal.SIGUSR1)  # it writes where it is
        time.sleep(_TRACE_S)
        where = f"rank {', '.join(map(str, late))} fell behind" if len(late) < len(calls) else "all at the same place"
        raise TrainingError(
            f"training {self.name!r}: {len(calls)} processes made no progress for {self.hang_limit_s:g} s "
            f"(hang_limit_s), {where}; all were ended{_formatted(self.children[late[0]].log_tail())}"
        )

    def _result(self, rank: int, result: bytes | Crash) -> Any:
        if isinstance(result, Crash):
            how = f"was {result}" if result.signal else str(result)
            raise TrainingError(
                f"training {self.name!r}: the process with rank {rank} of {len(self.children)} {how}; all were ended"
                f"{_formatted(result.log_tail)}"
            )
        value = pickle.loads(result)
        if isinstance(value, Exception):
            raise value
        return value

    def _note(self) -> str:
        return f"loss {self.beats[0, 2]:.4g}, {len(self.children)} processes"


def _formatted(log_tail: str) -> str:
    """Return the end of a log without torch's warning of the search for unused parameters, which it always gives."""
    return format_log("\n".join(line for line in log_tail.splitlines() if "find_unused_parameters=True" not in line))


def _has_failed(call: Future[bytes | Crash]) -> bool:
    if not call.done():
        return False
    result = call.result()
    return isinstance(result, Crash) or isinstance(pickle.loads(result), Exception)


class DistributedGroup(Group):
    """The processes of torch's default process group."""

    def __init__(self, local_rank: int, device: str, beats: NDArray[np.float64] | None = None) -> None:
        from torch import distributed

        self.rank, self.size, self.local_rank = distributed.get_rank(), distributed.get_world_size(), local_rank
        self._device = device
        self._beats = beats

    def sum(self, *values: float) -> tuple[float, ...]:
        """Return the sum over the processes of each value."""
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor)
        return tuple(tensor.tolist())

    def share(self, value: Shared) -> Shared:
        """Return `value` of the process with rank 0."""
        import torch
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return `module` with the gradients of its loss averaged over the processes."""
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        if self._device == "cpu":
            self._refuse_batch_norm(module)
            return DistributedDataParallel(module, find_unused_parameters=True)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synced, device_ids=[self.local_rank], find_unused_parameters=True)

    def _refuse_batch_norm(self, module: nn.Module) -> None:
        from torch.nn.modules.batchnorm import _BatchNorm

        for path, layer in module.named_modules():
            if isinstance(layer, _BatchNorm):
                raise UsageError(
                    f"{type(layer).__name__} {path.removeprefix('module.')!r} normalizes each process's rows by "
                    f"themselves on CPUs, so that {self.size} processes train another model than one: use processes=1, "
                    "GroupNorm or LayerNorm, or device='cuda'"
                )

    def beat(self, step: int, loss: float) -> None:
        """Show the process that started this one that it makes progress."""
        if self._beats is not None:
            self._beats[self.rank] = self._beats[self.rank, 0] + 1, step, loss


def join_group(device: str, timeout_s: float, *, store: Any, rank: int, size: int) -> None:
    """Join torch's default process group of `size`, which meets in `store` and ends with the process."""
    from torch import distributed

    timeout = timedelta(seconds=timeout_s)
    store.set_timeout(timeout)  # torch does it only for a store that it makes itself, and its own is 5 minutes
    # Tensors on the CPU go through gloo in both cases.
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=size)
    atexit.register(_leave_group)


def is_lost_peer(error: RuntimeError) -> bool:
    """Return True if a process failed only because another one ended or made no progress."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()


def _leave_group() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def cluster_size() -> int:
    """Return the number of processes that torchrun or a scheduler started together, 1 without one."""
    if not all(os.environ.get(name) for name in _CLUSTER):
        return 1
    size, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
    if not size.isdecimal() or not rank.isdecimal() or not int(rank) < int(size):
        raise UsageError(f"RANK={rank} and WORLD_SIZE={size} of the environment must be integers, 0 ≤ rank < size")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise UsageError(f"{name}={os.environ[name]} of the environment must be an integer")
    return int(size)


def cluster_group(spec: TrainSpec, timeout_s: float) -> DistributedGroup:
    """Return the group of the processes that torchrun started."""
    from torch.distributed import PrefixStore, is_initialized  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    if not is_initialized():
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        # torchrun (2.13) keeps the store when it starts all processes again, with the addresses of those that ended.
        restart = f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        join_group(spec.device, timeout_s, store=PrefixStore(restart, store), rank=rank, size=size)
    return DistributedGroup(int(os.environ.get("LOCAL_RANK", "0")), spec.device)


@contextmanager
def lost_peers(name: str) -> Iterator[None]:
    """Raise TrainingError where a process that torchrun started waits in vain for another one."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise TrainingError(
            f"training {name!r}: another process ended or made no progress within hang_limit_s; its log has the cause: "
            f"{str(error).splitlines()[0]}"
        ) from error


def loopback() -> str:
    """Return the name of the network interface of this host alone."""
    return "lo0" if sys.platform == "darwin" else "lo"
