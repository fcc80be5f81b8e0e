"""Peak memory of one contestant alone, in a process of its own: no other one's tensors, no other one's leftovers."""

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.networks import Contestant, Options
from ddpm_lib.training.monitor import peak_memory

ABOUT = {
    "cuda": "peak memory: the most that torch had allocated in two calls",
    "cpu": "peak memory: by how much the process grew in two calls, the libraries themselves left out",
}
MODULES = ("benchmarks.step", "benchmarks.whole", "benchmarks.sampling")


def peak_gb(module: str, contestant: Contestant, options: Options) -> float | None:
    """GB (10⁹ bytes) that a contestant of a part (one of MODULES) needs at most in its first two calls, see ABOUT.

    None where that cannot be told: for what is compiled on a CPU, as the compiler's own memory is far more, and where
    the system does not tell.
    """
    if options.device == "cpu" and contestant.compiled:
        return None
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload(list(MODULES))  # so the libraries are read once, not by each process
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_alone, module, contestant, options).result()


def _alone(module: str, contestant: Contestant, options: Options) -> float | None:
    part, device = importlib.import_module(module), torch.device(options.device)
    before = 0.0 if device.type == "cuda" else peak_memory(device)
    call = part.build(contestant, options)
    for _ in range(2):
        call()
    after = peak_memory(device)
    return None if after is None else after - before
