"""One training run by several processes: each computes a share of every batch, and all have the same model."""

import atexit
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_lib.training.fast import Fast

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells its processes
TIMEOUT = timedelta(hours=2)  # that a process waits for the others: while one decodes files, say, or draws samples
GRACE = 1.0  # seconds: who only noticed that another process failed lets that one speak first
# Groups that are over. Gloo's thread needs the interpreter's lock to let a tensor go. A DDP model that is let go later,
# the last to hold its group, would wait for that thread and keep the lock; and when Python ends, no thread gets it any
# more. Here they are let go before that, and without the lock.
_OVER: list[Any] = []
atexit.register(_OVER.clear)


class Distributed(Fast):
    """A step whose batch is shared by all processes of the group, which `started` has begun; `Fast` says the rest.

    Each has the whole network, and the gradients are averaged while the backward pass goes on; with accumulate > 1 only
    once, with the last part. Dropout draws from (seed, step, process): a resumed run needs no state of any process.
    """

    def __init__(self, device: torch.device, **options: Any):
        super().__init__(device, **options)
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()

    def prepare(self, model: nn.Module) -> Callable[..., Tensor]:
        """Gives all processes the weights of the first."""
        device_ids = [self.device] if self.device.type == "cuda" else None
        options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}  # no second copy of the gradients
        self.network = DistributedDataParallel(super().prepare(model), device_ids=device_ids, **options)
        return self.network

    def share(self, batch: int) -> slice:
        """Raises ValueError where the processes cannot have equal shares: then the mean of means is not the mean."""
        if batch % self.processes:
            raise ValueError(
                f"a batch of {batch} cannot be shared equally by {self.processes} processes: take a multiple of "
                f"{self.processes}, or another number of processes"
            )
        count = batch // self.processes
        return slice(self.rank * count, (self.rank + 1) * count)

    def begin_step(self, seed: int, step: int) -> None:
        if self.processes > 1:  # one process goes on with torch's generator, as `Fast` does
            torch.manual_seed(int(np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)[0]))

    def synchronised(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.network.no_sync()

    def gather(self, losses: Tensor) -> Tensor:
        every = [torch.empty_like(losses) for _ in range(self.processes)]
        dist.all_gather(every, losses.contiguous())
        return torch.cat(every)

    def agree(self, stop: bool) -> bool:
        return _any(stop)


@contextmanager
def started(device: torch.device | None = None) -> Iterator[torch.device | None]:
    """Within, this process is one of those that torchrun started; yields its device. Without torchrun: as it is.

    The group talks by gloo, and on GPUs by nccl; its process number i on a machine has that machine's GPU number i.
    All but the first process print nothing, and warn of nothing. device: what was asked for ("cuda" or None: a GPU).
    Raises ValueError where a machine has fewer GPUs than processes.
    """
    if not launched():
        yield device
        return
    here = int(os.environ["LOCAL_RANK"])
    if (device is None and torch.cuda.is_available()) or (device is not None and device.type == "cuda"):
        if here >= torch.cuda.device_count():
            raise ValueError(
                f"process {here} of this machine has no GPU to itself, there are {torch.cuda.device_count()}: "
                "lower --nproc-per-node, or train on the CPU with --device cpu"
            )
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
    else:
        device = device or torch.device("cpu")  # Apple's GPU is one
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    from torch.distributed.nn import functional  # noqa: F401 (DDP would, while a group is there, and keep it for good)

    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    with quiet():
        warnings.filterwarnings("ignore", "Grad strides do not match")  # of 1×1 kernels, whose layouts are all the same
        yield device
    _OVER.append(dist.group.WORLD)
    dist.destroy_process_group()  # after an error the others may be gone, and the process ends anyway


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return all(name in os.environ for name in LAUNCHED)


@contextmanager
def quiet() -> Iterator[None]:
    """Within, all processes but the first print nothing, and warn of nothing."""
    with warnings.catch_warnings():
        if is_first():
            yield
            return
        warnings.simplefilter("ignore")
        with redirect_stdout(None):
            yield


def is_first() -> bool:
    """Whether this process is the one that writes, draws and reports: always, where there is only one."""
    return int(os.environ["RANK"]) == 0 if launched() else True


def processes() -> tuple[int, int]:
    """How many train together, and how many of these on this machine."""
    if not launched():
        return 1, 1
    return int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def wait() -> None:
    """Wait until all processes are here."""
    _any(False)


def by_first(work: Callable[[], Any]) -> Any:
    """The first process works while the others wait; all get its result, which JSON can hold."""
    if not dist.is_initialized():
        return work()
    words = json.dumps(work()).encode() if is_first() else b""
    size = torch.tensor([len(words)])
    dist.broadcast(size, 0)
    told = torch.frombuffer(bytearray(words), dtype=torch.uint8) if words else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(told, 0)
    return json.loads(told.numpy().tobytes())


@contextmanager
def in_turn() -> Iterator[None]:
    """Within, the first process of each machine comes before its others: what it downloads or decodes, they find."""
    if dist.is_initialized() and int(os.environ["LOCAL_RANK"]):
        wait()
        yield
        return
    yield
    if dist.is_initialized():
        wait()


def given_to_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first process's tensors, on the CPU, by name: what it read, the others need not have on a disk."""
    if not dist.is_initialized():
        return dict(tensors)
    given = {}
    forms = {name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in tensors.items()}
    for name, (dtype, shape) in by_first(lambda: forms).items():
        given[name] = tensors[name].contiguous() if is_first() else torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(given[name], 0)
    return given


def may_report() -> bool:
    """Whether this process is the one that tells of an error: the first that asks, and not those that it dragged along.

    Without a group: whether it is the first process.
    """
    if not dist.is_initialized():
        return is_first()
    if not is_first():
        time.sleep(GRACE)
    try:
        return dist.distributed_c10d._get_default_store().add("reported", 1) == 1
    except RuntimeError:  # torchrun itself is gone
        return is_first()


def _any(yes: bool) -> bool:
    """Whether it is so in any process."""
    if not dist.is_initialized():
        return yes
    flag = torch.tensor([int(yes)])
    dist.all_reduce(flag, dist.ReduceOp.MAX)  # on the host, also where the network is on a GPU
    return bool(flag)
