"""Processes that read images beside the training: deaf to signals that are meant for it, gone when it is."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@contextmanager
def loaded(
    data: Dataset, rows: Iterable[Tensor], workers: int, collate: Callable[[list], Any], pin_memory: bool = False
) -> Iterator[Iterator[Any]]:
    """`collate([data[i] for i in row])` for each row of indices, in that order; the workers end with the context.

    Where an error or Ctrl-C ends it they end at once, and not when they have read what they were told to.
    """
    with warnings.catch_warnings(), _signals_come_later():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: they wait for disks
        loaded = iter(_loader(data, rows, workers, collate, pin_memory))
    try:
        yield loaded
    except BaseException:
        # a thread that pins memory may be reading what a worker writes, and would wait for the rest of it for ever
        if workers and not pin_memory and hasattr(signal, "sigtimedwait"):
            for worker in loaded._workers:
                worker.terminate()
        raise
    finally:
        if workers:
            loaded._shutdown_workers()  # what forgetting it does, at once, even where a traceback remembers it


def _loader(
    data: Dataset, rows: Iterable[Tensor], workers: int, collate: Callable[[list], Any], pin_memory: bool
) -> DataLoader:
    return DataLoader(
        data,
        batch_sampler=(row.tolist() for row in rows),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_heed_the_parent_alone,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),  # or it would draw from the global one, which dropout uses
    )


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
    """Within, Ctrl-C and SIGTERM wait, and then come once, however often they were sent.

    A process started here begins deaf to them, before it can ignore anything.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would end the waiting
    late = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigtimedwait") else {signal.SIGINT}
    came, handlers = set(), {}
    if threading.current_thread() is threading.main_thread():
        # Another thread may take what this one blocks, and the handler runs here all the same: an exception that it
        # raises in what Python does around a fork is lost.
        handlers = {number: signal.signal(number, lambda number, frame: came.add(number)) for number in late}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, late)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in sorted(came, reverse=True):  # Ctrl-C last: it raises
            signal.raise_signal(number)
