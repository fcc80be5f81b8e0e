"""What stops a run from outside (two Ctrl-C, a polite kill, a full disk), and how the command line takes its words."""

import builtins
import os
import signal

import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import run
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_lib.training.trainer import Trainer

SMALL = "width=8 blocks=1 groups=4 head_channels=0 batch=16 steps=6 warmup=2 sample_steps=3".split()
SMALL += ["log_every=3", "save_every=3"]
TINY = override(recipe("digits"), SMALL)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """A run without its grid of samples, which takes longer than the training."""
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: None)


def kill_in_step(monkeypatch, at, *numbers):
    """Send these signals to ourselves as step `at` begins."""
    update = runs.Trainer.step

    def step(trainer):
        if trainer.steps + 1 == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        return update(trainer)

    monkeypatch.setattr(Trainer, "step", step)


def last_step(folder):
    return load_checkpoint(list_checkpoints(folder / CHECKPOINTS)[-1])[1]["step"]


def train(folder, **options):
    return run(TINY, folder, device=torch.device("cpu"), progress=False, **options)


def test_a_polite_kill_ends_the_step_in_hand_and_saves(tmp_path, monkeypatch):
    kill_in_step(monkeypatch, 5, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 6"):
        train(tmp_path / "run")
    assert last_step(tmp_path / "run") == 5


def test_a_second_ctrl_c_within_a_step_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    kill_in_step(monkeypatch, 5, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert last_step(tmp_path / "run") == 3


def test_a_log_that_cannot_be_written_costs_no_weights(tmp_path, monkeypatch):
    opened = builtins.open

    def full_disk(path, *mode, **options):
        if str(path).endswith("log.jsonl"):
            raise OSError(28, "No space left on device")
        return opened(path, *mode, **options)

    monkeypatch.setattr(builtins, "open", full_disk)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run")
    assert last_step(tmp_path / "run") == 3


def test_fields_may_stand_before_or_behind_the_options(tmp_path):
    before, behind = SMALL[:4], SMALL[4:]
    arguments = ["train", "digits", *before, "--out", str(tmp_path / "run"), "--device", "cpu", *behind]
    assert main(arguments) == 0
    assert last_step(tmp_path / "run") == 6


def test_an_unknown_option_is_still_refused(capsys):
    with pytest.raises(SystemExit):
        main(["train", "digits", "--stepz", "3"])
    assert "unrecognized arguments: --stepz" in capsys.readouterr().err


def test_samples_are_never_overwritten(tmp_path, capsys):
    train(tmp_path / "run")
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"mine")
    assert main(["sample", str(tmp_path / "run"), "--labels", "1", "--device", "cpu", "--out", str(picture)]) == 1
    assert f"{picture} exists and is not overwritten" in capsys.readouterr().err
    assert picture.read_bytes() == b"mine"
