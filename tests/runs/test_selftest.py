"""The self-test: it passes for every recipe, and each thing that can be wrong fails it with a line that names it."""

import collections
import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.__main__ import main
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.feed import feed
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs import selftest
from ddpm_lib.runs.recipes import DATA, RECIPES, override, recipe
from ddpm_lib.runs.selftest import self_test
from ddpm_lib.training.trainer import Trainer

CPU = torch.device("cpu")
SMALL = ["width=4", "multipliers=1,2", "blocks=1", "groups=2", "attention=4", "head_channels=4", "size=8", "workers=0"]


def in_memory(chosen):
    """Images of the recipe's shape as bytes, labelled where it has classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, chosen.channels, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(12) % 10 if chosen.data != "stl10" else None
    names = tuple("abcdefghij") if chosen.data != "stl10" else ()
    return (LabelledImages(images, labels, names),) * 2


@pytest.fixture
def files(tmp_path):
    """Image files in two subfolders."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    for i in range(24):
        place = folder / ("cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def small_data(monkeypatch, files):
    for name in ("mnist", "fashion", "cifar10", "stl10"):
        monkeypatch.setitem(DATA, name, in_memory)
    faces = sorted(files.rglob("*.png"))
    monkeypatch.setitem(
        DATA, "celeba", lambda r: (ImageFiles(faces[:20], r.size, 3), ImageFiles(faces[20:], r.size, 3))
    )


def small(name, *changes):
    return override(recipe(name), [*SMALL, *changes])


def checked(chosen, folder):
    """Whether the self-test passed, and its lines; it must leave nothing behind."""
    before, said = sorted(folder.rglob("*")), []
    passed = self_test(chosen, folder, CPU, said.append)
    assert sorted(folder.rglob("*")) == before
    assert passed == said[-1].startswith("ready") and (not passed) == said[-1].startswith("FAILED")
    return passed, said


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(name, tmp_path, files):
    changes = [f"root={files}"] if name == "folder" else []
    passed, said = checked(small(name, *changes), tmp_path)
    assert passed, said[-1]
    assert [line.split()[0] for line in said] == "device data network step resume sample ready".split()
    chosen = recipe(name)
    classes = "10 classes" if chosen.classes else "without labels"
    assert f"{chosen.channels}x8x8, {classes}" in said[1]
    assert said[-1] == f"ready    python -m ddpm_lib train {name}"
    assert "the next step differs by 0" in said[4]


def test_of_many_files_it_reads_a_few(tmp_path, monkeypatch):
    read, get = set(), ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda files, i: read.add(files.paths[i]) or get(files, i))
    monkeypatch.setattr(selftest, "FILES", 5)
    passed, said = checked(small("celeba64"), tmp_path)
    assert passed and "20 images" in said[1]
    assert len(read) == 5 + 4  # and all of the held-out ones


def test_the_classes_of_a_folder_are_its_subfolders(tmp_path, files):
    passed, said = checked(small("folder", f"root={files}", "classes=2"), tmp_path)
    assert passed and "23 images, 3x8x8, 2 classes; 1 held out" in said[1]
    passed, said = checked(small("folder", f"root={files}", "classes=3"), tmp_path)
    assert not passed and "the data have 2 classes (cats, dogs) and the recipe 3: set classes=2" in said[-1]


def test_its_speed_and_the_hours_of_the_recipe_are_those_of_a_clock(tmp_path, monkeypatch):
    step, taken = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda trainer: taken.append(1) or step(trainer))
    monkeypatch.setattr(selftest.time, "perf_counter", lambda: 2.0 * len(taken))  # a step takes two seconds
    passed, said = checked(small("cifar10", "batch=4", "steps=36000"), tmp_path)
    assert passed and "; 2 images/s" in said[3] and "the recipe takes 20.0 hours" in said[4]


def disk(free):
    return lambda folder: collections.namedtuple("usage", "total used free")(10**15, 0, free)


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    chosen, save, sizes = small("digits", "width=64", "keep=3", "ema_decays=0.9,0.99"), selftest.save, []

    def weighed(trainer, recipe, place):
        assert place.parent == tmp_path  # on the disk that was asked about
        save(trainer, recipe, place)
        sizes.extend(path.stat().st_size for path in place.iterdir())

    monkeypatch.setattr(selftest, "save", weighed)
    monkeypatch.setattr(shutil, "disk_usage", disk(10**12))
    passed, said = checked(chosen, tmp_path)
    assert passed
    need = 5 * sizes[0]  # the last three, the best, and the one that is being written
    claimed = float(re.search(r"a run up to (\S+) GB", said[2])[1])
    assert claimed == pytest.approx(need / 1e9, abs=0.006)
    assert f"{sum(p.numel() for p in chosen.network().parameters()) / 1e6:.2f} M parameters" in said[2]
    monkeypatch.setattr(shutil, "disk_usage", disk(need * 1.05))
    assert checked(chosen, tmp_path)[0]
    monkeypatch.setattr(shutil, "disk_usage", disk(need * 0.95))
    monkeypatch.setattr(Trainer, "step", None)
    passed, said = checked(chosen, tmp_path)
    free = f"{need * 0.95 / 1e9:.2f}"
    assert not passed
    assert re.match(f"FAILED   the disk of {tmp_path} has {free} GB free and the run needs {claimed:.2f} GB", said[-1])


def test_data_that_are_missing_or_have_other_classes_or_another_size_fail_it(tmp_path):
    passed, said = checked(small("folder", f"root={tmp_path / 'none'}"), tmp_path)
    assert not passed and re.match(r"FAILED   .*none.*", said[-1])
    passed, said = checked(small("mnist", "classes=9"), tmp_path)
    assert not passed and "the data have 10 classes (a, b, c" in said[-1] and "set classes=10" in said[-1]
    passed, said = checked(small("stl10", "classes=10"), tmp_path)
    assert not passed and "got images without labels" in said[-1]
    passed, said = checked(small("mnist", "size=16"), tmp_path)
    assert not passed and "expected images of shape (N, 1, 16, 16), got (12, 1, 8, 8)" in said[-1]


def test_a_recipe_whose_network_cannot_be_built_fails_it(tmp_path):
    passed, said = checked(small("mnist", "groups=3"), tmp_path)
    assert not passed and "3" in said[-1]


def test_a_network_that_returns_nan_fails_it(tmp_path, monkeypatch):
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *arguments: forward(*arguments) * torch.nan)
    passed, said = checked(small("mnist"), tmp_path)
    assert (
        not passed
        and "expected a first loss near 1, the variance of the noise, and a finite gradient; got nan" in said[-1]
    )


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_first_loss_far_from_1_fails_it(tmp_path, monkeypatch, scale):
    monkeypatch.setattr("ddpm_lib.training.trainer.noise_like", lambda x, generator: scale * torch.randn(x.shape))
    passed, said = checked(small("mnist"), tmp_path)
    assert not passed and "expected a first loss near 1" in said[-1]


def test_a_gradient_that_does_not_reach_the_network_fails_it(tmp_path, monkeypatch):
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda net, *a: forward(net, *a).detach() + 0 * net.stem.weight.sum())
    passed, said = checked(small("mnist"), tmp_path)
    assert not passed and "expected a first loss near 1" in said[-1] and said[-1].endswith("and 0")


def test_samples_that_are_not_finite_fail_it(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_lib.runs.model.ddim_sample", lambda eps_model, schedule, x_T, **options: x_T / 0)
    passed, said = checked(small("mnist"), tmp_path)
    assert not passed and said[-1] == "FAILED   the samples hold NaN or infinity"


@pytest.mark.parametrize("missing", ["random.host", "optimiser.exp_avg.", "ema.0.9999.", "model.stem.bias"])
def test_a_checkpoint_in_which_something_is_missing_fails_it(tmp_path, monkeypatch, missing):
    state = Trainer.state

    def without(trainer):
        tensors, about = state(trainer)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(missing)}, about

    monkeypatch.setattr(Trainer, "state", without)
    passed, said = checked(small("mnist"), tmp_path)
    assert not passed and re.match("FAILED   the state (has no|holds another)", said[-1]), said[-1]


FORGET = {
    "moments": lambda trainer: [m["exp_avg_sq"].mul_(2) for m in trainer.optimiser.state.values()],
    "host": lambda trainer: trainer.host.manual_seed(9),
    "noise": lambda trainer: trainer.noise.manual_seed(9),
    "dropout": lambda trainer: torch.manual_seed(9),
    "steps of the average": lambda trainer: setattr(trainer.ema, "steps", 0),
    "position": lambda trainer: setattr(trainer, "images", feed(trainer.data, trainer.batch, seed=0, device=CPU)),
}


@pytest.mark.parametrize("part", FORGET)
def test_a_resumed_step_that_differs_fails_it(tmp_path, monkeypatch, part):
    load_state = Trainer.load_state
    monkeypatch.setattr(Trainer, "load_state", lambda trainer, *a: (load_state(trainer, *a), FORGET[part](trainer)))
    passed, said = checked(small("mnist", "dropout=0.5", "label_dropout=0.5"), tmp_path)
    assert not passed and "a resumed step differs from an uninterrupted one by" in said[-1]


def test_nan_in_one_tensor_of_the_resumed_run_fails_it(tmp_path, monkeypatch):
    state, calls = Trainer.state, []

    def spoiled(trainer):
        tensors, about = state(trainer)
        calls.append(trainer)
        if len(calls) == 3:  # after the saved and the uninterrupted state
            name = [name for name, tensor in tensors.items() if tensor.is_floating_point()][-1]
            tensors = tensors | {name: tensors[name] * float("nan")}
        return tensors, about

    monkeypatch.setattr(Trainer, "state", spoiled)
    passed, said = checked(small("digits"), tmp_path)
    assert not passed and "differs from an uninterrupted one by nan" in said[-1]


def test_the_network_has_its_full_size_and_a_cpu_gets_four_images(tmp_path, monkeypatch):
    seen, build = [], selftest.new_trainer
    monkeypatch.setattr(selftest, "new_trainer", lambda *arguments: seen.append(build(*arguments)) or seen[-1])
    chosen = small("cifar10", "label_dropout=0.7", "warmup=5000")
    assert checked(chosen, tmp_path)[0]
    assert [trainer.batch for trainer in seen] == [4, 4]
    assert seen[0].model.config == chosen.network().config
    assert seen[0].learning_rate == chosen.learning_rate  # at its full rate, so that a step is felt
    seen.clear()
    assert checked(dataclasses.replace(chosen, batch=3), tmp_path)[0]
    assert [trainer.batch for trainer in seen] == [3, 3]


def test_the_command_line_checks_and_tells_by_its_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["check", "digits", *SMALL, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ready    python -m ddpm_lib train digits"
    assert main(["check", "folder", "root=nowhere", "--device", "cpu"]) == 1
    assert "FAILED   " in capsys.readouterr().out
    assert main(["check", "digits", "flavour=strong"]) == 1
    assert "error: unknown field 'flavour'" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
