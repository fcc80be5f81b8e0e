"""The self-test: it passes for every recipe, and each thing that can be wrong fails it with a line that names it."""

import collections
import dataclasses
import os
import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.__main__ import main
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.decoded import DecodedImages
from ddpm_lib.images.feed import feed
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs import duration, selftest
from ddpm_lib.runs.duration import Duration
from ddpm_lib.runs.recipes import DATA, RECIPES, override, recipe
from ddpm_lib.runs.records import device_name
from ddpm_lib.runs.selftest import self_test
from ddpm_lib.training.trainer import Step, Trainer

CPU = torch.device("cpu")
SMALL = ["width=4", "multipliers=1,2", "blocks=1", "groups=2", "attention=4", "head_channels=4", "size=8", "workers=0"]
# in ways that are given, none is tried, unless a test is of that
GIVEN = ["precision=float32", "channels_last=no", "compile=no"]


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
def few_steps(monkeypatch):
    """No five seconds of timing, and none of larger batches (of which tests/runs/test_duration.py knows)."""
    monkeypatch.setattr(duration, "SECONDS", 0.0)
    monkeypatch.setattr(
        selftest, "duration", lambda recipe, data, device, trainer, seconds, ahead: Duration(seconds, (4,))
    )


@pytest.fixture(autouse=True)
def small_data(monkeypatch, files):
    for name in ("mnist", "fashion", "cifar10", "stl10"):
        monkeypatch.setitem(DATA, name, in_memory)
    faces = sorted(files.rglob("*.png"))
    monkeypatch.setitem(
        DATA, "celeba", lambda r: (ImageFiles(faces[:20], r.size, 3), ImageFiles(faces[20:], r.size, 3))
    )


def small(name, *changes, given=GIVEN):
    return override(recipe(name), [*SMALL, *given, *changes])


def checked(chosen, folder):
    """Whether the self-test passed, and its lines; it must leave nothing behind."""
    before, said = sorted(folder.rglob("*")), []
    passed = self_test(chosen, folder, CPU, said.append)
    assert sorted(folder.rglob("*")) == before
    assert passed == said[-1].startswith("ready") and (not passed) == said[-1].startswith("FAILED")
    return passed, said


@pytest.fixture(autouse=True)
def activated(monkeypatch):
    """PATH leads to this Python, as in an environment that was activated."""
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(name, tmp_path, files):
    changes = [f"root={files}"] if name == "folder" else []
    passed, said = checked(small(name, *changes, given=()), tmp_path)
    assert passed, said[-1]
    assert [line.split()[0] for line in said if line[0] != " "] == [
        "device",
        "data",
        *["chosen"] * (name != "digits"),
        *"network step resume sample ready".split(),
    ]
    chosen = recipe(name)
    classes = "10 classes" if chosen.classes else "without labels"
    assert said[0] == f"device   {device_name(CPU)}, torch {torch.__version__}"
    assert f"{chosen.channels}x8x8, {classes}" in said[1]
    assert "the recipe takes" in said[-4] and said[-3].endswith("; the next step differs by 0")
    words = shlex.split(said[-1].removeprefix("ready    python -m ddpm_lib train "))
    assert words[0] == name and words[-2:] == ["--device", "cpu"]
    assert override(recipe(name), words[1:-2]) == small(name, *changes, given=())


def test_of_many_files_it_reads_a_few(tmp_path, monkeypatch):
    read, get = set(), ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda files, i: read.add(files.paths[i]) or get(files, i))
    monkeypatch.setattr(selftest, "FILES", 5)
    passed, said = checked(small("celeba64", given=()), tmp_path)
    assert passed and "20 images" in said[1]
    assert len(read) == 5 + 4  # and all of the held-out ones
    _, said = checked(small("celeba64", "batch=4", given=()), tmp_path)
    assert re.search("(seconds|minutes|hours), after it has decoded its files, which finds any .* broken$", said[5])


def test_the_classes_of_a_folder_are_its_subfolders(tmp_path, files):
    passed, said = checked(small("folder", f"root={files}", "classes=2"), tmp_path)
    assert passed and "21 images, 3x8x8, 2 classes; 3 held out" in said[1]
    passed, said = checked(small("folder", f"root={files}", "classes=3"), tmp_path)
    assert not passed and "the data have 2 classes (cats, dogs) and the recipe 3: set classes=2" in said[-1]


def test_its_speed_and_the_hours_of_the_recipe_are_those_of_a_clock(tmp_path, monkeypatch):
    step, taken = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda trainer: taken.append(1) or step(trainer))
    monkeypatch.setattr(duration.time, "perf_counter", lambda: 2.0 * len(taken))  # a step takes two seconds
    passed, said = checked(small("cifar10", "batch=4", "steps=36000", given=()), tmp_path)
    assert passed and "; 2 images/s" in said[4] and said[5].endswith("the recipe takes 20.0 hours")


def test_the_reading_of_files_that_are_read_batch_by_batch_is_timed(tmp_path, monkeypatch):
    clock, read, step, get = [0.0], [], Trainer.step, DecodedImages.__getitem__

    def slow(images, i):
        clock[0] += 0.5
        read.append(i)
        return get(images, i)

    def quick(trainer):
        clock[0] += 1.0
        return step(trainer)

    monkeypatch.setattr(DecodedImages, "__getitem__", slow)
    monkeypatch.setattr(Trainer, "step", quick)
    monkeypatch.setattr(duration.time, "perf_counter", lambda: clock[0])
    passed, said = checked(small("celeba64", "batch=4", "steps=36000", given=()), tmp_path)
    assert passed and "; 4 images/s" in said[4] and "takes 10.0 hours, after" in said[5]
    monkeypatch.setattr("ddpm_lib.images.feed.free_memory", lambda device: 0)
    monkeypatch.setattr(selftest, "FILES", 5)
    read.clear()
    passed, said = checked(small("celeba64", "batch=4", "steps=36000", given=()), tmp_path)
    assert passed and "; 1.33 images/s" in said[4]  # three seconds for four images, two of them to read them
    assert "the recipe takes 30.0 hours, after" in said[5]
    assert set(read) == set(range(5))  # all files that the self-test took, not a few again and again


def test_what_workers_read_ahead_while_nobody_waited_is_not_timed(tmp_path, monkeypatch):
    step, taken, began = Trainer.step, [], []
    monkeypatch.setattr("ddpm_lib.images.feed.free_memory", lambda device: 0)
    monkeypatch.setattr(Trainer, "step", lambda trainer: taken.append(1) or step(trainer))
    monkeypatch.setattr(duration.time, "perf_counter", lambda: began.append(len(taken)) or 2.0 * len(taken))
    assert checked(small("celeba64", "batch=4", "workers=2"), tmp_path)[0]
    assert began[0] == 1 + 2 * 2  # two batches a worker lay ready


@pytest.mark.parametrize(("took", "steps"), [(0.001, 100), (0.1, 50), (1.0, 5), (60.0, 3)])
def test_steps_are_timed_for_some_seconds_but_never_fewer_than_three(tmp_path, monkeypatch, took, steps):
    seen = []
    monkeypatch.setattr(duration, "SECONDS", 5.0)

    def step(trainer):
        seen.append(trainer)
        return Step(torch.ones(4), None, None, torch.tensor(1.0))

    monkeypatch.setattr(duration.time, "perf_counter", lambda: took * len(seen))
    trainer = SimpleNamespace(batch=4, device=CPU)
    trainer.step = lambda: step(trainer)
    assert selftest._say_steps(trainer, 0, lambda line: None) == pytest.approx(took)
    assert abs(len(seen) - 1 - steps) <= 1


def disk(free):
    return lambda folder: collections.namedtuple("usage", "total used free")(10**15, 0, free)


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    chosen, save, sizes = (
        small("digits", "width=64", "keep=3", "ema_decays=0.9,0.99", "save_every=20"),
        selftest.save,
        [],
    )

    def weighed(trainer, recipe, place):
        assert place.parent == tmp_path  # on the disk that was asked about
        save(trainer, recipe, place)
        sizes.extend(path.stat().st_size for path in place.iterdir())

    monkeypatch.setattr(selftest, "save", weighed)
    monkeypatch.setattr(shutil, "disk_usage", disk(10**12))
    passed, said = checked(chosen, tmp_path)
    assert passed
    need = 5 * sizes[0]  # the last three, the best, and the one that is being written
    claimed = re.search(r"a checkpoint takes (\S+) MB, a run up to (\S+) MB", said[2])
    assert float(claimed[1]) == pytest.approx(sizes[0] / 1e6, rel=0.01)
    assert need / 1e6 < float(claimed[2]) < need / 1e6 + 2  # and a log and pictures
    assert f"{sum(p.numel() for p in chosen.network().parameters()) / 1e6:.2f} M parameters" in said[2]
    monkeypatch.setattr(shutil, "disk_usage", disk(need + 2e6))
    assert checked(chosen, tmp_path)[0]
    monkeypatch.setattr(shutil, "disk_usage", disk(need))
    monkeypatch.setattr(Trainer, "step", None)
    passed, said = checked(chosen, tmp_path)
    said_so = (
        f"FAILED   the disk of {tmp_path} has {need / 1e6:.2f} MB free and the run needs {claimed[2]} MB: make room"
    )
    assert not passed and said[-1].startswith(said_so)


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
    "an average": lambda trainer: trainer.ema.model.stem.bias.data.add_(1e-6),
    "steps": lambda trainer: setattr(trainer, "steps", trainer.steps + 1),
    "steps of the average": lambda trainer: setattr(trainer.ema, "steps", 0),
    "position": lambda trainer: setattr(trainer, "images", feed(trainer.data, trainer.batch, seed=0, device=CPU)),
}


@pytest.mark.parametrize("part", FORGET)
def test_a_resumed_run_that_forgets_something_fails_it(tmp_path, monkeypatch, part):
    load_state = Trainer.load_state
    monkeypatch.setattr(Trainer, "load_state", lambda trainer, *a: (load_state(trainer, *a), FORGET[part](trainer)))
    passed, said = checked(small("mnist", "dropout=0.5", "label_dropout=0.5"), tmp_path)
    unseen = part in ("steps of the average", "position")  # what is no tensor shows in the next step alone
    what = "a resumed step differs from an uninterrupted one in" if unseen else "what was loaded is not what was saved"
    assert not passed and what in said[-1]


@pytest.mark.parametrize(
    ("call", "said"), [(3, "what was loaded is not what was saved"), (4, "a resumed step differs")]
)
def test_nan_in_one_tensor_of_the_resumed_run_fails_it(tmp_path, monkeypatch, call, said):
    state, calls = Trainer.state, []

    def spoiled(trainer):
        tensors, about = state(trainer)
        if trainer.steps:  # not where its size is asked for
            calls.append(trainer)
        if len(calls) == call:  # the saved state and the uninterrupted one come first
            name = [name for name, tensor in tensors.items() if tensor.is_floating_point()][-1]
            tensors = tensors | {name: tensors[name] * float("nan")}
        return tensors, about

    monkeypatch.setattr(Trainer, "state", spoiled)
    passed, lines = checked(small("digits"), tmp_path)
    assert not passed and said in lines[-1] and lines[-1].endswith("by up to nan")


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


@pytest.mark.parametrize(
    ("changes", "device", "command"),
    [
        ([], None, "python -m ddpm_lib train fashion"),
        (["steps=30000"], None, "python -m ddpm_lib train fashion"),
        (["root=/my/data", "width=48"], None, "python -m ddpm_lib train fashion root=/my/data width=48"),
        (["root=/my data/$HOME"], "cuda:1", "python -m ddpm_lib train fashion 'root=/my data/$HOME' --device cuda:1"),
        (
            ["flip=true", "attention=", "eta=0.25"],
            None,
            "python -m ddpm_lib train fashion flip=true attention= eta=0.25",
        ),
        (["name=mine", "width=48"], None, "python -m ddpm_lib train fashion name=mine width=48"),
    ],
)
def test_the_command_at_the_end_trains_what_was_checked(changes, device, command):
    chosen = override(recipe("fashion"), changes)
    assert selftest.train_command(chosen, device and torch.device(device)) == command
    words = [word for word in shlex.split(command)[4:] if "=" in word]
    assert override(recipe(shlex.split(command)[4]), words) == chosen


def test_the_command_line_checks_and_tells_by_its_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["check", "digits", *SMALL, "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "ready    python -m ddpm_lib train digits width=4 groups=2 head_channels=4 workers=0 --device cpu"
    assert main(["check", "folder", "root=nowhere", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAILED   " in out and "Traceback" not in out
    assert main(["check", "folder", "root=nowhere", "--device", "cpu", "--traceback"]) == 1
    out = capsys.readouterr().out
    assert "Traceback" in out and "in load_data" in out and out.splitlines()[-1].startswith("FAILED   ")
    assert main(["check", "digits", "flavour=strong"]) == 1
    assert "error: unknown field 'flavour'" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
