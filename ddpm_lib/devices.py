"""Where tensors live: the device to compute on, how they get there, and how much room is left."""

import os
import re
from pathlib import Path

import torch
from torch import Tensor

MEMORY = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container


def default_device() -> torch.device:
    """A CUDA GPU where there is one, else Apple's (MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` on that device. To CUDA the copy is queued from pinned memory, and nobody waits; else it is awaited."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in the memory of the machine or container that this runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":  # it shares the machine's memory, and Metal says how much of it is advisable
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    if not MEMORY.exists():  # macOS tells what there is, Windows nothing
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text())[1]) * 1024
    limits = [path.read_text().strip() for path in LIMITS if path.exists()]
    return min([free, *(int(limit) for limit in limits if limit != "max")])
