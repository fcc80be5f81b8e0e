"""Where tensors live, and how much room there is."""

import os
from types import SimpleNamespace

import torch

from ddpm_lib import devices as module
from ddpm_lib.devices import free_memory

CPU = torch.device("cpu")


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(CPU) <= everything
    for name, text in {
        "none": "max\n",
        "some": "123456789\n",
        "memory": "MemFree: 1 kB\nMemAvailable:  300000 kB\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(module, "LIMITS", (tmp_path / "none", tmp_path / "missing"))
    assert free_memory(CPU) == 300_000 * 1024
    monkeypatch.setattr(module, "LIMITS", (tmp_path / "missing", tmp_path / "some"))
    assert free_memory(CPU) == 123_456_789
    monkeypatch.setattr(module, "MEMORY", tmp_path / "missing")
    assert free_memory(CPU) == everything
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(CPU) == 2**33
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 100))
    assert free_memory(SimpleNamespace(type="cuda")) == 77
