"""A run that is killed with SIGKILL, in the middle of a step or of saving, and resumed, ends as if nothing had been.

The runs are forked from the process of the test, which has imported everything, so a kill costs the run alone.
`make soak` kills at fifty moments of a clock; here three kills come at three chosen places.
"""

import json
import os
import random
import signal
import time
import traceback
from contextlib import suppress

import pytest
import torch

from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.training import checkpoint
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_lib.training.ema import EMA

FIELDS = "width=8 multipliers=1 blocks=1 groups=4 attention=8 head_channels=8 batch=8 warmup=5 dropout=0.2"
FIELDS += " ema_decays=0.9,0.99 flip=true log_every=1 save_every=2 keep=2 sample_steps=2"
RECIPE = override(recipe("digits"), FIELDS.split())
CPU = torch.device("cpu")


def attempt(folder, fields):
    """Train or resume to the end."""
    if folder.exists():
        runs.resume(folder, device=CPU, progress=False)
    else:
        runs.run(override(RECIPE, fields), folder, device=CPU, progress=False)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, at, before=True):
    """`function`, whose call number `at` kills the process, before its work or after it."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(None)
        if len(calls) == at and before:
            die()
        result = function(*arguments, **options)
        if len(calls) == at:
            die()
        return result

    return wrapped


def half_written(write, at):
    """write_atomically that, the `at`-th time, gets half of its file onto the disk and dies."""

    def half(path, content):
        half.calls += 1
        if half.calls == at:
            path.with_name(f".{path.name}.{os.getpid()}.partial").write_bytes(content[: len(content) // 2])
            die()
        write(path, content)

    half.calls = 0
    return half


def in_a_step():
    EMA.update = dying(EMA.update, at=11)  # two averages a step: between the two of step 6


def while_writing():
    checkpoint.write_atomically = half_written(checkpoint.write_atomically, at=2)


def between_renaming_and_pruning():
    runs.prune = dying(runs.prune, at=2)


PLACES = [in_a_step, while_writing, between_renaming_and_pruning]


def fork(work, delay=None):
    """Run `work` in a forked child, killed after `delay` seconds if it is still there; True if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "a child failed"
    return False


@pytest.fixture
def killed_and_whole(tmp_path, monkeypatch):
    """A function that trains two runs, one of them killed again and again, and returns what each kill left behind."""

    def runs_of(fields, kills=0, seed=0):  # kills = 0: one at each of the chosen places
        began = time.perf_counter()
        fork(lambda: attempt(tmp_path / "whole", fields))
        whole = time.perf_counter() - began
        found, killed, clock = [], tmp_path / "killed", random.Random(seed)
        for kill in range(kills or len(PLACES)):
            if kills:
                died = fork(lambda: attempt(killed, fields), delay=whole * (0.01 + 1.2 * clock.random() / kills))
            else:
                died = fork(lambda place=PLACES[kill]: (place(), attempt(killed, fields)))
            places = killed, killed / CHECKPOINTS
            partial = sum(len(list(place.glob(".*.partial"))) for place in places)
            steps = [load_checkpoint(path)[1]["step"] for path in list_checkpoints(killed / CHECKPOINTS)]
            found.append({"died": died, "partial": partial, "steps": steps})
        fork(lambda: attempt(killed, fields))
        return found

    for picture in ("curves", "sample_grid"):  # they take longer than the rest
        monkeypatch.setattr(runs, picture, lambda *arguments, **options: b"no picture")
    monkeypatch.setattr(runs.plot, "save", lambda picture, path: path.write_bytes(picture))
    runs.new_trainer(RECIPE, runs.load_data(RECIPE)[0], CPU)  # imports what every child would have to import
    return runs_of


def same_end(folder, steps):
    """The killed run has the files, the log and, bit for bit, the last checkpoint of the one that was left alone."""
    killed, whole = (list_checkpoints(folder / name / CHECKPOINTS) for name in ("killed", "whole"))
    assert [path.name for path in killed] == [path.name for path in whole]
    (tensors, about), (expected, said) = load_checkpoint(killed[-1]), load_checkpoint(whole[-1])
    assert about == said and about["step"] == steps
    assert tensors.keys() == expected.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], expected[name])]
    logs = [
        [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    for entry in (entry for log in logs for entry in log):
        del entry["images_per_s"], entry["memory_gb"]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == list(range(1, steps + 1)), "a step is missing or came twice"
    assert (folder / "killed" / "samples.png").exists()
    assert not list((folder / "killed").rglob("*.partial"))


def test_three_kills_in_a_step_while_writing_and_before_pruning_leave_no_trace(killed_and_whole, tmp_path):
    found = killed_and_whole(["steps=12"])
    assert all(kill["died"] for kill in found)
    assert [kill["partial"] for kill in found] == [0, 1, 0]
    # steps 2 and 4 were saved; then 6, and half of 8; then 8 and 10, and nothing was removed after that
    assert [kill["steps"][-1] for kill in found] == [4, 6, 10]
    same_end(tmp_path, steps=12)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_kills_at_any_moment_leave_no_trace(killed_and_whole, tmp_path, seed):
    found = killed_and_whole(["steps=400", "save_every=1"], kills=50, seed=seed)
    assert sum(kill["died"] for kill in found) >= 45, "it was finished before the kills were"
    assert any(kill["partial"] for kill in found), "no kill fell into saving"
    ends = [kill["steps"][-1] for kill in found if kill["steps"]]
    assert ends == sorted(ends), "a checkpoint was lost"
    same_end(tmp_path, steps=400)
