"""Runs that were stopped and resumed: where they end, what they keep, what they refuse."""

import dataclasses
import json
import os
import signal
import weakref
from pathlib import Path

import pytest
import torch
from small_data import made_up

from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS, load
from ddpm_lib.runs.recipes import DATA, override, recipe
from ddpm_lib.runs.run import CHANGEABLE, resume, run
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint, step_path
from ddpm_lib.training.loop import linear_rate
from ddpm_lib.training.trainer import Trainer

CPU = torch.device("cpu")
TINY = override(
    recipe("digits"),
    "data=mnist size=4 classes=3 width=4 multipliers=1 blocks=1 groups=2 attention= head_channels=0 dropout=0.3 "
    "flip=true batch=4 steps=8 warmup=2 ema_decays=0.9,0.2 log_every=1 save_every=2 keep=9 sample_steps=2 T=50".split(),
)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Made-up data, and no pictures, which take longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "mnist", made_up)
        patch.setattr(runs, "sample_grid", lambda model, **options: None)
        patch.setattr(runs, "curves", lambda history: None)
        patch.setattr(runs.plot, "save", lambda figure, path: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(TINY, folder, device=CPU, progress=False)
    return folder


def stopped(folder, at, how=signal.SIGINT, chosen=TINY, taken=None):
    """Run or resume until Ctrl-C, or an error, comes in step `at`."""
    take = Trainer.step

    def step(trainer):
        if trainer.steps + 1 == at:
            if how == "error":
                raise RuntimeError("the machine broke")
            os.kill(os.getpid(), how)
        done = take(trainer)
        if taken is not None:
            taken.append(trainer.steps)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        try:
            if folder.exists():
                resume(folder, device=CPU, progress=False)
            else:
                run(chosen, folder, device=CPU, progress=False)
        except (KeyboardInterrupt, RuntimeError):
            return


def go_on(folder, changes=()):
    return resume(folder, changes, device=CPU, progress=False)


def log(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("images_per_s", "memory_gb")} for entry in entries]


def saved(folder):
    return [load_checkpoint(path, ())[1]["step"] for path in list_checkpoints(folder / CHECKPOINTS)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_end(folder, whole):
    (tensors, about), (expected, said) = (
        load_checkpoint(list_checkpoints(f / CHECKPOINTS)[-1]) for f in (folder, whole)
    )
    assert about == said and tensors.keys() == expected.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], expected[name])]
    assert log(folder) == log(whole)
    assert json.loads((folder / "recipe.json").read_text()) == json.loads((whole / "recipe.json").read_text())


@pytest.mark.parametrize("stops", [(1,), (3,), (4,), (8,), (2, 3, 7)])
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(whole, tmp_path, stops):
    folder, taken = tmp_path / "run", []
    for at in stops:
        stopped(folder, at, taken=taken)
        assert saved(folder)[-1] == at
    stopped(folder, at=None, taken=taken)
    same_end(folder, whole)
    assert taken == list(range(1, 9)), "a step was repeated or left out"
    assert saved(folder) == sorted({2, 4, 6, 8, *stops})


def test_what_a_crash_took_back_comes_again_and_stands_in_the_log_once(whole, tmp_path):
    stopped(tmp_path / "run", 6, "error")
    assert [entry["step"] for entry in log(tmp_path / "run")] == [1, 2, 3, 4, 5] and saved(tmp_path / "run") == [2, 4]
    with open(tmp_path / "run" / "log.jsonl", "a") as unfinished:
        unfinished.write('{"step": 6, "lo')
    taken = []
    stopped(tmp_path / "run", at=None, taken=taken)
    assert taken == [5, 6, 7, 8]
    same_end(tmp_path / "run", whole)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(whole, tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 2, "error")
    (folder / CHECKPOINTS).mkdir()
    for place in (folder, folder / CHECKPOINTS):
        (place / ".step-00000002.safetensors.77.partial").write_bytes(b"half of i")
    assert len(log(folder)) == 1 and saved(folder) == []
    go_on(folder)
    same_end(folder, whole)
    assert not list(folder.rglob("*.partial"))


def test_at_no_moment_is_there_a_run_without_its_recipe(tmp_path, monkeypatch):
    folder, seen = tmp_path / "deep" / "run", []

    def watched(act):
        def then_look(path, *arguments, **options):
            act(path, *arguments, **options)
            if folder.exists():
                seen.append((folder / "recipe.json").is_file())

        return then_look

    for name in ("mkdir", "rename", "write_bytes"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    stopped(folder, 1, "error")
    assert seen and all(seen)
    assert list(folder.parent.iterdir()) == [folder]


def test_no_checkpoint_is_ever_written_again(tmp_path):
    folder = tmp_path / "run"

    def files():
        paths = list_checkpoints(folder / CHECKPOINTS)
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    stopped(folder, 3)
    first = files()
    stopped(folder, 4)  # the very next step, at which a checkpoint is due as well
    second = files()
    go_on(folder)
    go_on(folder)
    last = files()
    assert len(first) == 2 and len(second) == 3 and len(last) == 5
    assert first.items() <= second.items() and second.items() <= last.items()


def test_resuming_a_finished_run_changes_nothing(whole):
    before = contents(whole)
    model = go_on(whole)
    assert contents(whole) == before
    weights = load(whole, device=CPU).network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.network.state_dict().items())


def test_more_steps_are_the_steps_of_a_longer_run(tmp_path):
    level = dataclasses.replace(TINY, final_rate=1.0)  # a rate that does not depend on where the run ends
    run(dataclasses.replace(level, steps=11), tmp_path / "long", device=CPU, progress=False)
    run(level, tmp_path / "short", device=CPU, progress=False)
    go_on(tmp_path / "short", ["steps=11"])
    same_end(tmp_path / "short", tmp_path / "long")


def test_with_more_steps_the_rate_follows_the_new_course(whole, tmp_path):
    stopped(tmp_path / "run", 8)
    go_on(tmp_path / "run", ["steps=12"])
    rates = [entry["learning_rate"] for entry in log(tmp_path / "run")]
    old, new = (linear_rate(2, end) for end in (8, 12))
    expected = [old(done) for done in range(8)] + [new(done) for done in range(8, 12)]
    assert rates == pytest.approx([TINY.learning_rate * rate for rate in expected])


@pytest.mark.parametrize(
    "change",
    "learning_rate=0.1 batch=5 seed=1 width=8 T=60 classes=0 flip=false ema_decays=0.9 warmup=3 final_rate=0.5 "
    "weight_decay=0.1 clip_norm=2 label_dropout=0.2 dropout=0 name=it".split(),
)
def test_what_decides_the_steps_already_done_cannot_change(whole, change):
    before = contents(whole)
    with pytest.raises(ValueError, match=f"^{change.split('=')[0]} decides the steps already done .*; steps, root, "):
        go_on(whole, [change])
    assert contents(whole) == before


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_a_resumed_run_keeps_nothing_of_the_checkpoint_that_it_came_from(tmp_path, monkeypatch):
    folder, read, loaded, seen = tmp_path / "run", runs.load_checkpoint, [], []
    stopped(folder, 5)

    def watched(path):
        tensors, about = read(path)
        loaded.extend(weakref.ref(tensor) for tensor in tensors.values())
        return tensors, about

    def metric(model):
        maps = Path("/proc/self/maps").read_text()
        files = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()}
        seen.append(CHECKPOINTS in maps or any(CHECKPOINTS in name for name in files))
        alive = sum(ref() is not None for ref in loaded)
        seen.append(alive)
        return 0.0

    monkeypatch.setattr(runs, "load_checkpoint", watched)
    resume(folder, device=CPU, progress=False, metric=metric)
    assert len(loaded) > 50 and seen == [False, 0] * 2  # neither the file nor a copy in memory


def test_what_does_not_decide_them_can_and_is_remembered(whole, tmp_path):
    stopped(tmp_path / "run", 8)
    changes = {"steps": 8, "root": "elsewhere", "workers": 0, "log_every": 2, "save_every": 3, "keep": 1}
    changes |= {
        "sample_every": 5,
        "sample_steps": 3,
        "eta": 0.25,
        "scale": 1.5,
        "memory_budget_gb": 0.5,
        "accumulate": 2,
    }
    changes |= {"channels_last": "yes", "compile": "no"}
    assert set(changes) == set(CHANGEABLE)
    model = go_on(tmp_path / "run", [f"{name}={value}" for name, value in changes.items()])
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert {name: stored[name] for name in changes} == changes
    assert model.recipe == dataclasses.replace(TINY, **changes)


def test_fewer_steps_than_are_done_are_refused(whole):
    before = contents(whole)
    with pytest.raises(ValueError, match="has done 8 steps: steps must be at least that, got 5"):
        go_on(whole, ["steps=5"])
    assert contents(whole) == before


@pytest.mark.parametrize("there", [True, False])
def test_where_there_is_no_run_there_is_nothing_to_resume(tmp_path, there):
    if there:
        (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected a run in .*run; there is no recipe\.json"):
        go_on(tmp_path / "run")
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"] * there


@pytest.mark.parametrize("damaged", [(8,), (6, 8), (2, 4, 6, 8)])
def test_damaged_checkpoints_are_set_aside_and_the_run_goes_on_before_them(whole, tmp_path, capsys, damaged):
    folder = tmp_path / "run"
    run(TINY, folder, device=CPU, progress=False)
    capsys.readouterr()
    halves = {}
    for step in damaged:
        path = step_path(folder / CHECKPOINTS, step)
        halves[path] = path.read_bytes()[: -step * 100]
        path.write_bytes(halves[path])
    taken = []
    stopped(folder, at=None, taken=taken)
    assert taken == list(range(min(damaged) - 1, 9))
    same_end(folder, whole)
    said = capsys.readouterr().err
    for path, half in halves.items():
        assert path.with_suffix(".damaged").read_bytes() == half
        assert f"{path} is truncated" in said and "going back to the one before it" in said


def test_an_older_checkpoint_that_is_damaged_does_not_stop_the_run(whole, tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 5)
    step_path(folder / CHECKPOINTS, 2).write_bytes(b"")
    go_on(folder)
    same_end(folder, whole)
    assert load(folder, which="best", device=CPU).network is not None


def test_a_metric_that_fails_costs_no_weights(tmp_path):
    def metric(model):
        raise RuntimeError("no statistics of the real images")

    with pytest.raises(RuntimeError, match="no statistics"):
        run(TINY, tmp_path / "run", device=CPU, metric=metric, progress=False)
    assert saved(tmp_path / "run") == [2]
    go_on(tmp_path / "run")
    assert saved(tmp_path / "run") == [2, 4, 6, 8]
