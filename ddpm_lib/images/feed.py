"""Batches of images for training: in an order that a run can resume, and on the device without anybody waiting."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ddpm_lib.devices import free_memory, to_device
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.images.image_files import ImageFiles

DECODED = 64  # images that a worker hands over at once, where all are decoded before training


def batches(n: int, batch: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Eq. 11.1 (batches). Endless batches of indices in 0..n−1, (batch,), int64, on the CPU, from number `start` on.

    All n come in a new random order each epoch, laid end to end; a batch may take the end of one epoch and the
    beginning of the next, so no remainder is left out. Batch number k = 0, 1, … depends on n, batch, seed and k alone.
    start: the number of the first batch, reached in O(n). Raises ValueError for n, batch < 1 or start < 0.
    """
    if n < 1 or batch < 1 or start < 0:
        raise ValueError(f"expected n >= 1, batch >= 1 and start >= 0; got {n}, {batch} and {start}")
    return _batches(n, batch, seed, start)


def _batches(n: int, batch: int, seed: int, start: int) -> Iterator[Tensor]:
    turn, done = divmod(start * batch, n)  # the batches cut one endless row of rounds into pieces
    queue = _order(n, seed, turn)[done:]
    while True:
        while len(queue) < batch:
            turn += 1
            queue = torch.cat([queue, _order(n, seed, turn)])
        yield queue[:batch]
        queue = queue[batch:]


def _order(n: int, seed: int, turn: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, turn)).permutation(n))


def feed(
    data: LabelledImages | ImageFiles,
    batch: int,
    *,
    seed: int,
    device: torch.device,
    start: int = 0,
    workers: int = 4,
    budget: int | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless batches: x_0, (batch, C, H, W) float32 in [−1, 1] on `device`, and its labels, (batch,) on the CPU.

    The labels are None where the data have none. The images are moved to the device once if they take at most `budget`
    bytes (None: a quarter of what is free there), bytes as bytes; files are decoded for that, by `workers` processes.
    With None, images that do not fit the device are kept in the machine's memory if they fit there.
    Else files are read batch by batch, by the workers. The batches are the same in each case, and follow `batches`
    from number `start` on. Nothing here makes the device wait, or draws from torch's global generator.
    Close the iterator, or forget it, and its workers end. Raises ValueError, naming it, for a file that cannot be read.
    """
    rows = batches(len(data), batch, seed, start)
    if isinstance(data, LabelledImages):
        fits = data.images.device == device or data.images.nbytes <= _room(device, budget)
        images = data.images.to(device) if fits else data.images.cpu()
        return _resident(images, data.labels, rows, device)
    if (home := decoded_home(data, device, budget)) is not None:
        return _decoded(data, rows, device, home, workers)
    return _streamed(data, rows, batches(len(data), batch, seed, start), device, workers)


def decoded_home(data: ImageFiles, device: torch.device, budget: int | None = None) -> torch.device | None:
    """Where `feed` keeps the images that it decodes before the first batch; None where it reads them batch by batch."""
    size = len(data) * data.channels * data.size**2
    return next((home for home in (device, torch.device("cpu")) if size <= _room(home, budget)), None)


def _resident(
    images: Tensor, labels: Tensor | None, rows: Iterator[Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    labels = None if labels is None else labels.cpu()
    for row in rows:
        x_0 = to_device(images[to_device(row, images.device)], device)
        yield _signed(x_0), None if labels is None else labels[row]


def _decoded(
    data: ImageFiles, rows: Iterator[Tensor], device: torch.device, home: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    images = torch.empty(len(data), data.channels, data.size, data.size, dtype=torch.uint8, device=home)
    parts = torch.arange(len(data)).split(DECODED)
    with _loaded(data, parts, workers) as loaded:
        for part, read in zip(parts, tqdm(loaded, "decoding", len(parts), mininterval=1, delay=5), strict=True):
            images[part[0] : part[0] + len(part)] = read
    yield from _resident(images, data.labels, rows, device)


def _streamed(
    data: ImageFiles, rows: Iterator[Tensor], same: Iterator[Tensor], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    with _loaded(data, rows, workers, pin_memory=device.type == "cuda") as loaded:
        for read, row in zip(loaded, same, strict=True):
            yield _signed(read.to(device, non_blocking=True)), None if data.labels is None else data.labels[row]


def _signed(images: Tensor) -> Tensor:
    return to_signed(images, check=False) if images.dtype == torch.uint8 else images


def _room(device: torch.device, budget: int | None) -> int:
    return free_memory(device) // 4 if budget is None else budget


# Processes that read files


@contextmanager
def _loaded(
    data: ImageFiles, rows: Iterable[Tensor], workers: int, pin_memory: bool = False
) -> Iterator[Iterator[Tensor]]:
    """The images of each row of indices, in that order, as bytes (B, C, S, S); the workers end with the context."""
    loader = DataLoader(
        data,
        batch_sampler=(row.tolist() for row in rows),
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_heed_the_parent_alone,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # or it would draw from the global one, which dropout uses
    )
    with _signals_come_later():
        loaded = iter(loader)
    try:
        yield loaded
    finally:
        if workers:
            loaded._shutdown_workers()  # what forgetting it does, at once, even where a traceback remembers it


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images)


def _heed_the_parent_alone(worker: int) -> None:
    """Ctrl-C and a job's end reach all processes of a run, and the first still needs the others to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # on macOS and Windows SIGTERM ends the worker, whoever sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    parent = parent_process()
    while True:
        told = signal.sigtimedwait({signal.SIGTERM}, 2)
        if (told and told.si_pid == parent.pid) or not parent.is_alive():  # torch sees that of its own forks alone
            os._exit(0)


@contextmanager
def _signals_come_later() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait. A process started here begins deaf to them, before it can ignore anything."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would end the waiting
    late = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigtimedwait") else {signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, late)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
