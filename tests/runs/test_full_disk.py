"""A disk that is full, or will be: what is needed is known before the training, and nothing is lost in it."""

import collections
import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.folder import bytes_needed, check_room, command
from ddpm_lib.runs.model import CHECKPOINTS, load
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import load_data, new_trainer, resume, run
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint

CPU = torch.device("cpu")
FIELDS = "width=8 multipliers=1 blocks=1 groups=4 attention= head_channels=0 batch=4 steps=8 warmup=2".split()
FIELDS += "log_every=1 save_every=2 keep=9".split()
TINY = override(recipe("digits"), FIELDS)
SIZE = bytes_needed(new_trainer(TINY, load_data(TINY)[0], CPU), TINY)[0]  # of a checkpoint


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """A run without its pictures, which take longer than the training."""
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs, "curves", lambda history: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: path.write_bytes(b"picture"))


def train(folder, *changes, **options):
    return run(override(TINY, changes), folder, device=CPU, progress=False, **options)


def steps(folder):
    return [load_checkpoint(path)[1]["step"] for path in list_checkpoints(folder / CHECKPOINTS)]


def weights(folder):
    return torch.cat([tensor.flatten() for tensor in load(folder, device=CPU).network.state_dict().values()])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run for which there was room."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "sample_grid", lambda model, **options: None)
        patch.setattr(runs, "curves", lambda history: None)
        patch.setattr(runs.plot, "save", lambda figure, path: None)
        train(folder)
    return weights(folder)


# In the middle of a run


def full(monkeypatch, call):
    """A disk that has no room left when something is written for the `call`-th time; the log is not counted."""
    calls, fsync = [], os.fsync

    def no_room(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            return
        calls.append(handle)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_room)


def test_it_names_the_file_its_size_what_is_saved_and_how_to_go_on(tmp_path, monkeypatch, whole):
    folder = tmp_path / "my run"
    with monkeypatch.context() as patch:
        full(patch, call=3)  # the recipe, a checkpoint, and the next one
        with pytest.raises(OSError) as stop:
            train(folder)
    assert stop.value.errno == errno.ENOSPC
    second, first = (folder / CHECKPOINTS / f"step-0000000{step}.safetensors" for step in (4, 2))
    said = re.search(
        r"No space left on device: cannot write (.*), which takes (\S+) kB; (.*) are free", str(stop.value)
    )
    assert said[1] == str(second)
    assert float(said[2]) == pytest.approx(first.stat().st_size / 1e3, rel=0.01)
    assert stop.value.__notes__ == [f"the last checkpoint is {first}; go on with {command('resume', folder)}"]
    assert steps(folder) == [2] and not list(folder.rglob("*.partial"))
    with monkeypatch.context() as patch:  # and to resume while it is still full says the same again
        full(patch, call=1)
        with pytest.raises(OSError, match="No space left on device: cannot write ") as again:
            resume(folder, device=CPU, progress=False)
    assert again.value.__notes__ == stop.value.__notes__
    resume(folder, device=CPU, progress=False)
    assert steps(folder) == [2, 4, 6, 8] and torch.equal(weights(folder), whole)


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    full(monkeypatch, call=3)
    assert main(["train", "digits", *FIELDS, "--out", str(folder), "--device", "cpu"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    path = folder / CHECKPOINTS / "step-00000004.safetensors"
    assert error.startswith(f"error: [Errno 28] No space left on device: cannot write {path}, which takes ")
    assert error.endswith(f"step-00000002.safetensors; go on with {command('resume', folder)}")


def test_before_the_first_checkpoint_it_says_that_none_is_saved(tmp_path, monkeypatch):
    full(monkeypatch, call=2)
    with pytest.raises(OSError, match=r"No space left on device: cannot write .*step-00000002") as stop:
        train(tmp_path / "run")
    assert stop.value.__notes__[0].startswith(f"no checkpoint was saved yet; go on with {command('resume')} ")


def test_where_there_is_not_even_room_for_a_folder_there_is_none(tmp_path, monkeypatch):
    full(monkeypatch, call=1)
    with pytest.raises(OSError, match=r"cannot write .*recipe\.json, which takes"):
        train(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_without_room_is_named_and_the_step_is_saved(tmp_path, whole):
    folder, once = tmp_path / "run", []

    def metric(model):
        if not once:  # a device on which there is never room
            once.append((folder / "log.jsonl").read_text())
            (folder / "log.jsonl").unlink()
            (folder / "log.jsonl").symlink_to("/dev/full")
        return 0.0

    with pytest.raises(OSError, match=r"No space left on device: cannot write .*log\.jsonl, which takes \d+ B") as stop:
        train(folder, metric=metric)
    assert "step-00000002.safetensors; go on" in stop.value.__notes__[0]
    assert steps(folder) == [2]
    (folder / "log.jsonl").unlink()
    (folder / "log.jsonl").write_text(once[0])
    resume(folder, device=CPU, progress=False, metric=lambda model: 0.0)
    assert torch.equal(weights(folder), whole)


def test_a_picture_without_room_is_named(tmp_path, monkeypatch):
    def save(figure, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runs.plot, "save", save)
    with pytest.raises(OSError, match=r"No space left on device: cannot write .*loss\.png; .* are free there") as stop:
        train(tmp_path / "run")
    assert "step-00000002.safetensors; go on" in stop.value.__notes__[0]


def test_another_fault_of_the_disk_is_named_as_well(tmp_path, monkeypatch):
    def read_only(handle):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: cannot write .*recipe\.json"):
        train(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three checkpoints and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={int(3.5 * SIZE) // 1024}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_on_a_small_file_system_nothing_is_lost(small_disk, whole, monkeypatch):
    folder, filler = small_disk / "run", small_disk / "somebody else's"
    with pytest.raises(OSError, match=f"the disk of {folder} has .* free and the run needs .*: make room, set keep=1"):
        train(folder)
    assert not list(small_disk.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(runs, "check_room", lambda *arguments: None)
        with pytest.raises(OSError, match=r"cannot write .*step-00000008.*, which takes .* kB; .* kB are free"):
            train(folder)
    assert steps(folder) == [2, 4, 6] and not list(folder.rglob("*.partial"))
    with pytest.raises(OSError, match="free and the run needs"):  # and resuming knows it at once
        resume(folder, device=CPU, progress=False)
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096))
    with pytest.raises(OSError):
        resume(folder, device=CPU, progress=False)
    assert steps(folder) == [2, 4, 6]
    filler.unlink()
    monkeypatch.setattr("ddpm_lib.runs.folder.PICTURE", 0)
    for path in list_checkpoints(folder / CHECKPOINTS)[:-1]:
        path.unlink()
    resume(folder, device=CPU, progress=False)
    assert steps(folder) == [6, 8] and torch.equal(weights(folder), whole)


# Before it begins


@pytest.mark.parametrize("keep", [1, 2, 9])
@pytest.mark.parametrize("best", [2, 4, 8])
def test_what_a_run_needs_is_what_it_takes(tmp_path, monkeypatch, keep, best):
    taken, prune, seen = [], runs.prune, []

    def weighed(folder, keep):
        taken.append(sum(path.stat().st_size for path in folder.iterdir()))
        prune(folder, keep)

    def metric(model):
        seen.append(model)
        return 0.0 if 2 * len(seen) == best else 1.0

    monkeypatch.setattr(runs, "prune", weighed)
    for what in ("ENTRY", "PICTURE"):  # of which there is more than enough
        monkeypatch.setattr(f"ddpm_lib.runs.folder.{what}", 0)
    chosen = override(TINY, [f"keep={keep}"])
    one, need = bytes_needed(new_trainer(chosen, load_data(chosen)[0], CPU), chosen)
    train(tmp_path / "run", f"keep={keep}", metric=metric)
    (size,) = {path.stat().st_size for path in list_checkpoints(tmp_path / "run" / CHECKPOINTS)}
    assert one == pytest.approx(size, rel=0.02)
    assert max(taken) <= need
    most = max(taken) if best == 2 else max(taken) + size  # where the best is not among the last, it is one more
    assert need <= most * 1.02


def test_what_is_there_already_is_not_needed_again():
    def more(there, done=0, **changes):
        chosen = override(TINY, [f"{name}={value}" for name, value in changes.items()])
        trainer = new_trainer(chosen, load_data(chosen)[0], CPU)
        trainer.steps = done
        one, need = bytes_needed(trainer, chosen, there)
        return need / one

    rest = more(9, done=8)  # nothing is left to do: pictures
    assert [round(more(there, keep=2) - rest) for there in (0, 1, 2, 3, 4, 9)] == [4, 3, 2, 1, 1, 1]
    assert [round(more(0, done=done) - rest) for done in (0, 1, 2, 5, 6, 7, 8)] == [4, 4, 3, 2, 1, 1, 0]
    assert round(more(0, steps=9) - rest) == 5  # the last step is saved as well


def disk(free):
    return lambda folder: collections.namedtuple("usage", "total used free")(10**15, 0, free)


def test_a_run_without_room_is_refused_before_there_is_a_folder(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "deep" / "run"
    monkeypatch.setattr(shutil, "disk_usage", disk(SIZE))
    said = f"the disk of {folder} has {SIZE / 1e3:.2f} kB free and the run needs "
    with pytest.raises(OSError, match=said):
        train(folder)
    assert main(["train", "digits", *FIELDS, "--out", str(folder), "--device", "cpu"]) == 1
    assert f"error: {said}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_to_resume_without_room_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    train(tmp_path / "run")
    before = contents(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", disk(SIZE))
    with pytest.raises(OSError, match="the run needs"):
        resume(tmp_path / "run", ["steps=12"], device=CPU, progress=False)
    assert contents(tmp_path) == before


def test_the_disk_that_is_asked_is_that_of_the_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or disk(10)(place))
    check_room(tmp_path / "not" / "yet" / "there", 10)
    with pytest.raises(OSError, match="has 10 B free and the run needs 11 B"):
        check_room(tmp_path, 11)
    monkeypatch.chdir(tmp_path)
    check_room(Path("run"), 10)
    assert asked == [tmp_path] * 3
