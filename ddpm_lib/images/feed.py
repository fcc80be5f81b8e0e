"""Batches of images for training: in an order that a run can resume, and on the device without anybody waiting."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_lib.devices import free_memory, to_device
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.images.decoded import DecodedImages, decode, image_bytes, kept
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.images.workers import loaded


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
    share: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Endless batches: x_0, (batch, C, H, W) float32 in [−1, 1] on `device`, and its labels, (batch,) on the CPU.

    The labels are None where the data have none. The images are moved to the device once if they take at most `budget`
    bytes (None: a quarter of what is free there), bytes as bytes; files are all decoded for that before this returns,
    by `workers` processes, and kept decoded below their root (see `kept`). With None, images that do not fit the device
    stay in the machine's memory if they fit there. Else the workers read them batch by batch: decoded ones where they
    could be kept, else the files. The batches are the same in each case, and follow `batches` from number `start` on.
    share: of each batch's images, those that are wanted here, where several processes have one batch; the labels are
    always those of all. Nothing in them makes the device wait, or draws from torch's global generator. Close the
    iterator, or forget it, and its workers end. Raises ValueError at once, naming them, for files that cannot be read.
    """
    rows = batches(len(data), batch, seed, start)
    if isinstance(data, LabelledImages):
        fits = data.images.device == device or data.images.nbytes <= _room(device, budget)
        images = data.images.to(device) if fits else data.images.cpu()
        return _resident(images, data.labels, rows, device, share)
    path = kept(data, workers)
    if (home := decoded_home(data, device, budget)) is not None:
        return _resident(_all(data, path, workers, home), data.labels, rows, device, share)
    if path is None:
        for _ in decode(data, workers):
            pass  # a broken file shall be found now, not when its turn comes, hours later
    source = data if path is None else DecodedImages(data, path)
    wanted = (row[share] for row in rows)
    return _streamed(source, data.labels, wanted, batches(len(data), batch, seed, start), device, workers)


def decoded_home(data: ImageFiles, device: torch.device, budget: int | None = None) -> torch.device | None:
    """Where `feed` keeps the images of files while it goes on; None where the workers read them batch by batch."""
    size = len(data) * image_bytes(data)
    return next((home for home in (device, torch.device("cpu")) if size <= _room(home, budget)), None)


def _all(data: ImageFiles, path: Path | None, workers: int, home: torch.device) -> Tensor:
    shape = (len(data), data.channels, data.size, data.size)
    if path is not None:
        mapped = torch.from_file(str(path), size=math.prod(shape), dtype=torch.uint8).view(shape)
        return mapped.to(home, copy=True)
    images, done = torch.empty(shape, dtype=torch.uint8, device=home), 0
    for part in decode(data, workers):
        images[done : done + len(part)] = part
        done += len(part)
    return images


def _resident(
    images: Tensor, labels: Tensor | None, rows: Iterator[Tensor], device: torch.device, share: slice
) -> Iterator[tuple[Tensor, Tensor | None]]:
    labels = None if labels is None else labels.cpu()
    for row in rows:
        x_0 = to_device(images[to_device(row[share], images.device)], device)
        yield _signed(x_0), None if labels is None else labels[row]


def _streamed(
    source: Dataset,
    labels: Tensor | None,
    rows: Iterator[Tensor],
    same: Iterator[Tensor],
    device: torch.device,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    with loaded(source, rows, workers, torch.stack, pin_memory=device.type == "cuda") as loading:
        for read, row in zip(loading, same, strict=True):
            yield _signed(read.to(device, non_blocking=True)), None if labels is None else labels[row]


def _signed(images: Tensor) -> Tensor:
    return to_signed(images, check=False) if images.dtype == torch.uint8 else images


def _room(device: torch.device, budget: int | None) -> int:
    return free_memory(device) // 4 if budget is None else budget
