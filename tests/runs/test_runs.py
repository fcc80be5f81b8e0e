"""Runs of a tiny recipe, from the command line and in Python: folders, seeds, sampling, interruptions and refusals."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.runs import assemble
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.folder import command
from ddpm_lib.runs.model import CHECKPOINTS, load
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import run
from ddpm_lib.runs.stored import from_json
from ddpm_lib.training.checkpoint import load_checkpoint, save_checkpoint, step_path
from ddpm_lib.training.rates import COURSES

SMALL = "width=8 blocks=1 groups=4 head_channels=0 batch=16 steps=6 warmup=2 sample_steps=3".split()
SMALL += ["log_every=3", "save_every=3"]
TINY = override(recipe("digits"), SMALL)
BAD = [("steps", "null"), ("version", "99"), ("data", "[]"), ("data", "3")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that the command line trained, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("runs") / "finished", io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", "digits", *SMALL, "--out", str(folder), "--device", "cpu"]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def no_picture(monkeypatch):
    """A run without its grid of samples, which takes longer than the training."""
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: None)


def train_in_python(folder, changes=()):
    return run(override(TINY, changes), folder, device=CPU, progress=False)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(folder, step):
    return step_path(folder / CHECKPOINTS, step)


def weights(model):
    return torch.cat([p.flatten() for p in model.network.parameters()])


def test_a_run_leaves_recipe_log_checkpoint_and_samples(finished):
    folder, printed = finished
    checkpoints = {f"checkpoints/step-0000000{step}.safetensors" for step in (3, 6)}
    assert contents(folder).keys() == {"recipe.json", "log.jsonl", "loss.png", "samples.png", ".lock", *checkpoints}
    assert from_json(json.loads((folder / "recipe.json").read_text())) == TINY
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [3, 6]
    assert all(0 < entry["loss"] < 2 for entry in log)
    assert all(0 < entry["held_out_loss"] < 2 for entry in log)
    for name in ("samples.png", "loss.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert load_checkpoint(checkpoint(folder, 6))[1]["step"] == 6
    assert str(checkpoint(folder, 6)) in printed
    assert all(str(folder / name) in printed for name in ("log.jsonl", "loss.png", "samples.png"))


def test_samples_are_the_same_wherever_the_checkpoint_is_opened(finished, tmp_path, no_picture):
    folder, _ = finished
    (tmp_path / "elsewhere").mkdir()
    copied = shutil.copy(checkpoint(folder, 6), tmp_path / "elsewhere" / "mine.safetensors")
    in_process = train_in_python(tmp_path / "again").sample([3, 1, 4], seed=5)
    assert in_process.shape == (3, 1, 8, 8) and in_process.abs().max() <= 1 and in_process.std() > 0.05
    for path in (folder, checkpoint(folder, 6), copied):
        assert torch.equal(load(path, device=CPU).sample([3, 1, 4], seed=5), in_process)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(finished, tmp_path, no_picture):
    again, other = train_in_python(tmp_path / "again"), train_in_python(tmp_path / "other", ["seed=1"])
    for kind in ("ema", "model"):
        first = weights(load(finished[0], weights=kind, device=CPU))
        assert torch.equal(weights(load(tmp_path / "again", weights=kind, device=CPU)), first)
        assert not torch.equal(weights(load(tmp_path / "other", weights=kind, device=CPU)), first)
    assert torch.equal(weights(again), weights(load(finished[0], device=CPU)))
    assert not torch.equal(weights(other), weights(again))
    recipes = [override(TINY, [f"seed={seed}"]) for seed in (0, 1)]
    times = [runs.new_trainer(r, runs.load_data(r)[0], CPU).step().t for r in recipes]
    assert not torch.equal(*times), "the seed decides more than the first weights"


def test_raw_and_averaged_weights_are_two_things(finished):
    raw, average = (load(finished[0], weights=kind, device=CPU) for kind in ("model", "ema"))
    assert not torch.equal(weights(raw), weights(average))
    assert not torch.equal(raw.sample([0]), average.sample([0]))
    assert not raw.network.training and not average.network.training
    with pytest.raises(ValueError, match=r"must be one of model, ema, ema\.0\.99; got 'best'"):
        load(finished[0], weights="best")


def test_what_sample_is_asked_for_is_what_it_does(finished):
    model = load(finished[0], device=CPU)
    base = model.sample([0, 1, 2])
    assert torch.equal(base, model.sample(torch.tensor([0, 1, 2]), scale=2.0, steps=3, eta=0.5, seed=0))
    for change in ({"scale": 0.5}, {"steps": 2}, {"eta": 0.0}, {"seed": 1}):
        assert not torch.equal(model.sample([0, 1, 2], **change), base)
    assert not torch.equal(model.sample([0, 1, 3])[2], base[2])
    per_label = model.sample([0, 1, 2], scale=torch.tensor([2.0, 0.5, 2.0]))
    assert (per_label - base).abs().amax((1, 2, 3)).gt(1e-4).tolist() == [False, True, False]
    unconditional = model.sample([0, 1, 2], scale=0.0)
    assert (model.sample([5, 6, 7], scale=0.0) - unconditional).abs().max() < 1e-5


def test_the_command_line_samples_what_python_samples(finished, tmp_path):
    out = tmp_path / "new" / "grid.png"
    options = "--labels 3 1 --count 2 --scale 1.5 --steps 2 --eta 0.25 --seed 5 --weights model --device cpu".split()
    assert main(["sample", str(finished[0]), *options, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    stored = np.load(out.with_suffix(".npz"))
    model = load(finished[0], weights="model", device=CPU)
    expected = model.sample([3, 1, 3, 1], scale=1.5, steps=2, eta=0.25, seed=5)
    assert np.array_equal(stored["images"], expected.numpy())
    assert (stored["labels"].tolist(), float(stored["scale"]), int(stored["seed"])) == ([3, 1, 3, 1], 1.5, 5)


def test_the_command_line_s_defaults_are_the_recipe_s(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(checkpoint(finished[0], 6)), "--device", "cpu"]) == 0
    stored = np.load("samples.npz")
    assert stored["labels"].tolist() == list(range(10)) and float(stored["scale"]) == TINY.scale
    assert np.array_equal(stored["images"], load(finished[0], device=CPU).sample(range(10)).numpy())


def test_a_negative_scale_is_said_to_be_unusual_and_drawn(finished, tmp_path, capsys):
    for scale, warned in (("-1.5", True), ("0", False)):
        out = tmp_path / f"{scale}.png"
        words = ["sample", str(finished[0]), "--labels", "3", "--scale", scale, "--device", "cpu", "--out", str(out)]
        assert main(words) == 0
        error = capsys.readouterr().err
        assert ("a guidance scale below 0 is unusual: -1.5 leads away from the class" in error) == warned
        assert float(np.load(out.with_suffix(".npz"))["scale"]) == float(scale)


def test_what_comes_next_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys, no_picture):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *SMALL, "--out", "my runs/one", "--device", "cpu"]) == 0
    (_, *sample), (_, *resume) = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert shlex.join(sample[:3]) == shlex.join(resume[:3]) == command()
    assert main([*sample[3:], "--device", "cpu"]) == 0
    assert np.load("my runs/one/grid-6.npz")["labels"].tolist() == [0, 1, 2] * 8
    assert main([*resume[3:], "--device", "cpu"]) == 0
    assert checkpoint(Path("my runs/one"), 12).exists()


def test_list_names_every_recipe(capsys):
    assert main(["list"]) == 0
    assert "digits" in capsys.readouterr().out


def test_a_finished_run_says_so_and_how_to_train_on_and_nothing_is_written(finished, monkeypatch, capsys):
    folder = finished[0]
    monkeypatch.setattr(runs, "load_data", lambda recipe: 1 / 0)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    for changes in ([], ["steps=6"]):
        assert main(["resume", str(folder), *changes, "--device", "cpu"]) == 0
        said = capsys.readouterr().out
        assert f"{folder} is finished: it has done its 6 steps, and nothing was written" in said
        assert said.splitlines()[-1] == command("resume", folder, "steps=12")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before


@pytest.mark.parametrize("lost", ["samples", "last", "changed"])
def test_a_run_that_lacks_something_is_not_finished(finished, tmp_path, monkeypatch, capsys, no_picture, lost):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    if lost == "samples":
        (folder / "samples.png").unlink()
    elif lost == "last":
        checkpoint(folder, 6).write_bytes(b"damaged")
    assert main(["resume", str(folder), *(["scale=3"] if lost == "changed" else []), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"resuming {folder}\n") and "is finished" not in said
    assert load(folder, device=CPU).recipe.steps == 6 and load_checkpoint(checkpoint(folder, 6))[1]["step"] == 6


def test_a_run_is_never_overwritten(finished, capsys):
    folder, _ = finished
    before = contents(folder)
    assert main(["train", "digits", *SMALL, "--out", str(folder), "--device", "cpu"]) == 1
    assert f"{folder} exists, and a run is never overwritten" in capsys.readouterr().err
    assert contents(folder) == before


def test_without_a_name_a_run_goes_to_the_next_free_folder(tmp_path, monkeypatch):
    def run(recipe, folder, device):
        checkpoint(folder, 1).parent.mkdir(parents=True)
        checkpoint(folder, 1).touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm_lib.__main__.run", run)
    for _ in range(3):
        assert main(["train", "digits"]) == 0
    chosen = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert chosen == ["digits", "digits-2", "digits-3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "didgits"], "error: unknown recipe 'didgits' (did you mean digits?); there are: digits"),
        (
            ["train", "digits", "stepps=3"],
            "error: unknown field 'stepps' (did you mean steps=3?); a recipe has: ",
        ),
        (["train", "digits", "steps=few"], "error: field steps expects a whole number, got 'few'"),
        (["train", "digits", "head_channels=3"], "error: heads of 3 channels do not divide"),
        (["train", "digits", "size=16", "attention=8"], "error: expected images of shape (N, 1, 16, 16), got"),
        (["train", "digits", "classes=9"], "error: expected labels in 0..8, got 9"),
        (["sample", "nowhere"], "there is no nowhere; the book ships: digits, fashion"),
        (["sample", "RUN", "--labels", "10"], "error: expected labels in 0..9, got 10"),
        (["sample", "RUN", "--steps", "1001"], "error: steps must lie in 1..1000"),
        (["sample", "RUN", "--eta", "2"], "error: eta must lie in [0, 1]"),
    ],
)
def test_a_problem_is_one_line_and_exit_status_1(finished, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main([str(finished[0]) if word == "RUN" else word for word in arguments]) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize(
    "change",
    [
        "label_dropout=2",
        "eta=2",
        "sample_steps=1001",
        "ema_decays=1",
        "batch=0",
        "scale=nan",
        "width=9",
        "save_every=1",
        "ema_decays=",
    ],
)
def test_what_cannot_work_is_refused_before_the_training_and_not_after_it(tmp_path, capsys, change):
    folder = tmp_path / "refused"
    assert main(["train", "digits", *SMALL, change, "--out", str(folder), "--device", "cpu"]) == 1
    assert "error: " in capsys.readouterr().err
    assert not folder.exists()


def test_a_damaged_checkpoint_is_one_line_and_exit_status_1(finished, tmp_path, capsys):
    whole, damaged = checkpoint(finished[0], 6).read_bytes(), checkpoint(tmp_path, 6)
    damaged.parent.mkdir()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        assert main(["sample", str(tmp_path), "--device", "cpu"]) == 1
        assert f"error: {damaged} is truncated or not" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", *(f'{{"{name}": {value}}}' for name, value in BAD)])
def test_a_damaged_recipe_is_one_line_that_names_the_file(finished, tmp_path, capsys, text):
    stored = json.loads((finished[0] / "recipe.json").read_text())
    if text.startswith('{"'):
        text = json.dumps(stored | json.loads(text))
    (tmp_path / "recipe.json").write_text(text, encoding="latin-1")
    assert main(["resume", str(tmp_path), "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'recipe.json'}: ")


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    tensors, about = load_checkpoint(checkpoint(finished[0], 6))
    about["recipe"]["width"] = 16
    save_checkpoint(tmp_path / "wider", tensors, about)
    with pytest.raises(ValueError, match=r"wider holds another architecture: for .* the network expects"):
        load(tmp_path / "wider")


def dropping(at, act):
    """Label dropout that does something in one step."""
    calls, drop = [], assemble.drop_labels

    def drop_labels(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            act()
        return drop(*arguments)

    return drop_labels


def test_ctrl_c_saves_the_last_step_and_exits_with_130(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assemble, "drop_labels", dropping(at=4, act=lambda: os.kill(os.getpid(), signal.SIGINT)))
    folder = tmp_path / "stopped"
    fields = [*SMALL, "steps=1000", "save_every=1000"]
    assert main(["train", "digits", *fields, "--out", str(folder), "--device", "cpu"]) == 130
    said = f"after step 4 of 1000; the last checkpoint is {checkpoint(folder, 4)}; go on with {command('resume')}"
    assert said in capsys.readouterr().err
    assert load_checkpoint(checkpoint(folder, 4))[1]["step"] == 4
    assert load(folder, device=CPU).sample([0]).isfinite().all()
    assert not list(folder.rglob(".*partial"))


def test_training_that_explodes_at_once_exits_with_1_and_saves_nothing(tmp_path, capsys):
    folder = tmp_path / "exploded"
    assert main(["train", "digits", *SMALL, "learning_rate=1e30", "--out", str(folder), "--device", "cpu"]) == 1
    assert "error: expected a finite loss and gradient; at step 2 " in capsys.readouterr().err
    assert contents(folder).keys() == {"recipe.json", ".lock"}


# A rate that explodes after four steps is seen in a loss; one after five only in the weights, which no loss has met.
@pytest.mark.parametrize(
    ("good", "said"), [(4, "Nothing was saved since step 3"), (5, "holds NaN or infinity: not saved")]
)
def test_training_that_explodes_later_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, good, said):
    monkeypatch.setitem(COURSES, "linear", lambda *course: lambda done: 1.0 if done < good else 1e45)
    with pytest.raises(FloatingPointError, match=said):
        train_in_python(tmp_path / "exploded")
    assert load_checkpoint(checkpoint(tmp_path / "exploded", 3))[1]["step"] == 3
    assert load(tmp_path / "exploded", device=CPU).sample([0]).isfinite().all()


def test_a_checkpoint_is_saved_in_every_stretch_of_save_every_steps(tmp_path, monkeypatch, no_picture):
    steps = []
    monkeypatch.setattr(runs, "save", lambda trainer, *others: steps.append(trainer.steps))
    train_in_python(tmp_path / "run", ["steps=12", "log_every=2", "save_every=5"])
    assert steps == [6, 10, 12]
