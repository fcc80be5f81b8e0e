"""A run's folder: one process at a time, used again where nothing was saved, and never without its recipe."""

import json
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.__main__ import main
from ddpm_lib.images import feed
from ddpm_lib.runs import folder as module
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.folder import LOCK, command, locked
from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import load_data, new_trainer, resume, run
from ddpm_lib.runs.stored import from_json
from ddpm_lib.training.checkpoint import list_checkpoints
from ddpm_lib.training.trainer import Trainer

CPU = torch.device("cpu")
FIELDS = "width=8 multipliers=1 blocks=1 groups=4 attention= head_channels=0 batch=4 steps=6 warmup=2".split()
FIELDS += "log_every=1 save_every=2".split()
TINY = override(recipe("digits"), FIELDS)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """A run without its pictures, which take longer than the training."""
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs, "curves", lambda history: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: path.write_bytes(b"picture"))


def train(folder, *changes, **options):
    return run(override(TINY, changes), folder, device=CPU, progress=False, **options)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(folder):
    return [int(path.stem.removeprefix("step-")) for path in list_checkpoints(folder / CHECKPOINTS)]


# One process at a time


def go_on_until_killed(chosen, folder, line):
    """Train, with workers where there are files; after each step send its number through `line` and wait."""
    os.setsid()
    feed.free_memory = lambda device: 0  # the files are read batch by batch

    def append_entry(path, entry):
        line.send(entry["step"])
        line.recv()

    runs.append_entry = append_entry
    run(chosen, folder, device=CPU, progress=False)


@contextmanager
def another_process(folder, *changes):
    """A process that trains in this folder, stopped in its first step, and the line to it."""
    chosen = override(TINY, [*changes, "steps=1000000", "save_every=1000000"])
    new_trainer(chosen, load_data(chosen)[0], CPU)  # imports what the other process would have to import
    fork = multiprocessing.get_context("fork")
    line, its_end = fork.Pipe()
    process = fork.Process(target=go_on_until_killed, args=(chosen, folder, its_end))
    process.start()
    its_end.close()
    try:
        assert line.recv() == 1
        yield process, line
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def test_a_second_process_is_told_which_one_has_the_folder_and_touches_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    with another_process(folder) as (process, line):
        (folder / ".step-00000002.safetensors.77.partial").write_bytes(b"half of i")  # it may be the other one's
        before = contents(folder)
        said = f"{folder} is in use by process {process.pid} on "
        for attempt in (lambda: train(folder), lambda: resume(folder, device=CPU, progress=False)):
            with pytest.raises(BlockingIOError, match=said):
                attempt()
        for words in (["train", "digits", *FIELDS, "--out", str(folder)], ["resume", str(folder)]):
            assert main([*words, "--device", "cpu"]) == 1
            error = capsys.readouterr().err
            assert f"error: {said}" in error and "Traceback" not in error
        assert contents(folder) == before
        line.send("go on")
        assert line.recv() == 2  # and that one does


@pytest.mark.parametrize("with_workers", [False, True])
def test_a_process_that_was_killed_leaves_the_folder_free_at_once(tmp_path, with_workers):
    folder, images = tmp_path / "run", tmp_path / "images"
    images.mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(images / f"{i}.png")
    files = f"data=folder root={images} channels=3 classes=0 workers=2".split() if with_workers else []
    with another_process(folder, *files) as (process, _):
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = workers.read_text().split() if workers.exists() else []
        assert len(children) >= 2 or not with_workers or not workers.exists()
        process.kill()  # it alone: its workers live on for some seconds
        process.join()
        if workers.exists():
            assert all(Path(f"/proc/{child}").exists() for child in children)
        with locked(folder):
            pass
        changes = ["steps=1", "save_every=1", "workers=0"]
        resume(folder, changes, device=CPU, progress=False)
    assert steps(folder) == [1]


def test_the_same_process_cannot_have_a_folder_twice(tmp_path):
    def metric(model):
        with pytest.raises(BlockingIOError, match=f"run is in use by process {os.getpid()} on"):
            resume(tmp_path / "run", device=CPU, progress=False)
        return 0.0

    train(tmp_path / "run", metric=metric)
    assert steps(tmp_path / "run") == [2, 4, 6]


@pytest.mark.parametrize("how", ["end", "error", "stop"])
def test_the_folder_is_free_again_however_a_run_ends(tmp_path, monkeypatch, how):
    take = Trainer.step

    def step(trainer):
        if how != "end" and trainer.steps == 3:
            raise (RuntimeError if how == "error" else KeyboardInterrupt)("in step 4")
        return take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        try:
            train(tmp_path / "run")
        except (RuntimeError, KeyboardInterrupt):
            assert how != "end"
    with locked(tmp_path / "run"):
        pass
    resume(tmp_path / "run", device=CPU, progress=False)
    assert steps(tmp_path / "run")[-1] == 6


def test_where_the_disk_knows_no_locks_a_warning_is_all(tmp_path, monkeypatch, capsys):
    def flock(file, kind):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with locked(tmp_path):
        pass
    assert f"{tmp_path / LOCK} cannot be locked (No locks available): start no second run" in capsys.readouterr().err


def test_the_lock_does_not_need_room_on_the_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with locked(tmp_path), pytest.raises(BlockingIOError, match=r"in use by process \(unknown\)"), locked(tmp_path):
        pass


# A folder in which nothing was saved


def died(folder, monkeypatch, at=2, *changes):
    """A run that ends in this step, before or after its first checkpoint."""
    take = Trainer.step

    def step(trainer):
        if trainer.steps + 1 == at:
            raise RuntimeError("the machine broke")
        return take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(RuntimeError, match="the machine broke"):
            train(folder, *changes)


def stored(folder):
    return from_json(json.loads((folder / "recipe.json").read_text()))


def log(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("by", ["python", "shell"])
def test_a_run_that_saved_nothing_begins_again_under_the_same_name(tmp_path, monkeypatch, capsys, by):
    folder = tmp_path / "run"
    died(folder, monkeypatch, 2, "sample_every=1")
    (folder / CHECKPOINTS).mkdir()
    (folder / CHECKPOINTS / ".step-00000002.safetensors.77.partial").write_bytes(b"half of i")
    (folder / "notes.txt").write_text("mine")
    assert (folder / "samples" / "step-00000001.png").exists() and log(folder) == [1]
    capsys.readouterr()
    if by == "python":
        train(folder)
    else:
        assert main(["train", "digits", *FIELDS, "--out", str(folder), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert f"{folder} holds a run that ended before its first checkpoint; it begins again." in said
    assert "Its recipe is replaced: sample_every=0." in said
    assert stored(folder) == TINY and log(folder) == [1, 2, 3, 4, 5, 6] and steps(folder)[-1] == 6
    assert not list(folder.rglob("*.partial")) and not list((folder / "samples").iterdir())
    assert (folder / "notes.txt").read_text() == "mine"  # what is not a run's is left alone


def test_the_same_recipe_begins_again_without_a_word_about_it(tmp_path, monkeypatch, capsys):
    died(tmp_path / "run", monkeypatch)
    train(tmp_path / "run")
    said = capsys.readouterr().err
    assert "it begins again." in said and "replaced" not in said
    died(tmp_path / "other", monkeypatch)
    (tmp_path / "other" / "recipe.json").write_text("{")
    train(tmp_path / "other")
    assert "Its recipe is replaced: the old one cannot be read." in capsys.readouterr().err
    assert stored(tmp_path / "other") == TINY


@pytest.mark.parametrize("what", ["a checkpoint", "a damaged checkpoint", "no recipe", "nothing", "a file"])
def test_any_other_folder_is_left_as_it_is(tmp_path, monkeypatch, what):
    folder = tmp_path / "run"
    if what == "a file":
        folder.write_text("mine")
    elif what == "nothing":
        folder.mkdir()
    else:
        died(folder, monkeypatch, 3 if what == "a checkpoint" else 2)
        if what == "no recipe":
            (folder / "recipe.json").unlink()
        if what == "a damaged checkpoint":
            (folder / CHECKPOINTS).mkdir()
            (folder / CHECKPOINTS / "step-00000002.damaged").write_bytes(b"half of i")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="run exists, and a run is never overwritten"):
        train(folder)
    assert contents(tmp_path) == before


def test_data_that_cannot_be_trained_on_leave_the_old_run_as_it_was(tmp_path, monkeypatch):
    died(tmp_path / "run", monkeypatch)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="expected labels"):
        train(tmp_path / "run", "classes=9")
    assert contents(tmp_path) == before


def test_a_run_that_saves_while_somebody_looks_at_its_folder_is_left_as_it_is(tmp_path, monkeypatch):
    folder, lock = tmp_path / "run", module.locked
    died(folder, monkeypatch)

    def after_it_saved(folder):
        monkeypatch.setattr(module, "locked", lock)
        resume(folder, ["steps=2"], device=CPU, progress=False)
        return lock(folder)

    monkeypatch.setattr(module, "locked", after_it_saved)
    with pytest.raises(FileExistsError, match="run exists, and a run is never overwritten"):
        train(folder)
    assert steps(folder) == [2]


def test_of_two_that_begin_at_once_the_second_is_told(tmp_path, monkeypatch):
    folder, load_data = tmp_path / "run", runs.load_data

    def meanwhile(recipe):
        monkeypatch.setattr(runs, "load_data", load_data)
        died(folder, monkeypatch)
        return load_data(recipe)

    monkeypatch.setattr(runs, "load_data", meanwhile)
    with pytest.raises(FileExistsError, match="run exists: another process has just begun a run there"):
        train(folder)
    assert list(tmp_path.iterdir()) == [folder]  # and no half-made folder beside it


def test_a_command_can_be_pasted_into_a_shell(tmp_path, monkeypatch):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))  # as after `make digits`, which activates nothing
    assert command("list") == f"{python} -m ddpm_lib list"
    monkeypatch.chdir(tmp_path)
    assert command("list") == f"{Path('.venv/bin/python')} -m ddpm_lib list"
    monkeypatch.setenv("PATH", str(python.parent))
    assert command("resume", Path("runs/wide")) == "python -m ddpm_lib resume runs/wide"
    assert command("resume", Path("my runs/$HOME")) == "python -m ddpm_lib resume 'my runs/$HOME'"
