"""What tests of several rooms need."""

import os
import signal
import socket
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.training import distributed


@pytest.fixture(scope="session")
def random_images():
    """A function that writes images of random pixels, 00.png and on, into the classes' folders by turns."""

    def write(root, count, classes, size=lambda i: (6, 6)):
        for i in range(count):
            path = root / classes[i % len(classes)] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size(i), 3), dtype=np.uint8)).save(path)
        return root

    return write


def of_several(processes: int) -> dict[str, str]:
    """What torchrun tells all processes of a group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    count = str(processes)
    return {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}


@pytest.fixture(scope="session")
def together(tmp_path_factory):
    """A function that runs work(rank) in processes as torchrun starts them, and returns how they ended and what came.

    They are forked: a new interpreter would first import torch, for seconds. What they print goes to files.
    """

    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")

    def run(work, processes=2):
        place = tmp_path_factory.mktemp("together")
        several, pids = of_several(processes), []
        for rank in range(processes):
            sys.stdout.flush()
            sys.stderr.flush()
            if (pid := os.fork()) == 0:
                os.environ.update(several, RANK=str(rank), LOCAL_RANK=str(rank))
                distributed.TIMEOUT = timedelta(minutes=2)  # what would hang fails
                _work(work, rank, place)
            pids.append(pid)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        return ends, [_Outcome(place, rank) for rank in range(processes)]

    return run


def _work(work, rank, place):
    """In a forked process: work, leave the result in a file, and end without pytest's own ending."""
    code = 1
    try:
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(place / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        signal.alarm(600)  # seconds: what hangs ends, and fails
        torch.save(work(rank), place / f"{rank}.result")
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Outcome:
    """What a process printed (out, err) and returned (result)."""

    def __init__(self, place: Path, rank: int):
        self.out, self.err = ((place / f"{rank}.{name}").read_text() for name in ("out", "err"))
        result = place / f"{rank}.result"
        self.result = torch.load(result, weights_only=False) if result.exists() else None
