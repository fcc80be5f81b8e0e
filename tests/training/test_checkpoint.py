"""Checkpoint files: written whole or not at all, never unpickled, and refused by name when they are not ours."""

import errno
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from ddpm_lib.training.checkpoint import (
    FORMAT,
    amount,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    write_atomically,
)

ABOUT = {"step": 3, "name": "grün", "rate": 0.004, "sides": [1, 2], "nothing": None}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 4, generator=generator),
        "transposed": torch.randn(3, 4, generator=generator).T,
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 2),
    }


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "good.safetensors", tensors(), ABOUT)
    return tmp_path / "good.safetensors"


def test_what_was_saved_is_loaded(path):
    loaded, about = load_checkpoint(path)
    assert about == ABOUT
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_what_is_loaded_is_a_copy_that_keeps_nothing_of_the_file(path):
    loaded, _ = load_checkpoint(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert str(path) not in {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()}
    path.write_bytes(b"")
    assert torch.equal(loaded["weight"], tensors()["weight"])


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fault", [FULL, OSError(errno.EIO, os.strerror(errno.EIO)), PermissionError(13, "no")])
def test_a_file_that_cannot_be_written_is_named_with_its_size_and_what_is_free(path, monkeypatch, fault):
    def no_room(handle):
        raise fault

    before, free = path.read_bytes(), shutil.disk_usage(path.parent)._replace(free=1_234_567)
    partial, asked = f".{path.name}.{os.getpid()}.partial", []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(os.listdir(place)) or free)
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError) as stop:
        write_atomically(path, b"x" * 4_500_000)
    said = f"{fault.strerror}: cannot write {path}, which takes 4.50 MB; 1.23 MB are free there"
    assert (stop.value.errno, stop.value.strerror, type(stop.value)) == (fault.errno, said, type(fault))
    assert path.read_bytes() == before
    assert asked and not any(partial in names for names in asked)  # what was written of it is not counted as used


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_without_room_is_no_pretence(tmp_path):
    (tmp_path / f".new.{os.getpid()}.partial").symlink_to("/dev/full")  # all that is written there fails
    with pytest.raises(OSError, match=r"No space left on device: cannot write .*new, which takes 12 B"):
        write_atomically(tmp_path / "new", b"twelve bytes")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none/new, which takes 12 B$"):
        write_atomically(tmp_path / "none" / "new", b"twelve bytes")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (3_420_000, "3.42 MB"), (1.07e9, "1.07 GB"), (2e12, "2000.00 GB")],
)
def test_a_number_of_bytes_is_readable(size, text):
    assert amount(size) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_replaces_a_good_file(path, value):
    before = path.read_bytes()
    bad = tensors()
    bad["weight"][2, 1] = value
    with pytest.raises(
        FloatingPointError, match=r"weight holds NaN or infinity: not saved, .*good\.safetensors is left"
    ):
        save_checkpoint(path, bad, ABOUT)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def power_cut(*args):
    raise OSError("the power went")


@pytest.mark.parametrize("moment", ["fsync", "replace"], ids=["while writing", "before renaming"])
def test_a_crash_leaves_the_old_file_whole(path, monkeypatch, moment):
    before = path.read_bytes()
    monkeypatch.setattr(os, moment, power_cut)
    with pytest.raises(OSError, match="the power went"):
        save_checkpoint(path, {"weight": torch.zeros(2)}, {"step": 9})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_the_new_file_is_complete_before_it_takes_the_old_one_s_place(path, monkeypatch):
    seen, replace = [], os.replace

    def watched(source, target):
        seen.append((load_checkpoint(source)[1], load_checkpoint(target)[1], os.path.dirname(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_checkpoint(path, tensors(), {"step": 9})
    assert seen == [({"step": 9}, ABOUT, str(path.parent))]  # in one folder: a rename across disks is a copy
    assert load_checkpoint(path)[1] == {"step": 9}


def test_a_file_that_was_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    cut = path.with_name("cut.safetensors")
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors is truncated or not a ddpm_lib checkpoint"):
            load_checkpoint(cut)


class Malicious:
    """Unpickling it runs a command: it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    marker = tmp_path / "code has run"
    torch.save({"weight": torch.zeros(2), "trap": Malicious(marker)}, tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Malicious(marker)))
    for name in ("model.pt", "model.pkl"):
        with pytest.raises(ValueError, match=rf"{name} is truncated or not .*Pickled weights .* are never loaded"):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()
    pickle.loads((tmp_path / "model.pkl").read_bytes()).close()
    assert marker.exists()  # the trap works: it would have been seen


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"\xff" * 100, b"GIF89a, or any other file", torch.arange(999).numpy().tobytes()],
    ids=["empty", "zeros", "ones", "text", "numbers"],
)
def test_any_other_file_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="other is truncated or not a ddpm_lib checkpoint"):
        load_checkpoint(tmp_path / "other")


def test_a_file_with_something_appended_is_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="truncated or not a ddpm_lib checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": FORMAT + "0"}])
def test_somebody_else_s_safetensors_are_refused(tmp_path, metadata):
    (tmp_path / "theirs").write_bytes(save({"weight": torch.zeros(2)}, metadata=metadata))
    with pytest.raises(ValueError, match=f"theirs is a safetensors file but not a '{FORMAT}'"):
        load_checkpoint(tmp_path / "theirs")


def test_a_file_that_is_not_there_is_missed_by_name(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"expected a checkpoint at .*{path.name}; there is no such file"):
            load_checkpoint(path)


def stored(prefix="ema."):
    model = nn.Linear(2, 3)
    return model, {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def test_the_weights_with_the_prefix_are_copied_into_a_model():
    (raw, raw_tensors), (average, average_tensors) = stored("model."), stored("ema.")
    model = nn.Linear(2, 3)
    load_weights(model, raw_tensors | average_tensors, "ema.", "file")
    assert torch.equal(model.weight, average.weight) and not torch.equal(model.weight, raw.weight)
    load_weights(model, raw_tensors | average_tensors, "model.", "file")
    assert torch.equal(model.weight, raw.weight) and torch.equal(model.bias, raw.bias)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ema.weight": torch.zeros(3, 4)}, r"for weight the network expects \(3, 2\), the file has \(3, 4\)"),
        ({"ema.bias": None}, r"for bias the network expects \(3,\), the file has nothing"),
        ({"ema.extra": torch.zeros(1)}, r"for extra the network expects nothing, the file has \(1,\)"),
    ],
)
def test_another_architecture_is_refused_and_the_model_left_as_it_was(change, complaint):
    model, before = nn.Linear(2, 3), {}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {name: tensor for name, tensor in (stored()[1] | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=f"run/x holds another architecture: {complaint}"):
        load_weights(model, changed, "ema.", "run/x")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (None, {"weight", "transposed", "half", "count", "empty"}),
        ((), set()),
        (("half",), {"half"}),
        (("w", "coun"), {"weight", "count"}),
        (["eight"], set()),
    ],
)
def test_only_the_tensors_with_one_of_the_prefixes_are_read(path, prefixes, names):
    loaded, about = load_checkpoint(path, prefixes)
    assert loaded.keys() == names and about == ABOUT
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("about", ["{", "[1, 2]", "7", None], ids=["cut", "list", "number", "none"])
def test_a_file_without_a_description_is_refused(tmp_path, about):
    metadata = {"format": FORMAT} | ({} if about is None else {"about": about})
    (tmp_path / "ours").write_bytes(save({"weight": torch.zeros(2)}, metadata=metadata))
    with pytest.raises(ValueError, match=r"ours(: its description is not JSON| carries no description of what it)"):
        load_checkpoint(tmp_path / "ours")


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="this system cannot flush a folder")
def test_the_file_reaches_the_disk_before_its_name_and_its_name_before_anything_goes_on(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def flushed(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        events.append((kind, os.fstat(handle).st_ino, os.fstat(handle).st_size if kind == "file" else None))
        fsync(handle)

    def renamed(source, target):
        events.append(("renamed", os.stat(source).st_ino, None))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    open_before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    write_atomically(str(tmp_path / "new"), b"twelve bytes")
    inode = (tmp_path / "new").stat().st_ino
    assert events == [("file", inode, 12), ("renamed", inode, None), ("folder", tmp_path.stat().st_ino, None)]
    if open_before is not None:
        assert len(os.listdir("/proc/self/fd")) == open_before
