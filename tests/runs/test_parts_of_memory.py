"""accumulate=0: the parts of a batch are those that free memory asks for, and are stored with the run."""

import re

import pytest
import torch

from ddpm_lib.runs import decide
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.recipes import override, recipe

CPU = torch.device("cpu")
OPEN = override(recipe("digits"), "width=8 groups=4 head_channels=8 batch=50 accumulate=0".split())


def with_free(monkeypatch, free, processes=(1, 1)):
    monkeypatch.setattr(decide, "free_memory", lambda device: int(free))
    monkeypatch.setattr(decide, "processes", lambda: processes)


def test_the_parts_follow_the_free_memory(monkeypatch):
    said, parts = [], []
    for free in (1e9, 5e6, 3e6):
        with_free(monkeypatch, free)
        chosen = decided(OPEN, CPU, said.append)
        assert override(chosen, ["accumulate=0"]) == OPEN
        parts.append(chosen.accumulate)
    assert parts[0] == 1 and 1 < parts[1] < parts[2] <= 50
    assert re.fullmatch(r"memory   weights .* take .*B, an image .*B; of 50 images 50 at once, in 1 part", said[0])
    with_free(monkeypatch, 1e5)
    with pytest.raises(ValueError, match="does not fit, even image by image"):
        decided(OPEN, CPU)


def test_processes_share_the_batch_and_on_a_cpu_the_memory(monkeypatch):
    with_free(monkeypatch, 3e6)
    alone = decided(OPEN, CPU).accumulate
    with_free(monkeypatch, 3e6, (2, 1))  # on two machines
    assert decided(OPEN, CPU).accumulate == -(-alone // 2)
    with_free(monkeypatch, 6e6, (2, 2))
    assert decided(OPEN, CPU).accumulate == -(-alone // 2)


def test_nothing_is_measured_where_nothing_is_open_and_no_generator_is_moved(monkeypatch):
    before = torch.get_rng_state()
    decided(OPEN, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(decide, "memory_of_step", None)
    assert decided(override(OPEN, ["accumulate=3"]), CPU).accumulate == 3
