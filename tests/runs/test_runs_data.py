"""Runs and their data: decoded before a run has a folder, the same when it is resumed, or refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from ddpm_lib.__main__ import main
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.feed import feed
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import DATA, override, recipe
from ddpm_lib.runs.run import load_data, new_trainer, resume, run
from ddpm_lib.runs.stored import to_json
from ddpm_lib.training import trainer as module
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from ddpm_lib.training.loop import train
from ddpm_lib.training.trainer import Trainer

CPU = torch.device("cpu")
TINY = "size=4 channels=3 classes=2 width=4 multipliers=1 blocks=1 groups=2 attention= head_channels=0 batch=4 steps=4 "
TINY = TINY + "warmup=1 ema_decays=0.9 log_every=1 save_every=2 sample_steps=2 T=50 workers=0 "
TINY = (TINY + "precision=float32 channels_last=no compile=no").split()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs, "curves", lambda history: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: None)


@pytest.fixture
def images(tmp_path, random_images):
    """Forty image files in two classes."""
    return random_images(tmp_path / "images", 40, ("bee", "ant"))


def chosen(images, *changes):
    return override(recipe("folder"), [*TINY, f"root={images}", *changes])


def trained_on(images, folder):
    run(chosen(images), folder, device=CPU, progress=False)
    return folder


def go_on(folder, *changes, **options):
    return resume(folder, ["steps=6", *changes], device=CPU, progress=False, **options)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def trained_file(images):
    return load_data(chosen(images))[0].paths[3]


# Resumed


def test_a_checkpoint_says_which_images_it_was_trained_on(images, tmp_path):
    folder = trained_on(images, tmp_path / "run")
    for path in list_checkpoints(folder / CHECKPOINTS):
        data = load_checkpoint(path, ())[1]["data"]
        assert data["images"] == len(load_data(chosen(images))[0]) and data["names"] == ["ant", "bee"]


CHANGES = {
    "a file less": (lambda path: path.unlink(), r"images: (\d+), then (\d+); of class \w+: "),
    "a file more": (
        lambda path: [Image.new("RGB", (4, 4)).save(path.parent / f"more{i}.png") for i in range(9)],
        r"images: \d+, then \d+; of class \w+: ",
    ),
    "another file": (lambda path: Image.new("RGB", (4, 4)).save(path), "as many as then, but some are others"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_and_nothing_is_touched(images, tmp_path, change, capsys):
    folder = trained_on(images, tmp_path / "run")
    act, said = CHANGES[change]
    act(trained_file(images))
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"^the images are not those that .*step-00000004.* trained on: {said}"):
        go_on(folder)
    assert main(["resume", str(folder), "steps=6", "--device", "cpu"]) == 1
    assert "resume with --other-data" in capsys.readouterr().err
    assert contents(folder) == before


def test_other_images_can_be_accepted_and_are_the_run_s_from_then_on(images, tmp_path):
    folder = trained_on(images, tmp_path / "run")
    trained_file(images).unlink()
    with pytest.warns(UserWarning, match=r"the images are not those .*Training goes on with those that are here"):
        assert main(["resume", str(folder), "steps=6", "--other-data", "--device", "cpu"]) == 0
    go_on(folder, "steps=8")
    with pytest.raises(ValueError, match="the images are not those"):
        (images / "ant/new.png").write_bytes((images / "ant/01.png").read_bytes())
        (images / "bee/new2.png").write_bytes((images / "ant/01.png").read_bytes())
        trained_file(images).unlink()
        go_on(folder, "steps=9")


def test_a_folder_that_moved_is_the_same(images, tmp_path):
    folder = trained_on(images, tmp_path / "run")
    shutil.copytree(images, tmp_path / "moved", ignore=shutil.ignore_patterns(".decoded"))
    shutil.rmtree(images)
    go_on(folder, f"root={tmp_path / 'moved'}")


def test_a_run_that_was_resumed_on_the_kept_images_ends_as_one_that_was_not(images, tmp_path):
    trained_on(images, tmp_path / "stopped")
    go_on(tmp_path / "stopped")
    shutil.rmtree(images / ".decoded")
    run(chosen(images, "steps=6"), tmp_path / "whole", device=CPU, progress=False)
    ends = [load_checkpoint(list_checkpoints(tmp_path / name / CHECKPOINTS)[-1]) for name in ("stopped", "whole")]
    assert not [name for name in ends[0][0] if not torch.equal(ends[0][0][name], ends[1][0][name])]
    assert ends[0][1]["data"] == ends[1][1]["data"]


def test_an_old_checkpoint_that_says_nothing_of_its_images_goes_on_with_a_warning(images, tmp_path):
    folder = trained_on(images, tmp_path / "run")
    for path in list_checkpoints(folder / CHECKPOINTS):
        tensors, about = load_checkpoint(path)
        save_checkpoint(
            path, {name: t.clone() for name, t in tensors.items()}, {k: about[k] for k in about if k != "data"}
        )
    with pytest.warns(UserWarning, match=r"step-00000004.* does not say which images it was trained on"):
        go_on(folder)


def test_images_in_memory_must_be_the_same_too(tmp_path, monkeypatch):
    def made_up(r):
        images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return LabelledImages(images, labels), LabelledImages(images, labels)

    labels = torch.arange(20) % 2
    monkeypatch.setitem(DATA, "mnist", made_up)
    run(override(chosen("nowhere"), ["data=mnist"]), tmp_path / "run", device=CPU, progress=False)
    go_on(tmp_path / "run", "root=elsewhere")
    labels = 1 - labels
    with pytest.raises(ValueError, match="as many as then, but some are others, or have another name or label"):
        go_on(tmp_path / "run", "steps=7")


# Decoded before the first step


def test_every_broken_file_is_named_before_the_run_has_a_folder(images, tmp_path, capsys):
    broken = load_data(chosen(images))[0].paths[1::9]
    for path in broken:
        path.write_bytes(b"")
    words = [*TINY, f"root={images}", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["train", "folder", *words]) == 1
    said = capsys.readouterr().err
    assert len(broken) > 1 and all(str(path) in said for path in broken)
    assert not (tmp_path / "run").exists()


def test_all_broken_held_out_files_are_named_at_once(images):
    everything = chosen(images)
    held_out = DATA["folder"](everything)[1].paths
    for path in held_out:
        path.write_bytes(b"")
    with pytest.raises(ValueError) as error:
        load_data(everything)
    assert len(held_out) > 1 and all(str(path) in str(error.value) for path in held_out)


def test_ctrl_c_acts_at_once_while_images_are_got_ready(images, monkeypatch):
    def interrupted(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")

    reached = []
    monkeypatch.setattr(Trainer, "open", interrupted)
    data = load_data(chosen(images))[0]
    with pytest.raises(KeyboardInterrupt):
        train(new_trainer(chosen(images), data, CPU), 1, progress=False)
    assert not reached


AGAIN_AND_AGAIN = """
import json, runpy, sys
for line in sys.stdin:
    sys.argv[1:] = json.loads(line)
    try:
        runpy.run_module("ddpm_lib", run_name="__main__")
    except SystemExit as end:
        print(end.code, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_while_decoding_ends_the_run_its_workers_and_its_half_written_file(images, tmp_path):
    for i in range(4000):
        os.link(images / "ant/01.png", images / "ant" / f"again{i}.png")
    options, run = [*TINY, "size=256", "workers=2", f"root={images}"], tmp_path / "run"
    (tmp_path / "old").mkdir()
    (tmp_path / "old/recipe.json").write_text(json.dumps(to_json(override(recipe("folder"), options))))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    program = [sys.executable, "-c", AGAIN_AND_AGAIN]
    with subprocess.Popen(program, start_new_session=True, text=True, **pipes) as process:
        for words in (["train", "folder", *options, "--out", str(run)], ["resume", str(tmp_path / "old")]):
            process.stdin.write(json.dumps([*words, "--device", "cpu"]) + "\n")
            process.stdin.flush()
            while process.poll() is None and not list((images / ".decoded").glob(".*.partial")):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            while (line := process.stdout.readline()) and not line.strip().isdigit():
                pass  # what it trains, and where
            assert line == "130\n"
            assert [path.name for path in (images / ".decoded").iterdir()] == [".gitignore"]
        said = process.communicate()[1]  # comes when the last of its processes is gone
    assert process.returncode == 0 and "Traceback" not in said, said
    assert re.search(r"\nstopped\n(.*\n)*.*\nstopped; no checkpoint was saved yet; go on with .*resume.*\n$", said), (
        said
    )
    assert not run.exists()


# The budget


def test_the_budget_of_a_recipe_reaches_the_feed_in_bytes(images, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "feed", lambda *data, budget, **options: asked.append(budget) or feed(*data, **options))
    for change in ((), ("memory_budget_gb=0",), ("memory_budget_gb=1.5",), ("memory_budget_gb=1e-12",)):
        everything = chosen(images, *change)
        new_trainer(everything, load_data(everything)[0], CPU).step()
    assert asked == [None, None, 1_500_000_000, 1]


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_budget_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="memory_budget_gb must be"):
        override(recipe("folder"), [f"memory_budget_gb={value}"])
