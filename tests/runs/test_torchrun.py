"""`train` and `resume` by several processes: one folder, one voice, and nobody waits for one that is dead."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from small_data import made_up

from ddpm_lib.__main__ import main
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import DATA
from ddpm_lib.training import distributed
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_lib.training.trainer import Trainer

TINY = (
    "size=4 classes=3 width=4 multipliers=1 blocks=1 groups=2 attention= head_channels=0 dropout=0 flip=true batch=4 "
)
TINY += "steps=6 warmup=2 ema_decays=0.9,0.2 log_every=1 save_every=2 keep=9 sample_steps=2 T=50 precision=float32 "
TINY = (TINY + "channels_last=no compile=no timestep_sampler=second-moment").split()


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Made-up data, no pictures, which take longer than the training, and no long wait for who speaks first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "mnist", made_up)
        patch.setattr(runs, "sample_grid", lambda model, **options: None)
        patch.setattr(runs, "curves", lambda history: None)
        patch.setattr(runs.plot, "save", lambda figure, path: path.write_bytes(b""))
        patch.setattr(distributed, "GRACE", 0.3)
        yield


@pytest.fixture
def command(together):
    """A function that runs the command line in two processes; in step `at`, one of them is sent a signal."""

    def run(*words, sent=None, at=None, to=1, processes=2, after=lambda: None):
        def work(rank):
            take = Trainer.step

            def step(trainer):
                if rank == to and trainer.steps + 1 == at:
                    os.kill(os.getpid(), sent)
                return take(trainer)

            Trainer.step = step
            code = main([*map(str, words), "--device", "cpu"])
            after()
            raise SystemExit(code)

        return together(work, processes)

    return run


def train(folder, *more):
    return ["train", "mnist", "--out", folder, *TINY, *more]


def last(folder):
    return load_checkpoint(list_checkpoints(folder / CHECKPOINTS)[-1])


def differ(one, other):
    """The largest difference of what two checkpoints hold, all generators but dropout's with it."""
    (a, said), (b, says) = last(one), last(other)
    assert a.keys() == b.keys() and said["step"] == says["step"]
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if name != "random.torch")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*map(str, train(folder)), "--device", "cpu"]) == 0
    return folder


def test_two_processes_train_the_model_of_one_and_go_on_as_one_and_as_two(command, alone, tmp_path):
    ends, (first, second) = command(*train(tmp_path / "run", "steps=2"))
    assert ends == [0, 0], first.err + second.err
    assert "training mnist for 2 steps" in first.out and "next " in first.out
    assert (second.out, second.err) == ("", "")
    assert main(["resume", str(tmp_path / "run"), "steps=4", "--device", "cpu"]) == 0
    ends, (first, second) = command("resume", tmp_path / "run", "steps=6")
    assert ends == [0, 0], first.err + second.err
    assert (second.out, second.err) == ("", "")
    assert differ(alone, tmp_path / "run") < 1e-4
    log, other = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (alone, tmp_path / "run")
    )
    for entry, same in zip(log, other, strict=True):
        assert same["loss"] == pytest.approx(entry["loss"], rel=1e-4)
        for mean, other_mean in zip(entry["loss_by_t"], same["loss_by_t"], strict=True):
            assert (mean is None) == (other_mean is None)
            assert mean is None or other_mean == pytest.approx(mean, rel=1e-3)
    assert {path.name for path in alone.rglob("*")} == {path.name for path in (tmp_path / "run").rglob("*")}


@pytest.mark.parametrize("to", [0, 1])
def test_a_stop_at_any_process_stops_both_saves_and_the_resumed_run_is_as_if_nothing_had_been(
    command, tmp_path, to, monkeypatch
):
    save = runs.save

    def slow(trainer, *of):
        time.sleep(trainer.steps == 3)  # at the stop: longer than it takes to leave
        save(trainer, *of)

    monkeypatch.setattr(runs, "save", slow)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    if to == 1:  # once is enough
        assert command(*train(whole, "dropout=0.3"))[0] == [0, 0]
    ends, outcomes = command(
        *train(stopped, "dropout=0.3"), sent=signal.SIGTERM, at=3, to=to, after=lambda: print(last(stopped)[1]["step"])
    )
    assert [outcome.out.split()[-1] for outcome in outcomes] == ["3", "3"]  # who leaves before it is saved ends both
    assert ends == [130, 130], outcomes[0].err + outcomes[1].err
    assert last(stopped)[1]["step"] == 3
    said = outcomes[0].err + outcomes[1].err
    assert said.count("stopped after step 3 of 6; the last checkpoint is") == 1 and "step-00000003" in said
    if to == 1:
        assert command("resume", stopped)[0] == [0, 0]
        assert differ(whole, stopped) == 0


def test_one_that_is_killed_ends_the_other_with_an_error(command, tmp_path):
    ends, (first, _) = command(*train(tmp_path / "run"), sent=signal.SIGKILL, at=4)
    assert ends == [1, -signal.SIGKILL]
    assert first.err.count("error:") == 1 and "the last checkpoint is" in first.err and "step-00000002" in first.err


def test_what_the_first_finds_wrong_is_said_once_and_ends_both(command, alone):
    ends, outcomes = command(*train(alone))
    assert ends == [1, 1]
    said = "".join(outcome.err for outcome in outcomes)
    assert said.count("error:") == 1 and "exists, and a run is never overwritten" in said


def test_what_all_find_wrong_is_said_once(command, tmp_path):
    ends, outcomes = command(*train(tmp_path / "run", "batch=5"))
    assert ends == [1, 1] and not (tmp_path / "run").exists()
    said = "".join(outcome.err for outcome in outcomes)
    assert said.count("error:") == 1 and "a batch of 5 cannot be shared equally by 2 processes" in said


def test_a_finished_run_is_left_alone_by_both(command, alone):
    ends, (first, second) = command("resume", alone)
    assert ends == [0, 0] and "is finished" in first.out and (second.out, second.err) == ("", "")


def test_other_commands_are_for_one_process(monkeypatch, capsys, alone):
    for name in distributed.LAUNCHED:
        monkeypatch.setenv(name, "0")
    assert main(["sample", str(alone)]) == 1
    assert "sample needs one process alone" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(["sample", str(alone)]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.soak
def test_torchrun_itself(tmp_path):
    """The command of the README, stopped by Ctrl-C and resumed."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ddpm_lib"]
    small = "width=8 groups=4 head_channels=8 batch=32 steps=400 log_every=10 save_every=10".split()
    folder = tmp_path / "run"
    running = subprocess.Popen([*words, "train", "digits", "--out", folder, *small], stderr=subprocess.PIPE, text=True)
    while not list_checkpoints(folder / CHECKPOINTS):
        assert running.poll() is None, running.stderr.read()
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    done = last(folder)[1]["step"]
    assert said.count(f"stopped after step {done} of 400") == 1, said
    ended = subprocess.run([*words, "resume", folder, f"steps={done + 20}"], capture_output=True, text=True)
    assert ended.returncode == 0 and last(folder)[1]["step"] == done + 20, ended.stderr
    assert re.search(r"^samples ", ended.stdout, re.M)
